"""The world's nouns: relations, facts, documents, and contexts made of one or more documents.

A document is text together with the facts that it states. Everything is a function of (family, split, seed), so a
document can be named by these three and never needs to be stored.
"""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from cartridges.passages import passages
from cartridges.pocket.names import Names

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Relation:
    """A kind of fact about a subject, and the ways to state it and to ask for it.

    `draw` invents a value. In the templates `{s}` stands for the subject and `{v}` for the value: `said` are sentences
    for documents, `asked` questions that the value answers, `asked_back` questions that the subject answers. The
    canonical phrase, which works for every relation, is "the <noun> of <subject>".
    """

    noun: str
    draw: Callable[[Names], str]
    said: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    asked_back: tuple[str, ...] = ()
    plural: str = ""  # set where a subject can have several values
    joint: str = "of"  # "the word for dog"
    back: str = "the {kind} with the {noun} {v}"  # the subject, described by the value
    is_number: bool = False  # values compare by their leading number

    def phrase(self, subject: str, plural: bool = False) -> str:
        """The canonical phrase without its article: "room of Kadi Bofu"."""
        return f"{self.plural if plural else self.noun} {self.joint} {subject}"


@dataclass(frozen=True)
class Fact:
    """One thing that a document tells: the `relation` of `subject` is `value`."""

    subject: str
    relation: Relation
    value: str


@dataclass(frozen=True)
class Document:
    """A text and all that it tells. `kind_of` says what each subject is ("patient"), `grammar` is set for tongues."""

    family: str
    title: str
    text: str
    facts: tuple[Fact, ...]
    kind_of: dict[str, str] = field(hash=False)
    grammar: "Grammar | None" = None


@dataclass(frozen=True)
class Grammar:
    """The rules of an invented language: word order of subject, verb and object, side of the adjective, two endings."""

    language: str
    order: str  # a permutation of "SVO"
    adjective_first: bool
    plural: str
    past: str


class Context:
    """One or more documents read together, with look-ups over their facts."""

    def __init__(self, documents: list[Document], names: Names):
        self.documents = documents
        self.names = names

    def more_names(self, rng: random.Random) -> Names:
        """Names that occur nowhere in the context; the same for the same `rng`."""
        return Names(rng, self.names.split, self.names.used)

    @cached_property
    def text(self) -> str:
        return "\n\n".join(document.text for document in self.documents)

    @cached_property
    def passages(self) -> list[str]:
        """The documents' passages, to one of which a message can be bound."""
        return [passage for document in self.documents for passage in passages(document.text)]

    @cached_property
    def grammar(self) -> Grammar | None:
        """The rules of the one tongue in the context; None without one, or with several, whose words would mix."""
        grammars = [document.grammar for document in self.documents if document.grammar]
        return grammars[0] if len(grammars) == 1 else None

    @cached_property
    def facts(self) -> list[Fact]:
        return [fact for document in self.documents for fact in document.facts]

    @cached_property
    def kind_of(self) -> dict[str, str]:
        return {subject: kind for document in self.documents for subject, kind in document.kind_of.items()}

    @cached_property
    def by_key(self) -> dict[tuple[str, str], list[Fact]]:
        """Facts by (subject, noun); several where the relation has several values."""
        return facts_by(lambda fact: (fact.subject, fact.relation.noun), self.facts)

    @cached_property
    def by_subject(self) -> dict[str, list[Fact]]:
        return facts_by(lambda fact: fact.subject, self.facts)

    @cached_property
    def relations(self) -> dict[str, Relation]:
        """The relations that occur, by noun."""
        return {fact.relation.noun: fact.relation for fact in self.facts}

    @cached_property
    def short_names(self) -> dict[str, str]:
        """Persons by their last name, which nobody else in the context has."""
        people = ("patient", "doctor", "person")
        return {subject.split()[-1]: subject for subject, kind in self.kind_of.items() if kind in people}

    @cached_property
    def singles(self) -> list[Fact]:
        """Facts whose subject has just this one value for the relation."""
        return [facts[0] for facts in self.by_key.values() if len(facts) == 1]

    @cached_property
    def singles_by_subject(self) -> dict[str, list[Fact]]:
        return facts_by(lambda fact: fact.subject, self.singles)

    @cached_property
    def reversible(self) -> list[Fact]:
        """Facts whose value belongs to one subject only, and is no number."""
        holders = Counter((fact.relation.noun, fact.value) for fact in self.facts)
        return [
            fact for fact in self.facts if not fact.relation.is_number and holders[fact.relation.noun, fact.value] == 1
        ]


def facts_by(key: Callable[[Fact], Key], facts: Iterable[Fact]) -> dict[Key, list[Fact]]:
    """The facts under their keys; keys and facts keep their order."""
    found: dict[Key, list[Fact]] = {}
    for fact in facts:
        found.setdefault(key(fact), []).append(fact)
    return found
