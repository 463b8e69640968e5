"""Real benchmarks on tiny files of the same form: every item is read, right answers score, odd files are refused."""

import json

import pytest

from cartridges.errors import FormatError, InputError
from cartridges.evals.task import task_named
from cartridges.evals.tasks.ruler import VARIANTS

QUESTION = {
    "No": 0,
    "question": "Which drug was given first?",
    **{f"answer_{letter}": f"Drug {letter}" for letter in "abcde"},
    "correct": "Drug c",
    "answer_location": {"text_0": {"start": [0.1], "end": [0.2]}},
}
PATIENT = {
    "name": "Anna Sample",
    "birthday": "1970-01-01",
    "diagnosis": "DLBCL",
    "texts": {"text_0": "Drug c was given.", "text_1": "She went home."},
    "questions": [QUESTION, {**QUESTION, "No": 1, "correct": "Drug e"}],
    "canaray-string": "LongHealth",
}
PAPER = {
    "title": "A Parser",
    "abstract": "We parse.",
    "full_text": [{"section_name": "Data", "paragraphs": ["We use Penn Treebank.", "It is old."]}],
    "qas": [
        {
            "question": "Which data is used?",
            "question_id": "q1",
            "answers": [
                {"answer": {"unanswerable": False, "extractive_spans": ["Penn Treebank"], "free_form_answer": ""}},
                {"answer": {"unanswerable": False, "extractive_spans": [], "free_form_answer": "The treebank of Penn"}},
            ],
        },
        {"question": "Is it old?", "answers": [{"answer": {"unanswerable": False, "yes_no": True}}]},
        {"question": "How many GPUs?", "answers": [{"answer": {"unanswerable": True}}]},
    ],
}
NIAH = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it.\nThe grass is green. "
    "One of the special magic numbers for able anchor is: 1234567. The sky is blue.\nWhat is the special magic number "
    "for able anchor mentioned in the provided text?"
)
TRACING = (
    "Memorize and track the chain.\nVAR A = 12345 VAR B = A\nQuestion: Find all variables that are assigned 12345."
)


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_longhealth(tmp_path):
    file = written(tmp_path / "benchmark_v5.json", {"patient_02": PATIENT, "patient_01": PATIENT})
    task = task_named("longhealth", path=file, num_patients=1)
    assert [document.path for document in task.corpus] == ["patient_01"]
    assert "[text_1]\nShe went home." in task.corpus.text
    assert [item.golds for item in task.items] == [("C",), ("E",)]
    assert "C) Drug c" in task.items[0].question and "Anna Sample, born 1970-01-01" in task.items[0].question
    for reply, value in (("Answer: C", 1), ("The answer is (C).", 1), ("C) Drug c", 1), ("Answer: B", 0), ("", 0)):
        assert task.items[0].score(reply) == value, reply
    assert task.items[0].score("It is not B) but in the end the answer is C") == 1


@pytest.mark.parametrize(
    ("patient", "message"),
    [
        ({**PATIENT, "texts": []}, "patient_01: given .* as 'texts', expected dict"),
        ({**PATIENT, "birthday": None}, "given None as 'birthday', expected str"),
        ({**PATIENT, "questions": [{**QUESTION, "correct": "Drug x"}]}, "0 options are the correct one"),
        ({**PATIENT, "questions": [{"question": "Who?"}]}, "question 1: given None as 'answer_a'"),
    ],
)
def test_longhealth_with_odd_fields(tmp_path, patient, message):
    file = written(tmp_path / "benchmark_v5.json", {"patient_01": patient})
    with pytest.raises(FormatError, match=message):
        task_named("longhealth", path=file, num_patients=1)


def test_longhealth_refuses_other_files(tmp_path):
    with pytest.raises(InputError, match="expected a file; there is none there"):
        task_named("longhealth", path=tmp_path / "gone.json")
    with pytest.raises(FormatError, match="is not JSON"):
        task_named("longhealth", path=written(tmp_path / "broken.json", "{"))
    with pytest.raises(FormatError, match="expected an object with a patient"):
        task_named("longhealth", path=written(tmp_path / "list.json", []))
    file = written(tmp_path / "one.json", {"patient_01": PATIENT})
    with pytest.raises(InputError, match="given num_patients=10, expected 1 to 1"):
        task_named("longhealth", path=file)
    with pytest.raises(InputError, match="expected hf://datasets/OWNER/NAME/FILE"):
        task_named("longhealth", path="hf://datasets/owner")


@pytest.fixture
def mtob(tmp_path):
    below = tmp_path / "splits"
    below.mkdir()
    written(tmp_path / "grammar_book_for_claude_medium.txt", "Kalamang has verbs.")
    written(below / "train_examples.json", ["a canary", {"original": "Ma he.", "translation": "He is there."}])
    for direction in ("ke", "ek"):
        rows = [{"canary": "x"}, {"original": "An se.", "ground_truth": "I am done."}]
        written(below / f"test_examples_{direction}.json", rows)
    return tmp_path


def test_mtob(mtob):
    task = task_named("mtob", folder=mtob)
    assert "Kalamang: Ma he.\nEnglish: He is there." in task.corpus.text
    (item,) = task.items
    assert item.question.startswith("Translate the following sentence from Kalamang to English")
    assert item.score("I am done.") == pytest.approx(1.0)
    assert 0 < item.score("I was done.") < 1 and item.score("") == 0
    assert len(task_named("mtob", folder=mtob, direction="ek", with_sentences=False).corpus) == 1


def test_mtob_with_missing_parts(mtob):
    with pytest.raises(InputError, match="unknown direction 'kk'"):
        task_named("mtob", folder=mtob, direction="kk")
    with pytest.raises(InputError, match=r"grammar_book_for_claude_long\.txt"):
        task_named("mtob", folder=mtob, book="long")
    with pytest.raises(InputError, match="expected the folder of MTOB's unpacked files"):
        task_named("mtob", folder=mtob / "gone")
    written(mtob / "splits" / "test_examples_ke.json", [{"original": "An se."}])
    with pytest.raises(FormatError, match="sentence 1: given None as 'translation'"):
        task_named("mtob", folder=mtob)


def test_qasper(tmp_path):
    task = task_named("qasper", path=written(tmp_path / "qasper.json", {"1911.1": PAPER}), num_papers=1)
    data, old, gpus = task.items
    assert "## Data\nWe use Penn Treebank.\nIt is old." in task.corpus.text
    assert data.golds == ("Penn Treebank", "The treebank of Penn") and old.golds == ("yes",)
    assert data.score("the Penn Treebank.") == 1.0 and data.score("Penn") == pytest.approx(2 / 3)
    assert old.score("Yes.") == 1.0 and gpus.score("Unanswerable") == 1.0 and gpus.score("Eight") == 0.0


def test_qasper_as_parquet_gives_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def columns(rows):
        return {key: [row.get(key) for row in rows] for key in {key for row in rows for key in row}}

    qas = [{**row, "question_id": "", "answers": columns(row["answers"])} for row in PAPER["qas"]]
    row = {"id": "1911.1", **PAPER, "qas": columns(qas), "full_text": columns(PAPER["full_text"])}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "q.parquet")
    stored = task_named("qasper", path=tmp_path / "q.parquet", num_papers=1)
    plain = task_named("qasper", path=written(tmp_path / "q.json", {"1911.1": PAPER}), num_papers=1)
    assert stored.items == plain.items and stored.corpus.text == plain.corpus.text
    with pytest.raises(FormatError, match="cannot be read as Parquet"):
        task_named("qasper", path=written(tmp_path / "broken.parquet", "no"))


def test_qasper_without_answers(tmp_path):
    paper = {**PAPER, "qas": [{"question": "Why?", "answers": [{"answer": {"unanswerable": False}}]}]}
    with pytest.raises(FormatError, match="no annotator gave an answer of a known form"):
        task_named("qasper", path=written(tmp_path / "q.json", {"1": paper}), num_papers=1)


def test_ruler_files(tmp_path):
    folder = tmp_path / "niah_single_1"
    folder.mkdir()
    rows = [{"index": 0, "input": NIAH, "outputs": ["1234567"], "length": 80}]
    task = task_named("ruler", path=written(folder / "validation.jsonl", "\n".join(map(json.dumps, rows)) + "\n"))
    (item,) = task.items
    assert task.name == "ruler-niah_single_1"
    assert item.question.startswith("What is the special magic number for able anchor")
    assert task.corpus.text.endswith("The sky is blue.")
    assert item.score("It is 1234567.") == 1.0 and item.score("It is 123.") == 0.0
    vt = written(tmp_path / "vt.jsonl", json.dumps({"input": TRACING, "outputs": ["A", "B"]}))
    (item,) = task_named("ruler", path=vt).items
    assert item.question.startswith("Question: Find all") and item.score("A only") == 0.5
    for content, message in (
        ('{"input": 3, "outputs": []}', "given 3 as 'input', expected str"),
        ('{"input": "no question", "outputs": ["1"]}', "no question of a RULER variant"),
        ("{", "line 1: given '{', expected a JSON object"),
    ):
        with pytest.raises(FormatError, match=message):
            task_named("ruler", path=written(tmp_path / "odd.jsonl", content))
    with pytest.raises(InputError, match="holds no examples"):
        task_named("ruler", path=written(tmp_path / "none.jsonl", "\n"))
    assert len(task_named("ruler", path=vt, num_items=1).items) == 1
    for wrong in (2, 0, -1):
        with pytest.raises(InputError, match=f"given num_items={wrong}, expected 1 to 1; leave it out for as many"):
            task_named("ruler", path=vt, num_items=wrong)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_a_line_of_json_may_hold_other_line_ends(tmp_path, mark):
    rows = [{"input": NIAH.replace("The sky", f"The{mark}sky"), "outputs": ["1234567"]}] * 2
    content = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    task = task_named("ruler", path=written(tmp_path / "odd.jsonl", content))
    assert len(task.items) == 2 and f"The{mark}sky is blue." in task.corpus.text


def test_files_that_are_no_json_text_are_told(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"input": "\xff"}\n')
    with pytest.raises(FormatError, match=r"latin.jsonl is not UTF-8 text \(invalid start byte at byte 11\); fetch it"):
        task_named("ruler", path=tmp_path / "latin.jsonl")
    deep = "[" * 200_000
    with pytest.raises(FormatError, match=r"line 1: given '\[\[.*', expected a JSON object; mend or remove it"):
        task_named("ruler", path=written(tmp_path / "deep.jsonl", deep))
    with pytest.raises(FormatError, match=r"deep.json is not JSON \(RecursionError\); fetch it again"):
        task_named("longhealth", path=written(tmp_path / "deep.json", deep))


@pytest.mark.parametrize("variant", VARIANTS)
def test_needles_stand_in_the_haystack(variant):
    task = task_named("ruler", variant=variant, num_items=1 if variant == "single" else 10)
    for item in task.items:
        assert all(f"is: {gold}." in task.corpus.text for gold in item.golds)
        assert item.score(item.answer) == 1.0 and item.score("no idea") == 0.0
    assert len({item.question for item in task.items}) == len(task.items)


@pytest.mark.parametrize(
    ("variant", "num_needles", "num_all"),
    [("single", 24, 1), ("multikey", 50, 50), ("multivalue", 3, 3), ("multiquery", 4, 24)],
)
def test_as_many_needles_as_asked_for(variant, num_needles, num_all):
    for num_items in {1, num_all}:
        task = task_named("ruler", variant=variant, num_items=num_items, num_needles=num_needles)
        assert len({item.question for item in task.items}) == len(task.items) == num_items
    assert len(task_named("ruler", variant=variant, num_needles=num_needles).items) == num_all
    for wrong in (num_all + 1, 0, -5):
        with pytest.raises(InputError, match=f"given num_items={wrong}, expected 1 to {num_all}; leave it out for as"):
            task_named("ruler", variant=variant, num_items=wrong, num_needles=num_needles)


def test_no_more_than_a_hundred_needles_where_no_number_is_given():
    assert len(task_named("ruler", variant="multiquery").items) == 100
    assert len(task_named("ruler", num_needles=100).items) == 100


def test_needles_that_cannot_be():
    with pytest.raises(InputError, match="unknown variant 'multkey'; did you mean 'multikey'"):
        task_named("ruler", variant="multkey")
    with pytest.raises(InputError, match="given num_needles=0"):
        task_named("ruler", num_needles=0)
