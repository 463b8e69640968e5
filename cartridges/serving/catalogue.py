"""Which cartridges a vLLM server may use: some given by name and folder, others found as folders directly below roots.

The roots are looked at whenever a name is not known yet, so what is put there later can be used at once. A name is
compared with what is there and never becomes a path. What was found sound is not read again until its files change.
Every process of a server has a catalogue of its own, made from the same description.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from cartridges.cartridge import MANIFEST, TENSORS, Cartridge, Manifest, ModelIdentity, check_fits, check_tensors
from cartridges.compose import compose, composed_digest, composed_len
from cartridges.engine.shelf import NAME, check_name
from cartridges.errors import CartridgesError, FormatError, InputError, unknown_name
from cartridges.find import find_cartridge

Stamp = tuple[tuple[int, int, int, int], ...]
KEY = "cartridges"  # under which a request's parameters, and the connector's configuration, hold what is ours


@dataclass(frozen=True)
class Selection:
    """One cartridge, or several in order, as they lie on disk; `digest` and `num_slots` are those of the whole."""

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    digests: tuple[str, ...]
    digest: str
    num_slots: int


class Description(BaseModel):
    """What a catalogue is made from, as JSON."""

    model: ModelIdentity
    folders: dict[str, Path] = {}
    roots: list[Path] = []


class Catalogue:
    """Names to sound cartridges of one model. Threads may share it."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._seen: dict[tuple[Path, bool], tuple[Stamp, Manifest | FormatError]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: ModelIdentity, folders: Mapping[str, Path], roots: Sequence[Path] = ()) -> Self:
        """Raises InputError for a name of other characters, or a root that is not there."""
        for name in folders:
            check_name(name)
        for root in roots:
            if not root.is_dir():
                raise InputError(f"given the folder {root} to look for cartridges in, but it is not there")
        absolute = {name: Path(folder).resolve() for name, folder in folders.items()}
        return cls(Description(model=model, folders=absolute, roots=[root.resolve() for root in roots]))

    @classmethod
    def from_config(cls, extra_config: Mapping[str, Any]) -> Self:
        """From what `to_config` made. Raises InputError for anything else."""
        try:
            return cls(Description.model_validate(extra_config.get(KEY)))
        except ValidationError as error:
            raise InputError(
                f"given kv_connector_extra_config without a usable {KEY!r} entry ({error.error_count()} errors); "
                "start the server with `cartridges serve --engine vllm`, which writes it"
            ) from error

    def to_config(self) -> dict[str, Any]:
        """The connector's configuration, from which every process makes its catalogue."""
        return {KEY: self.description.model_dump(mode="json")}

    def names(self) -> list[str]:
        """All names there are now, sound or not, sorted."""
        return sorted({**self._below_roots(), **self.description.folders})

    def find(self, names: Sequence[str], whole: bool = True) -> Selection:
        """What the names stand for. Raises InputError for unknown ones, FormatError where one cannot be used.

        Not `whole`: only the manifests are read, which is quick; `load` finds out about the tensors.
        """
        if not names:
            raise InputError("given no name of a cartridge, expected one or more")
        found = [self._find(name, whole) for name in names]
        digests = tuple(manifest.digest for _, manifest in found)
        return Selection(
            tuple(names),
            tuple(folder for folder, _ in found),
            digests,
            composed_digest(digests),
            composed_len([manifest for _, manifest in found]),
        )

    def load(self, selection: Selection) -> Cartridge:
        """The slots. Raises InputError or FormatError where they are gone or others by now."""
        parts = []
        for name, folder, digest in zip(selection.names, selection.folders, selection.digests, strict=True):
            part = Cartridge.load(folder)
            if part.digest != digest:
                raise FormatError(f"the cartridge {name} was replaced while it was asked for; ask again")
            parts.append(part)
        return compose(parts, self.description.model)

    def _find(self, name: str, whole: bool) -> tuple[Path, Manifest]:
        folder = self.description.folders.get(name) or self._below_roots().get(name)
        if folder is None:
            raise InputError(unknown_name("cartridge", str(name)[:140], self.names()))
        try:
            folder = find_cartridge(folder)
            stamp = _stamp(folder)
        except InputError as error:
            raise FormatError(f"the cartridge {name} cannot be used: {error}") from error
        except OSError as error:
            raise FormatError(f"the cartridge {name} cannot be read ({error.strerror}); copy it again") from error
        with self._lock:
            seen = self._seen.get((folder, whole))
            if seen is None or seen[0] != stamp:
                seen = self._seen[folder, whole] = (stamp, self._checked(name, folder, whole))
        if isinstance(seen[1], FormatError):
            raise FormatError(str(seen[1]))
        return folder, seen[1]

    def _checked(self, name: str, folder: Path, whole: bool) -> Manifest | FormatError:
        """What is to be remembered of it. Raises FormatError where it cannot be read just now."""
        try:
            manifest = Manifest.read(folder)
            check_fits(manifest, self.description.model)
            if manifest.has_bias:
                raise FormatError(
                    "it has a bias for each slot, which stock vLLM's attention cannot add; use --engine own, or make "
                    "it with bias off"
                )
            if whole:
                check_tensors(folder, manifest)
            return manifest
        except CartridgesError as error:
            return FormatError(f"the cartridge {name} cannot be used: {error}")
        except OSError as error:  # as of too many open files, which no change of the files mends
            raise FormatError(f"the cartridge {name} cannot be read ({error.strerror}); ask again") from error

    def _below_roots(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for root in reversed(self.description.roots):  # of two with one name that of the first root counts
            try:
                found |= {path.name: path for path in root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()}
            except OSError:
                continue  # it is gone for now; the others go on
        return found


def _stamp(folder: Path) -> Stamp:
    """What changes when the files do."""
    stats = [(folder / name).stat() for name in (MANIFEST, TENSORS)]
    return tuple((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for stat in stats)
