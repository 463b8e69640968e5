"""Compaction: all tokens kept are the context itself, fewer are near it, and what cannot be done is told."""

import numpy as np
import pytest
import torch

from cartridges.cartridge import CONVENTION, Cartridge
from cartridges.compact import EMPTY_BIAS, CompactConfig, compact
from cartridges.conversation import Conversation, TopK
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import ConfigError, InputError
from cartridges.initialization import InitializeConfig, initialize
from tests.architectures import ARCHITECTURES, WINDOW, tiny
from tests.engine.judges import ids_of
from tests.reference import biased_logits_behind, logits_of

CORPUS = Corpus.from_texts(
    {"a.txt": "The ward has nine beds and one door. ", "b.txt": "Nobody knows the door's code. " * 2}
)
QUESTION = [{"role": "user", "content": "How many beds does it have?"}]
METHODS = ("attention_matching", "kv_eviction")


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


@pytest.fixture(scope="module")
def context(model):
    return model.chat.system_prefix(CORPUS.text)


@pytest.fixture(scope="module")
def dataset(model):
    talks = []
    for index in range(6):
        ids = np.array(model.chat.prompt(QUESTION) + list(ids_of(model, index, 12)), np.int32)
        targets = np.arange(len(ids) - 3, len(ids))
        teacher = TopK(np.zeros((3, 1), np.int32), np.full((3, 1), -1.0, np.float32))
        talks.append(Conversation(index, QUESTION, ids, targets, teacher, "a.txt" if index else "", 0, 5, "x", 1, 1))
    return Dataset(talks, {})


def config_of(**values):
    return CompactConfig.resolve(values={"num_query_tokens": 400, **values})


def answered(model, cartridge, ids):
    return biased_logits_behind(model, cartridge, ids).log_softmax(-1)


def distance(model, cartridge, ids, wanted):
    return float((wanted.exp() * (wanted - answered(model, cartridge, ids))).sum(-1).mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_all_tokens_kept_answer_as_the_context(name, method, tiny_tokenizer):
    model = tiny(name, tiny_tokenizer)
    ids, question = model.chat.system_prefix(CORPUS.text), model.chat.prompt(QUESTION)
    whole = compact(model, CORPUS, len(ids), method, config_of())
    wanted = logits_of(model, ids + question)[len(ids) :].log_softmax(-1)
    assert whole.num_slots == len(ids)
    assert (answered(model, whole, question) - wanted).abs().max() < 2e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_of_the_tokens_matched_are_nearer_than_as_many_first_ones_or_evicted_ones(name, tiny_tokenizer):
    model = tiny(name, tiny_tokenizer)
    ids, question = model.chat.system_prefix(CORPUS.text), model.chat.prompt(QUESTION)
    wanted = logits_of(model, ids + question)[len(ids) :].log_softmax(-1)
    made = [initialize(model, CORPUS, len(ids) // 2, InitializeConfig.resolve())]
    made += [compact(model, CORPUS, len(ids) // 2, method, config_of()) for method in reversed(METHODS)]
    first, evicted, matched = (distance(model, cartridge, question, wanted) for cartridge in made)
    assert matched < first and matched <= evicted  # alike where all layers keep their last tokens


def test_keys_stay_as_far_from_the_text_as_they_were(model, context):
    """Kept as they are, without the tokens that were dropped: as if the dropped ones were hidden in the context."""
    num_slots = len(context) - 5
    evicted = compact(model, CORPUS, num_slots, "kv_eviction", config_of())
    whole = compact(model, CORPUS, len(context), "kv_eviction", config_of())
    turned = evicted.keys[0].norm(dim=-1), whole.keys[0].norm(dim=-1)
    for head in range(2):
        kept = {round(float(norm), 3) for norm in turned[1][head]}
        assert {round(float(norm), 3) for norm in turned[0][head]} <= kept
    assert torch.equal(evicted.values[0][:, 0], whole.values[0][:, 0])
    assert evicted.bias is None and evicted.manifest.convention == CONVENTION


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_layers_with_a_window_keep_their_last_tokens(name, tiny_tokenizer):
    model = tiny(name, tiny_tokenizer)
    ids, question = model.chat.system_prefix(CORPUS.text), model.chat.prompt(QUESTION)
    matched = compact(model, CORPUS, WINDOW + 2, config=config_of())
    if name == "mistral":  # all of whose layers have one: what the text can see is whole
        wanted = logits_of(model, ids + question)[len(ids) :].log_softmax(-1)
        assert (answered(model, matched, question) - wanted).abs().max() < 2e-4 * wanted.abs().max()
    assert matched.bias and matched.bias[0].eq(0).all()
    smaller = compact(model, CORPUS, WINDOW - 3, config=config_of())
    assert smaller.bias and smaller.bias[0].ne(0).any() and all(part.isfinite().all() for part in smaller.bias)


def test_frozen_slots_are_the_first_tokens_as_they_were(model, context):
    matched = compact(model, CORPUS, 20, num_frozen=3, config=config_of())
    evicted = compact(model, CORPUS, 20, "kv_eviction", num_frozen=3, config=config_of())
    assert matched.bias and matched.num_frozen == 3
    for layer in range(2):
        assert matched.bias[layer][:, :3].eq(0).all() and matched.bias[layer][:, 3:].ne(0).any()
        torch.testing.assert_close(matched.keys[layer][:, :3], evicted.keys[layer][:, :3])
        torch.testing.assert_close(matched.values[layer][:, :3], evicted.values[layer][:, :3])


@pytest.mark.parametrize(
    "values",
    [
        {"keys": "highest_attention"},
        {"bias": False},
        {"values": "kept"},
        {"queries": "self_study"},
        {"queries": "self_study", "keys": "highest_attention"},
    ],
    ids=str,
)
def test_every_form_is_near_the_context_and_the_same_again(model, context, dataset, values):
    question = model.chat.prompt(QUESTION)
    wanted = logits_of(model, context + question)[len(context) :].log_softmax(-1)
    made = [compact(model, CORPUS, 24, config=config_of(**values), dataset=dataset) for _ in range(2)]
    first = initialize(model, CORPUS, 24, InitializeConfig.resolve())
    assert made[0].digest == made[1].digest
    assert (made[0].bias is None) == (not values.get("bias", True))
    assert distance(model, made[0], question, wanted) < distance(model, first, question, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_budgets_of_heads_share_a_sum_within_one_width(model, method):
    config = config_of(budgets="per_head", used_ratio=0.5)
    made = compact(model, CORPUS, 24, method, config)
    assert made.bias
    used = [(part > EMPTY_BIAS / 2).sum(1) for part in made.bias]
    assert sum(int(part.sum()) for part in used) == 2 * 2 * 12
    assert all(2 <= num <= 24 for part in used for num in part.tolist())
    assert len({num for part in used for num in part.tolist()}) > 1
    question = model.chat.prompt(QUESTION)
    found = answered(model, made, question)
    loud = Cartridge(made.keys, [v.clone() for v in made.values], made.manifest, made.bias)
    for values, bias in zip(loud.values, made.bias, strict=True):
        values[bias < EMPTY_BIAS / 2] = 100.0  # nobody looks there
    assert torch.equal(answered(model, loud, question), found)


def test_bfloat16_models_are_compacted_in_float32(tiny_tokenizer):
    model = tiny("qwen3", tiny_tokenizer)
    model.hf.to(torch.bfloat16)
    made = compact(model, CORPUS, 24, config=config_of())
    assert {part.dtype for part in (*made.keys, *made.values, *(made.bias or ()))} == {torch.float32}
    assert all(part.isfinite().all() for part in (*made.keys, *made.values, *(made.bias or ())))


def test_a_corpus_longer_than_the_window_is_compacted_in_chunks(tiny_tokenizer, monkeypatch):
    model = tiny("qwen3", tiny_tokenizer)
    long = Corpus.from_texts({"a.txt": "".join(f"The ward number {i} has {i * 7} beds. " for i in range(24))})
    model.window = len(model.ids(long.text)) - 40
    made = compact(model, long, 40, config=config_of())
    assert made.num_slots == 40 and made.manifest.convention == CONVENTION and made.num_frozen == 1
    assert [part.shape for part in made.bias or ()] == [(2, 40)] * 2
    with pytest.raises(InputError, match=r"given 3 frozen slots and a corpus of .* expected at most 1"):
        compact(model, long, 40, num_frozen=3)
    with pytest.raises(InputError, match=r"given 2 slots for .* chunks of the window; give at least"):
        compact(model, long, 2)


@pytest.mark.parametrize(
    ("slots", "values", "message"),
    [
        (4000, {}, "given 4000 slots, 1 of them frozen, for a context of .* tokens"),
        (1, {}, "given 1 slots, 1 of them frozen"),
        (8, {"queries": "self_study"}, "given queries=self_study and no conversations, expected a dataset"),
        (
            4,
            {"budgets": "per_head", "used_ratio": 0.25},
            "given 4 slots and used_ratio=0.25, expected at least 2 in use",
        ),
    ],
)
def test_what_cannot_be_compacted_is_told(model, slots, values, message):
    with pytest.raises(InputError, match=message):
        compact(model, CORPUS, slots, config=config_of(**values))


def test_conversations_about_nothing_are_told(model, dataset):
    off = Dataset(dataset.conversations[:1], {})
    with pytest.raises(InputError, match="given 1 conversations, none of which is about a document"):
        compact(model, CORPUS, 12, config=config_of(queries="self_study"), dataset=off)


@pytest.mark.parametrize("kind", METHODS)
def test_it_initialises_training(model, kind):
    config = InitializeConfig.resolve(overrides=[f"kind={kind}", "compact.num_query_tokens=300"])
    start = initialize(model, CORPUS, 12, config, 2)
    assert start.num_slots == 12 and start.num_frozen == 2 and start.manifest.initializer["kind"] == kind
    assert start.digest == compact(model, CORPUS, 12, kind, config.compact, 2).digest
    with pytest.raises(InputError, match=f"given no corpus, expected one to initialise from with kind {kind}"):
        initialize(model, None, 12, config)


def test_a_misspelt_choice_is_told():
    with pytest.raises(ConfigError, match="keys"):
        InitializeConfig.resolve(overrides=["compact.keys=lowest"])
