import errno
import os
import shutil

import pytest

from cartridges.cartridge import MANIFEST, TENSORS, Cartridge, Manifest
from cartridges.compose import compose
from cartridges.errors import FormatError, InputError
from cartridges.initialization import InitializeConfig, initialize
from cartridges.serving.catalogue import Catalogue
from tests.architectures import tiny


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


@pytest.fixture
def given(model, tmp_path):
    return made(model, tmp_path / "elsewhere", "words of the first text " * 9, 12)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def made(model, folder, text: str, num_slots: int):
    initialize(model, None, num_slots, InitializeConfig(kind="text", text=text)).save(folder)
    return folder


def test_what_is_given_and_what_is_found_later(model, given, root):
    catalogue = Catalogue.of(model.identity, {"given": given}, [root])
    assert catalogue.names() == ["given"]
    with pytest.raises(InputError, match="unknown cartridge 'late'; known: given"):
        catalogue.find(["late"])
    late = made(model, root / "late", "words of another text " * 9, 7)
    assert catalogue.names() == ["given", "late"]
    selection = catalogue.find(["late"])
    assert (selection.num_slots, selection.digest) == (7, Manifest.read(late).digest)
    shutil.rmtree(late)
    with pytest.raises(InputError, match="unknown cartridge 'late'"):
        catalogue.find(["late"])
    shutil.rmtree(root)
    assert catalogue.names() == ["given"]


def test_every_process_makes_the_same_from_the_configuration(model, given, root):
    catalogue = Catalogue.of(model.identity, {"given": given}, [root])
    assert Catalogue.from_config(catalogue.to_config()).find(["given"]) == catalogue.find(["given"])
    for wrong in ({}, {"cartridges": 3}, {"cartridges": {"model": {}}}):
        with pytest.raises(InputError, match="start the server with `cartridges serve --engine vllm`"):
            Catalogue.from_config(wrong)


def test_several_are_what_compose_makes_of_them(model, given, root):
    made(model, root / "late", "words of another text " * 9, 7)
    catalogue = Catalogue.of(model.identity, {"given": given}, [root])
    selection = catalogue.find(["late", "given"])
    whole = compose([Cartridge.load(root / "late"), Cartridge.load(given)], model.identity)
    loaded = catalogue.load(selection)
    assert (selection.digest, selection.num_slots) == (whole.digest, whole.num_slots)
    assert all(a.equal(b) for a, b in zip(loaded.keys, whole.keys, strict=True))


def test_a_replaced_cartridge_is_looked_at_again(model, root):
    catalogue = Catalogue.of(model.identity, {}, [root])
    made(model, root / "late", "words of another text " * 9, 24)
    before = catalogue.find(["late"])
    made(model, root / "late", "now something else is told " * 9, 24)
    after = catalogue.find(["late"])
    assert after.digest != before.digest
    with pytest.raises(FormatError, match="the cartridge late was replaced while it was asked for; ask again"):
        catalogue.load(before)
    assert catalogue.load(after).digest == after.digest


@pytest.mark.parametrize("name", ["..", ".", "", "../elsewhere", "a/b", "/etc", "late\n", "-x", ".hidden", "x" * 129])
def test_names_never_become_paths(model, given, root, name):
    made(model, root / "late", "words " * 30, 7)
    (root / ".hidden").mkdir()
    with pytest.raises(InputError, match="unknown cartridge"):
        Catalogue.of(model.identity, {"given": given}, [root]).find([name])
    with pytest.raises(InputError, match="expected up to 128 letters"):
        Catalogue.of(model.identity, {name: given})


@pytest.mark.parametrize("kind", ["other model", "truncated", "no tensors", "bad manifest", "no manifest"])
def test_what_cannot_be_used_is_told_and_told_again_until_it_is_mended(model, given, root, tiny_tokenizer, kind):
    late = shutil.copytree(given, root / "late")
    match kind:
        case "other model":
            made(tiny("qwen3", tiny_tokenizer, seed=1), late, "words " * 30, 7)
        case "truncated":
            (late / TENSORS).write_bytes((late / TENSORS).read_bytes()[:-9])
        case "no tensors":
            (late / TENSORS).unlink()
        case "bad manifest":
            (late / MANIFEST).write_text("{}")
        case "no manifest":
            (late / MANIFEST).unlink()
    catalogue = Catalogue.of(model.identity, {}, [root])
    for _ in range(2):
        with pytest.raises(FormatError, match="the cartridge late cannot be"):
            catalogue.find(["late"])
    shutil.rmtree(late)
    shutil.copytree(given, late)
    assert catalogue.find(["late"]).num_slots == 12


@pytest.mark.parametrize("whole", [True, False])
def test_what_cannot_be_read_for_a_moment_is_read_again(model, given, monkeypatch, whole):
    catalogue = Catalogue.of(model.identity, {"given": given})

    def fail(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "read", fail)
        with pytest.raises(FormatError, match=r"the cartridge given cannot be read \(Too many open files\); ask again"):
            catalogue.find(["given"], whole)
    assert catalogue.find(["given"], whole).num_slots == 12


def test_a_change_that_leaves_size_and_time_is_seen(model, given):
    catalogue, path = Catalogue.of(model.identity, {"given": given}), given / TENSORS
    catalogue.find(["given"])
    raw, before = path.read_bytes(), path.stat()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FormatError, match="do not belong together"):
        catalogue.find(["given"])


def test_manifests_alone_tell_all_but_what_is_wrong_with_the_tensors(model, given):
    catalogue = Catalogue.of(model.identity, {"given": given})
    whole = catalogue.find(["given"])
    (given / TENSORS).write_bytes((given / TENSORS).read_bytes()[:-9])
    assert catalogue.find(["given"], whole=False) == whole
    for use in (lambda: catalogue.load(whole), lambda: catalogue.find(["given"])):
        with pytest.raises(FormatError, match="is damaged"):
            use()


def test_a_root_that_is_not_there_is_refused(model, tmp_path):
    with pytest.raises(InputError, match=r"given the folder .*nowhere to look for cartridges in, but it is not there"):
        Catalogue.of(model.identity, {}, [tmp_path / "nowhere"])
