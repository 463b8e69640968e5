"""The books: what is found again, what is let go first, and what never is."""

import pytest

from cartridges.engine.blocks import BLOCK, Blocks, Run, chain, largest_row, path_to, row_size


def kept(blocks, root, ids, parent=None, start=0, lasting=True):
    run = Run(len(ids) - start, parent, None, lasting)
    assert blocks.add(run, {key: num - start for num, key in chain(root, ids) if num > start})
    return run


def test_rows_hold_what_they_shall():
    sizes = [row_size(length) for length in (0, 1, 64, 65, 1000, 1024, 1025, 5000)]
    assert sizes == [64, 64, 64, 128, 1024, 1024, 2048, 5120]


def test_the_largest_row_is_the_last_that_fits():
    sizes = [row_size(length) for length in range(1, 5000)]
    for room in (0, 63, 64, 65, 127, 300, 1023, 1024, 2047, 2048, 4100):
        assert largest_row(room) == max((size for size in sizes if size <= room), default=0)
    assert largest_row(-16) == 0


def test_a_link_depends_on_all_before_it():
    ids = list(range(3 * BLOCK + 2))
    links = chain(b"one", ids)
    assert [num for num, _ in links] == [BLOCK, 2 * BLOCK, 3 * BLOCK, 3 * BLOCK + 2]
    assert chain(b"one", ids[: 2 * BLOCK]) == links[:2]
    others = [chain(b"two", ids), chain(b"one", [99, *ids[1:]])]
    assert not {key for other in others for _, key in other} & {key for _, key in links}


def test_runs_are_found_by_their_blocks():
    blocks, ids = Blocks(1000), list(range(70))
    first = kept(blocks, b"", ids[:40])
    second = kept(blocks, b"", ids, (first, 2 * BLOCK), 2 * BLOCK)
    assert [blocks.found[key] for _, key in chain(b"", ids)] == [
        (first, 16), (first, 32), (second, 16), (second, 32), (second, 38),
    ]  # fmt: skip
    assert path_to((second, 16)) == ((first, 32), (second, 16))
    blocks.check([], [])
    assert (blocks.used, blocks.pinned, blocks.cached, blocks.free) == (0, 0, 48 + 48, 904)


def test_the_least_recently_used_goes_and_the_pinned_stays():
    blocks = Blocks(5 * BLOCK)
    one, two, _, four = (kept(blocks, str(i).encode(), [i] * BLOCK) for i in range(4))
    blocks.pin([(one, BLOCK)])
    blocks.pin([(two, BLOCK)])
    blocks.unpin([(two, BLOCK)])  # used later than the other two
    assert blocks.has_room(2 * BLOCK) and blocks.runs == [one, two, four]
    assert blocks.has_room(4 * BLOCK) and blocks.runs == [one]
    assert not blocks.has_room(5 * BLOCK) and blocks.runs == [one]
    blocks.check([], [[(one, BLOCK)]])


def test_nothing_goes_where_all_together_are_too_few():
    blocks = Blocks(5 * BLOCK)
    first = kept(blocks, b"", [1] * BLOCK)
    second = kept(blocks, b"", [1] * 2 * BLOCK, (first, BLOCK), BLOCK)
    third = kept(blocks, b"other", [1] * BLOCK)
    blocks.pin([(third, BLOCK)])
    assert not blocks.has_room(4 * BLOCK + 1) and blocks.runs == [first, second, third]
    assert blocks.has_room(4 * BLOCK) and blocks.runs == [third]
    blocks.check([], [[(third, BLOCK)]])


def test_what_others_stand_behind_goes_after_them():
    blocks = Blocks(3 * BLOCK)
    first = kept(blocks, b"", [1] * BLOCK)
    kept(blocks, b"", [1] * 2 * BLOCK, (first, BLOCK), BLOCK)
    blocks.pin([(first, BLOCK)])
    blocks.unpin([(first, BLOCK)])
    assert blocks.has_room(2 * BLOCK) and blocks.runs == [first]
    # a new one does not push out what it stands behind
    assert not blocks.add(Run(3 * BLOCK, (first, BLOCK), None), {b"new": 3 * BLOCK})
    assert blocks.runs == [first]


def test_what_does_not_last_goes_with_its_last_user():
    blocks = Blocks(100)
    run = kept(blocks, b"", [1], lasting=False)
    blocks.pin([(run, 1)])
    blocks.pin([(run, 1)])
    blocks.unpin([(run, 1)])
    assert blocks.runs == [run]
    blocks.unpin([(run, 1)])
    assert not blocks.runs and not blocks.found and blocks.free == 100


def test_wrong_books_are_noticed():
    blocks = Blocks(100)
    run = kept(blocks, b"", [1])
    blocks.pin([(run, 1)])
    blocks.check([], [[(run, 1)]])
    with pytest.raises(AssertionError, match="another number of users"):
        blocks.check([], [])
    with pytest.raises(AssertionError):
        blocks.check([64], [[(run, 1)]])
