"""The files of a model folder, whole and damaged."""

import json

import pytest

from cartridges.errors import FormatError, InputError
from cartridges.pocket.model import check_files
from cartridges.run_folder import file_digest


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    names = ("model.safetensors", "config.json", "tokenizer.json")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"sha256": {name: file_digest(tmp_path / name) for name in names}})
    )
    return tmp_path


def test_a_whole_folder_passes(folder):
    check_files(folder)
    (folder / "manifest.json").unlink()
    check_files(folder)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"no model at .*nowhere; give a folder that holds config.json"):
        check_files(tmp_path / "nowhere")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"is no model folder: config.json, model.safetensors, tokenizer.json missing"):
        check_files(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_weights_are_found_by_their_digest(folder, damage):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[: len(content) // 2]), "empty": b""}[damage])
    with pytest.raises(FormatError, match=r"model.safetensors is damaged \(its sha256 is not the manifest's\)"):
        check_files(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"sha256": {"gone.json": "0"}}'])
def test_a_damaged_manifest(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(FormatError, match=r"manifest.json cannot be read"):
        check_files(folder)
