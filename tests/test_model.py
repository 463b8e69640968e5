"""Loading: what a model is known by, and everything that is no decoder told in one line."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, T5Config

from cartridges.errors import FormatError, InputError
from cartridges.model import load_model, prefix_kv
from cartridges.pocket import WEIGHTS
from tests.architectures import ARCHITECTURES, WINDOW, tiny


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    model.hf.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_pocket_needs_no_path():
    model = load_model("pocket", device="cpu")
    assert model.identity.model_id == "pocket" and model.profile == "pocket"
    assert model.dtype == torch.float32 and not any(p.requires_grad for p in model.hf.parameters())
    plain = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model.hf(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_are_known_by_their_cache(name, tiny_tokenizer):
    layers = tiny(name, tiny_tokenizer).identity.layers
    assert {(layer.num_kv_heads, layer.head_size) for layer in layers} == {(2, 16)}
    windows = {"mistral": [WINDOW, WINDOW], "gemma3": [WINDOW, None]}
    assert [layer.window for layer in layers] == windows.get(name, [None, None])


def test_the_identity_survives_saving_and_another_dtype(folder, tiny_tokenizer):
    made = tiny("llama", tiny_tokenizer).identity
    read = load_model(folder, device="cpu").identity
    assert read.model_copy(update={"model_id": made.model_id}) == made
    assert load_model(folder, device="cpu", dtype="bfloat16").identity == read


def test_other_weights_are_another_identity(tiny_tokenizer):
    one, other = (tiny("llama", tiny_tokenizer, seed=seed).identity for seed in (0, 1))
    assert one.fingerprint == other.fingerprint and one.weights_digest != other.weights_digest
    turned = tiny("llama", tiny_tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 77.0}).identity
    assert turned.fingerprint != one.fingerprint


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prefix_is_complete_even_where_the_window_is_short(name, tiny_tokenizer):
    model = tiny(name, tiny_tokenizer)
    ids = list(range(10, 10 + 3 * WINDOW))
    keys, values = prefix_kv(model, ids)
    assert {tensor.shape for tensor in keys + values} == {(2, len(ids), 16)}
    cache = DynamicCache()
    model.hf(input_ids=torch.tensor([ids]), past_key_values=cache)
    assert torch.equal(keys[1], cache.layers[1].keys[0])


def test_nothing_to_read_is_told(tiny_tokenizer):
    with pytest.raises(InputError, match="given no tokens"):
        prefix_kv(tiny("llama", tiny_tokenizer), [])


@pytest.mark.parametrize("name", ["nowhere", "nowhere/", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_name_that_leads_nowhere_is_told(name):
    with pytest.raises(
        InputError, match=r"no model at .*; expected 'pocket', a folder with config.json, or a hub name"
    ):
        load_model(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(InputError, match="no model at"):
        load_model(tmp_path / "x")


def test_a_hub_model_without_a_network_is_told():
    with pytest.raises(InputError, match=r"the model nobody/nothing cannot be loaded \("):
        load_model("nobody/nothing")


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)


def test_an_encoder_decoder_is_told(tmp_path):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a t5 model, expected a decoder"):
        load_model(tmp_path)


def test_missing_tensors_are_told(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(FormatError, match=r"is incomplete: .* missing_keys"):
        load_model(folder, device="cpu")


def test_a_truncated_file_is_told(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder, device="cpu")


def test_damaged_pocket_is_told(tmp_path, monkeypatch):
    copy = tmp_path / "weights"
    shutil.copytree(WEIGHTS, copy)
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(raw))
    monkeypatch.setattr("cartridges.model.WEIGHTS", copy)
    with pytest.raises(FormatError, match="is damaged"):
        load_model("pocket")


def test_cuda_where_there_is_none_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="given the device cuda, but torch sees no CUDA device"):
        load_model("pocket", device="cuda")
