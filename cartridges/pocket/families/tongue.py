"""Invented languages: words and a few rules of grammar, enough to translate sentences never seen (the MTOB kind)."""

import re
from dataclasses import dataclass
from random import Random

from cartridges.pocket.names import NUCLEI, ONSETS, Names
from cartridges.pocket.render import sentence
from cartridges.pocket.world import Document, Fact, Grammar, Relation

NOUNS = (
    "dog cat stone tree river house king bird boat book road garden lamp tower farmer teacher sailor friend "
    "mountain forest bridge letter apple horse window flower cloud star ring drum"
).split()
VERBS = (
    "help call follow want lift paint clean greet visit guard mend pull answer enter join warn trust fear hunt cook"
).split()
ADJECTIVES = "old new big small red green black white quiet strong slow young".split()
ORDERS = {"subject, verb, object": "SVO", "subject, object, verb": "SOV", "verb, subject, object": "VSO"}
BEFORE, AFTER = "before the noun", "after the noun"

WORD = Relation(
    "word",
    Names.word,
    ("{s} is {v}.",),
    ("How do you say {s}?",),
    ("What does {v} mean?",),
    joint="for",
    back="the meaning of {v}",
)


def _ending(names: Names) -> str:
    return names.unique(lambda: f"-{names.rng.choice(ONSETS)}{names.rng.choice(NUCLEI)}")


ORDER = Relation("word order", lambda names: names.rng.choice(sorted(ORDERS)), ("The order of words in {s} is {v}.",))
ADJECTIVE = Relation(
    "adjective place",
    lambda names: names.rng.choice((BEFORE, AFTER)),
    ("In {s} the adjective stands {v}.",),
    ("Where does the adjective stand in {s}?",),
)
PLURAL = Relation(
    "plural ending", _ending, ("The plural of {s} nouns ends in {v}.",), ("How does {s} form the plural?",)
)
PAST = Relation("past ending", _ending, ("In the past a verb of {s} ends in {v}.",), ("How does {s} form the past?",))
RULES = (ORDER, ADJECTIVE, PLURAL, PAST)


@dataclass(frozen=True)
class Phrase:
    """A definite noun phrase, as English words; no adjective is an empty one."""

    noun: str
    adjective: str
    plural: bool

    @property
    def english(self) -> str:
        return " ".join(filter(None, ("the", self.adjective, self.noun + "s" * self.plural)))


@dataclass(frozen=True)
class Clause:
    """A sentence in both languages: `english` here, `translate` gives the other."""

    subject: Phrase
    verb: str
    past: bool
    object: Phrase

    @property
    def english(self) -> str:
        verb = self.verb + ("ed" if self.past else "" if self.subject.plural else "s")
        return f"{self.subject.english} {verb} {self.object.english}"

    @property
    def words(self) -> list[str]:
        """The dictionary words in the order of the English sentence."""
        subject, thing = self.subject, self.object
        return list(filter(None, (subject.adjective, subject.noun, self.verb, thing.adjective, thing.noun)))

    @property
    def rules(self) -> list[Relation]:
        """The rules of grammar that the sentence needs."""
        phrases = (self.subject, self.object)
        needed = {
            ORDER: True,
            ADJECTIVE: any(phrase.adjective for phrase in phrases),
            PLURAL: any(phrase.plural for phrase in phrases),
            PAST: self.past,
        }
        return [relation for relation, is_needed in needed.items() if is_needed]

    def gloss(self, grammar: Grammar, words: dict[str, str]) -> list[tuple[str, str]]:
        """Each word in the order of the English sentence, inflected, in English and in the language of `grammar`.

        `words` gives the language's words by the English ones.
        """
        pairs: list[tuple[str, str]] = []
        for phrase in (self.subject, None, self.object):
            if phrase is None:
                verb = (
                    (self.verb + "ed", words[self.verb] + grammar.past) if self.past else (self.verb, words[self.verb])
                )
                pairs.append(verb)
                continue
            if phrase.adjective:
                pairs.append((phrase.adjective, words[phrase.adjective]))
            plural = (phrase.noun + "s", words[phrase.noun] + grammar.plural)
            pairs.append(plural if phrase.plural else (phrase.noun, words[phrase.noun]))
        return pairs

    def translate(self, grammar: Grammar, words: dict[str, str]) -> str:
        """The sentence in the language of `grammar`, whose `words` are given by the English ones."""
        foreign = iter([word for _, word in self.gloss(grammar, words)])

        def phrase(part: Phrase) -> str:
            in_order = [next(foreign) for _ in range(2 if part.adjective else 1)]
            return " ".join(in_order if grammar.adjective_first else reversed(in_order))

        subject, verb, thing = phrase(self.subject), next(foreign), phrase(self.object)
        parts = {"S": subject, "V": verb, "O": thing}
        return " ".join(parts[letter] for letter in grammar.order)


def draw_clause(rng: Random, known: set[str]) -> Clause:
    """A sentence made of `known` English words, which must have two nouns and a verb among them."""
    adjectives = [word for word in ADJECTIVES if word in known]
    subject, thing = (
        Phrase(noun, rng.choice(adjectives) if adjectives and rng.random() < 0.4 else "", rng.random() < 0.4)
        for noun in rng.sample([word for word in NOUNS if word in known], 2)
    )
    return Clause(subject, rng.choice([word for word in VERBS if word in known]), rng.random() < 0.5, thing)


PHRASE = rf"the (?:({'|'.join(ADJECTIVES)}) )?({'|'.join(NOUNS)})(s?)"
CLAUSE = re.compile(rf"{PHRASE} ({'|'.join(VERBS)})(ed|s|) {PHRASE}")


def parse_clause(text: str) -> Clause | None:
    """The sentence that the English `text` is, or None."""
    found = CLAUSE.fullmatch(text)
    if found is None:
        return None
    adjective, noun, plural, verb, tense, adjective2, noun2, plural2 = (group or "" for group in found.groups())
    subject, thing = Phrase(noun, adjective, bool(plural)), Phrase(noun2, adjective2, bool(plural2))
    clause = Clause(subject, verb, tense == "ed", thing)
    return clause if clause.english == text else None


def _rules(rng: Random, facts: list[Fact]) -> str:
    lines = [sentence(rng, [fact], fact.subject) for fact in facts]
    return "\n".join(f"- {line}" for line in lines) if rng.random() < 0.5 else " ".join(lines)


def _word_list(rng: Random, facts: list[Fact]) -> str:
    if rng.random() < 0.25:
        return " ".join(f"The word for {fact.subject} is {fact.value}." for fact in facts)
    form = rng.choice(("- {s}: {v}", "{s}: {v}", "{s} = {v}", "* {s} is {v}"))
    return "\n".join(form.format(s=fact.subject, v=fact.value) for fact in facts)


def tongue(rng: Random, names: Names, size: int) -> Document:
    """A grammar and a list of about ten words for each unit of `size`."""
    language = names.word().capitalize()
    num_nouns = min(len(NOUNS), 2 + 4 * size)
    num_verbs = min(len(VERBS), 1 + 2 * size)
    chosen = rng.sample(NOUNS, num_nouns) + rng.sample(VERBS, num_verbs)
    chosen += rng.sample(ADJECTIVES, min(len(ADJECTIVES), 2 * size))
    rng.shuffle(chosen)
    rule_facts = [Fact(language, relation, relation.draw(names)) for relation in RULES]
    rule = {fact.relation: fact.value for fact in rule_facts}
    grammar = Grammar(
        language, ORDERS[rule[ORDER]], rule[ADJECTIVE] == BEFORE, rule[PLURAL].strip("-"), rule[PAST].strip("-")
    )
    rng.shuffle(rule_facts)
    facts = [Fact(word, WORD, WORD.draw(names)) for word in chosen]
    title = rng.choice(("The language {}", "A short grammar of {}", "{} for travellers")).format(language)
    markdown = rng.random() < 0.6
    parts = [_rules(rng, rule_facts), _word_list(rng, facts)]
    heads = ["## Rules", "## Words"] if markdown else ["Rules:", "Words:"]
    blocks = [f"{head}\n{part}" for head, part in zip(heads, parts, strict=True)]
    rng.shuffle(blocks)
    text = "\n\n".join([f"# {title}" if markdown else title, *blocks])
    kind_of = {language: "language"} | dict.fromkeys(chosen, "word")
    return Document("tongue", title, text, tuple(rule_facts + facts), kind_of, grammar)
