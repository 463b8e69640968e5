"""Text as it comes: whole characters, nothing of a stop string, and in the end all of it."""

import random

import pytest

from cartridges.engine.detokenizer import Detokenizer


def pieces_of(text_ids, decode, stops=()):
    detokenizer, pieces = Detokenizer(decode, stops), []
    for token in text_ids:
        detokenizer.add([token])
        pieces.append(detokenizer.told())
        if detokenizer.stopped:
            break
    detokenizer.finish()
    return [*pieces, detokenizer.told()], detokenizer


def decode_bytes(ids):
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["naïve 🙂 café 中文", "", "🙂", "plain"])
def test_characters_come_whole(text):
    pieces, detokenizer = pieces_of(text.encode(), decode_bytes)
    assert "".join(pieces) == text == detokenizer.text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_never_completed_comes_last():
    pieces, _ = pieces_of("ab🙂".encode()[:4], decode_bytes)
    assert pieces[:4] == ["a", "b", "", ""] and "".join(pieces) == decode_bytes("ab🙂".encode()[:4])


@pytest.mark.parametrize(
    ("text", "stops", "expected", "stopped"),
    [
        ("one END two", ["END"], "one ", True),
        ("one EN two", ["END"], "one EN two", False),
        ("one EN", ["END"], "one EN", False),
        ("aaab", ["aab"], "a", True),
        ("abcd", ["bc", "abc"], "", True),
        ("x\n\ny", ["\n\n", "zz"], "x", True),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stops, expected, stopped):
    pieces, detokenizer = pieces_of(text.encode(), decode_bytes, stops)
    assert "".join(pieces) == detokenizer.text == expected
    assert detokenizer.stopped == stopped


def test_nothing_that_was_told_is_ever_taken_back():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab") for _ in range(12))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 5))) for _ in range(2)]
        pieces, _ = pieces_of(text.encode(), decode_bytes, stops)
        # the stop string that is complete first counts, of two the one that begins first
        ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
        first = min((end for end, _ in ends), default=0)
        expected = text[: min(start for end, start in ends if end == first)] if ends else text
        assert "".join(pieces) == expected, (text, stops)
