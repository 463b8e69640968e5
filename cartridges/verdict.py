"""What the numbers say of a cartridge, in sentences made by rules; what speaks against it is said first.

Where the same questions were asked of two methods, their difference is judged by the pairs of scores; else it is said
whether the intervals overlap. Nothing here rounds in the cartridge's favour.
"""

import math

from cartridges.intervals import difference
from cartridges.ledger import Ledger, break_even
from cartridges.report_table import (
    alone_row,
    bytes_ratio,
    counted,
    duration,
    harm,
    is_number,
    labels,
    percent,
    points,
    seconds_text,
)
from cartridges.results import DOCUMENT, FULL, NONE, TRUNCATED, UNTRAINED, MethodResult, Results

LOW_ACCURACY = 0.5  # of the reference, below which it tells little about a cartridge
CLOSE = 0.05  # between no context and the reference, below which the questions hardly need the corpus
WIDE = 0.15  # width of an interval that is worth a warning
FEW = 30  # questions
APART = "intervals do not overlap"


def paired(results: Results, a: str, b: str) -> list[tuple[float, float]]:
    """The scores of two methods on the questions that both were scored on."""
    return [(r.scores[a], r.scores[b]) for r in results.replies if a in r.scores and b in r.scores]


def certainty(results: Results, row: MethodResult, other: MethodResult) -> tuple[bool, str]:
    """Whether the accuracies differ by more than chance, and why: by pairs, else by whether the intervals overlap."""
    pairs = paired(results, row.method, other.method)
    if pairs:
        mean, low, high = difference(pairs)
        is_sure = not low <= 0 <= high
        told = f"difference {points(mean)} points, 95% interval {points(low)} to {points(high)} over the same questions"
        return is_sure, told if is_sure else f"{told}, so it may be chance"
    told = overlap(row, other)
    return told == APART, told


def overlap(row: MethodResult, other: MethodResult) -> str:
    """Whether the two intervals overlap, "" where one is not known."""
    if row.ci95 is None or other.ci95 is None:
        return ""
    is_apart = row.ci95[0] > other.ci95[1] or other.ci95[0] > row.ci95[1]
    return APART if is_apart else "intervals overlap"


def reading(results: Results) -> str:
    """The reference in words."""
    row = results.row(results.reference)
    if row.method == FULL and row.label == "full context":
        return "reading everything"
    return f"the reference ({labels(results.methods)[row.method]})"


def named(results: Results, row: MethodResult) -> str:
    """The cartridge in words."""
    same = [other for other in results.cartridges if other.num_slots == row.num_slots]
    return f"the {row.num_slots}-slot cartridge" + (f" ({row.method})" if len(same) > 1 else "")


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def best(results: Results) -> MethodResult | None:
    """The cartridge to talk about: the most accurate, else the one that agrees most; of equal ones the smallest."""

    def key(row: MethodResult) -> tuple[float, float, int]:
        return (
            row.accuracy if is_number(row.accuracy) else -1.0,
            row.top1_agreement if is_number(row.top1_agreement) else -1.0,
            -row.kv_bytes,
        )

    return max(results.cartridges, key=key, default=None)


def verdict(results: Results, ledger: Ledger) -> tuple[str, list[str]]:
    """The finding in one sentence, and what else must be said. Raises InputError without the reference's row."""
    reference, row = results.row(results.reference), best(results)
    if row is None:
        return "No trained cartridge was measured, so there is nothing to say about one.", []
    if is_number(row.accuracy) and is_number(reference.accuracy):
        headline, told = accuracy_headline(results, row, reference), accuracy_remarks(results, row, reference)
    elif is_number(row.top1_agreement):
        headline, told = agreement_headline(results, row, reference), agreement_remarks(results, row)
    else:
        return f"How close {named(results, row)} comes to {reading(results)} was not measured.", []
    num = len(results.cartridges)
    if num > 1:
        told.append(
            f"It is the best of {num} cartridges on these very questions, and so looks a little better than it is."
        )
    return headline, [*told, *harm_remarks(results, row), pays_text(results, row, ledger)]


def byte_phrase(row: MethodResult, reference: MethodResult) -> str:
    """The words "with 31x fewer bytes" with a space in front, as far as that can be told."""
    ratio = bytes_ratio(row, reference)
    return f" with {ratio} bytes" if ratio else ""


def accuracy_headline(results: Results, row: MethodResult, reference: MethodResult) -> str:
    """The first sentence where replies were scored."""
    mine, theirs = row.accuracy or 0.0, reference.accuracy or 0.0
    who, whom = capital(named(results, row)), reading(results)
    if theirs <= 0:
        return (
            f"{capital(whom)} answers none of the questions right, so they cannot tell what {named(results, row)} "
            f"keeps of the corpus; it answers {percent(mine)} right."
        )
    told = [f"{percent(mine)} against {percent(theirs)}", overlap(row, reference)]
    share = math.floor(100 * mine / theirs + 1e-9)
    return (
        f"{who} gives {share}% of the accuracy of {whom} ({'; '.join(filter(None, told))})"
        f"{byte_phrase(row, reference)}."
    )


def accuracy_remarks(results: Results, row: MethodResult, reference: MethodResult) -> list[str]:
    """What else the accuracies say, first what speaks against the cartridge."""
    mine, theirs = row.accuracy or 0.0, reference.accuracy or 0.0
    found, good = [], []
    for other, what in rivals(results, row):
        if not is_number(other.accuracy):
            continue
        gap = mine - other.accuracy
        is_sure, why = certainty(results, row, other)
        better = "does better than" if is_sure else "is not clearly better than"
        verb = "does worse than" if gap < 0 else "does no better than" if gap == 0 else better
        told = f"{percent(mine)} against {percent(other.accuracy)}" + (f" ({why})" if why else "")
        (good if gap > 0 and is_sure else found).append(f"It {verb} {what}: {told}.")
    if paired(results, row.method, reference.method):
        found.insert(0, f"Beside {reading(results)}: {certainty(results, row, reference)[1]}.")
    if 0 < theirs < LOW_ACCURACY:
        found.append(
            f"{capital(reading(results))} is itself right on {percent(theirs)} of the questions only: the model can "
            "hardly do this task, so a share of that accuracy says little."
        )
    none = next((other for other in results.methods if other.method == NONE), None)
    if none is not None and is_number(none.accuracy) and theirs > 0 and none.accuracy > theirs - CLOSE:
        found.append(
            f"Without any context the model already gets {percent(none.accuracy)}: these questions hardly need the "
            "corpus, and tell little about the cartridge."
        )
    return [*found, *question_remarks(results, row), *good]


def question_remarks(results: Results, row: MethodResult) -> list[str]:
    """A warning where there are few questions, or the interval is wide."""
    num = sum(row.method in reply.scores for reply in results.replies) or row.num_questions
    found = []
    if num < row.num_questions:
        found.append(f"Of {counted(row.num_questions, 'question')}, {num:,} have known answers; accuracy is of these.")
    if row.ci95 is not None and (row.ci95[1] - row.ci95[0] > WIDE or num < FEW):
        low, high = row.ci95
        found.append(
            f"The interval is wide: with {counted(num, 'question')} the cartridge's accuracy may lie anywhere from "
            f"{percent(low)} to {percent(high)}."
        )
    elif num < FEW:
        found.append(f"There were {counted(num, 'question')} only, so every accuracy here is uncertain.")
    return found


def rivals(results: Results, row: MethodResult) -> list[tuple[MethodResult, str]]:
    """The methods beside which a cartridge has to stand, in words, where they were measured.

    Text of the same bytes, itself untrained, no context; and the document that answers, where it is no reference.
    """
    rows = {other.method: other for other in results.methods}
    size = next((rows[name] for name in rows if name == f"{TRUNCATED}-{row.num_slots}"), None)
    untrained = rows.get(f"{UNTRAINED}-{row.method.partition('-')[2]}")
    oracle = None if results.reference == DOCUMENT else rows.get(DOCUMENT)
    found = [
        (oracle, "reading just the document that answers (an oracle)"),
        (size, f"the beginning of the corpus as plain text of {row.num_slots} tokens"),
        (untrained, "the same slots before training"),
        (rows.get(NONE), "no context at all"),
    ]
    return [(other, what) for other, what in found if other is not None]


def agreement_headline(results: Results, row: MethodResult, reference: MethodResult) -> str:
    """The first sentence where nothing scores the replies."""
    kl = f", KL {row.kl_per_token:.3f} nats a token" if is_number(row.kl_per_token) else ""
    share = math.floor(1000 * (row.top1_agreement or 0.0) + 1e-9) / 1000
    phrase = byte_phrase(row, reference)
    return (
        f"At {percent(share)} of the tokens {named(results, row)} finds the same one likeliest as {reading(results)}"
        f"{kl}{',' if phrase else ''}{phrase}."
    )


def agreement_remarks(results: Results, row: MethodResult) -> list[str]:
    """What else the next-token distributions say, first what speaks against the cartridge."""
    found, good = [], []
    found.append(
        "No known answers score these questions: agreement with the reference is not correctness, and where the "
        "reference is wrong the cartridge is meant to be wrong, too."
    )
    mine = row.top1_agreement or 0.0
    for other, what in rivals(results, row):
        if not is_number(other.top1_agreement):
            continue
        gap = mine - other.top1_agreement
        verb = "agrees less than" if gap < 0 else "agrees no more than" if gap == 0 else "agrees more than"
        told = [f"{percent(mine)} against {percent(other.top1_agreement)}"]
        if is_number(row.kl_per_token) and is_number(other.kl_per_token):
            told.append(f"KL {row.kl_per_token:.3f} against {other.kl_per_token:.3f}")
        (good if gap > 0 else found).append(f"It {verb} {what}: {', '.join(told)}.")
    if row.num_questions < FEW:
        found.append(f"There were {counted(row.num_questions, 'question')} only, so these shares are uncertain.")
    return [*found, *good]


def harm_remarks(results: Results, row: MethodResult) -> list[str]:
    """What the cartridge does off the corpus."""
    alone = alone_row(results)
    mine = next((other for other in results.off_corpus if other.method == row.method), None)
    if alone is None or mine is None:
        return ["What it does to questions off the corpus was not measured."]
    lost = harm(mine, alone)
    if lost is None:
        if not is_number(mine.top1_agreement):
            return []
        return [f"Off the corpus it agrees with the model alone at {percent(mine.top1_agreement)} of the tokens."]
    size = f"{abs(100 * lost):.1f} points"
    does = f"costs {size}" if lost > 0 else f"gains {size}" if lost < 0 else "makes no difference in accuracy"
    told = [f"{percent(mine.accuracy)} against {percent(alone.accuracy)}", overlap(mine, alone)]
    told.append(counted(mine.num_questions, "question"))
    return [f"Off the corpus it {does} against the model alone ({'; '.join(filter(None, told))})."]


def build_seconds(row: MethodResult, ledger: Ledger) -> float:
    """What making a cartridge took: by its own record or by the ledger, whichever says more."""
    recorded = row.build_s if is_number(row.build_s) else 0.0
    return max(recorded, ledger.build_s(row.num_slots))


def pays_text(results: Results, row: MethodResult, ledger: Ledger) -> str:
    """After how many queries a cartridge pays, or why that cannot be told."""
    reference, build_s = results.row(results.reference), build_seconds(row, ledger)
    who, whom = named(results, row), reading(results)
    times = (reference.question_s, row.question_s)
    if not all(is_number(seconds) and seconds > 0 for seconds in times):
        return f"Whether {who} pays is not known: queries were not timed."
    took = f"{seconds_text(row.question_s)} s with it and {seconds_text(reference.question_s)} s with {whom}"
    if build_s <= 0:
        return f"Whether {who} pays is not known: what it took to make was not recorded; a query takes {took}."
    num_queries = break_even(build_s, reference.question_s, row.question_s)
    if num_queries is None:
        return f"In seconds {who} never pays: a query takes {took}, and making it took {duration(build_s)}."
    queries = "query" if num_queries == 1 else "queries"
    made = f"making it took {duration(build_s)}"
    return f"{capital(who)} pays after {num_queries:,} {queries}: {made}, a query takes {took}."
