"""Transmutation, judged by Hugging Face's own forward passes of one conversation at a time, with no packing."""

import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from cartridges.adapting import applied
from cartridges.conversation import Conversation
from cartridges.dataset import Dataset
from cartridges.errors import ConfigError, InputError
from cartridges.mlp import mlp_of
from cartridges.pairs import Source
from cartridges.transmutation import TransmuteConfig, transmute
from tests.adapters import CORPUS, STUDY, block_outputs, both_ids, conversation, plain, source
from tests.architectures import tiny


def doubled(model):
    model.hf.double()
    return model


@pytest.fixture
def gated(tiny_tokenizer):
    return doubled(tiny("llama", tiny_tokenizer))


def one_token(model):
    return Source(Dataset.from_conversations([conversation(model, 1, num_answer=1)]), CORPUS, STUDY)


@pytest.mark.parametrize("kind", ["plain", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize("method", ["ridge", "mean", "down"])
def test_on_one_token_every_block_gives_what_it_gave_with_the_chunk(tiny_tokenizer, kind, method):
    window = {"sliding_window": 64} if kind == "mistral" else {}
    model = doubled(plain(tiny_tokenizer) if kind == "plain" else tiny(kind, tiny_tokenizer, **window))
    adapter = transmute([one_token(model)], model, method=method, ridge=1e-8).to("cpu", torch.float64)
    teacher, student = both_ids(model, conversation(model, 1, num_answer=1))
    for layer in range(model.num_layers):
        wanted, before = block_outputs(model, teacher, layer)[-2], block_outputs(model, student, layer)[-2]
        assert (wanted - before).abs().max() > 0.1
        with applied(model, adapter):
            found = block_outputs(model, student, layer)[-2]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_the_gated_patch_misses_what_the_ridge_predicts(gated):
    given, layer = source(gated), 1
    adapter = transmute([given], gated, layers=[layer], ridge=0.05)
    (line,) = adapter.manifest.metrics["layers"]
    missed, wanted = 0.0, 0.0
    products = torch.zeros(64, 96, dtype=torch.float64)
    mlp = mlp_of(gated, layer)
    for talk in given.dataset.conversations:
        teacher, student = both_ids(gated, talk)
        places = torch.tensor(talk.target_positions.tolist()) - 1
        hidden = []
        handle = mlp.output.register_forward_pre_hook(lambda module, args, kept=hidden: kept.append(args[0][0]))
        before = block_outputs(gated, student, layer)[places]
        handle.remove()
        goal = block_outputs(gated, teacher, layer)[places + len(teacher) - len(student)]
        with applied(gated, adapter.to("cpu", torch.float64)):
            left = goal - block_outputs(gated, student, layer)[places]
        products += left.T @ hidden[0][places]
        missed, wanted = missed + float(left.square().sum()), wanted + float((goal - before).square().sum())
    assert line["total"] == pytest.approx(wanted, rel=1e-5)
    assert line["residual"] == pytest.approx(missed, rel=1e-5)
    assert 0.01 < line["unexplained"] < 0.9
    delta = adapter.patches[0].delta.double()
    lam = line["ridge_term"] / float(delta.square().sum())
    torch.testing.assert_close(products, lam * delta, atol=1e-3 * float(products.abs().max()), rtol=1e-3)


def test_layers_are_done_in_order_with_those_below_patched(gated):
    whole = transmute([source(gated)], gated, ridge=0.01)
    first = transmute([source(gated)], gated, ridge=0.01, layers=[0])
    assert [patch.layer for patch in whole.patches] == [0, 1]
    torch.testing.assert_close(whole.patches[0].delta, first.patches[0].delta)
    second = transmute([source(gated)], gated, ridge=0.01, layers=[1])
    assert (whole.patches[1].delta - second.patches[0].delta).abs().max() > 1e-3
    given, gap = source(gated), []
    for adapters in ([], [whole]):
        total = 0.0
        for talk in given.dataset.conversations:
            teacher, student = both_ids(gated, talk)
            places = torch.tensor(talk.target_positions.tolist()) - 1
            goal = block_outputs(gated, teacher, 1)[places + len(teacher) - len(student)]
            if adapters:
                with applied(gated, *(adapter.to("cpu", torch.float64) for adapter in adapters)):
                    total += float((goal - block_outputs(gated, student, 1)[places]).square().sum())
            else:
                total += float((goal - block_outputs(gated, student, 1)[places]).square().sum())
        gap.append(total)
    assert gap[1] < 0.5 * gap[0]
    assert whole.manifest.metrics["layers"][1]["residual"] == pytest.approx(gap[1], rel=1e-4)


def test_methods_differ_in_what_they_explain(gated):
    left = {
        method: transmute([source(gated)], gated, method=method, layers=[0], ridge=0.01).manifest.metrics["layers"][0]
        for method in ("bias", "down")
    }
    assert left["down"]["unexplained"] < 0.8 * left["bias"]["unexplained"]
    beside = transmute([source(gated)], gated, layers=[0], ridge=0.01, output_bias=True)
    assert beside.patches[0].bias is not None
    assert beside.manifest.metrics["layers"][0]["unexplained"] < left["down"]["unexplained"] + 1e-6
    everywhere = transmute([source(gated)], gated, layers=[0], ridge=0.01, tokens="conversation")
    assert everywhere.manifest.metrics["layers"][0]["weight"] > left["down"]["weight"]


@pytest.mark.parametrize("method", ["ridge", "down"])
def test_a_rank_is_kept_in_factors(gated, method):
    found = transmute([source(gated)], gated, method=method, rank=3)
    matrices = [patch for patch in found.patches if patch.rank != 0]
    assert all(patch.rank == 3 for patch in matrices)
    assert found.num_numbers < transmute([source(gated)], gated, method=method).num_numbers / 4
    mean = transmute([source(gated)], gated, method="mean")
    assert {patch.rank for patch in mean.patches} == {0, 1}


def test_several_datasets_are_weighted(gated):
    ward = Source(Dataset.from_conversations([conversation(gated, n) for n in range(4)]), CORPUS, STUDY)
    firm = [conversation(gated, n, document="firm.txt") for n in range(4, 8)]
    firm = Source(Dataset.from_conversations(firm), CORPUS, STUDY, 3.0)
    both = transmute([ward, firm], gated, layers=[0])
    assert both.manifest.metrics["layers"][0]["weight"] == 4 * 6 + 3 * 4 * 6
    assert both.manifest.transmutation["weights"] == [1.0, 3.0]
    thrice = [replace(talk, index=index * 10 + talk.index) for index in range(3) for talk in firm.dataset.conversations]
    same = transmute([ward, Source(Dataset.from_conversations(thrice), CORPUS, STUDY)], gated, layers=[0])
    torch.testing.assert_close(both.patches[0].delta, same.patches[0].delta, atol=1e-5, rtol=1e-4)


def test_off_the_corpus_nothing_is_wanted(gated):
    general = Source(Dataset.from_conversations([conversation(gated, n, document="") for n in range(4)]), CORPUS, STUDY)
    found = transmute([general], gated)
    assert all(float(patch.delta.abs().max()) < 1e-6 for patch in found.patches)


class Lazy(Sequence):
    """Conversations that are made when asked for; `alive` counts those that somebody holds."""

    def __init__(self, model, num):
        self.model, self.num, self.held, self.alive = model, num, weakref.WeakSet(), 0

    def __len__(self):
        return self.num

    def __getitem__(self, place):
        made = HeldConversation(**vars(conversation(self.model, place, 3, ["ward.txt", ""][place % 5 == 0])))
        self.held.add(made)
        self.alive = max(self.alive, len(self.held))
        return made


class HeldConversation(Conversation):
    """One that a weak set can hold."""

    __hash__ = object.__hash__


def test_memory_does_not_grow_with_the_conversations(tiny_tokenizer):
    model, seen = tiny("llama", tiny_tokenizer), []
    for num in (20, 400):
        lazy = Lazy(model, num)
        given = Source(Dataset(lazy, {}), CORPUS, STUDY)
        found = transmute([given], model, layers=[0], row_len=128).manifest.metrics
        assert found["num_conversations"] == num and found["num_skipped"] == 0
        seen.append((lazy.alive, found["statistics_bytes"]))
    assert seen[0] == seen[1] and seen[0][0] <= 2


def test_what_is_told(gated):
    given = source(gated, 12)
    strange = replace(conversation(gated, 50), token_ids=[7] * 40)
    talks = [*given.dataset.conversations, strange]
    found = transmute([Source(Dataset.from_conversations(talks), CORPUS, STUDY)], gated, name="ward", layers=[1])
    assert (found.manifest.name, found.manifest.model) == ("ward", gated.identity)
    assert (found.manifest.metrics["num_conversations"], found.manifest.metrics["num_skipped"]) == (13, 1)
    assert found.manifest.corpus_digests == [CORPUS.digest]
    assert found.manifest.transmutation["layers"] == [1] and found.digest
    assert transmute([given], gated, layers=[1], max_conversations=3).manifest.metrics["num_conversations"] == 3


def test_wrong_input_is_refused(gated, tiny_tokenizer):
    given = source(gated)
    none = Dataset.from_conversations([replace(conversation(gated, 1), token_ids=[7] * 40)])
    for sources, values, part in [
        ([], {}, "given no datasets, expected at least one"),
        ([given], {"layers": [0, 2]}, "given layer 2, expected 0 to 1, the layers of tiny-llama"),
        ([given], {"layers": []}, r"given layers=\[\], expected different numbers, at least one"),
        ([given], {"layers": [1, 1]}, "expected different numbers"),
        ([given], {"ridge": 0.0}, "statistics of layer 0 are singular: .* give a higher ridge, or more conversations"),
        ([Source(none, CORPUS, STUDY)], {}, "none of the conversations has answer tokens that are read behind a chunk"),
        ([Source(given.dataset, None, STUDY)], {}, "nothing tells which documents the dataset is about"),
    ]:
        with pytest.raises(InputError, match=part):
            transmute(sources, gated, **values)
    with pytest.raises(ConfigError, match="given a config and ridge"):
        transmute([given], gated, TransmuteConfig.resolve(), ridge=1.0)
    with pytest.raises(ConfigError, match="'method': given 'dawn'"):
        transmute([given], gated, method="dawn")
    with pytest.raises(InputError, match="does not add its MLP's output to the residual as it is"):
        transmute([given], tiny("gemma3", tiny_tokenizer))
    assert not any(module._forward_hooks for module in gated.hf.modules())
