"""Loading a model folder, whole and damaged."""

import json

import pytest
import torch

from cartridges.errors import FormatError, InputError
from cartridges.pocket.model import load
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


def test_what_was_saved_is_loaded(folder, tiny_model, tiny_tokenizer):
    model, tokenizer = load(folder, "cpu")
    ids = torch.tensor([tiny_tokenizer("The room of Kudi Zikax").input_ids])
    assert tokenizer("The room of Kudi Zikax").input_ids == ids[0].tolist()
    assert torch.equal(model(ids).logits, tiny_model(ids).logits)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"no model at .*nowhere; give a folder that holds config.json"):
        load(tmp_path / "nowhere")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"is no model folder: config.json, model.safetensors, tokenizer.json missing"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_weights_are_found_by_their_digest(folder, damage):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[: len(content) // 2]), "empty": b""}[damage])
    with pytest.raises(FormatError, match=r"model.safetensors is damaged \(its sha256 is not the manifest's\)"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content"), [("model.safetensors", b"cut"), ("config.json", b"{"), ("tokenizer.json", b"[]")]
)
def test_without_a_manifest_damage_is_still_one_line(folder, name, content):
    (folder / "manifest.json").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(FormatError, match=r"the model in .* cannot be read") as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_a_missing_tensor_is_not_replaced_by_noise(folder, tiny_model):
    from safetensors.torch import save_file

    (folder / "manifest.json").unlink()
    tensors = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items() if "layers.1.mlp" not in name}
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match="incomplete: 3 tensors missing"):
        load(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"sha256": {"gone.json": "0"}}'])
def test_a_damaged_manifest(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(FormatError, match=r"manifest.json cannot be read"):
        load(folder)


def test_a_cuda_device_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="given device 'cuda', but torch sees no CUDA device here"):
        load(folder, "cuda")
