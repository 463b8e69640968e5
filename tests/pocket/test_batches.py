import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from cartridges.pocket.batches import (
    ANSWER_WEIGHT,
    CONCLUSION_WEIGHT,
    CONCLUSION_WEIGHTS,
    TEXT_SHARE,
    TEXT_WEIGHT,
    Batch,
    ChatEncoder,
    encode_lesson,
    make_batch,
    split_conclusion,
)
from cartridges.pocket.lessons import KIND_SHARES, Lesson, Turn, draw_lesson
from cartridges.pocket.tokenizer import END, START
from cartridges.rng import rng_of
from tests.pocket.equality import same

B, T, M = 6, 384, 2000
CONTEXT_SHARE = 0.6


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer) -> ChatEncoder:
    return ChatEncoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def batch(encoder) -> Batch:
    return make_batch(encoder, (0, 7), B, T, M, CONTEXT_SHARE)


def answer_texts(batch: Batch, tokenizer) -> dict[int, str]:
    """The learned tokens of each turn, as text."""
    return {
        int(turn): tokenizer.decode(batch.targets_M[batch.turns_M == turn]) for turn in np.unique(batch.turns_M) if turn
    }


@pytest.mark.parametrize(
    "messages",
    [
        [("system", "Kadi takes vopol."), ("user", "What does Kadi take?"), ("assistant", "The drug is vopol.")],
        [("user", " \n spaces around \n"), ("assistant", "\n\n"), ("user", ""), ("assistant", "417 👩‍👧 naïve")],
        [("system", "# Title\n\n- a: b"), *[("user", "again"), ("assistant", "and again")] * 5],
    ],
)
def test_pieces_are_what_the_chat_template_gives(encoder, tiny_tokenizer, messages):
    pieces = [token for role, text in messages for token in encoder.message(role, text)]
    whole = [{"role": role, "content": text} for role, text in messages]
    assert pieces == tiny_tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)


def test_the_head_of_a_reply_is_the_generation_prompt(encoder, tiny_tokenizer):
    whole = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert encoder.message("user", "x") + encoder.heads["assistant"] == whole


def test_whole_lessons_are_what_the_chat_template_gives(encoder, tiny_tokenizer):
    for seed in range(10):
        ids = encode_lesson(encoder, draw_lesson(rng_of(seed), "train", 200), 600, []).ids
        lesson = draw_lesson(rng_of(seed), "train", 200)
        messages = [{"role": "system", "content": lesson.system}] if lesson.system else []
        for turn in (lesson.next_turn() for _ in range(40)):
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
        assert ids == tiny_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)[:600]


def test_shapes(batch):
    assert batch.inputs_BT.shape == (B, T)
    assert {array.shape for array in (batch.positions_M, batch.targets_M, batch.weights_M, batch.turns_M)} == {(M,)}


def test_a_batch_is_a_function_of_its_key(encoder, batch):
    other = make_batch(encoder, (0, 8), B, T, M, CONTEXT_SHARE)
    assert same(make_batch(encoder, (0, 7), B, T, M, CONTEXT_SHARE), batch)
    assert not same(other, batch)
    assert not same(make_batch(encoder, (1, 7), B, T, M, CONTEXT_SHARE), batch)


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_batch_is_the_same_in_every_process(encoder, batch, tiny_tokenizer, tmp_path, hash_seed):
    tiny_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    program = (
        "import sys, zlib; from types import SimpleNamespace; from tokenizers import Tokenizer\n"
        "from cartridges.pocket.batches import ChatEncoder, make_batch\n"
        "encoder = ChatEncoder(SimpleNamespace(backend_tokenizer=Tokenizer.from_file(sys.argv[1])))\n"
        f"batch = make_batch(encoder, (0, 7), {B}, {T}, {M}, {CONTEXT_SHARE})\n"
        "print(zlib.crc32(batch.inputs_BT.tobytes() + batch.positions_M.tobytes()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "tokenizer.json")],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == zlib.crc32(batch.inputs_BT.tobytes() + batch.positions_M.tobytes())


def test_targets_are_the_next_tokens(batch):
    inside = (batch.positions_M % T != T - 1) & (batch.weights_M > 0)
    assert inside.sum() > 300
    assert np.array_equal(batch.inputs_BT.reshape(-1)[batch.positions_M[inside] + 1], batch.targets_M[inside])


def test_no_position_is_learned_twice(batch):
    learned = batch.positions_M[batch.weights_M > 0]
    assert len(np.unique(learned)) == len(learned)


def test_weights_are_those_of_answers_text_and_padding(batch):
    in_answers = set(batch.weights_M[batch.turns_M > 0])
    assert {ANSWER_WEIGHT, CONCLUSION_WEIGHT} <= in_answers
    assert in_answers <= {ANSWER_WEIGHT, CONCLUSION_WEIGHT, *CONCLUSION_WEIGHTS.values()}
    text = batch.weights_M[batch.turns_M == 0]
    assert set(text) == {np.float32(TEXT_WEIGHT / TEXT_SHARE), 0.0}


@pytest.mark.parametrize(
    ("kind", "answer", "conclusion"),
    [
        ("lookup", "The room of Kadi is E-674.", " E-674."),
        ("two_hop", "The doctor of X is Y. The office of Y is E-674.", " E-674."),
        ("multiple_choice", "The room of Kadi is E-674 (C).", " (C)."),
        (
            "comparison",
            "The x of A is 412. The x of B is 95. 412 is more than 95. So the higher one is A.",
            " more than 95. So the higher one is A.",
        ),
        ("unanswerable", "The room of Kadi is not told in the text.", " not told in the text."),
        ("ask", "What is the room of Kadi?", ""),
        ("json", '{"what": "it is so"}', ""),
        ("unknown", "I do not know.", ""),
    ],
)
def test_what_an_answer_concludes_counts_more(kind, answer, conclusion):
    assert split_conclusion(Turn(kind, "?", answer)) == (answer.removesuffix(conclusion), conclusion)


def test_only_the_concluding_tokens_have_the_weight_of_their_kind(encoder, tiny_tokenizer):
    turn = Turn("multiple_choice", "Which?", "The room of Kadi is E-674 (C).")
    kinds: list[str] = ["text"]
    row = encode_lesson(encoder, Lesson(None, "", lambda: turn), 90, kinds)
    first = [token for token, number in zip(row.ids, row.turns, strict=True) if number == 1]
    heavy = [
        token
        for token, number, weight in zip(row.ids, row.turns, row.weights, strict=True)
        if number == 1 and weight == CONCLUSION_WEIGHTS["multiple_choice"]
    ]
    assert tiny_tokenizer.decode(heavy) == " (C)."
    assert tiny_tokenizer.decode(first) == turn.assistant + END


def test_cutting_an_answer_changes_none_of_its_tokens(encoder):
    for index in range(40):
        lesson = draw_lesson(rng_of("cut", index), "train", 200)
        for _ in range(6):
            turn = lesson.next_turn()
            head, tail = split_conclusion(turn)
            assert encoder.encode(head) + encoder.encode(tail) == encoder.encode(turn.assistant)


def test_text_is_learned_at_its_share_of_positions(batch):
    num_answers = int((batch.turns_M > 0).sum())
    num_texts = int(((batch.turns_M == 0) & (batch.weights_M > 0)).sum())
    assert num_texts / (B * T - num_answers) == pytest.approx(TEXT_SHARE, rel=0.25)


def test_turns_cover_the_text_and_the_end_of_each_reply(batch, encoder, tiny_tokenizer):
    """The learned texts are the replies between head and end token, read off the rows themselves."""
    end, head = encoder.end, encoder.heads["assistant"]
    expected = []
    for row in batch.inputs_BT.tolist():
        starts = [i + len(head) for i in range(T) if row[i : i + len(head)] == head]
        expected += [row[i : row.index(end, i) + 1] for i in starts if end in row[i:]]
    texts = list(answer_texts(batch, tiny_tokenizer).values())
    assert [text for text in texts if text.endswith(END)] == [tiny_tokenizer.decode(ids) for ids in expected]
    assert not any(START in text or END in text.removesuffix(END) for text in texts)


def test_turns_name_the_kind_of_their_answers(batch, tiny_tokenizer):
    assert batch.kinds[0] == "text"
    assert set(batch.kinds[1:]) <= {*KIND_SHARES, "unknown"}
    for turn, text in answer_texts(batch, tiny_tokenizer).items():
        if batch.kinds[turn] == "multiple_choice" and text.endswith(END):
            assert re.search(r" \([A-D]\)\.", text)


def test_answers_beyond_the_targets_are_sampled(encoder, batch):
    few = make_batch(encoder, (0, 7), B, T, 100, CONTEXT_SHARE)
    assert np.array_equal(few.inputs_BT, batch.inputs_BT)
    assert (few.turns_M > 0).all()
    assert set(few.positions_M) < set(batch.positions_M[batch.turns_M > 0])


def test_every_row_has_an_answer_though_documents_are_long(encoder):
    crowded = make_batch(encoder, (0, 1), 8, T, 2000, 0.99)
    rows = crowded.positions_M[crowded.turns_M > 0] // T
    assert set(rows) == set(range(8))
