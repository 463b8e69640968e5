"""Text as it comes: whole characters, nothing of a stop string, and in the end all of it."""

import random
import time

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
    """Ids above bytes are special, and a space in front is none of the text's, as tokenizers have it."""
    return bytes(token for token in ids if token < 256).decode(errors="replace").removeprefix(" ")


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


def test_what_may_become_a_stop_string_is_held_back_and_nothing_else():
    rng = random.Random(1)
    for _ in range(300):
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 7))) for _ in range(3)]
        detokenizer, text, told = Detokenizer(decode_bytes, stops), "", ""
        while not any(stop in text for stop in stops) and len(text) < 30:
            new = "".join(rng.choice("ab") for _ in range(rng.randint(1, 3)))
            text += new
            detokenizer.add(new.encode())
            told += detokenizer.told()
            if not detokenizer.stopped:
                held = max(num for stop in stops for num in range(len(stop)) if text.endswith(stop[:num]))
                assert told == text[: len(text) - held], (text, stops)


def test_many_long_stop_strings_cost_next_to_nothing():
    detokenizer = Detokenizer(decode_bytes, ["q" * num + "x" * (1024 - num) for num in range(1000, 1016)])
    began = time.thread_time()
    for token in ("q" * 900 + "y").encode() * 2:
        detokenizer.add([token])
        detokenizer.told()
    assert time.thread_time() - began < 2


@pytest.mark.parametrize(
    "ids",
    [
        [300] * 3000,
        [*"naïve 🙂".encode(), *[300] * 3000, *" 中文".encode()],
        [0xF0, *[300] * 3000],
        [0x80] * 3000,
        [*b"a", *[0x80] * 3000, *"🙂 b".encode()],
        [*"\ufffd🙂".encode() * 300],
    ],
)
def test_what_is_never_seen_and_bytes_of_no_character_are_not_decoded_again_and_again(ids):
    num_decoded = 0

    def decode(ids):
        nonlocal num_decoded
        num_decoded += len(ids)
        return decode_bytes(ids)

    pieces, _ = pieces_of(ids, decode)
    assert "".join(pieces) == decode_bytes(ids)
    assert num_decoded < 200 * len(ids)


def test_special_tokens_anywhere_change_nothing():
    rng = random.Random(2)
    for _ in range(300):
        ids = []
        for character in rng.choices([" ", " ", "a", "ï", "🙂"], k=12):
            ids += [300] * rng.choice([0, 0, 1, 40])
            for byte in character.encode():
                ids += [byte, *[300] * rng.choice([0, 0, 3])]
        pieces, detokenizer = pieces_of(ids, decode_bytes)
        assert "".join(pieces) == decode_bytes(ids) == detokenizer.text
