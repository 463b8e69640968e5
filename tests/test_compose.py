"""Composing, judged by the model itself: keys that it computes at other positions, and logits behind them."""

from functools import partial

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    Glm4Config,
    Glm4ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from cartridges.cartridge import CONVENTION, Cartridge, Manifest
from cartridges.compose import (
    COMPOSED,
    PAIRED_BY_HALVES,
    PAIRED_BY_NEIGHBOURS,
    compose,
    composed_digest,
    composed_len,
    inverse_frequencies,
    turn,
)
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import FormatError, InputError
from cartridges.model import prefix_kv
from tests.architectures import ARCHITECTURES, WINDOW, tiny
from tests.engine.judges import ids_of, judge_generate
from tests.reference import logits_behind

SINK = 9
PARTIAL = {
    "glm4": (Glm4Config, Glm4ForCausalLM, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
}
BOTH = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
SPECIAL = {  # what some architectures need to be tiny, or to have both kinds of layers
    "apertus": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "gemma2": BOTH,
    "gemma3_text": BOTH,
    "gemma4_text": {
        **BOTH,
        "vocab_size_per_layer_input": 4096,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 32,
    },
    "ministral": BOTH,
    "olmo3": BOTH,
    "vaultgemma": BOTH,
}
SCALED = [
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 5e5,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 1e6},
]


@pytest.fixture(scope="module")
def model_of(tiny_tokenizer):
    made = {}

    def model_of(name):
        if name not in made:
            made[name] = tiny(name, tiny_tokenizer)
        return made[name]

    return model_of


def kv_at(model, ids, start):
    """Keys and values [G, T, H] of every layer of `ids` that stand at `start` and behind."""
    cache = DynamicCache()
    positions = torch.arange(start, start + len(ids))[None]
    with torch.no_grad():
        model.hf(input_ids=torch.tensor([ids]), position_ids=positions, past_key_values=cache, use_cache=True)
    return [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers]


def cartridge_of(model, seed, num_slots, num_frozen=1, identity=None):
    """First tokens; every text begins with the same one."""
    ids = [SINK, *ids_of(model, seed, num_slots - 1)]
    keys, values = prefix_kv(model, ids)
    manifest = Manifest(
        model=identity or model.identity,
        num_slots=num_slots,
        num_frozen=num_frozen,
        name=f"text-{seed}",
        initializer={"ids": ids},
    )
    return Cartridge(keys, values, manifest).sealed()


def check_turning(model, distance=150):
    ids = list(ids_of(model, 1, 2 * WINDOW))
    (before, _), (after, _) = kv_at(model, ids, 3), kv_at(model, ids, 3 + distance)
    for layer, shape in enumerate(model.identity.layers):
        turned = turn(before[layer], distance, inverse_frequencies(model.identity, shape), model.identity)
        assert (before[layer] - after[layer]).abs().max() > 0.1
        torch.testing.assert_close(turned, after[layer], atol=1e-5 * float(after[layer].abs().max()), rtol=0)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_turned_keys_are_those_that_the_model_computes_there(model_of, name):
    check_turning(model_of(name))


@pytest.mark.parametrize("name", sorted(PAIRED_BY_HALVES | PAIRED_BY_NEIGHBOURS))
def test_keys_of_every_listed_architecture_are_turned(tiny_tokenizer, monkeypatch, name):
    """Norms have weights of their own, as after training: one that follows the rotation would be seen."""
    special = SPECIAL.get(name, {})
    made = (partial(AutoConfig.for_model, name), AutoModelForCausalLM.from_config, special)
    monkeypatch.setitem(ARCHITECTURES, name, made)
    model = tiny(name, tiny_tokenizer)
    assert model.identity.architecture == name
    assert len({shape.window for shape in model.identity.layers}) == 1 + ("layer_types" in special)
    for parameter in model.hf.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(1, 0.5)
    check_turning(model)


@pytest.mark.parametrize("name", list(PARTIAL))
def test_partial_rotation_leaves_the_other_dimensions_alone(tiny_tokenizer, monkeypatch, name):
    monkeypatch.setitem(ARCHITECTURES, name, PARTIAL[name])
    model = tiny(name, tiny_tokenizer)
    assert len(inverse_frequencies(model.identity, model.identity.layers[0])) == 16 // 4
    check_turning(model)


@pytest.mark.parametrize("rope", SCALED, ids=lambda rope: rope["rope_type"])
def test_scaled_frequencies_are_those_of_the_model(tiny_tokenizer, rope):
    check_turning(tiny("llama", tiny_tokenizer, rope_parameters=rope))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_text_sees_every_part_where_it_stood_alone(model_of, name):
    """The judge lays down keys that the model computed at those positions, one part after the other."""
    model = model_of(name)
    parts = [cartridge_of(model, seed, length) for seed, length in ((1, 12), (2, 7), (3, 20))]
    composed = compose(parts, model)
    num_slots = 12 + 6 + 19
    assert composed.num_slots == num_slots == composed_len([part.manifest for part in parts])
    stood = [kv_at(model, part.manifest.initializer["ids"], num_slots - part.num_slots) for part in parts]
    keys, values = (
        [torch.cat([kv[kind][layer][:, int(n > 0) :] for n, kv in enumerate(stood)], 1) for layer in range(2)]
        for kind in (0, 1)
    )
    text = list(ids_of(model, 8, 15))
    expected = logits_behind(model, keys, values, text)
    found = logits_behind(model, composed.keys, composed.values, text)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    one = logits_behind(model, parts[0].keys, parts[0].values, text)
    assert (one - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_order_makes_no_difference_but_for_the_sink(model_of, name):
    """In sliding layers, too, where slots and text are more than the window."""
    model = model_of(name)
    a, b, c = (cartridge_of(model, seed, length) for seed, length in ((1, 12), (2, 12), (3, 5)))
    text = list(ids_of(model, 8, 6))
    found = [
        logits_behind(model, whole.keys, whole.values, text)
        for whole in (compose(order, model) for order in ((a, b, c), (b, a, c), (a, c, b)))
    ]
    torch.testing.assert_close(found[1], found[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=2e-4, rtol=0)


def test_a_sliding_layer_sees_the_nearest_slots_of_every_part(model_of):
    model = model_of("mistral")
    a, b = cartridge_of(model, 1, 12), cartridge_of(model, 2, 12)
    composed = compose([a, b], model)
    nearest = composed.values[0][:, -6:]
    first, second = sorted([a, b], key=lambda part: part.digest)
    expected = torch.stack([first.values[0][:, -3:], second.values[0][:, -3:]], 2).flatten(1, 2)
    assert torch.equal(nearest, expected)


def test_the_engine_answers_behind_composed_slots(model_of):
    model = model_of("gemma3")
    composed = compose([cartridge_of(model, 1, 12), cartridge_of(model, 2, 7)], model)
    request = Request(ids_of(model, 5, 9), max_new_tokens=8, cartridge=composed)
    assert Engine(model).generate([request])[0].token_ids == judge_generate(model, request)


def test_one_is_returned_as_it_is(model_of):
    cartridge = cartridge_of(model_of("llama"), 1, 6)
    assert compose([cartridge], model_of("llama")) is cartridge
    assert composed_digest([cartridge.digest]) == cartridge.digest


def test_exactly_one_sink_is_kept(model_of):
    model = model_of("llama")
    with_sink, without = cartridge_of(model, 1, 6), cartridge_of(model, 2, 8, num_frozen=0)
    for parts, num_slots, num_frozen in (
        ((with_sink, with_sink), 11, 1),
        ((with_sink, without), 14, 1),
        ((without, with_sink), 14, 1),
        ((without, without), 16, 0),
    ):
        composed = compose(parts, model)
        assert (composed.num_slots, composed.num_frozen) == (num_slots, num_frozen)
        assert composed_len([part.manifest for part in parts]) == num_slots
        if num_frozen:
            assert torch.equal(composed.values[0][:, 0], with_sink.values[0][:, 0])


def test_the_manifest_tells_of_the_parts(model_of):
    model = model_of("llama")
    a, b = cartridge_of(model, 1, 6), cartridge_of(model, 2, 8)
    told = compose([a, b], model).manifest
    assert (told.name, told.parents, told.convention) == ("text-1+text-2", [a.digest, b.digest], COMPOSED)
    assert told.model == model.identity and told.convention != CONVENTION
    assert told.digest == compose([a, b], model.identity).digest == composed_digest([a.digest, b.digest])
    assert len({told.digest, compose([b, a], model).digest, a.digest, b.digest}) == 4


def test_what_is_composed_can_be_saved(model_of, tmp_path):
    model = model_of("llama")
    composed = compose([cartridge_of(model, 1, 6), cartridge_of(model, 2, 8)], model)
    composed.save(tmp_path)
    read = Cartridge.load(tmp_path)
    assert torch.equal(read.keys[1], composed.keys[1]) and read.manifest.convention == COMPOSED


def test_parts_without_a_digest_get_one(model_of):
    model = model_of("llama")
    a, b = cartridge_of(model, 1, 6), cartridge_of(model, 2, 8)
    unsealed = Cartridge(b.keys, b.values, b.manifest.model_copy(update={"digest": ""}))
    assert compose([a, unsealed], model).digest == compose([a, b], model).digest


def test_parts_keep_their_dtype_and_mixed_ones_become_float32(model_of):
    model = model_of("llama")
    a, b = cartridge_of(model, 1, 6), cartridge_of(model, 2, 8)
    small = [part.to("cpu", torch.bfloat16).sealed() for part in (a, b)]
    assert compose(small, model).keys[0].dtype == torch.bfloat16
    assert compose(small, model).manifest.dtype == "bfloat16"
    assert compose([a, small[1]], model).keys[0].dtype == torch.float32


def test_what_cannot_be_composed_is_refused(model_of, tiny_tokenizer):
    model = model_of("llama")
    a, b = cartridge_of(model, 1, 6), cartridge_of(model, 2, 8)
    with pytest.raises(InputError, match="given no cartridges to compose, expected at least one"):
        compose([], model)
    with pytest.raises(InputError, match="compose cartridges that are not composed themselves"):
        compose([compose([a, b], model), a], model)
    other = cartridge_of(tiny("llama", tiny_tokenizer, seed=1), 1, 6)
    with pytest.raises(FormatError, match="other weights of the same shape"):
        compose([a, other], model)
    with pytest.raises(FormatError, match="other layers"):
        compose([a, cartridge_of(model_of("qwen3"), 1, 6)], model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "smollm3"}, "not known how the architecture smollm3 of tiny-llama rotates its keys"),
        ({"architecture": "hunyuan_v1_dense"}, "not known how the architecture hunyuan_v1_dense of tiny-llama"),
        ({"rope": {"rope_type": "dynamic", "rope_theta": 1e4}}, "parameters of the type 'dynamic' in its full_att"),
        ({"rope": {"rope_type": "longrope", "rope_theta": 1e4}}, "the type 'longrope'"),
        ({"rope": {}}, "expected one of default, linear, llama3, yarn, proportional with a rope_theta"),
        ({"rope": {"rope_type": "yarn", "rope_theta": 1e4}}, "lack something .*factor"),
    ],
)
def test_keys_that_cannot_be_turned_are_refused(model_of, changes, message):
    model = model_of("llama")
    identity = model.identity.model_copy(update=changes)
    parts = [cartridge_of(model, seed, 6, identity=identity) for seed in (1, 2)]
    with pytest.raises(InputError, match=message) as caught:
        compose(parts, identity)
    assert "\n" not in str(caught.value)
