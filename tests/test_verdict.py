"""The verdict says what the numbers say, and flatters nobody."""

import dataclasses
import math
import re

import pytest

from cartridges.intervals import difference
from cartridges.report_table import off_corpus_table
from cartridges.verdict import verdict
from tests.report_samples import BASIC, LEDGER, a_row, changed, some_results, wilson, words


def test_the_verdict_gives_share_bytes_and_overlap():
    headline, items = verdict(some_results(), LEDGER)
    share = math.floor(34 / 36 * 100)
    assert headline == (
        f"The 64-slot cartridge gives {share}% of the accuracy of reading everything "
        "(85.0% against 90.0%; intervals overlap) with 31x fewer bytes."
    )
    text = " ".join(items)
    assert "It does better than no context at all: 85.0% against 10.0%" in text
    assert "It does better than the same slots before training: 85.0% against 15.0%" in text
    assert "difference −5.0 points" in text and "it may be chance" in text


def test_a_share_is_never_rounded_up():
    results = some_results({**BASIC, "full_context": 1000, "cartridge-64": 999}, num=1000)
    assert "gives 99% of the accuracy" in words(results)


def test_a_loss_within_overlapping_intervals_is_seen_by_pairs():
    results = some_results({**BASIC, "full_context": 180, "cartridge-64": 168}, num=200)
    text = words(results)
    assert "intervals overlap" in text
    told = re.search(r"Beside reading everything: difference −6.0 points, 95% interval −(\S+) to −(\S+) over", text)
    assert told and float(told[1]) > 6 > float(told[2]) > 0
    assert "Beside" in text and "chance" not in text.split("Beside")[1].split(".")[0]


@pytest.mark.parametrize("with_replies", [True, False])
def test_worse_than_its_rivals_is_said_plainly_and_first(with_replies):
    results = some_results(
        {"full_context": 36, "no_context": 5, "truncated-64": 30, "untrained-64": 3, "cartridge-64": 3},
        with_replies=with_replies,
    )
    _, items = verdict(results, LEDGER)
    text = " ".join(items)
    assert "It does worse than the beginning of the corpus as plain text of 64 tokens: 7.5% against 75.0%" in text
    assert "It does no better than the same slots before training: 7.5% against 7.5%" in text
    assert "It does worse than no context at all: 7.5% against 12.5%" in text
    assert ("intervals do not overlap" in text) is not with_replies


def test_the_document_that_answers_is_a_rival_unless_it_is_the_reference():
    oracle = "reading just the document that answers (an oracle)"
    results = some_results({**BASIC, "document": 39})
    _, items = verdict(results, LEDGER)
    worse = next(item for item in items if item.startswith(f"It does worse than {oracle}: 85.0% against 97.5%"))
    assert "95% interval −" in worse
    assert items.index(worse) < next(i for i, item in enumerate(items) if item.startswith("It does better than"))
    assert f"It does better than {oracle}: 85.0% against 12.5%" in words(some_results({**BASIC, "document": 5}))
    assert oracle not in words(some_results())
    told = words(dataclasses.replace(results, reference="document"))
    assert oracle not in told and "Beside the reference (document" in told
    unscored = some_results({"full_context": None, "document": None, "cartridge-64": None}, num=0)
    assert f"than {oracle}: 90.8% against 45.0%" in words(unscored)


def test_a_small_lead_is_not_called_one():
    results = some_results({**BASIC, "untrained-64": 33, "cartridge-64": 34})
    assert "It is not clearly better than the same slots before training" in words(results)
    unpaired = some_results({**BASIC, "untrained-64": 33, "cartridge-64": 34}, with_replies=False)
    assert "is not clearly better than the same slots before training: 85.0% against 82.5% (intervals" in words(
        unpaired
    )


def test_a_weak_reference_and_easy_questions_are_told():
    weak = some_results({"full_context": 12, "no_context": 0, "cartridge-64": 12})
    assert "Reading everything is itself right on 30.0% of the questions only" in words(weak)
    assert "itself right" not in words(some_results())
    easy = some_results({"full_context": 36, "no_context": 35, "cartridge-64": 36})
    assert "Without any context the model already gets 87.5%: these questions hardly need the corpus" in words(easy)
    assert "hardly need" not in words(some_results())


def test_a_reference_that_is_never_right_divides_by_nothing():
    text = words(some_results({"full_context": 0, "no_context": 0, "cartridge-64": 4}))
    assert text.startswith("Reading everything answers none of the questions right")
    assert "it answers 10.0% right" in text


def test_few_questions_are_told():
    text = words(some_results({"full_context": 9, "no_context": 1, "cartridge-64": 8}, num=10))
    low, high = wilson(8, 10)
    assert f"with 10 questions the cartridge's accuracy may lie anywhere from {low:.1%} to {high:.1%}" in text
    many = some_results({"full_context": 900, "no_context": 1, "cartridge-64": 880}, num=1000)
    assert "interval is wide" not in words(many)


def test_unscored_questions_are_counted():
    results = some_results()
    half = [dataclasses.replace(r, scores={}) if i % 2 else r for i, r in enumerate(results.replies)]
    assert "Of 40 questions, 20 have known answers" in words(dataclasses.replace(results, replies=half))


def test_without_accuracy_closeness_speaks():
    results = some_results(
        {"full_context": None, "no_context": None, "untrained-64": None, "cartridge-64": None}, num=0
    )
    rows = [dataclasses.replace(row, num_questions=20) for row in results.methods]
    text = words(dataclasses.replace(results, methods=rows))
    assert "At 90.7% of the tokens the 64-slot cartridge finds the same one likeliest as reading everything" in text
    assert "KL 0.214 nats a token, with 31x fewer bytes" in text
    assert "agreement with the reference is not correctness" in text
    assert "It agrees more than no context at all: 90.8% against 45.0%, KL 0.214 against 1.750" in text
    assert "There were 20 questions only" in text
    worse = changed(dataclasses.replace(results, methods=rows), "cartridge-64", top1_agreement=0.3)
    assert "It agrees less than the same slots before training: 30.0% against 45.0%" in words(worse)


def test_nothing_measured_claims_nothing():
    blank = {"accuracy": None, "ci95": None, "kl_per_token": None, "top1_agreement": None}
    assert "was not measured" in verdict(changed(some_results(), "cartridge-64", **blank), LEDGER)[0]
    assert "No trained cartridge was measured" in verdict(some_results({"full_context": 1, "no_context": 0}), LEDGER)[0]


def test_the_best_of_several_is_called_that():
    text = words(some_results({"full_context": 36, "no_context": 4, "cartridge-64": 20, "cartridge-128": 33}))
    assert text.startswith("The 128-slot cartridge")
    assert "best of 3" not in text and "best of 2 cartridges on these very questions" in text


def test_another_reference_is_named():
    results = changed(some_results(), "full_context", label="context cut to the window")
    assert "accuracy of the reference (context cut to the window)" in words(results)


def test_paired_differences_hold_their_level():
    """Against the exact chance, under no difference, that the interval leaves zero out."""
    num, share = 30, 0.2
    chance = 0.0
    for won in range(num + 1):
        for lost in range(num + 1 - won):
            pairs = [(1.0, 0.0)] * won + [(0.0, 1.0)] * lost + [(1.0, 1.0)] * (num - won - lost)
            _, low, high = difference(pairs)
            ways = math.comb(num, won) * math.comb(num - won, lost)
            chance += (not low <= 0 <= high) * ways * (share / 2) ** (won + lost) * (1 - share) ** (num - won - lost)
    assert 0.01 < chance < 0.06
    assert difference([(1.0, 1.0)] * 5)[1] < -0.1  # five pairs alike are no certainty
    mean, low, high = difference([(0.5, 0.25), (0.75, 0.25), (0.5, 0.5)])
    assert mean == pytest.approx(0.25) and low < 0.25 < high


def test_harm_off_the_corpus():
    results = some_results()
    results.off_corpus = [a_row("no_context", 48, 50), a_row("cartridge-64", 45, 50)]
    assert (
        "Off the corpus it costs 6.0 points against the model alone (90.0% against 96.0%; intervals overlap"
        in words(results)
    )
    table = off_corpus_table(results)
    assert table and [row[2] for row in table.rows] == ["", "6.0 points lost"]
    results.off_corpus[1] = a_row("cartridge-64", 49, 50)
    assert "gains 2.0 points" in words(results)
    results.off_corpus[1] = a_row("cartridge-64", 48, 50)
    assert "makes no difference in accuracy" in words(results)
    results.off_corpus = [a_row("no_context"), a_row("cartridge-64")]
    assert "agrees with the model alone at 90.8%" in words(results)
    assert "was not measured" in words(some_results())
