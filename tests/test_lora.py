"""The exported LoRA, as PEFT loads it, is the merged adapter."""

import copy
import json

import peft
import pytest
import torch

from cartridges.adapter import ThoughtAdapter
from cartridges.adapting import applied
from cartridges.errors import FormatError, InputError
from cartridges.lora import CONFIG, export_lora
from tests.adapters import logits, plain, random_adapter
from tests.architectures import tiny

IDS = list(range(20, 40))


@pytest.fixture(params=["llama", "qwen3", "plain"])
def model(request, tiny_tokenizer):
    return plain(tiny_tokenizer) if request.param == "plain" else tiny(request.param, tiny_tokenizer)


def loaded(model, folder):
    """Logits of the model with the LoRA, in PEFT."""
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(copy.deepcopy(model.hf), folder)
        return found(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"bias": True}])
def test_at_full_rank_it_is_the_merged_adapter(model, tmp_path, options):
    adapter = random_adapter(model, **options)
    report = export_lora(adapter, model, tmp_path)
    assert report.rank == options.get("rank", 64) and report.largest_error < 1e-6
    assert report.has_bias == bool(options.get("bias"))
    with applied(model, adapter, merged=True):
        merged = logits(model, IDS)
    torch.testing.assert_close(loaded(model, tmp_path), merged, atol=1e-4, rtol=1e-4)


def test_layers_without_a_patch_have_no_tensors(tiny_tokenizer, tmp_path):
    model = tiny("llama", tiny_tokenizer)
    whole = random_adapter(model)
    part = ThoughtAdapter(whole.patches[1:], whole.manifest).sealed()
    export_lora(part, model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == ["model.layers.1.mlp.down_proj"]
    with applied(model, part, merged=True):
        merged = logits(model, IDS)
    torch.testing.assert_close(loaded(model, tmp_path), merged, atol=1e-4, rtol=1e-4)


def test_what_a_rank_cuts_off_is_told(tiny_tokenizer, tmp_path):
    model = tiny("llama", tiny_tokenizer)
    adapter = random_adapter(model)
    report = export_lora(adapter, model, tmp_path, rank=5)
    spectrum = torch.linalg.svdvals(adapter.patches[0].delta)
    wanted = float(spectrum[5:].norm() / spectrum.norm())
    assert report.errors["model.layers.0.mlp.down_proj"] == pytest.approx(wanted, rel=1e-4)
    share = export_lora(adapter, model, tmp_path, energy=0.9)
    assert share.largest_error <= 0.1**0.5 + 1e-6 and 5 < share.rank < 64
    assert export_lora(adapter, model, tmp_path, rank=share.rank - 1).largest_error > 0.1**0.5


def test_wrong_input_is_refused(tiny_tokenizer, tmp_path):
    model = tiny("llama", tiny_tokenizer)
    for given in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(InputError, match=r"expected a rank of at least 1, energy in \(0, 1\]"):
            export_lora(random_adapter(model), model, tmp_path / "out", **given)
    with pytest.raises(FormatError, match="other weights of the same shape"):
        export_lora(random_adapter(tiny("llama", tiny_tokenizer, 1)), model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
