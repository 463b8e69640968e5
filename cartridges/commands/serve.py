"""`cartridges serve`: an OpenAI-compatible server, on the engine of this process or on stock vLLM."""

import json
import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.errors import CartridgesError, InputError

if TYPE_CHECKING:
    from cartridges.model import Model
    from cartridges.serving.settings import Keys, ServeConfig

API_KEY, ADMIN_KEY = "CARTRIDGES_API_KEY", "CARTRIDGES_ADMIN_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.argument("cartridges", nargs=-1, metavar="[[NAME=]CARTRIDGE]... [KEY=VALUE]... [-- VLLM ARGUMENTS]")
@click.option("--adapter", type=click.Path(path_type=Path), multiple=True, help="Serve the model with it merged in.")
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of the cartridges by default.")
@click.option("--slots", type=int, help="Which size, where a build made several.")
@click.option("--host", help="Address to listen at; 127.0.0.1 by default, which only this machine reaches.")
@click.option("--port", type=click.IntRange(0, 65535), help="8000 by default; 0 takes a free one.")
@click.option("--engine", type=click.Choice(["own", "vllm"]), default="own", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--api-key-file", type=click.Path(path_type=Path), help=f"Keys of clients, one a line; or {API_KEY}.")
@click.option("--admin-key-file", type=click.Path(path_type=Path), help=f"Keys for changes; or {ADMIN_KEY}.")
@click.option("--allow", type=click.Path(path_type=Path), multiple=True, help="Folder to add cartridges from.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML of configuration fields.")
def command(
    cartridges: tuple[str, ...],
    adapter: tuple[Path, ...],
    model: str | None,
    slots: int | None,
    host: str | None,
    port: int | None,
    engine: str,
    device: str,
    api_key_file: Path | None,
    admin_key_file: Path | None,
    allow: tuple[Path, ...],
    config_file: Path | None,
) -> int | None:
    """Serve CARTRIDGES (folders of cartridges or builds) under their names, and their model without any.

    A request chooses by the model's name: a cartridge's, "a+b" for several at once, or the model's own. KEY=VALUE sets
    a limit, such as max_replies=64.
    """
    from cartridges.serving.settings import Keys, ServeConfig, read_keys

    arguments, extra = split_extra(cartridges)
    overrides = [text for text in arguments if text.partition("=")[0] in ServeConfig.model_fields and "=" in text]
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    config = ServeConfig.resolve(None, config_file, overrides, given)
    folders = named_folders([text for text in arguments if text not in overrides], slots)
    keys = Keys(read_keys(api_key_file, os.environ.get(API_KEY)), read_keys(admin_key_file, os.environ.get(ADMIN_KEY)))
    roots = [folder.resolve() for folder in allow]
    for folder in roots:
        if not folder.is_dir():
            raise InputError(f"given --allow {folder}, expected a folder")
    if folders and adapter:
        raise InputError(f"given --adapter {adapter[0]} and cartridges, which fit the model alone; serve them apart")
    if not folders and model is None and not adapter:
        raise InputError("given nothing to serve, expected a cartridge's folder, or --model NAME")
    if config.host not in LOOPBACK and not keys.api:
        click.echo(f"warning: {config.host} is reached from elsewhere and no --api-key-file is given", err=True)
    if engine == "vllm":
        from cartridges.serving.launch import serve_vllm

        check_for_vllm(config, keys, device, roots if adapter else [])
        if adapter:
            return serve_lora(adapter, model, config.host, config.port, extra, keys.api)
        return serve_vllm(model or _model_of(folders), folders, config.host, config.port, extra, roots, keys.api)
    if extra:
        raise InputError(f"given {' '.join(extra)!r} behind --, which is for --engine vllm")
    _check_fit(folders)
    _serve_own(folders, adapter, model, device, config, keys, roots)
    return None


def check_for_vllm(config: "ServeConfig", keys: "Keys", device: str, roots: Sequence[Path]) -> None:
    """Raises InputError for what vLLM is not told of: limits, the admin key, the device, --allow beside adapters."""
    usual = type(config).resolve()
    given = [f"{name}=..." for name in type(config).model_fields if name not in ("host", "port")]
    given = [text for text in given if getattr(config, text[:-4]) != getattr(usual, text[:-4])]
    given += ["--admin-key-file"] * bool(keys.admin) + ["--device"] * (device != "auto") + ["--allow"] * bool(roots)
    if given:
        raise InputError(
            f"given {', '.join(given)}, of which stock vLLM knows nothing; leave it out, or give vLLM's own options "
            "behind --"
        )


def serve_lora(
    folders: Sequence[Path], model: str | None, host: str, port: int, extra: Sequence[str], api_keys: Sequence[str]
) -> int:
    """Stock vLLM with the adapters as one LoRA, under their name. Raises InputError for one with output biases.

    It has the rank of the adapters, or the highest that vLLM takes; what that cuts off is printed.
    """
    from cartridges.adapter import ThoughtAdapter, combined
    from cartridges.lora import export_lora
    from cartridges.model import load_for
    from cartridges.serving.launch import LORA_RANKS, lora_arguments, serve_vllm

    adapter = combined([ThoughtAdapter.load(folder) for folder in folders])
    used = load_for(adapter.manifest.model, model, "cpu")
    with tempfile.TemporaryDirectory(prefix="lora-") as folder:
        report = export_lora(adapter, used, Path(folder), max_rank=LORA_RANKS[-1])
        if report.largest_error >= 1e-4:
            click.echo(
                f"note: vLLM takes LoRAs up to rank {report.rank}; this cuts off up to {report.largest_error:.2%} of a "
                "delta's norm",
                err=True,
            )
        arguments = lora_arguments(adapter_name(folders, adapter.manifest.name), Path(folder), report)
        source = model or adapter.manifest.model.model_id
        del used, adapter  # as large as the model, which vLLM loads for itself
        return serve_vllm(source, [], host, port, [*arguments, *extra], api_keys=api_keys)


def adapter_name(folders: Sequence[Path], name: str) -> str:
    """What the adapted model is called: the adapters' own name, or that of their folders.

    Raises InputError for one that could not stand in a request or on vLLM's command line.
    """
    from cartridges.engine.shelf import check_name

    name = name or "+".join(name_of(folder) for folder in folders)
    for part in name.split("+"):
        check_name(part, "an adapter")
    return name


def split_extra(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for this command, and what stood behind `--`: from the first that starts with a dash on."""
    first = next((place for place, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def named_folders(arguments: Sequence[str], slots: int | None) -> list[tuple[str, Path]]:
    """The name and the folder of each cartridge. Raises InputError where there is none, or a name is taken twice."""
    from cartridges.engine.shelf import check_name
    from cartridges.find import find_cartridge

    found: list[tuple[str, Path]] = []
    for text in arguments:
        name, has_name, path = text.partition("=")
        if not has_name or Path(text).exists():
            name, path = "", text
        folder = find_cartridge(Path(path), slots)
        name = name or name_of(Path(path))
        check_name(name)
        if name in dict(found):
            raise InputError(f"given two cartridges called {name!r}, expected different names; give NAME=FOLDER")
        found.append((name, folder))
    return found


def name_of(path: Path) -> str:
    """That of the folder that the user would name: of the build, or else of what it holds."""
    whole = path.resolve()
    parts = [part for part in whole.parts if part != "cartridge" and not re.fullmatch(r"slots-\d+", part)]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1]).lstrip("._-")[:128]


def _model_of(folders: Sequence[tuple[str, Path]]) -> str:
    from cartridges.cartridge import Manifest

    return Manifest.read(folders[0][1]).model.model_id


def _check_fit(folders: Sequence[tuple[str, Path]]) -> None:
    """Raises FormatError where the cartridges are of different models, before any is loaded."""
    from cartridges.cartridge import Manifest, check_fits

    manifests = [Manifest.read(folder) for _, folder in folders]
    for manifest in manifests[1:]:
        check_fits(manifest, manifests[0].model)


def _with_adapters(adapters: Sequence[Path], model: str | None, device: str) -> "Model":
    from cartridges.commands.weights import Weights

    merged = Weights.load(adapters, model, device).merged
    called = adapter_name(adapters, merged.adapter.manifest.name)
    merged.model.identity = merged.model.identity.model_copy(update={"model_id": called})
    return merged.model


def _serve_own(
    folders: Sequence[tuple[str, Path]],
    adapters: Sequence[Path],
    model: str | None,
    device: str,
    config: "ServeConfig",
    keys: "Keys",
    roots: Sequence[Path],
) -> None:
    from cartridges.cartridge import Manifest

    try:
        from cartridges.serving.server import create_app, serve
    except ModuleNotFoundError as error:
        raise CartridgesError(
            f"serving needs the package {error.name!r}; in the checkout: pip install -e '.[serve]'"
        ) from error
    from cartridges.engine.engine import Engine
    from cartridges.model import POCKET, load_for, load_model

    def load() -> "Model":
        if adapters:
            return _with_adapters(adapters, model, device)
        return (
            load_for(Manifest.read(folders[0][1]).model, model, device)
            if folders
            else load_model(model or POCKET, device)
        )

    # In a thread that ends: one that lives on keeps its OpenMP pool, and two of them halve the engine's speed on a CPU.
    with ThreadPoolExecutor(1) as pool:
        used = pool.submit(load).result()
    engine = Engine(used, config.kv_tokens_total)
    for name, folder in folders:
        if name == used.identity.model_id:
            raise InputError(f"given a cartridge called {name!r}, like its model; give NAME=FOLDER")
        engine.shelf.add(name, folder)

    def ready(url: str) -> None:
        names = [name for name, _ in folders]
        served = f"{', '.join(names)} and {used.identity.model_id}" if names else used.identity.model_id
        asked = {"model": (names or [used.identity.model_id])[0], "messages": [{"role": "user", "content": "Hello"}]}
        key = " -H 'Authorization: Bearer KEY'" if keys.api else ""
        example = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d"
        click.echo(f"serving {served} at {url}/v1; try: {example} {shlex.quote(json.dumps(asked))}")

    serve(create_app(engine, config, keys, roots), config, ready)
