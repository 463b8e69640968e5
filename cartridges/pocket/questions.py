"""Questions with exact answers, made from the facts of a context.

An answer says what it looks up before it concludes ("412 is more than 95. So the higher one is X."). Where the gold is
one value, the answer ends with "is <value>.", so that one rule reads the value off any reply.
`draw(rng, context, kind)` makes a question; its inverse is `understand.py`, from the same forms and answers.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from cartridges.pocket.families.code import CALLEE, RESULT
from cartridges.pocket.families.tongue import ADJECTIVES, NOUNS, VERBS, Clause, draw_clause
from cartridges.pocket.names import Names
from cartridges.pocket.render import capitalized, grouped, joined
from cartridges.pocket.world import Context, Fact, Grammar, Relation, facts_by

NOT_TOLD = "not told in the text"
NOT_KNOWN = "I do not know."

LOOKUP = ("What is the {phrase}?", "Tell me the {phrase}.")
LOOKUP_OF = ("{s}: what is the {noun}?", "Which {noun} does {s} have?")
REVERSE = ("Which {kind} has the {noun} {v}?",)
TWO_HOP = ("What is the {noun} of {inner}?", "Tell me the {noun} of {inner}.")
COMPARISON = ("Which has the higher {noun}, {a} or {b}?", "{a} or {b}: which has the higher {noun}?")
COUNT = ("How many {plural} does {s} have?", "Count the {plural} of {s}.")
RECORD = ("Give the {nouns} of {s} as {format}.", "Write the {nouns} of {s} as {format}.")
SUMMARY = ("Summarise what the text says about {s}.", "What do we know about {s}?")
CREATIVE = ("Write a short rhyme about {s}.", "Write two lines of verse about {s}.")
TRANSLATION = ("Translate into {language}: {clause}", "How do you say this in {language}: {clause}")
LETTERS = "ABCD"
LAST_NAME_SHARE = 0.15  # of the questions that look up something of a person


@dataclass(frozen=True)
class Question:
    """What is asked, the canonical reply, what a right reply holds (`gold`), and the facts it rests on."""

    kind: str
    text: str
    answer: str
    gold: tuple[str, ...]
    needs: tuple[Fact, ...] = ()


def state(facts: list[Fact]) -> str:
    """The canonical sentence of one fact, or of several that differ in the value alone."""
    phrase = facts[0].relation.phrase(facts[0].subject, plural=len(facts) > 1)
    return f"The {phrase} {'are' if len(facts) > 1 else 'is'} {joined([fact.value for fact in facts])}."


def lookup_forms(relation: Relation) -> tuple[str, ...]:
    """Templates that ask for the value; the fields are `phrase`, `noun` and `s`."""
    return LOOKUP + (LOOKUP_OF if relation.joint == "of" else ()) + relation.asked


def fill_lookup(form: str, relation: Relation, subject: str) -> str:
    """The question that one of `lookup_forms` makes about `subject`."""
    return form.format(phrase=relation.phrase(subject), noun=relation.noun, s=subject)


def reverse_forms(relation: Relation) -> tuple[str, ...]:
    """Templates that ask for the subject; the fields are `kind`, `noun` and `v`. Empty where it cannot be asked for."""
    return (REVERSE if relation.joint == "of" else ()) + relation.asked_back


def describe(context: Context, fact: Fact) -> str:
    """The subject, told by the value: "the patient with the room B-417"."""
    kind = context.kind_of[fact.subject]
    return fact.relation.back.format(kind=kind, noun=fact.relation.noun, v=fact.value)


# Answers, given the text of the question and the facts. Drawing and understanding share them.


def lookup(text: str, fact: Fact) -> Question:
    """The value of a fact."""
    return Question("lookup", text, state([fact]), (fact.value,), (fact,))


def reverse(text: str, context: Context, fact: Fact) -> Question:
    """The subject of a fact, told by its value."""
    answer = f"{capitalized(describe(context, fact))} is {fact.subject}."
    return Question("reverse", text, answer, (fact.subject,), (fact,))


def two_hop(text: str, context: Context, first: Fact, second: Fact) -> Question:
    """The value of `second`, whose subject `first` leads to by its value or by its subject."""
    step = state([first]) if second.subject == first.value else reverse("", context, first).answer
    return Question("two_hop", text, f"{step} {state([second])}", (second.value,), (first, second))


def comparison(text: str, a: Fact, b: Fact) -> Question:
    """Whichever subject has the higher number."""
    told, winner = ("more", a.subject) if magnitude(a) > magnitude(b) else ("less", b.subject)
    steps = f"{state([a])} {state([b])} {magnitude(a)} is {told} than {magnitude(b)}."
    return Question("comparison", text, f"{steps} So the higher one is {winner}.", (winner,), (a, b))


def count(text: str, facts: list[Fact]) -> Question:
    """How many values a subject has for a relation; `facts` are all of them."""
    answer = f"{state(facts)} So the number is {len(facts)}."
    return Question("count", text, answer, (str(len(facts)),), tuple(facts))


def option(letter: str, value: str) -> str:
    """A line of a multiple-choice question."""
    return f"{value} ({letter})"


def multiple_choice(text: str, options: list[str], fact: Fact) -> Question:
    """The letter of the option that is the value of `fact`."""
    letter = LETTERS[options.index(fact.value)]
    return Question("multiple_choice", text, state([fact]).removesuffix(".") + f" ({letter}).", (letter,), (fact,))


def record(text: str, form: str, facts: list[Fact]) -> Question:
    """Values of one subject by noun, as JSON or YAML; the gold is one `["noun", "value"]` each."""
    values = {fact.relation.noun: fact.value for fact in facts}
    answer = json.dumps(values) if form == "JSON" else "\n".join(f"{noun}: {value}" for noun, value in values.items())
    return Question(form.lower(), text, answer, tuple(json.dumps(pair) for pair in values.items()), tuple(facts))


def _claims(context: Context, subject: str) -> list[str]:
    """What the text tells of a subject, briefly and in the order of the text: "room B-417", "drugs a and b"."""
    groups = sorted(grouped(tuple(context.by_subject[subject])), key=lambda facts: context.text.find(facts[0].value))
    return [_claim(facts) for facts in groups]


def _claim(facts: list[Fact]) -> str:
    relation = facts[0].relation
    return f"{relation.plural if len(facts) > 1 else relation.noun} {joined([fact.value for fact in facts])}"


def summary(text: str, context: Context, subject: str) -> Question:
    """At most four things told of the subject."""
    told = _claims(context, subject)
    answer = f"{subject}: {'; '.join(told[:4])}."
    return Question("summary", text, answer, (subject, *told), tuple(context.by_subject[subject]))


def creative(text: str, context: Context, subject: str, choice: int = 0) -> Question:
    """Two lines that name the subject and one thing told of it, the one numbered `choice`."""
    told = _claims(context, subject)
    answer = f"{subject}, {subject}, hear my rhyme:\n{told[choice % len(told)]}, all the time."
    return Question("creative", text, answer, (subject, *told), tuple(context.by_subject[subject]))


def translation(text: str, context: Context, grammar: Grammar, clause: Clause) -> Question:
    """The clause in the language of `grammar`; the context must have all its words. Rules first, then words."""
    rules = [context.by_key[grammar.language, relation.noun][0] for relation in clause.rules]
    facts = [context.by_subject[word][0] for word in clause.words]
    words = {fact.subject: fact.value for fact in facts}
    glosses = ", ".join(f"{english} is {foreign}" for english, foreign in clause.gloss(grammar, words))
    translated = clause.translate(grammar, words)
    answer = f"{' '.join(state([rule]) for rule in rules)} {capitalized(glosses)}. The sentence is {translated}."
    return Question("translation", text, answer, (translated,), tuple(rules + facts))


def magnitude(fact: Fact) -> int:
    """The number that the value of the fact begins with."""
    return int(fact.value.split()[0])


# Drawing: one function a kind, None where the context has nothing to ask about.


def _draw_lookup(rng: Random, context: Context) -> Question | None:
    if not context.singles:
        return None
    fact = rng.choice(context.singles)
    form = rng.choice(lookup_forms(fact.relation))
    return lookup(fill_lookup(form, fact.relation, called(rng, context, fact.subject, LAST_NAME_SHARE)), fact)


def called(rng: Random, context: Context, subject: str, last_name_share: float) -> str:
    """The subject's name, now and then a person's last name alone."""
    last = subject.split()[-1]
    return last if context.short_names.get(last) == subject and rng.random() < last_name_share else subject


def _draw_reverse(rng: Random, context: Context) -> Question | None:
    if not context.reversible:
        return None
    fact = rng.choice(context.reversible)
    form = rng.choice(reverse_forms(fact.relation))
    text = form.format(kind=context.kind_of[fact.subject], noun=fact.relation.noun, v=fact.value)
    return reverse(text, context, fact)


def _hops(context: Context) -> list[tuple[Fact, Fact]]:
    """Pairs (first, second) where the first leads to the second's subject, by its value or by its subject.

    The former are scarce, and so stand in the list several times, to be drawn more often.
    """
    by_subject = context.singles_by_subject
    onward = [(first, second) for first in context.singles for second in by_subject.get(first.value, ())]
    back = [
        (first, second)
        for first in context.reversible
        if first.relation.joint == "of"
        for second in by_subject.get(first.subject, ())
        if second.relation.noun != first.relation.noun
    ]
    return onward * (3 if len(onward) * 6 > len(back) else 6) + back


def _draw_two_hop(rng: Random, context: Context) -> Question | None:
    pairs = _hops(context)
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    inner = f"the {first.relation.phrase(first.subject)}" if second.subject == first.value else describe(context, first)
    text = rng.choice(TWO_HOP).format(noun=second.relation.noun, inner=inner)
    return two_hop(text, context, first, second)


def _draw_comparison(rng: Random, context: Context) -> Question | None:
    numbers = [fact for fact in context.singles if fact.relation.is_number]
    by_noun = facts_by(lambda fact: fact.relation.noun, numbers)
    groups = [facts for facts in by_noun.values() if len({magnitude(fact) for fact in facts}) > 1]
    if not groups:
        return None
    facts = rng.choice(groups)
    a = rng.choice(facts)
    b = rng.choice([fact for fact in facts if magnitude(fact) != magnitude(a)])
    text = rng.choice(COMPARISON).format(noun=a.relation.noun, a=a.subject, b=b.subject)
    return comparison(text, a, b)


def _draw_count(rng: Random, context: Context) -> Question | None:
    groups = [facts for facts in context.by_key.values() if facts[0].relation.plural]
    if not groups:
        return None
    facts = rng.choice(groups)
    text = rng.choice(COUNT).format(plural=facts[0].relation.plural, s=facts[0].subject)
    return count(text, facts)


def _draw_multiple_choice(rng: Random, context: Context) -> Question | None:
    question = _draw_lookup(rng, context)
    if question is None:
        return None
    fact = question.needs[0]
    noun = fact.relation.noun
    others = {other.value for other in context.facts if other.relation.noun == noun} - {fact.value}
    wrong = rng.sample(sorted(others), min(len(others), 3))
    names = context.more_names(rng)
    for _ in range(20):
        if len(wrong) == 3:
            break
        value = fact.relation.draw(names)
        if value not in (*wrong, fact.value):
            wrong.append(value)
    if len(wrong) < 3:  # a relation with few values, as the place of the adjective
        return None
    options = [fact.value, *wrong]
    rng.shuffle(options)
    lines = [option(letter, value) for letter, value in zip(LETTERS, options, strict=True)]
    return multiple_choice("\n".join([question.text, *lines]), options, fact)


def _draw_record(rng: Random, context: Context, form: str) -> Question | None:
    groups = [facts for facts in context.singles_by_subject.values() if len(facts) >= 2]
    if not groups:
        return None
    facts = rng.choice(groups)
    facts = rng.sample(facts, rng.randint(2, min(4, len(facts))))
    nouns = joined([fact.relation.noun for fact in facts])
    text = rng.choice(RECORD).format(nouns=nouns, s=facts[0].subject, format=form)
    return record(text, form, facts)


def _draw_subject(rng: Random, context: Context) -> str | None:
    subjects = [subject for subject, facts in context.by_subject.items() if facts[0].relation.joint == "of"]
    return rng.choice(subjects) if subjects else None


def _draw_summary(rng: Random, context: Context) -> Question | None:
    subject = _draw_subject(rng, context)
    return summary(rng.choice(SUMMARY).format(s=subject), context, subject) if subject else None


def _draw_creative(rng: Random, context: Context) -> Question | None:
    subject = _draw_subject(rng, context)
    return creative(rng.choice(CREATIVE).format(s=subject), context, subject, rng.randrange(8)) if subject else None


def _draw_translation(rng: Random, context: Context) -> Question | None:
    grammar = context.grammar
    if grammar is None:
        return None
    clause = draw_clause(rng, set(context.by_subject))
    text = rng.choice(TRANSLATION).format(language=grammar.language, clause=clause.english)
    return translation(text, context, grammar, clause)


def _draw_unanswerable(rng: Random, context: Context) -> Question | None:
    """About something that the context does not name, or a relation that it does not state of something it names."""
    fact = rng.choice(context.facts)
    kind = context.kind_of[fact.subject]
    if kind == "word":
        missing = sorted({*NOUNS, *VERBS, *ADJECTIVES} - set(context.by_subject))
        if not missing:
            return None
        subject, relation = rng.choice(missing), fact.relation
    elif rng.random() < 0.5:
        subject, relation = STRANGERS[kind](context.more_names(rng)), fact.relation
    else:
        stated = {other.relation.noun for other in context.by_subject[fact.subject]}
        fitting = {
            other.relation.noun: other.relation
            for other in context.facts
            if context.kind_of[other.subject] == kind and other.relation.noun not in stated
        }
        if CALLEE.noun in stated:  # a function that calls another returns what that one returns: told, in two hops
            fitting.pop(RESULT.noun, None)
        if not fitting:
            return None
        subject, relation = fact.subject, fitting[rng.choice(sorted(fitting))]
    text = fill_lookup(rng.choice(lookup_forms(relation)), relation, subject)
    return Question("unanswerable", text, f"The {relation.phrase(subject)} is {NOT_TOLD}.", (NOT_TOLD,))


# How a subject of each kind is invented.
STRANGERS: dict[str, Callable[[Names], str]] = {
    "patient": Names.person,
    "doctor": Names.person,
    "person": Names.person,
    "drug": Names.drug,
    "diagnosis": Names.illness,
    "firm": Names.firm,
    "function": Names.function,
    "place": Names.town,
    "language": lambda names: names.word().capitalize(),
}

DRAWS: dict[str, Callable[[Random, Context], Question | None]] = {
    "lookup": _draw_lookup,
    "reverse": _draw_reverse,
    "two_hop": _draw_two_hop,
    "comparison": _draw_comparison,
    "count": _draw_count,
    "multiple_choice": _draw_multiple_choice,
    "json": lambda rng, context: _draw_record(rng, context, "JSON"),
    "yaml": lambda rng, context: _draw_record(rng, context, "YAML"),
    "summary": _draw_summary,
    "creative": _draw_creative,
    "translation": _draw_translation,
    "unanswerable": _draw_unanswerable,
}


def draw(rng: Random, context: Context, kind: str) -> Question | None:
    """A question of the kind, one of DRAWS, about the context; None where the draw found nothing to ask."""
    return DRAWS[kind](rng, context)
