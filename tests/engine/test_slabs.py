"""Slots beside each other: what was put is what is read, wherever it has moved to, and rows are used again."""

import pytest
import torch

from cartridges.engine.slabs import Slabs


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
    for seed, num_slots in enumerate([5, 16, 1, 17, 7, 9, 15, 40]):
        given = parts(seed, num_slots)
        held.append((slabs.put(*given), given))
        assert all(is_held(*each) for each in held)
    assert {size: rows.num_rows for size, (rows, _) in slabs.slabs.items()} == {16: 6, 32: 1, 48: 1}
    assert len(slabs.slabs[16][0].layers[0][0]) == 6  # no more than the books tell of


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
    assert slabs.slabs[16][1] == [1] and is_held(kept, parts(1, 5))


def test_rows_of_a_slab_that_was_let_go_meanwhile():
    slabs = Slabs()
    old = slabs.put(*parts(1, 5))
    rows = old.rows
    del old
    new = slabs.put(*parts(2, 6))
    assert new.rows is not rows and slabs.slabs[16][0] is new.rows and is_held(new, parts(2, 6))
