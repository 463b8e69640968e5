"""The MLP of a layer is found by what it is made of; what cannot be patched exactly is refused."""

import pytest

from cartridges.errors import InputError
from cartridges.mlp import check_residual, mlp_of, module_path
from tests.adapters import plain
from tests.architectures import tiny


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_gated_mlps_are_found(tiny_tokenizer, name):
    model = tiny(name, tiny_tokenizer)
    found = mlp_of(model, 1)
    assert found.output is model.hf.model.layers[1].mlp.down_proj
    assert set(found.inputs) == {"mlp.gate_proj", "mlp.up_proj"}
    assert module_path(model, found, found.output_name) == "model.layers.1.mlp.down_proj"
    check_residual(model, found)


def test_plain_mlps_are_found(tiny_tokenizer):
    model = plain(tiny_tokenizer)
    found = mlp_of(model, 0)
    assert (found.output_name, list(found.inputs)) == ("mlp.c_proj", ["mlp.c_fc"])
    check_residual(model, found)


def test_a_norm_behind_the_mlp_is_refused(tiny_tokenizer):
    model = tiny("gemma3", tiny_tokenizer)
    with pytest.raises(InputError, match="layer 0 of tiny-gemma3 does not add its MLP's output to the residual as it"):
        check_residual(model, mlp_of(model, 0))


def test_a_layer_that_does_not_exist_is_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    for index in (-1, 2):
        with pytest.raises(InputError, match=f"given layer {index}, expected 0 to 1, the layers of tiny-llama"):
            mlp_of(model, index)


def test_another_kind_of_mlp_is_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    model.hf.model.layers[0].mlp.experts = model.hf.model.layers[0].mlp.down_proj
    del model.hf.model.layers[0].mlp.down_proj
    with pytest.raises(InputError, match="adapters do not support its kind"):
        mlp_of(model, 0)
