"""What slots hold before training: the real keys and values of a beginning, or what was asked for instead."""

import pytest
import torch

from cartridges.compact import CompactConfig
from cartridges.corpus import Corpus
from cartridges.errors import ConfigError, InputError
from cartridges.initialization import InitializeConfig, initialize
from cartridges.model import prefix_kv
from tests.architectures import ARCHITECTURES, tiny
from tests.reference import logits_behind, logits_of

CORPUS = Corpus.from_texts({"a.txt": "The ward has nine beds. " * 8, "b.txt": "Nobody knows the door's code. " * 8})


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


def ids_of(model, text):
    return model.chat.context_head() + model.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untrained_slots_give_the_logits_of_the_real_beginning(name, tiny_tokenizer):
    model = tiny(name, tiny_tokenizer)
    start = initialize(model, CORPUS, 24, InitializeConfig())
    ids = ids_of(model, CORPUS.text)[:24]
    question = model.chat.prompt([{"role": "user", "content": "How many beds?"}])
    wanted = logits_of(model, ids + question)[24:]
    found = logits_behind(model, start.keys, start.values, question)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert start.num_slots == 24 and start.num_frozen == 1 and start.manifest.corpus_digest == CORPUS.digest


def test_a_text_of_ones_own(model):
    start = initialize(model, None, 8, InitializeConfig(kind="text", text="An unrelated article about tea. " * 3))
    keys, _ = prefix_kv(model, ids_of(model, "An unrelated article about tea. " * 3)[:8])
    assert all(torch.equal(a, b) for a, b in zip(start.keys, keys, strict=True))


def test_chunks_come_from_all_over_and_differ_by_seed(model):
    one, same, other = (initialize(model, CORPUS, 40, InitializeConfig(kind="chunks", seed=seed)) for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    assert torch.equal(one.keys[0][:, 0], other.keys[0][:, 0])  # the beginning of the chat


def test_random_slots_have_the_statistics_of_real_ones(model):
    start = initialize(model, CORPUS, 64, InitializeConfig(kind="random"))
    keys, values = prefix_kv(model, ids_of(model, CORPUS.text)[:64])
    for drawn, real in zip(start.keys + start.values, keys + values, strict=True):
        assert torch.equal(drawn[:, 0], real[:, 0])
        assert not torch.equal(drawn[:, 1:], real[:, 1:])
        assert (drawn.mean() - real.mean()).abs() < 0.1 * real.std()
        assert drawn.std() == pytest.approx(real.std().item(), rel=0.1)
    assert initialize(model, CORPUS, 64, InitializeConfig(kind="random", seed=1)).digest != start.digest


def test_another_cartridge(model, tmp_path):
    first = initialize(model, CORPUS, 16, InitializeConfig())
    first.save(tmp_path)
    again = initialize(model, None, 16, InitializeConfig(kind="cartridge", cartridge=tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(first.keys, again.keys, strict=True))
    assert again.manifest.initializer["digest"] == first.digest
    with pytest.raises(InputError, match=r"given 8 slots and .* which has 16; give slots=16"):
        initialize(model, None, 8, InitializeConfig(kind="cartridge", cartridge=tmp_path))


@pytest.mark.parametrize("num_frozen", [0, 3])
def test_the_number_of_frozen_slots_is_kept(model, num_frozen):
    assert initialize(model, CORPUS, 8, InitializeConfig(), num_frozen).num_frozen == num_frozen


@pytest.mark.parametrize(
    ("corpus", "slots", "frozen", "message"),
    [
        (CORPUS, 900, 1, "given 900 slots for a text of .* tokens; give at most"),
        (CORPUS, 5000, 1, "given 5000 slots, expected fewer than the model's window of 1024"),
        (CORPUS, 8, 9, "given 9 frozen slots of 8"),
        (None, 8, 1, "given no corpus, expected one"),
    ],
)
def test_what_cannot_be_filled_is_told(model, corpus, slots, frozen, message):
    with pytest.raises(InputError, match=message):
        initialize(model, corpus, slots, InitializeConfig(), frozen)


@pytest.mark.parametrize("kind", ["text", "cartridge"])
def test_a_kind_without_its_source_is_told(kind):
    with pytest.raises(ConfigError, match=rf"initialize\.kind={kind} and no initialize\.{kind}"):
        InitializeConfig.resolve(overrides=[f"kind={kind}"])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "random", "seed": 3},
        {"kind": "text", "text": "An article about tea. " * 3},
        {"kind": "kv_eviction"},
        {
            "kind": "attention_matching",
            "compact": {"keys": "highest_attention", "bias": False, "num_query_tokens": 300},
        },
        {"kind": "attention_matching", "compact": {"budgets": "per_head", "used_ratio": 0.75, "seed": 5}},
    ],
    ids=str,
)
def test_a_manifest_tells_how_its_slots_began(model, values):
    config = InitializeConfig.resolve(values=values)
    start = initialize(model, CORPUS, 8, config)
    told = InitializeConfig.told_by(start.manifest.initializer)
    assert told == config
    assert initialize(model, CORPUS, 8, told).digest == start.digest


def test_a_manifest_of_another_version_is_told():
    later = {"kind": "kv_eviction", **CompactConfig.resolve().model_dump(), "rounds": 3}
    assert InitializeConfig.told_by(later) == InitializeConfig.resolve(values={"kind": "kv_eviction"})
    with pytest.raises(ConfigError, match=r"'compact\.keys': given 'best'"):
        InitializeConfig.told_by({"kind": "kv_eviction", "keys": "best"})
    with pytest.raises(ConfigError, match="'kind': given 'learned'"):
        InitializeConfig.told_by({"kind": "learned"})
