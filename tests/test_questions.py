"""Items: what a right reply is, and what cannot be read."""

import json

import pytest

from cartridges.errors import InputError
from cartridges.questions import RULES, Item, read_items, write_items


@pytest.mark.parametrize(
    ("match", "gold", "reply", "right"),
    [
        ("contains", ("868 mg",), "It is 868 MG a day.", True),
        ("contains", ("868 mg",), "It is 1868 mg.", False),
        ("contains", ("a b", "c"), "c and a  b", True),
        ("contains", ("a b", "c"), "a b", False),
        ("contains", ("5",), "It is 5.5 mg.", False),
        ("contains", ("1",), "It is 1,200.", False),
        ("contains", ("5",), "It is 5.", True),
        ("contains", ("东京",), "他住在东京附近", True),
        ("contains", ("5",), "他5岁", True),
        ("contains", ("서울",), "그는 서울에 산다", True),
        ("contains", ("он",), "Это было в Лондоне", False),
        ("contains", ("ber",), "über", False),
        ("contains", ("Ana",), "Bożana", False),
        ("contains", ("Żana",), "Była Żana.", True),
        ("record", ('{"age": 5}',), '{"age": 5}', True),
        ("exact", ("Not told.",), "not told", True),
        ("exact", ("not told",), "it is not told", False),
        ("final", ("mugaide",), "The drug is mugaide.", True),
        ("final", ("hivuax",), "The drug is hivuax. So it is mugaide.", False),
        ("final", ("mugaide",), "mugaide", True),
        ("record", ('{"age": "5"}',), '{"age": 5}', True),
        ("record", ('{"age": "5"}',), "age: 5", True),
        ("record", ('{"age": "5"}',), "age: 6", False),
        ("record", ('{"time": "17:30", "smoker": "no"}',), "smoker: no\ntime: 17:30", True),
        ("record", ('{"v": "1.10", "id": "0123"}',), "v: 1.10\nid: 0123", True),
        ("record", ('{"v": 1.1, "on": true, "of": ["a", 1]}',), '{"v": 1.1, "on": true, "of": ["a", 1]}', True),
        ("record", ('{"v": 1.1}',), "[v]", False),
        ("record", ('{"age": "5"}',), "{: [", False),
        ("record", ('{"age": "5"}',), "five", False),
        ("record", ('{"age": "5"}',), "[" * 700, False),
        ("record", ('{"age": "5"}',), "age: !!bool x", False),
        ("record", ('{"age": "5"}',), "age: !!int ''", False),
        ("record", ('{"age": "5"}',), "age: !!timestamp x", False),
        ("record", ('{"age": "5"}',), "age: 0x" + "f" * 6000, False),
    ],
)
def test_rules(match, gold, reply, right):
    assert Item("?", "", gold, match).score(reply) == float(right)


def test_without_golds_nothing_scores():
    assert Item("?", "an answer").score("an answer") is None


def test_what_is_written_is_read(tmp_path):
    fitting = {"letter": ("B",), "record": ('{"a": 1}',)}
    items = [Item("q?", "a", fitting.get(match, ("a",)), match, "d.md", "lookup") for match in RULES]
    items += [Item("ü?\u2028", "", (), "exact")]
    write_items(tmp_path / "q.jsonl", items)
    assert read_items(tmp_path / "q.jsonl") == items


def test_the_answer_is_the_gold_where_none_is_given(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [
        '{"question": "q", "answer": "a"}',
        "",
        '{"question": "q", "gold": "b"}',
        '{"question": "only asked", "answer": null, "document": null}',
    ]
    path.write_text("\n".join(lines))
    assert [item.golds for item in read_items(path)] == [("a",), ("b",), ()]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "expected an object with a text as 'question'"),
        ('{"question": " "}', "expected an object with a text as 'question'"),
        ('{"question": "q", "gold": 5}', "given 5 as 'gold', expected a text or a list of texts"),
        ('{"question": "q", "gold": [""]}', "as 'gold', expected a text"),
        ('{"question": "q", "match": "exat"}', "unknown match 'exat'; did you mean 'exact'"),
        (
            '{"question": "q", "x": ' + "1" * 5000 + "}",
            "line 1 has a number or a nesting beyond what can be read; mend",
        ),
        ("[" * 200_000, "line 1 has a number or a nesting beyond what can be read; mend or remove it"),
        ('{"question": "q", "match": "letter", "gold": "b"}', "of match 'letter', expected the letter of an option"),
        ('{"question": "q", "match": "record", "answer": "name: x"}', "of match 'record', expected one JSON object"),
        ('{"question": "q", "match": "record", "gold": "[1]"}', "given ['[1]'] as 'gold' of match 'record', expected"),
        ("", "holds no questions"),
    ],
)
def test_a_bad_line_is_told(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text(line)
    with pytest.raises(InputError) as raised:
        read_items(path)
    assert message in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("key", ["question", "answer", "gold", "document", "kind"])
def test_half_a_surrogate_pair_is_told(tmp_path, key):
    path = tmp_path / "q.jsonl"
    half = ["Ada", "Bo\ud83d"] if key == "gold" else "Bo\ud83d"
    path.write_text('{"question": "pairs are whole: \\ud83d\\ude42"}\n' + json.dumps({"question": "q", key: half}))
    with pytest.raises(InputError) as raised:
        read_items(path)
    told = f"{path}, line 2: '{key}' has half of a surrogate pair at 2, expected Unicode; mend or remove it"
    assert str(raised.value) == told


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "q"}', encoding="utf-8-sig")
    assert read_items(tmp_path / "q.jsonl") == [Item("q", "")]


def test_no_file_and_no_text_are_told(tmp_path):
    with pytest.raises(InputError, match="cannot read the questions in"):
        read_items(tmp_path / "nowhere")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UnicodeDecodeError"):
        read_items(tmp_path / "x")


def test_lines_keep_what_they_say(tmp_path):
    write_items(tmp_path / "q.jsonl", [Item("q", "a", ("g",))])
    assert json.loads((tmp_path / "q.jsonl").read_text())["gold"] == ["g"]
