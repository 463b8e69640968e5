"""Where things are: the cartridge in what a user names, be it a cartridge, a training run or a build."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cartridges.cartridge import MANIFEST, Manifest
from cartridges.corpus import Corpus
from cartridges.errors import InputError

SOURCE = "source.json"


def find_cartridge(path: Path, num_slots: int | None = None) -> Path:
    """The folder of the cartridge. Raises InputError where there is none, or several and no size is given."""
    path = Path(path)
    for folder in (path, path / "cartridge"):
        if (folder / MANIFEST).is_file():
            found = Manifest.read(folder).num_slots if num_slots is not None else None
            if found != num_slots:
                raise InputError(f"given --slots {num_slots}, but the cartridge in {folder} has {found}")
            return folder
    named = {folder: re.fullmatch(r"slots-(\d+)", folder.parent.name) for folder in path.glob("slots-*/cartridge")}
    sizes = {int(found[1]): folder for folder, found in named.items() if found}
    if num_slots is not None and num_slots in sizes:
        return sizes[num_slots]
    if num_slots is None and len(sizes) == 1:
        return next(iter(sizes.values()))
    if sizes:
        told = ", ".join(map(str, sorted(sizes)))
        raise InputError(f"{path} holds cartridges of {told} slots, given {num_slots}; choose one with --slots")
    what = "is not there" if not path.exists() else "holds no cartridge"
    raise InputError(f"{path} {what}; expected a cartridge's folder, or one that `cartridges build` made")


def find_corpus(path: Path, docs: Sequence[Path], corpus_digest: str = "") -> Corpus | None:
    """The documents named by `docs`, or else those that the build around `path` was made from; None if nothing tells.

    Raises InputError where they are no longer those of `corpus_digest`.
    """
    corpus = Corpus.from_path(*docs) if docs else _built_from(path)
    if corpus and not docs and corpus_digest and corpus.digest != corpus_digest:
        raise InputError(f"the documents of {path} have changed since; build anew, or name documents with --docs")
    return corpus


def _built_from(path: Path) -> Corpus | None:
    for folder in (path, *Path(path).resolve().parents[:3]):
        source = Path(folder) / SOURCE
        if source.is_file():
            try:
                about = json.loads(source.read_text(encoding="utf-8"))
                names, patterns = about["documents"], {key: about.get(key, []) for key in ("include", "exclude")}
                return Corpus.from_path(*map(Path, names), **patterns)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"{source} cannot be read; name the documents with --docs") from error
    return None
