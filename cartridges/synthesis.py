"""The verb `synthesize`: a corpus to a dataset of conversations about it, resumable and extendable to the bit.

A run folder holds `config.yaml`, `manifest.json` (model, corpus, counts, coverage, digest), `metrics.jsonl` (a line a
batch) and a Parquet shard a batch. Batch b is conversations b * batch_size up to (b + 1) * batch_size, so a run that
was killed and taken up again, or begun smaller and extended, gives the shards of one that was not. A batch's line is
written before its shard, so a shard never lacks a line; a line without its shard is dropped when the run goes on.
"""

import asyncio
import datetime
import json
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cartridges.clients.base import Client
from cartridges.conversation import opening
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset, DatasetWriter
from cartridges.errors import ConfigError, FormatError, InputError, InterruptedRun
from cartridges.filters import Coverage
from cartridges.log import Bar, MetricsLog, progress, read_metrics
from cartridges.provenance import provenance
from cartridges.run_folder import LOCK, StopSignals, claim, disk_errors_told, write_whole
from cartridges.seeds import SeedSet, file_kinds, load_seeds
from cartridges.self_study import converse
from cartridges.study_plan import SpeakerConfig, Study, SynthesizeConfig

if TYPE_CHECKING:
    from cartridges.engine.engine import Engine

__all__ = ["SpeakerConfig", "SynthesizeConfig", "synthesize"]

CONFIG, MANIFEST, METRICS = "config.yaml", "manifest.json", "metrics.jsonl"
CHUNKS = "spread evenly"  # how they are drawn; a run goes on as it began
NUM_IN_VAIN = 256  # conversations of which none was kept, after which a run gives up
Result = TypeVar("Result")


def synthesize(
    corpus: Corpus,
    client: "Client | Engine",
    config: SynthesizeConfig | None = None,
    out: Path | str = "runs/synthesize",
    **values: Any,
) -> Dataset:
    """Have the model of `client` (or of an engine) talk with itself about `corpus`; gives the dataset in folder `out`.

    Where no `config` is given, `values` are its fields, over the preset that fits the model.

    A run that `out` holds goes on; with a larger `num_conversations` it is extended. Raises ConfigError where it was
    begun with another configuration, InputError where its corpus or model was another or where nothing can be made,
    FormatError for damaged files, InterruptedRun after the batch in which SIGINT or SIGTERM came.
    """
    out = Path(out)
    teacher = client_of(client)
    if config is not None and values:
        raise ConfigError(f"given a config and {', '.join(sorted(values))}; give one or the other")
    if config is None:
        from cartridges.model import profile_of

        config = SynthesizeConfig.resolve(profile_of(teacher.chat_format.tokenizer), values=values)
    with disk_errors_told(out):
        begun = known_config(out)
        if begun:
            check_same(begun, config, out)
        seeds = load_seeds(config.seed_set, config.seed_file)
        if config.seed_kinds is not None:
            own = file_kinds(config.seed_file) if config.seed_file else []
            seeds = seeds.only([*config.seed_kinds, *own])
        with claim(out):
            run = Run(out, config, corpus, teacher, seeds)
            if run.todo:
                run.write_begun()
                with progress("synthesizing", config.num_conversations) as bar, StopSignals() as stop:
                    waited(run.work(bar, stop))
            return run.finish()


def study_seconds(dataset: Dataset) -> float:
    """What the conversations took to write, in seconds."""
    seconds: Any = dataset.manifest.get("seconds", 0.0)
    return float(sum(seconds.values()) if isinstance(seconds, dict) else seconds)


def client_of(source: "Client | Engine") -> Client:
    """A client as it is, an engine as a client."""
    if hasattr(source, "generate"):
        from cartridges.clients.local import LocalClient

        return LocalClient(source)  # pyright: ignore[reportArgumentType]
    return source  # pyright: ignore[reportReturnType]


def waited(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, also where an event loop already runs, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def known_config(folder: Path) -> SynthesizeConfig | None:
    """The configuration of the run in `folder`; None where there is no run yet."""
    path = folder / CONFIG
    if not path.exists():
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        if strangers := [name for name in found if name != LOCK and not name.endswith(".partial")]:
            raise InputError(
                f"{folder} holds other files ({strangers[0]}) and no {CONFIG} of a run; give a new or empty folder"
            )
        return None
    try:
        return SynthesizeConfig.load(path)
    except ConfigError as error:
        raise FormatError(f"{path} is no configuration of synthesize: {error}; give another folder") from error


def check_same(begun: SynthesizeConfig, config: SynthesizeConfig, folder: Path) -> None:
    """Raise ConfigError, naming the keys, where a run in `folder` cannot go on with `config`."""
    before, now = (flat(c.model_dump(mode="json")) for c in (begun, config))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    keys = [key for key in keys if key not in ("num_conversations", "seed_file")]  # its text counts, not its place
    if keys:
        values = ", ".join(f"{key}={before.get(key)!r} (now {now.get(key)!r})" for key in keys)
        raise ConfigError(f"the run in {folder} was begun with {values}; give the same, or another folder")
    if config.num_conversations < begun.num_conversations:
        raise ConfigError(
            f"given num_conversations={config.num_conversations}, expected at least the {begun.num_conversations} of "
            f"the run in {folder}; it may only grow; give another folder for fewer"
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `key.sub`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


class Run:
    """One run in its folder: what is finished, what is left to do."""

    def __init__(self, folder: Path, config: SynthesizeConfig, corpus: Corpus, client: Client, seeds: SeedSet) -> None:
        """Take up what `folder` holds. Raises InputError, FormatError."""
        self.folder, self.config, self.corpus, self.client = folder, config, corpus, client
        self.manifest = self.read_manifest()
        self.about = self.identity(seeds)
        self.check_manifest()
        now = datetime.datetime.fromisoformat(self.about["now"])
        self.study = Study(corpus, client, config, seeds, now)
        self.writer = DatasetWriter(folder)
        self.lines = self.finished_lines()
        num_batches = -(-config.num_conversations // config.batch_size)
        self.todo = [number for number in range(num_batches) if number not in self.lines]
        self.was_finished = not self.todo and self.manifest.get("is_finished") is True

    def numbers(self, batch: int) -> range:
        """The conversations of a batch."""
        first = batch * self.config.batch_size
        return range(first, min(first + self.config.batch_size, self.config.num_conversations))

    def read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.exists():
            return {}
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            datetime.datetime.fromisoformat(manifest["now"])
        except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path} is damaged ({type(error).__name__}); restore it, or give another folder"
            ) from error
        return manifest

    def identity(self, seeds: SeedSet) -> dict[str, Any]:
        """What a run belongs to; it goes on with no other. `now` is the time that templates with a date header tell."""
        identity = self.client.identity
        return {
            "model": identity.model_dump(mode="json") if identity else {"model_id": self.client.model_id},
            "tokenizer_digest": self.client.chat_format.digest,
            "corpus_digest": self.corpus.digest,
            "seeds_digest": seeds.digest,
            "chunks": CHUNKS,
            "now": self.manifest.get("now") or self.client.chat_format.now.isoformat(timespec="seconds"),
        }

    def check_manifest(self) -> None:
        if not self.manifest:
            return
        names = {"corpus_digest": "corpus", "model": "model", "tokenizer_digest": "tokenizer or chat template"}
        names |= {"seeds_digest": "text in the seed prompts", "chunks": "way of drawing chunks"}
        other = [name for key, name in names.items() if self.manifest.get(key) != self.about[key]]
        if other:
            raise InputError(
                f"the run in {self.folder} was begun with another {' and '.join(other)}; "
                "give the same, or another folder"
            )

    def finished_lines(self) -> dict[int, dict[str, Any]]:
        """The metrics' last line of each finished batch; those of others are dropped, and so are outgrown shards."""
        path = self.folder / METRICS
        rows = read_metrics(path) if path.exists() else []
        lines = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
        finished: dict[int, dict[str, Any]] = {}
        for number in self.writer.shards():
            line = lines.get(number)
            if line is not None and line.get("stop") == self.numbers(number).stop:
                finished[number] = line
            else:  # a last batch that was shorter before
                self.writer.path(number).unlink()
        if path.exists():
            content = "".join(json.dumps(line) + "\n" for _, line in sorted(finished.items()))
            write_whole(path, content.encode())
        return finished

    def write_begun(self) -> None:
        """Say what the run is to be, so that a folder never claims to be finished while it is worked on."""
        write_whole(self.folder / CONFIG, self.config.to_yaml().encode())
        Dataset.save_manifest(self.folder, {**self.about, "is_finished": False, **provenance()})

    async def work(self, bar: Bar, stop: StopSignals) -> None:
        """Make the batches that are missing, each with its line and then its shard."""
        num_batches = len(self.lines) + len(self.todo)
        bar.advance(sum(len(self.numbers(number)) for number in self.lines), "resumed" if self.lines else "starting")
        with MetricsLog(self.folder / METRICS) as metrics:
            for number in self.todo:
                label = f"batch {number + 1}/{num_batches}"

                def tell(doing: str, num_done: int, num_all: int, label: str = label) -> None:
                    bar.advance(0, f"{label}: {'stopping after it; ' * stop.asked}{doing} {num_done}/{num_all}")

                batch = await converse(self.study, self.client, self.numbers(number), tell)
                line = {"step": number, **batch.metrics()}
                metrics.append(**line)
                self.writer.write_shard(number, batch.conversations)
                self.lines[number] = line
                bar.advance(len(batch.numbers), f"{label}: kept {line['num_kept']} of {len(batch.numbers)}")
                self.check_kept(NUM_IN_VAIN)
                if stop.asked and len(self.lines) < num_batches:
                    raise InterruptedRun(
                        f"stopped with {len(self.lines)} of {num_batches} batches finished in {self.folder}; "
                        "give the same command again to go on"
                    )
        self.todo = []

    def totals(self, key: str) -> dict[str, Any]:
        """Sums over the batches of a key that holds counts or seconds."""
        total: Counter[str] = Counter()
        for _, line in sorted(self.lines.items()):
            total.update(line[key])
        return {name: round(value, 3) for name, value in total.items()}

    def check_kept(self, num_least: int = 1) -> None:
        """Raise InputError where none of `num_least` conversations or more was kept."""
        num_made = sum(line["stop"] - line["first"] for line in self.lines.values())
        if num_made >= num_least and not any(line["num_kept"] for line in self.lines.values()):
            reasons = ", ".join(f"{num} {reason}" for reason, num in self.totals("dropped").items())
            raise InputError(
                f"none of {num_made} conversations in {self.folder} was kept: {reasons}; give more max_new_tokens "
                "where they are cut off, another model where they are malformed, or fewer filters, in another folder"
            )

    def finish(self) -> Dataset:
        """Write the whole manifest, and load the dataset."""
        self.check_kept()
        dataset = Dataset.load(self.folder)
        if self.was_finished:
            return dataset
        coverage, kinds, openings = Coverage(self.corpus), Counter[str](), set[str]()
        for conversation in dataset.conversations:
            texts = [message["content"] for message in conversation.messages]
            coverage.add(conversation.document, conversation.start, conversation.stop, texts)
            kinds[conversation.seed_kind] += 1
            openings.add(opening(conversation.messages, conversation.index))
        about = {
            **self.about,
            "is_finished": True,
            "dataset_digest": dataset.digest,
            "num_conversations": self.config.num_conversations,
            "num_kept": len(dataset.conversations),
            "num_openings": len(openings),
            "num_by_kind": dict(sorted(kinds.items())),
            "dropped": self.totals("dropped"),
            "noted": self.totals("noted"),
            "coverage": coverage.as_dict(),
            "num_tokens": self.totals("tokens"),
            "seconds": self.totals("seconds"),
            "corpus": self.corpus.summary(),
            **provenance(),
        }
        Dataset.save_manifest(self.folder, about)
        dataset.manifest = about
        return dataset
