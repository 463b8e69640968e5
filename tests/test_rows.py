"""The plan of a run's rows: each conversation once an epoch, steps within an epoch, and the same plan every time."""

import itertools

import numpy as np
import pytest

from cartridges.conversation import Conversation, TopK
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.recipe import TrainConfig
from cartridges.rows import RowPlan
from tests.architectures import tiny

CORPUS = Corpus.from_texts({"a.txt": "The ward has nine beds and one door. " * 20})
SMALL = {"slots": 12, "row_len": 64, "rows_per_step": 2, "epochs": 3, "holdout_share": 0.2}


def config_of(**changes):
    return TrainConfig.model_validate({**SMALL, **changes})


def conversation(index, length=20):
    """A conversation that is known by its first id."""
    ids = np.full(length, 7, dtype=np.int32)
    ids[0] = 1000 + index
    positions = np.arange(length // 2, length, dtype=np.int32)
    teacher = TopK(np.full((len(positions), 1), 7, np.int32), np.full((len(positions), 1), -2.0, np.float32))
    messages = [{"role": "user", "content": str(index)}, {"role": "assistant", "content": "yes"}]
    return Conversation(index, messages, ids, positions, teacher, "a.txt", 0, 10, "question", 5, len(positions))


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("llama", tiny_tokenizer)


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_conversations([conversation(index, 10 + index) for index in range(25)], {})


def numbers(rows):
    """The conversations of packed rows, by their number."""
    return [int(piece.ids_T[0]) - 1000 for row in rows for piece in row.pieces]


def steps_of(plan):
    return [numbers(plan.step_rows(step)) for step in range(plan.num_steps)]


def test_every_epoch_has_each_conversation_once_and_no_heldout_one(dataset, model):
    config = config_of()
    plan = RowPlan.of(dataset, model, CORPUS, config)
    heldout = set(numbers(plan.heldout_rows))
    training = set(range(25)) - heldout
    assert heldout == {talk.index for talk in dataset.split(0.2, 0)[1].conversations} != set()
    epochs = {epoch: [] for epoch in range(3)}
    for step, found in enumerate(steps_of(plan)):
        epochs[plan.starts[step][0]] += found
    assert [sorted(found) for found in epochs.values()] == [sorted(training)] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_step_has_its_number_of_rows_and_never_crosses_an_epoch(dataset, model):
    plan = RowPlan.of(dataset, model, CORPUS, config_of(rows_per_step=4))
    for epoch, steps in itertools.groupby(range(plan.num_steps), key=lambda step: plan.starts[step][0]):
        sizes = [len(plan.step_rows(step)) for step in steps]
        assert sum(sizes) == len(plan.epoch_rows(epoch))
        assert sizes[:-1] == [4] * (len(sizes) - 1) and 1 <= sizes[-1] <= 4


def test_rows_are_no_longer_than_asked(dataset, model):
    plan = RowPlan.of(dataset, model, CORPUS, config_of())
    assert max(sum(row.lengths) for step in range(plan.num_steps) for row in plan.step_rows(step)) <= 64


def test_steps_can_be_asked_for_in_any_order(dataset, model):
    plan = RowPlan.of(dataset, model, CORPUS, config_of())
    expected = steps_of(plan)
    again = RowPlan.of(dataset, model, CORPUS, config_of())
    backwards = [numbers(again.step_rows(step)) for step in reversed(range(again.num_steps))]
    assert backwards[::-1] == expected


def test_the_seed_decides(dataset, model):
    plans = [RowPlan.of(dataset, model, CORPUS, config_of(seed=seed)) for seed in (0, 0, 1)]
    assert steps_of(plans[0]) == steps_of(plans[1]) != steps_of(plans[2])


@pytest.mark.parametrize("max_steps", [1, 5, 40])
def test_max_steps_stands_for_epochs(dataset, model, max_steps):
    plan = RowPlan.of(dataset, model, CORPUS, config_of(max_steps=max_steps))
    whole = RowPlan.of(dataset, model, CORPUS, config_of(epochs=20))
    assert plan.num_steps == max_steps
    assert steps_of(plan) == steps_of(whole)[:max_steps]


def test_without_a_holdout_everything_is_trained_on(dataset, model):
    plan = RowPlan.of(dataset, model, CORPUS, config_of(holdout_share=0, epochs=1))
    assert plan.heldout_rows == []
    assert sorted(itertools.chain(*steps_of(plan))) == list(range(25))


def test_text_is_learned_whole(model):
    config = config_of(objective="text", row_len=32, rows_per_step=3, epochs=2)
    plan = RowPlan.of(None, model, CORPUS, config)
    ids = model.tokenizer(CORPUS.text, add_special_tokens=False).input_ids
    assert plan.heldout_rows == []
    for epoch in range(2):
        rows = plan.epoch_rows(epoch)
        assert sum(row.num_targets for row in rows) == len(ids) - 1
        assert all(sum(row.lengths) <= 32 for row in rows)
        targets = sorted(int(token) for row in rows for token in row.target_ids_M)
        assert targets == sorted(ids[1:])
    orders = [[tuple(row.ids_T) for row in plan.epoch_rows(epoch)] for epoch in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_a_short_text_is_one_row(model):
    corpus = Corpus.from_texts({"a.txt": "Nine beds."})
    plan = RowPlan.of(None, model, corpus, config_of(objective="text", slots=2, epochs=1))
    assert plan.num_steps == len(plan.step_rows(0)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 1010}, r"given 1010 slots and conversations of up to 34 tokens, expected at most .* 1024 tokens"),
        ({"objective": "text", "row_len": 1020}, r"given row_len=1020 behind 12 slots, .*; give row_len=1012"),
        ({"holdout_share": 0.99}, "25 conversations and holdout_share=0.99, which leaves none to train on"),
    ],
)
def test_what_does_not_fit_is_told(dataset, model, changes, message):
    with pytest.raises(InputError, match=message):
        RowPlan.of(dataset, model, CORPUS, config_of(**changes))


def test_nothing_to_learn_from_is_told(model):
    with pytest.raises(InputError, match="given no conversations, expected some for objective=distill; synth"):
        RowPlan.of(None, model, CORPUS, config_of())
    with pytest.raises(InputError, match="given no corpus, expected one for objective=text"):
        RowPlan.of(None, model, None, config_of(objective="text"))
    with pytest.raises(InputError, match="at least"):
        RowPlan.of(None, model, Corpus.from_texts({"a": "a"}), config_of(objective="text"))
