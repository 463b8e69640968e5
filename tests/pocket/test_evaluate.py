"""The evaluation, with replies whose score is known instead of a model."""

import random

import pytest
from transformers import AutoTokenizer

from cartridges.errors import InputError
from cartridges.pocket import WEIGHTS
from cartridges.pocket import evaluate as evaluation
from cartridges.pocket.evaluate import DOCUMENT, LENGTHS, NONE, TARGETS, Evaluation, Report, evaluate
from cartridges.pocket.families import FAMILIES
from cartridges.pocket.names import split_of
from cartridges.pocket.questions import DRAWS
from cartridges.pocket.seeds import BOUND, SEED_PROMPTS, draw_message


class Oracle:
    """Stands for a model that is always right: it knows every question that was drawn, with its answer."""

    def __init__(self):
        self.answers: dict[tuple[str, str], str] = {}
        self.contexts: dict[str, object] = {}

    def watch(self, monkeypatch):
        drawing, adding = evaluation.draw, evaluation.Evaluation.ask

        def draw(rng, context, kind):
            question = drawing(rng, context, kind)
            self.contexts[context.text] = context
            if question:
                self.answers[context.text, question.text] = question.answer
            return question

        def remember(ask):
            def remembered(*args):
                question = ask(*args)
                self.answers["", question.text] = question.answer
                return question

            return remembered

        monkeypatch.setattr(evaluation, "draw", draw)
        for name in ("ask_general", "draw_unknown", "draw_general"):
            monkeypatch.setattr(evaluation, name, remember(getattr(evaluation, name)))
        monkeypatch.setattr(evaluation, "generate", self.generate)
        assert adding is evaluation.Evaluation.ask

    def answer(self, system: str, message: str) -> str:
        """The answer drawn for the message about the text, or about what the text begins with, or about none."""
        texts = (text for text, asked in self.answers if asked == message and text and system.startswith(text))
        return self.answers[next(texts, ""), message]

    def generate(self, engine, system, messages, temperature=0.0, seed=0, **kwargs):
        kinds = {prompt: kind for kind, prompts in SEED_PROMPTS.items() for prompt in prompts}
        rng, replies = random.Random(seed), []
        for message in messages:
            prompt = message.split(BOUND.format(prompt="", passage=""))[0]
            if prompt in kinds:
                asked = draw_message(rng, self.contexts[system], kinds[prompt]) if system in self.contexts else None
                replies.append(asked.text if asked else "nothing to ask")
            else:
                replies.append(self.answer(system, message))
        return replies


class Reader:
    """Stands for an engine of which only the tokenizer is asked."""

    def __init__(self, tokenizer):
        self.model = self
        self.ids = lambda text: tokenizer(text).input_ids


@pytest.fixture
def oracle_report(monkeypatch, tiny_tokenizer) -> Report:
    Oracle().watch(monkeypatch)
    return evaluate(Reader(tiny_tokenizer), "validation", scale=0.05)  # type: ignore[arg-type]


def test_perfect_replies_score_one_and_every_kind_is_measured(oracle_report):
    answered = {key: cell for key, cell in oracle_report.cells.items() if cell.kind in {*DRAWS, "general", "unknown"}}
    assert {cell.kind for cell in answered.values()} == {*DRAWS, "general", "unknown"}
    assert {family for family, _, _ in answered} == {*FAMILIES, NONE}
    assert [key for key, cell in answered.items() if cell.mean < 1 - 1e-9] == []


def test_every_target_has_its_line(oracle_report):
    assert [line.name for line in oracle_report.lines()] == [target.name for target in TARGETS]


def test_wrong_replies_score_nothing(monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(evaluation, "generate", lambda engine, system, messages, **kwargs: ["no"] * len(messages))
    report = evaluate(Reader(tiny_tokenizer), "validation", scale=0.05)  # type: ignore[arg-type]
    assert max(cell.mean for cell in report.cells.values()) < 0.05


def test_contexts_have_the_length_that_their_cell_says():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    run = Evaluation(Reader(tokenizer), "test", 0, 1.0)  # type: ignore[arg-type]
    for family in FAMILIES:
        assert 300 <= len(tokenizer(run.document(family, 0).text).input_ids) <= 800
        for length in LENGTHS:
            assert 0.88 * length < len(tokenizer(run.long_context(family, length, 0).text).input_ids) <= length


def test_contexts_hold_names_of_their_split_only(tiny_tokenizer):
    run = Evaluation(Reader(tiny_tokenizer), "test", 0, 1.0)  # type: ignore[arg-type]
    words = [name for family in FAMILIES for name in run.document(family, 0).names.used if name.isalpha()]
    assert words
    assert {split_of(word) for word in words} == {"test"}


def test_an_unknown_split_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="unknown split 'tset'; did you mean 'test'"):
        evaluate(Reader(tiny_tokenizer), "tset")  # type: ignore[arg-type]


def test_a_report_pools_cells_by_kind_and_length():
    report = Report()
    for family, value in (("ward", 1.0), ("firm", 0.0)):
        report.add(family, "lookup", DOCUMENT, value)
    report.add("ward", "lookup", "4000", 0.0)
    assert report.pooled(("lookup",), DOCUMENT) == [1.0, 0.0]
    assert report.pooled(("lookup",), DOCUMENT, "ward") == [1.0]
