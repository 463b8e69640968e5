"""Slots beside each other: what was put is what is read, wherever it has moved to, and rows are used again."""

import pytest
import torch

from cartridges.engine.slabs import SIZE, Slabs


def parts(seed, num_slots, num_layers=3):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(2, num_slots, 4, generator=generator) for _ in range(num_layers)] for _ in "kv"]


def is_held(slots, given):
    return all(
        torch.equal(found, part)
        for pair, *layer in zip(slots, *given, strict=True)
        for found, part in zip(pair, layer, strict=True)
    )


def test_what_was_put_is_read_whatever_comes_later():
    slabs, held = Slabs(), []
    for seed, num_slots in enumerate([5, SIZE, 1, SIZE + 1, 7, 9, SIZE - 1]):
        given = parts(seed, num_slots)
        held.append((slabs.put(*given), given))
        assert all(is_held(*each) for each in held)
    assert sorted(slabs.slabs) == [SIZE, 2 * SIZE] and slabs.slabs[SIZE][0].num_rows == 6


def test_rows_are_used_again_and_the_last_one_gives_the_memory_back():
    slabs = Slabs()
    first, second = slabs.put(*parts(1, 5)), slabs.put(*parts(2, 6))
    rows = first.rows
    del first
    third, given = slabs.put(*parts(3, 7)), parts(3, 7)
    assert third.rows is rows and third.row == 0 and is_held(third, given) and is_held(second, parts(2, 6))
    del second, third
    assert not slabs.slabs


def test_what_cannot_be_put_leaves_no_row_taken():
    slabs = Slabs()
    kept = slabs.put(*parts(1, 5))
    keys, values = parts(2, 6)
    with pytest.raises(ValueError, match="shorter"):
        slabs.put(keys, values[:-1])
    assert slabs.slabs[SIZE][1] == [1] and is_held(kept, parts(1, 5))
