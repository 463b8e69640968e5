"""Hooks and merged weights do the same, and leave the model as it was."""

import gc
import weakref

import pytest
import torch

from cartridges.adapter import Patch, ThoughtAdapter
from cartridges.adapting import applied, attach, merge
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import FormatError, InputError
from cartridges.initialization import InitializeConfig, initialize
from tests.adapters import CORPUS, logits, plain, random_adapter
from tests.architectures import tiny

IDS = list(range(20, 40))


@pytest.fixture(params=["llama", "qwen3", "mistral", "plain"])
def model(request, tiny_tokenizer):
    return plain(tiny_tokenizer) if request.param == "plain" else tiny(request.param, tiny_tokenizer)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"rank": 3, "bias": True}])
def test_merged_is_hooked_and_undone_exactly(model, options):
    adapter, before = random_adapter(model, **options), logits(model, IDS)
    weights = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    identity = model.identity
    with applied(model, adapter):
        hooked = logits(model, IDS)
    with applied(model, adapter, merged=True):
        torch.testing.assert_close(logits(model, IDS), hooked, atol=1e-4, rtol=1e-4)
        assert model.identity.model_id == f"{identity.model_id}:adapter-0"
    assert (hooked - before).abs().max() > 0.1
    assert model.hf.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.hf.state_dict().items())
    assert model.identity == identity and torch.equal(logits(model, IDS), before)


def test_several_act_together(model):
    parts = [random_adapter(model, 0), random_adapter(model, 1, rank=2)]
    handles = [handle for part in parts for handle in attach(model, part.patches)]
    wanted = logits(model, IDS)
    for handle in handles:
        handle.remove()
    for merged in (False, True):
        with applied(model, *parts, merged=merged):
            torch.testing.assert_close(logits(model, IDS), wanted, atol=2e-4, rtol=1e-3)


def test_the_engine_answers_as_the_adapted_model(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    engine, request = Engine(model), Request(tuple(IDS), 8, stop_ids=frozenset())
    before = engine.generate([request])[0].token_ids
    with applied(model, random_adapter(model)):
        during = engine.generate([request])[0].token_ids
        ids = list(IDS)
        for _ in range(8):
            ids.append(int(logits(model, ids)[-1].argmax()))
    assert during == ids[len(IDS) :] != before
    assert engine.generate([request])[0].token_ids == before


def test_merging_twice_is_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    adapter = random_adapter(model)
    done = merge(model, adapter)
    for again in (lambda: merge(model, adapter), lambda: merge(model, random_adapter(model, 1))):
        with pytest.raises(InputError, match="the adapter adapter-0 is merged into tiny-llama:adapter-0 already; undo"):
            again()
    with pytest.raises(InputError, match="adapter-0 is merged into"), applied(model, adapter):
        pass
    done.undo()
    with pytest.raises(InputError, match="the adapter adapter-0 is not merged any more"):
        done.undo()
    merge(model, adapter).undo()


def test_hooks_and_weights_do_not_add_up(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    adapter, before = random_adapter(model), logits(model, IDS)
    with applied(model, adapter):
        with pytest.raises(InputError, match="the adapter adapter-0 is hooked onto tiny-llama already; undo it"):
            merge(model, adapter)
        with pytest.raises(InputError, match="is hooked onto"), applied(model, random_adapter(model, 1)):
            pass
    assert torch.equal(logits(model, IDS), before)
    merge(model, adapter).undo()


def test_a_model_with_an_adapter_is_not_kept_alive(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    merge(model, random_adapter(model))
    left = weakref.ref(model.hf)
    del model
    gc.collect()
    assert left() is None


def test_two_patches_of_one_matrix_are_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    adapter, before = random_adapter(model), logits(model, IDS)
    twice = ThoughtAdapter([*adapter.patches, adapter.patches[0]], adapter.manifest)
    with pytest.raises(InputError, match=r"two patches for mlp\.\w+ of layer 0, expected one"):
        merge(model, twice)
    assert torch.equal(logits(model, IDS), before)


def test_cartridges_do_not_fit_a_merged_model(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    cartridge = initialize(model, CORPUS, 10, InitializeConfig())
    with applied(model, random_adapter(model), merged=True), pytest.raises(FormatError, match="other weights of the"):
        cartridge.check_fits(model.identity)
    cartridge.check_fits(model.identity)


def test_what_does_not_fit_is_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    with (
        pytest.raises(FormatError, match="other weights of the same shape"),
        applied(model, random_adapter(tiny("llama", tiny_tokenizer, 1))),
    ):
        pass
    manifest, before = random_adapter(model).manifest, logits(model, IDS)
    for patch, part in [
        (Patch(7, "mlp.down_proj", 64, 96), r"mlp\.down_proj of layer 7, expected layers 0 to 1, those of tiny-llama"),
        (Patch(1, "mlp.up", 64, 96), r"a patch for mlp\.up of layer 1, expected a Linear"),
        (Patch(1, "mlp.up_proj", 64, 96), r"a patch of \(64, 96\) for mlp\.up_proj of layer 1, expected \(96, 64\)"),
    ]:
        with pytest.raises(InputError, match=part):
            merge(model, ThoughtAdapter([*random_adapter(model).patches, patch], manifest))
        assert torch.equal(logits(model, IDS), before)
