"""Tasks: refused where nothing could be measured; found by name; the world's questions are about its documents."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cartridges.corpus import Corpus
from cartridges.errors import InputError
from cartridges.evals.task import Task, own_tasks, task_named
from cartridges.evals.tasks.pocket import general_task, pocket_task
from cartridges.pocket.knowledge import general_facts
from cartridges.questions import Item

CORPUS = Corpus.from_texts({"a.md": "The ward has nine beds."})
ITEM = Item("How many beds?", "nine", ("nine",), document="a.md")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has no items, expected at least one"),
        ([replace(ITEM, question=" ")], "item 0 has no question"),
        ([ITEM, replace(ITEM, golds=())], "item 1 has no gold answer"),
        ([replace(ITEM, match="contans")], "unknown match 'contans'; did you mean 'contains'"),
        ([replace(ITEM, document="b.md")], "unknown document 'b.md'"),
    ],
)
def test_what_cannot_be_measured_is_refused(items, message):
    with pytest.raises(InputError, match=message):
        Task("beds", CORPUS, tuple(items))


def test_a_metric_on_no_items_is_refused():
    with pytest.raises(InputError, match="has no items"):
        Task("beds", CORPUS, (ITEM,)).only("lookup")


def test_tasks_by_name():
    assert task_named("pocket", num_tokens=250, num_each=2).items
    with pytest.raises(InputError, match="unknown task 'longhelth'; did you mean 'longhealth'"):
        task_named("longhelth")
    with pytest.raises(InputError, match="unknown option 'famly'; did you mean 'family'"):
        task_named("pocket", famly="ward")
    own_tasks["beds"] = lambda: Task("beds", CORPUS, (ITEM,))
    try:
        assert task_named("beds").items == (ITEM,)
    finally:
        del own_tasks["beds"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ruler", {"num_items": "ten"}, "given num_items='ten', expected int | None; on the command line: task.num_"),
        ("ruler", {"num_items": 1.5}, "given num_items=1.5, expected int | None"),
        ("ruler", {"num_items": True}, "given num_items=True, expected int | None"),
        ("ruler", {"path": ["a"]}, "given path=['a'], expected str | pathlib.Path"),
        ("pocket", {"num_tokens": "x"}, "given num_tokens='x', expected int; on the command line: task.num_tokens=..."),
        ("pocket", {"num_tokens": None}, "given num_tokens=None, expected int"),
        ("pocket", {"kinds": "lookup"}, "given kinds='lookup', expected tuple[str, ...]"),
        ("mtob", {"folder": "x", "with_sentences": "maybe"}, "given with_sentences='maybe', expected bool"),
    ],
)
def test_options_of_another_type_are_refused(name, options, message):
    with pytest.raises(InputError) as raised:
        task_named(name, **options)
    assert message in str(raised.value) and f"the task {name}" in str(raised.value)


def test_options_become_what_the_loader_names():
    given = []

    def beds(path: str | Path, num: "int" = 1, kinds: tuple[str, ...] = (), item: Item = ITEM, plain=0):
        given.append((path, num, kinds, item, plain))
        return Task("beds", CORPUS, (ITEM,))

    def unresolved(num: "Nowhere" = 0):  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        given.append(num)
        return Task("beds", CORPUS, (ITEM,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(own_tasks, "beds", beds)
        patch.setitem(own_tasks, "unresolved", unresolved)
        patch.setitem(own_tasks, "partial", partial(beds, "a"))
        task_named("beds", path=Path("a"), num="10", kinds=["x"], item=ITEM, plain=True)
        task_named("beds", path=2024)
        task_named("unresolved", num="x")
        task_named("partial", num=2)
    assert given == [(Path("a"), 10, ("x",), ITEM, True), ("2024", 1, (), ITEM, 0), "x", ("a", 2, (), ITEM, 0)]


@pytest.mark.parametrize("family", ["ward", "firm", "code", "tongue", "haystack"])
def test_right_answers_of_every_family_score(family):
    kinds = ("translation",) if family == "tongue" else ("lookup", "reverse", "multiple_choice", "unanswerable")
    task = pocket_task(family, "validation", kinds=kinds, num_tokens=400, num_each=4)
    assert all(item.score(item.answer) == pytest.approx(1.0) for item in task.items)
    assert all(item.score("") == 0.0 for item in task.items)
    named = [item for item in task.items if item.document]
    assert all(CORPUS is not None and task.corpus.document(item.document) for item in named)


def test_tasks_are_functions_of_their_options():
    assert pocket_task(seed=1).digest == pocket_task(seed=1).digest != pocket_task(seed=2).digest


def test_kinds_that_nothing_scores_are_refused():
    with pytest.raises(InputError, match="unknown kind of question 'summary'"):
        pocket_task(kinds=("summary",))
    with pytest.raises(InputError, match="unknown split 'tets'; did you mean 'test'"):
        pocket_task(split="tets")
    with pytest.raises(InputError, match="unknown family"):
        pocket_task(family="wrd")


def test_general_questions_avoid_those_asked_before():
    asked = general_task(20).items
    others = general_task(400, avoid=tuple(item.question for item in asked)).items
    assert len(others) == len(general_facts()) - 20, "nor in other words"
    assert not {item.question for item in others} & {item.question for item in asked}
    everything = tuple(item.question for item in general_task(400).items)
    with pytest.raises(InputError, match="questions to avoid, which leave no fact"):
        general_task(avoid=everything)
