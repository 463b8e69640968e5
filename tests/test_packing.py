"""Packed rows: nothing lost, nothing doubled, and every target where the state stands that predicts it."""

import random

import numpy as np
import pytest
import torch

from cartridges.conversation import Conversation, TopK
from cartridges.errors import InputError
from cartridges.losses import distillation_loss, next_token_loss
from cartridges.packing import PackedRow, epoch_rows, pack, pack_text, to_tensors

K = 3


def conversation(index: int, length: int, num_targets: int | None = None, num_entries: int = K) -> Conversation:
    """Its token t has the id 1000 * index + t, so that an id says where it comes from; so do the teacher's entries."""
    rng = np.random.default_rng([index, length])
    num_targets = length // 2 if num_targets is None else num_targets
    positions = np.sort(rng.choice(np.arange(1, length), num_targets, replace=False)).astype(np.int32)
    token_ids = (1000 * index + np.arange(length)).astype(np.int32)
    entries = np.arange(num_entries)
    logprobs = np.log(np.tile(0.9 / 2.0 ** (1 + entries), (num_targets, 1)) - 1e-6 * index).astype(np.float32)
    teacher = TopK((token_ids[positions][:, None] + 7 * entries).astype(np.int32), logprobs)
    messages = [{"role": "user", "content": str(index)}]
    made = Conversation(index, messages, token_ids, positions, teacher, "", 0, 0, "question", 0, 0)
    made.check()
    return made


def many(num: int = 40, seed: int = 0, longest: int = 60) -> list[Conversation]:
    rng = random.Random(seed)
    return [conversation(index, rng.randint(2, longest)) for index in range(num)]


def owners(row: PackedRow) -> list[int]:
    """The conversation at each of the row's places, read off the first id."""
    starts = np.cumsum([0, *row.lengths[:-1]])
    return [int(row.ids_T[start]) // 1000 for start in starts]


def first_fit(lengths: list[int], row_len: int) -> list[list[int]]:
    """The textbook's, without a shortcut."""
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[other] for other in row) + length <= row_len:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


@pytest.mark.parametrize("row_len", [1, 7, 59, 64, 200, 10_000])
def test_rows_are_those_of_first_fit(row_len):
    conversations = many()
    rows = pack(conversations, row_len)
    assert [owners(row) for row in rows] == first_fit([len(c.token_ids) for c in conversations], row_len)
    assert all(len(row.ids_T) <= row_len or len(row.lengths) == 1 for row in rows)


@pytest.mark.parametrize("row_len", [1, 64, 10_000])
def test_nothing_is_lost_or_doubled(row_len):
    conversations = many()
    for rows in (pack(conversations, row_len), epoch_rows(conversations, row_len, seed=3, epoch=1)):
        ids = np.concatenate([row.ids_T for row in rows])
        assert sorted(ids) == sorted(np.concatenate([c.token_ids for c in conversations]))
        targets = np.concatenate([row.target_ids_M for row in rows])
        assert sorted(targets) == sorted(np.concatenate([c.token_ids[c.target_positions] for c in conversations]))
        assert sum(row.num_targets for row in rows) == len(targets)
        assert sum(row.num_dropped_targets for row in rows) == 0


def test_targets_are_predicted_from_the_token_before_in_the_same_conversation():
    conversations = many()
    for row in pack(conversations, 100):
        assert row.target_positions_M.min() >= 0
        assert np.array_equal(row.ids_T[row.target_positions_M] + 1, row.target_ids_M)
        assert np.array_equal(row.teacher_ids_MK[:, 0], row.target_ids_M)
        of_targets = row.target_ids_M // 1000
        expected = np.concatenate([conversations[owner].teacher.logprobs for owner in owners(row)])
        assert np.array_equal(row.teacher_logprobs_MK, expected)
        assert np.all(np.diff(row.target_positions_M) > 0)
        assert sorted(set(of_targets)) == sorted(c for c in owners(row) if len(conversations[c].target_positions))


def test_a_row_worked_out_by_hand():
    one, two = conversation(1, 5, 2), conversation(2, 3, 1)
    one.target_positions[:] = [1, 4]
    two.target_positions[:] = [2]
    (row,) = pack([one, two], 8)
    assert row.lengths == [5, 3]
    assert row.ids_T.tolist() == [1000, 1001, 1002, 1003, 1004, 2000, 2001, 2002]
    assert row.target_positions_M.tolist() == [0, 3, 6]
    assert row.target_ids_M.tolist() == [1001, 1004, 2002]


def test_packed_losses_are_those_of_the_conversations_alone():
    """Also where the teachers gave differing numbers of entries."""
    conversations = [conversation(index, 9 + index, num_entries=1 + index % 3) for index in range(6)]
    generator = torch.Generator().manual_seed(0)
    embedding, head = (torch.randn(6000, 8, generator=generator) for _ in range(2))

    def losses(rows):
        for tensors in (to_tensors(row, "cpu") for row in rows):
            hidden_MD = embedding[tensors.ids_T][tensors.target_positions_M]
            teacher = (tensors.teacher_ids_MK, tensors.teacher_logprobs_MK)
            yield torch.stack(
                [distillation_loss(hidden_MD, head, *teacher), next_token_loss(hidden_MD, head, tensors.target_ids_M)]
            )

    packed, alone = (list(losses(pack(conversations, row_len))) for row_len in (1000, 1))
    assert (len(packed), len(alone)) == (1, 6)
    torch.testing.assert_close(sum(packed), sum(alone), rtol=1e-5, atol=1e-4)


def test_narrower_teachers_are_padded_with_absent_entries():
    (row,) = pack([conversation(1, 4, 2, num_entries=1), conversation(2, 4, 1, num_entries=3)], 8)
    assert row.teacher_ids_MK.shape == row.teacher_logprobs_MK.shape == (3, 3)
    assert np.array_equal(row.teacher_ids_MK[:2, 1:], np.zeros((2, 2)))
    assert np.array_equal(row.teacher_logprobs_MK == -np.inf, [[False, True, True]] * 2 + [[False] * 3])


def test_a_long_conversation_has_a_row_of_its_own_and_is_whole():
    conversations = [conversation(0, 10), conversation(1, 90), conversation(2, 10), conversation(3, 20)]
    rows = pack(conversations, 40)
    assert [owners(row) for row in rows] == [[0, 2, 3], [1]]
    assert rows[1].lengths == [90]
    assert rows[1].num_targets == 45


def test_cutting_drops_and_counts_the_targets_beyond():
    long, short = conversation(0, 90), conversation(1, 10)
    (row,) = pack([long, short], 40, max_len=30)
    kept = long.target_positions[long.target_positions < 30]
    assert row.lengths == [30, 10]
    assert row.ids_T[:30].tolist() == long.token_ids[:30].tolist()
    assert row.target_ids_M.tolist() == [*long.token_ids[kept], *short.token_ids[short.target_positions]]
    assert len(row.teacher_ids_MK) == len(row.teacher_logprobs_MK) == row.num_targets == len(kept) + 5
    assert row.num_dropped_targets == 45 - len(kept) > 0
    assert [c.num_dropped_targets for c in pack([short], 40, max_len=10)] == [0]


def test_a_target_at_the_cut_is_beyond_it():
    given = conversation(0, 10, 9)  # every position but the first
    (row,) = pack([given], 40, max_len=4)
    assert row.target_positions_M.tolist() == [0, 1, 2]
    assert row.num_dropped_targets == 6


def test_a_conversation_without_targets_is_kept():
    (row,) = pack([conversation(0, 5, 0)], 40)
    assert (row.num_targets, len(row.ids_T)) == (0, 5)
    assert to_tensors(row, "cpu").teacher_ids_MK.shape == (0, K)


def contents(rows: list[PackedRow]) -> list[list[int]]:
    return [row.ids_T.tolist() for row in rows]


def test_an_epoch_is_a_function_of_seed_and_number():
    conversations = many()
    given = contents(epoch_rows(conversations, 100, seed=5, epoch=2))
    assert contents(epoch_rows(conversations, 100, seed=5, epoch=2)) == given
    for other in ((5, 3), (6, 2), (2, 5)):
        assert contents(epoch_rows(conversations, 100, *other)) != given
    assert contents(epoch_rows(many(), 100, seed=-5, epoch=0)) == contents(epoch_rows(many(), 100, seed=-5, epoch=0))


def test_the_order_of_an_epoch_is_this_one_on_every_machine():
    rows = epoch_rows([conversation(index, 10) for index in range(8)], 30, seed=0, epoch=0)
    assert [owners(row) for row in rows] == [[4, 2], [6, 3, 5], [7, 1, 0]]


def test_rows_with_room_left_do_not_all_come_last():
    conversations = many(num=200)
    last_lengths = {len(epoch_rows(conversations, 100, 0, epoch)[-1].ids_T) for epoch in range(10)}
    assert max(last_lengths) >= 95


def test_no_conversations_give_no_rows():
    assert pack([], 100) == []
    assert epoch_rows([], 100, 0, 0) == []


def test_tensors_are_the_arrays():
    (row, *_) = pack(many(), 200)
    tensors = to_tensors(row, "cpu")
    for name in ("ids_T", "target_positions_M", "target_ids_M", "teacher_ids_MK"):
        assert getattr(tensors, name).dtype == torch.int64
        assert np.array_equal(getattr(tensors, name).numpy(), getattr(row, name))
    assert tensors.teacher_logprobs_MK.dtype == torch.float32
    assert np.array_equal(tensors.teacher_logprobs_MK.numpy(), row.teacher_logprobs_MK)
    assert tensors.lengths == row.lengths
    tensors.ids_T.zero_()
    assert row.ids_T.any(), "the conversation's own memory is not the tensor's"


@pytest.mark.parametrize("row_len", [2, 3, 10, 26, 27, 100])
def test_text_is_a_target_once_but_for_its_first_id(row_len):
    ids = list(range(500, 526))
    rows = pack_text(ids, row_len)
    assert np.concatenate([row.target_ids_M for row in rows]).tolist() == ids[1:]
    for row in rows:
        assert len(row.ids_T) <= row_len
        assert row.lengths == [len(row.ids_T)]
        assert row.target_positions_M.tolist() == list(range(len(row.ids_T) - 1))
        assert np.array_equal(row.ids_T[row.target_positions_M] + 1, row.target_ids_M)
    assert all(len(row.ids_T) == row_len for row in rows[:-1])


def test_the_teacher_of_text_is_the_text():
    (row,) = pack_text(np.array([3, 1, 4, 1, 5]), 8)
    tensors = to_tensors(row, "cpu")
    hidden_MD, head = torch.randn(4, 8), torch.randn(6, 8)
    distilled = distillation_loss(hidden_MD, head, tensors.teacher_ids_MK, tensors.teacher_logprobs_MK)
    assert torch.equal(distilled, next_token_loss(hidden_MD, head, tensors.target_ids_M))


def test_wrong_input_is_told():
    with pytest.raises(InputError, match=r"^given row_len=0, expected a row of at least 1 token$"):
        pack(many(), 0)
    with pytest.raises(InputError, match=r"^given row_len=-3, expected"):
        epoch_rows(many(), -3, 0, 0)
    with pytest.raises(InputError, match=r"^given max_len=1, expected at least 2 tokens"):
        pack(many(), 10, max_len=1)
    with pytest.raises(InputError, match=r"^given row_len=1, expected at least 2 tokens"):
        pack_text([1, 2, 3], 1)
    for text in ([], [7]):
        with pytest.raises(InputError, match=rf"^given a text of {len(text)} tokens, expected at least 2"):
            pack_text(text, 8)
