"""Which attention can be taken over: whatever cannot is refused when the model is loaded."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cartridges.errors import InputError
from cartridges.probe import layer_shapes
from tests.architectures import ARCHITECTURES, SHAPE, WINDOW, tiny


def made(kind: str, **values: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SHAPE, "vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, **values})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "values", "why"),
    [
        ("diffllama", {}, "2 layers ask for attention 4 times"),  # it attends twice a layer
        ("bloom", {}, "2 layers ask for attention 0 times"),  # it does not ask for an implementation
        ("nemotron", {}, "2 layers ask for attention 0 times"),  # it hands no keywords on
        ("phimoe", {"sliding_window": WINDOW}, f"only its mask knows of the window of {WINDOW}"),
    ],
)
def test_attention_of_its_own_kind_is_refused(kind, values, why):
    with pytest.raises(InputError, match=rf"^there attends in a way of its own, which is not supported: {why}$"):
        layer_shapes(made(kind, **values), "there")


def test_a_decoder_that_takes_no_keywords_is_refused(tiny_tokenizer, monkeypatch):
    hf = tiny("llama", tiny_tokenizer).hf
    forward = type(hf.model).forward
    monkeypatch.setattr(type(hf.model), "forward", lambda self, input_ids: forward(self, input_ids))
    with pytest.raises(InputError, match=r"there cannot be read with attention of our own \(TypeError: .*unexpected"):
        layer_shapes(hf, "there")
    assert hf.config._attn_implementation != "cartridges_probe"


def test_a_window_that_no_layer_has_is_none():
    assert [shape.window for shape in layer_shapes(made("llama", sliding_window=WINDOW), "there")] == [None, None]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_is_left_as_it_was(name, tiny_tokenizer):
    hf = tiny(name, tiny_tokenizer).hf
    ids = torch.arange(20)[None]
    before, name_before = hf(ids).logits, hf.config._attn_implementation
    layer_shapes(hf, "there")
    assert hf.config._attn_implementation == name_before and torch.equal(hf(ids).logits, before)
