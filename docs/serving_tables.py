"""How fast answering is, from the result files of `benchmarks/serving*.py`.

A file that is not there is left out. The pictures carry a digest of the figures that they show, so that a check can
tell an old one without drawing it anew.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "results"
NAMES = ("serving_pocket", "serving_qwen3-0.6b")
CUDA_NAMES = ("serving_cuda_llama-3.1-8b", "serving_cuda_qwen3-4b")
VLLM = "serving_vllm"
OURS, PEFT, THEIRS = "engine", "generate + PEFT", "vLLM"
KINDS = {
    "full context": "a full context each",
    "cartridge each": "a cartridge each",
    "one cartridge": "one shared cartridge",
}
MARKS = {"full context": "o", "cartridge each": "s", "one cartridge": "^"}


def read(names: Sequence[str] = NAMES) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measurements of the engine that there are, by the names of their files."""
    for name in names:
        if (MEASURED / f"{name}.json").exists():
            yield name, json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def origin(result: dict[str, Any]) -> str:
    """Where figures come from."""
    known = result["versions"]
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", "peft", "vllm") if name in known)
    return f"`{result['command']}`, {result['hardware']}, {versions}, {result['dtype']}, commit {result['commit']}"


def ranged(low_high: Sequence[int]) -> str:
    """A range of lengths."""
    return f"{low_high[0]}–{low_high[1]}"


def serving_peft() -> str:
    """Many requests at once, the engine beside `generate` with PEFT."""
    rows, origins = [], []
    for _, result in read():
        fixed = (str(result["prompt_tokens"]), str(result["new_tokens"]))
        found = [(row, *fixed) for row in result["concurrent"]]
        found += [(row, ranged(row["prompt_tokens"]), ranged(row["new_tokens"])) for row in result["mixed"]]
        for row, prompt, new in found:
            speeds = [f"{row['tokens_per_s'][name]:,.0f}" for name in (OURS, PEFT)]
            cells = [result["model"], str(result["requests"]), str(row["cartridges"]), f"{row['slots']:,}", prompt, new]
            rows.append([*cells, *speeds, f"{row['ratio']:.2f}x", f"{row['equal_tokens']:.1%}"])
        origins.append(origin(result))
    head = ["model", "requests", "cartridges", "slots", "prompt", "new"]
    head += ["engine, tokens/s", "generate + PEFT, tokens/s", "ratio", "equal tokens"]
    return "\n\n".join([table(head, rows), *origins])


def by_context(name: str, result: dict[str, Any]) -> list[str]:
    """Decoding by context length: the picture, then its figures."""
    rows = []
    for row in result["by_context"]:
        speed = "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}"
        held = f"{row['kv_mb']:,.1f} MB" if "kv_mb" in row else f"{row['kv_gb']:,.1f} GB"
        rows.append([KINDS[row["kind"]], f"{row['length']:,}", str(row["batch"]), speed, held])
    head = [f"{result['model']}, behind", "tokens or slots", "requests at once", "tokens/s", "KV"]
    picture = f"![Tokens/s of {result['model']} against the length of the context](results/{name}.png)"
    return [*([picture] if has_curve(result) else []), table(head, rows)]


def has_curve(result: dict[str, Any]) -> bool:
    """Whether there is a line to draw."""
    kinds = [row["kind"] for row in result["by_context"]]
    return len(set(kinds)) < len(kinds)


def serving_contexts() -> str:
    """Decoding by context length: the pictures, then their figures."""
    parts = []
    for name, result in read():
        parts += by_context(name, result)
        parts.append(f"Within {result['budget']:,} tokens of keys and values. {origin(result)}")
    return "\n\n".join(parts)


def serving_first_token() -> str:
    """The time to the first token."""
    parts = []
    for _, result in read():
        rows = [[name, f"{took:,.2f}"] for name, took in result["first_token_ms"].items()]
        parts.append(table([f"{result['model']}, {result['slots']} slots", "ms"], rows))
        parts.append(origin(result))
    return "\n\n".join(parts)


def over_full_context(rows: Sequence[dict[str, Any]]) -> str:
    """How many times the tokens/s of long full contexts there are behind cartridges of the middle size."""
    long = min((row for row in rows if row["kind"] == "full context" and row["length"] >= 32768), key=_length)
    told = []
    for kind in ("cartridge each", "one cartridge"):
        found = sorted((row for row in rows if row["kind"] == kind), key=_length)
        row = found[len(found) // 2]
        times = row["tokens_per_s"] / long["tokens_per_s"]
        told.append(f"{KINDS[kind]} of {row['length']:,} slots ({row['batch']} at once) {times:.1f} times the tokens/s")
    return (
        f"Beside {long['length']:,} tokens of full context for each request, of which {long['batch']} are answered at "
        f"once: {', '.join(told)}."
    )


def serving_gain() -> str:
    """The same in a line, with the picture, for who wants no tables."""
    (name, result), *_ = read(CUDA_NAMES)
    picture = f"![Tokens/s of {result['model']} against the length of the context](docs/results/{name}.png)"
    device = result["hardware"].rpartition(", ")[2]
    told = f"Shape of {result['model']}, random weights, {device}. {over_full_context(result['by_context'])}"
    return f"{picture}\n\n{told}"


def _length(row: dict[str, Any]) -> int:
    return row["length"]


def serving_cuda() -> str:
    """Real sizes on a GPU: by context, in one batch, one layer's attention, the first token."""
    parts = []
    for name, result in read(CUDA_NAMES):
        parts += by_context(name, result)
        parts.append(over_full_context(result["by_context"]))
        same, attention = result["same_batch"], result["attention"]
        speeds = " and ".join(f"{row['tokens_per_s']:,.0f}" for row in same["rows"])
        about = same["rows"][0]
        told = f"With {about['batch']} requests at once behind {about['length']:,} tokens, of their own and shared: "
        parts.append(f"{told}{speeds} tokens/s, {same['ratio']:.2f}x.")
        rows = []
        for row in attention["rows"]:
            cells = [f"{row['batch']}", f"{row['length']:,}"]
            for kind in ("each", "shared"):
                cells += [f"{1000 * row[f'{kind}_ms']:,.0f}", f"{row[f'{kind}_gb_per_s']:,.0f}"]
            rows.append([*cells, f"{row['ratio']:.1f}x"])
        head = ["requests", "tokens before", "of their own, us", "GB/s", "shared, us", "GB/s", "faster"]
        parts.append(
            f"One layer's attention to what stands before; a copy reaches {attention['copy_gb_per_s']:,.0f} GB/s:"
        )
        parts.append(table(head, rows))
        first = [[name, f"{took:,.2f}"] for name, took in result["first_token_ms"].items()]
        parts.append(table([f"{result['model']}, {result['slots']:,} slots", "ms"], first))
        counts = f"{result['new_tokens']} tokens a reply, means of {result['repetitions']} after {result['warm_ups']}"
        parts.append(f"{counts} to warm up. {origin(result)}")
    return "\n\n".join(parts)


def serving_vllm() -> str:
    """Both servers over HTTP; empty where that was not measured."""
    if not (MEASURED / f"{VLLM}.json").exists():
        return ""
    result = json.loads((MEASURED / f"{VLLM}.json").read_text(encoding="utf-8"))
    rows = []
    for row in result["rows"]:
        speeds = [f"{row['tokens_per_s'][name]:,.0f}" for name in (OURS, THEIRS)]
        first = [f"{row['first_token_ms'][name]:,.0f}" for name in (OURS, THEIRS)]
        rows.append([row["setting"], *speeds, f"{row['ratio']:.2f}x", *first, f"{row['equal_tokens']:.1%}"])
    head = ["behind", "engine, tokens/s", "vLLM, tokens/s", "ratio"]
    head += ["engine, first token ms", "vLLM, first token ms", "equal tokens"]
    idle = ", ".join(f"{name} {cores:.2f}" for name, cores in result["idle_cores"].items())
    about = [
        f"{result['requests']} requests at once of {result['prompt_tokens']} tokens",
        f"{result['new_tokens']} new ones each",
        f"{result['slots']} slots",
        f"medians of {result['repetitions']}",
        f"model {result['model']}",
    ]
    startup = ", ".join(f"{name} {took:.0f}" for name, took in result["startup_s"].items())
    about = f"{', '.join(about)}. Seconds to start: {startup}; cores busy while nobody asked: {idle}."
    return "\n\n".join([table(head, rows), f"{about} {origin(result)}"])


def draw(result: dict[str, Any], digest: str) -> bytes:
    """Tokens/s against the length of what is read, a line for each kind."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    from cartridges.report_figures import DPI, LIGHT, add_legend, new_figure

    figure, axes = new_figure(LIGHT, 3.4)
    colours = dict(zip(KINDS, (LIGHT.reference, LIGHT.runs[1], LIGHT.cartridge), strict=True))
    lengths: set[int] = set()
    for kind, label in KINDS.items():
        rows = [row for row in result["by_context"] if row["kind"] == kind and row["tokens_per_s"] is not None]
        known = [row["length"] for row in rows]
        lengths |= set(known)
        speeds = [row["tokens_per_s"] for row in rows]
        axes.plot(known, speeds, MARKS[kind] + "-", color=colours[kind], label=label)
    axes.set_xscale("log")
    axes.set_xticks(sorted(lengths))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of context, or slots")
    axes.set_ylabel("tokens/s, all requests")
    limit = f"{result['budget']:,} tokens of keys and values" if "budget" in result else "as many requests as fit"
    axes.set_title(f"{result['model']}, {limit}", fontsize=10)
    add_legend(figure, LIGHT)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None, "Comment": digest})
    return content.getvalue()


def pictures(check: bool) -> list[Path]:
    """The pictures that are not those of the result files; drawn anew unless `check`."""
    stale = []
    for name, result in read([*NAMES, *CUDA_NAMES]):
        shown = [result["model"], result.get("budget"), result["by_context"]]
        digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()
        path = PICTURES / f"{name}.png"
        if not has_curve(result):
            continue
        if not path.exists() or digest.encode() not in path.read_bytes():
            stale.append(path)
            if not check:
                path.write_bytes(draw(result, digest))
    return stale
