"""The verb `bench`: the first method is the reference, and nothing takes its place in silence."""

import json
from dataclasses import replace

import pytest

from cartridges.corpus import Corpus
from cartridges.errors import InputError, OtherRun
from cartridges.evals.benchmark import BenchConfig, bench
from cartridges.evals.method import Answerer, own_methods
from cartridges.questions import Item


def config_of(*methods):
    return BenchConfig.resolve("pocket", values={"methods": list(methods), "slots": 24})


@pytest.fixture
def short(task):
    return replace(task, items=task.items[:2], max_new_tokens=4)


@pytest.fixture
def long(short):
    """Two documents, of which one alone is beyond the window."""
    corpus = Corpus.from_texts({"long.md": "The ward has nine beds. " * 600, "short.md": "Nobody knows."})
    return replace(short, corpus=corpus, items=(Item("How many beds?", "nine", ("nine",), document="long.md"),))


@pytest.fixture(autouse=True)
def broken():
    def broken(workshop):
        raise InputError("given a broken method, expected a whole one; mend it")

    own_methods["broken"] = broken
    own_methods["loud"] = lambda workshop: Answerer(lambda item: "LOUD")
    yield
    del own_methods["broken"], own_methods["loud"]


def test_the_first_method_is_the_reference(engine, short, tmp_path):
    finding = bench(short, engine, config_of("loud", "broken", "no_context"), tmp_path)
    assert [row["method"] for row in finding.rows] == ["loud", "no_context"]
    assert finding.about["reference"] == "loud" and finding.rows[0]["difference"][0] == 0.0
    assert finding.notes == ["broken: given a broken method, expected a whole one; mend it"]
    assert json.loads((tmp_path / "results.json").read_text())["about"]["reference"] == "loud"


def test_a_first_method_that_cannot_be_measured_is_no_reference(engine, short, tmp_path):
    message = (
        "the first method, broken, is the reference and cannot be measured: given a broken method, .* mend it; or "
    )
    with pytest.raises(InputError, match=message + "name another method first"):
        bench(short, engine, config_of("broken", "no_context", "loud"), tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_folder_of_another_run_is_told_at_the_first_method(engine, short, tmp_path):
    bench(short, engine, config_of("full_context", "no_context"), tmp_path)
    fewer = replace(short, items=short.items[:1])
    with pytest.raises(OtherRun, match=r"holds a run with task '.*' \(now '.*'\)"):
        bench(fewer, engine, config_of("full_context", "no_context"), tmp_path)


def test_another_size_does_not_replace_what_was_measured(engine, short, tmp_path):
    bench(short, engine, config_of("no_context", "truncated"), tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    larger = config_of("no_context", "truncated").model_copy(update={"slots": 48})
    own_methods["untold"] = lambda workshop: pytest.fail("nothing may be built before the folder is looked at")
    try:
        message = r"holds a run with slots 24 \(now 48\); give another folder"
        with pytest.raises(OtherRun, match=message):
            bench(short, engine, larger.model_copy(update={"methods": ["untold"]}), tmp_path)
    finally:
        del own_methods["untold"]
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize("first", ["full_context", "document"])
def test_a_reference_too_long_for_the_window_is_replaced_aloud(engine, long, tmp_path, first):
    finding = bench(long, engine, config_of(first, "no_context", "loud"), tmp_path)
    assert [row["method"] for row in finding.rows] == ["no_context", "loud"]
    assert finding.about["reference"] == "no_context"
    (note,) = finding.notes
    assert note.startswith(f"{first}: given a ") and "expected at most" in note
    assert note.endswith("; so the reference is no_context, the first method that could be measured")


def test_methods_none_of_which_can_be_measured_are_told(engine, long, tmp_path):
    with pytest.raises(InputError, match=r"none of the methods could be .*: full_context: given .*; broken: given"):
        bench(long, engine, config_of("full_context", "broken"), tmp_path)
