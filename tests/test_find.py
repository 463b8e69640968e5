"""A user names a cartridge, a training run or a build, and the cartridge is found."""

import json

import pytest

from cartridges.cartridge import MANIFEST
from cartridges.errors import InputError
from cartridges.find import SOURCE, find_cartridge, find_corpus


def put(folder):
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    return folder


def test_a_cartridge_and_a_run_are_found(tmp_path):
    found = put(tmp_path / "run" / "cartridge")
    assert find_cartridge(found) == found == find_cartridge(tmp_path / "run")


def test_the_one_size_of_a_build_is_found(tmp_path):
    found = put(tmp_path / "slots-64" / "cartridge")
    assert find_cartridge(tmp_path) == find_cartridge(tmp_path, 64) == found


def test_several_sizes_have_to_be_told_apart(tmp_path):
    sizes = {size: put(tmp_path / f"slots-{size}" / "cartridge") for size in (64, 128)}
    assert find_cartridge(tmp_path, 128) == sizes[128]
    with pytest.raises(InputError, match="holds cartridges of 64, 128 slots, given None; choose one with --slots"):
        find_cartridge(tmp_path)
    with pytest.raises(InputError, match="given 32"):
        find_cartridge(tmp_path, 32)


def test_nothing_is_told(tmp_path):
    with pytest.raises(InputError, match="holds no cartridge; expected"):
        find_cartridge(tmp_path)
    with pytest.raises(InputError, match="is not there; expected"):
        find_cartridge(tmp_path / "nowhere")


def test_the_corpus_of_a_build_is_found_from_it_and_from_below(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("one")
    (docs / "b.txt").write_text("two")
    folder = put(tmp_path / "build" / "slots-64" / "cartridge")
    assert find_corpus(folder, []) is None
    about = {"documents": [str(docs)], "include": ["*.md"], "exclude": []}
    (tmp_path / "build" / SOURCE).write_text(json.dumps(about))
    assert [document.path for document in find_corpus(folder, [])] == ["a.md"]
    digest = find_corpus(tmp_path / "build", [], "").digest
    assert find_corpus(folder, [], digest).digest == digest
    (docs / "a.md").write_text("three")
    with pytest.raises(InputError, match="have changed since; build anew, or name documents with --docs"):
        find_corpus(folder, [], digest)
    assert [document.path for document in find_corpus(folder, [docs / "b.txt"], digest)] == ["b.txt"]
    (tmp_path / "build" / SOURCE).write_text("{")
    with pytest.raises(InputError, match="name the documents with --docs"):
        find_corpus(folder, [])


def test_strange_folders_beside_the_sizes_do_not_matter(tmp_path):
    found = put(tmp_path / "slots-64" / "cartridge")
    put(tmp_path / "slots-64.bak" / "cartridge")
    assert find_cartridge(tmp_path) == found
