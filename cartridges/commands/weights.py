"""A model with adapters merged in, for commands that talk to it: where they come from, and how it is without them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cartridges.adapting import Merged
    from cartridges.engine.engine import Engine


class Weights:
    """Adapters that are merged; `sources` are their folders, with the digests of the documents they stand for."""

    def __init__(self, merged: "Merged", sources: list[tuple[Path, str]]) -> None:
        self.merged, self.sources = merged, sources

    @classmethod
    def load(cls, folders: Sequence[Path], model: str | None, device: str) -> "Weights":
        """The adapters' model, unless another is named, with all of them merged."""
        from cartridges.adapter import ThoughtAdapter
        from cartridges.adapting import merge
        from cartridges.model import load_for

        adapters = [ThoughtAdapter.load(folder) for folder in folders]
        digests = [next(iter(adapter.manifest.corpus_digests), "") for adapter in adapters]
        used = load_for(adapters[0].manifest.model, model, device)
        return cls(merge(used, *adapters), list(zip(folders, digests, strict=True)))

    def engine(self) -> "Engine":
        """An engine of the model as it is now."""
        from cartridges.engine.engine import Engine

        return Engine(self.merged.model)

    def plainly(self, say: "Callable[[Engine], Iterator[str]]") -> Iterator[str]:
        """What `say` says with the model alone; its engine is another, as keys and values kept of texts differ."""
        from cartridges.adapting import merge

        self.merged.undo()
        engine = self.engine()
        try:
            yield from say(engine)
        finally:
            engine.close()
            self.merged = merge(self.merged.model, self.merged.adapter)
