import copy
import random

import numpy as np
import pytest

from cartridges.conversation import Conversation, TopK
from cartridges.errors import FormatError
from cartridges.template import ChatFormat


def softmax_rows(seed: int, num_rows: int, num_top: int, vocab_size: int = 50) -> TopK:
    """The top of real softmaxes."""
    logits = np.random.default_rng(seed).normal(size=(num_rows, vocab_size)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :num_top]
    return TopK(ids, np.take_along_axis(logprobs, ids, axis=1))


def make(index: int = 3, **changes) -> Conversation:
    fields = {
        "index": index,
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Kadi Bofu."}],
        "token_ids": [5, 6, 7, 8, 9, 10],
        "target_positions": [3, 4, 5],
        "teacher": softmax_rows(0, 3, 4),
        "document": "handbook/travel.md",
        "start": 10,
        "stop": 90,
        "seed_kind": "question",
        "num_prompt_tokens": 120,
        "num_new_tokens": 9,
    }
    return Conversation(**(fields | changes))


def refused(action, *given, **options) -> str:
    with pytest.raises(FormatError) as caught:
        action(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(ids, logprobs) -> TopK:
    return TopK(np.array(ids), np.array(logprobs, dtype=np.float64))


def test_types_and_sizes():
    conversation = make()
    conversation.check(vocab_size=50)
    assert (conversation.num_tokens, conversation.num_targets, len(conversation.teacher)) == (6, 3, 3)
    assert conversation.teacher.num_top == 4
    arrays = [conversation.token_ids, conversation.target_positions, conversation.teacher.ids]
    assert [array.dtype for array in arrays] == [np.int32] * 3
    assert conversation.teacher.logprobs.dtype == np.float32
    assert type(make(index=np.int64(3)).index) is int


def test_mass_is_that_of_the_top_tokens():
    assert softmax_rows(0, 5, 50).mass == pytest.approx(np.ones(5), abs=1e-6)
    assert (softmax_rows(0, 5, 4).mass < 1).all()
    assert rows([[1, 2]], [[np.log(0.5), np.log(0.25)]]).mass == pytest.approx([0.75])


def test_take_and_concat():
    whole = softmax_rows(1, 6, 3)
    assert whole.take([4, 0]).ids.tolist() == [whole.ids[4].tolist(), whole.ids[0].tolist()]
    assert whole.take(slice(1, 3)) == whole.take(np.array([1, 2]))
    assert whole.take(np.arange(6) % 2 == 0) == whole.take([0, 2, 4])
    assert whole.take([]) == TopK.empty(3)
    assert TopK.concat([whole.take(slice(2)), TopK.empty(3), whole.take(slice(2, 6))]) == whole


def test_concat_of_what_does_not_fit():
    parts = [softmax_rows(0, 2, 3), softmax_rows(0, 2, 4)]
    assert "K = [3, 4], expected at least one part, all of one K" in refused(TopK.concat, parts)
    assert "K = nothing, expected at least one part" in refused(TopK.concat, [])


def test_equality_is_by_content():
    assert make() == make() and make().teacher == make().teacher
    assert make() != "conversation" and make().teacher != "rows"
    changes = {
        "index": 4,
        "messages": [{"role": "user", "content": "Who"}],
        "token_ids": np.array([5, 6, 7, 8, 9, 11], np.int32),
        "target_positions": np.array([2, 4, 5], np.int32),
        "teacher": softmax_rows(8, 3, 4),
        "document": "",
        "start": 9,
        "stop": 91,
        "seed_kind": "summary",
        "num_prompt_tokens": 0,
        "num_new_tokens": 0,
    }
    assert set(changes) == set(Conversation.__dataclass_fields__)
    for name, value in changes.items():
        changed = copy.deepcopy(make())
        setattr(changed, name, value)
        assert changed != make(), name
        assert changed.digest != make().digest, name
    assert make().digest == make().digest
    with pytest.raises(TypeError, match="unhashable"):
        hash(make())


def test_the_digest_tells_apart_what_flattens_to_the_same():
    teacher = softmax_rows(0, 2, 2)
    flat = TopK(teacher.ids.reshape(1, 4), teacher.logprobs.reshape(1, 4))
    assert make(teacher=teacher).digest != make(teacher=flat).digest
    shifted = make(token_ids=[5, 6, 7, 8, 9], target_positions=[10, 3, 4, 5])
    assert shifted.digest != make().digest


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"index": -1}, "index is -1, expected a whole number of at least 0"),
        ({"start": 1.5}, "start is 1.5, expected a whole number"),
        ({"num_new_tokens": True}, "num_new_tokens is True, expected a whole number"),
        ({"start": 91}, "its chunk starts at 91 and stops at 90, expected start <= stop"),
        ({"messages": []}, "has no messages, expected at least one"),
        ({"messages": [{"role": "user"}]}, "message 0 is \"{'role': 'user'}\", expected 'role' and 'content' alone"),
        ({"messages": [{"role": "user", "content": "", "name": "x"}]}, "expected 'role' and 'content' alone"),
        ({"messages": [{"role": "user", "content": None}]}, "content of message 0 is None, expected a text"),
        (
            {"messages": [{"role": "user", "content": "a\ud800"}]},
            "content of message 0 has half of a surrogate pair at 1",
        ),
        ({"document": None}, "document is None, expected a text"),
        ({"seed_kind": 3}, "seed_kind is 3, expected a text"),
        ({"token_ids": []}, "has no tokens"),
        ({"token_ids": [1, 2, 3, -4, 5, 6]}, "token ids reach from -4 to 6, expected 0 to 49, the vocabulary"),
        ({"token_ids": [1, 2, 3, 50, 5, 6]}, "token ids reach from 1 to 50, expected 0 to 49, the vocabulary"),
        ({"target_positions": [3, 3, 5]}, "has target positions that do not increase"),
        ({"target_positions": [0, 3, 5]}, "has target positions from 0 to 5, expected them within 1 to 5"),
        ({"target_positions": [3, 4, 6]}, "has target positions from 3 to 6, expected them within 1 to 5"),
        ({"target_positions": [3, 4]}, "has 3 teacher rows for 2 target positions"),
    ],
)
def test_a_malformed_conversation_is_told(changes, expected):
    conversation = make(**changes)
    message = refused(conversation.check, 50)
    assert expected in message
    assert message.startswith(f"conversation {conversation.index}: ") and message.endswith("; make it anew")


@pytest.mark.parametrize(
    ("ids", "logprobs", "expected"),
    [
        ([[1, 2]], [[-1.0]], "top-k ids are [1, 2] and logprobs [1, 1], expected both [M, K]"),
        ([[1, 2]], [[-1.0, -0.5]], "teacher row 0 is not sorted"),
        ([[1, 2], [3, 3]], [[-1.0, -2.0]] * 2, "teacher row 1 names a token twice ([3, 3]), expected distinct ids"),
        ([[1, 2]], [[0.1, -4.0]], "teacher row 0 is above 0"),
        ([[1, 2]], [[-0.5, -0.6]], "teacher row 0 sums to more than 1"),
        ([[1, 2]], [[-0.5, float("nan")]], "teacher row 0 is not finite"),
        ([[1, 2]], [[-0.5, float("-inf")]], "teacher row 0 is not finite"),
        ([[1, 60]], [[-1.0, -2.0]], "top-k ids reach from 1 to 60, expected 0 to 49, the vocabulary"),
        ([[1, -2]], [[-1.0, -2.0]], "top-k ids reach from -2 to 1, expected 0 to 49"),
        (np.empty((2, 0), np.int32), np.empty((2, 0)), "expected both [M, K] with K of at least 1"),
    ],
)
def test_malformed_teacher_rows_are_told(ids, logprobs, expected):
    assert expected in refused(rows(ids, logprobs).check, 50)


def test_rounding_is_allowed_for():
    rows([[1, 2]], [[2e-4, -9.0]]).check()
    rows([[1, 2]], [[np.log(0.6), np.log(0.4005)]]).check()


def test_values_that_the_types_cannot_hold_are_refused():
    assert "token ids are float64 of shape [2], expected whole numbers on 1 axes" in refused(make, token_ids=[1.5, 2.0])
    assert "token ids are int64 of shape [1, 2], expected whole numbers on 1 axes" in refused(make, token_ids=[[1, 2]])
    assert "expected numbers that fit into int32" in refused(make, token_ids=[2**40])
    assert "top-k ids are int64 of shape [2], expected whole numbers on 2 axes" in refused(rows, [1, 2], [[-1.0]])
    assert "top-k logprobs are of type <U1, expected numbers" in refused(TopK, [[1]], np.array([["a"]]))


def test_a_conversation_may_have_no_targets():
    make(target_positions=[], teacher=TopK.empty(4)).check(50)
    assert "0 targets" in str(make(target_positions=[], teacher=TopK.empty(4)))


def test_as_text_for_people():
    conversation = make(teacher=rows([[1, 2]] * 3, [[np.log(0.5), np.log(0.25)]] * 3))
    assert str(conversation) == (
        "conversation 3: question, handbook/travel.md [10:90], 6 tokens, 3 targets, top 2 hold 75.0%\n"
        "  user: Who?\n"
        "  assistant: Kadi Bofu."
    )
    long = make(document="", messages=[{"role": "user", "content": "a\n" + "x" * 1000}])
    assert "no document" in str(long)
    assert str(long).endswith("x … 602 more characters") and "a\n    x" in str(long)


def test_the_students_text(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    ids = chat.prompt([{"role": "user", "content": "Who?"}])
    assert make(token_ids=ids).student_text(chat) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


def test_any_top_of_a_softmax_passes():
    rng = random.Random(0)
    for seed in range(50):
        softmax_rows(seed, rng.randint(1, 9), rng.randint(1, 50)).check(50)
