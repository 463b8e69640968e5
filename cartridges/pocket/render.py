"""From facts to text: prose, lists and tables, as Markdown or plain text, in an order of their own each time.

Families say what is true; this file says it. Every value and every subject stands in the text letter by letter.
"""

from dataclasses import dataclass
from itertools import groupby
from random import Random

from cartridges.pocket.world import Fact

LAYOUTS = ("prose", "list", "table", "shuffled")


@dataclass(frozen=True)
class Section:
    """A subject with its facts. Facts of another subject that belongs to it (a drug's dose) name that one in full."""

    subject: str
    facts: tuple[Fact, ...]
    short: str = ""  # what the subject may be called once introduced


def joined(values: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


def grouped(facts: tuple[Fact, ...]) -> list[list[Fact]]:
    """Facts that differ in the value alone, together."""
    return [list(group) for _, group in groupby(facts, key=lambda fact: (fact.subject, fact.relation.noun))]


def capitalized(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


def sentence(rng: Random, facts: list[Fact], mention: str) -> str:
    """One sentence, in a form of the relation or the canonical one, for facts that differ in the value alone.

    `mention` is what their subject is called.
    """
    relation, several = facts[0].relation, len(facts) > 1
    canonical = f"The {relation.phrase('{s}', plural=several)} {'are' if several else 'is'} {{v}}."
    form = rng.choice((*relation.said, canonical))
    return form.format(s=mention, v=joined([fact.value for fact in facts]))


def _prose(rng: Random, section: Section) -> list[str]:
    """Sentences; the subject may go by its short name once introduced."""
    sentences = []
    for position, facts in enumerate(grouped(section.facts)):
        shortened = section.short and position and facts[0].subject == section.subject and rng.random() < 0.3
        sentences.append(sentence(rng, facts, section.short if shortened else facts[0].subject))
    return sentences


def _rows(section: Section) -> list[tuple[str, str]]:
    """What stands under the heading, as label and values."""
    return [(_label(facts, section), ", ".join(fact.value for fact in facts)) for facts in grouped(section.facts)]


def _label(facts: list[Fact], section: Section) -> str:
    fact, several = facts[0], len(facts) > 1
    if fact.subject == section.subject:
        return capitalized(fact.relation.plural if several else fact.relation.noun)
    return capitalized(fact.relation.phrase(fact.subject, plural=several))


def _list(rng: Random, section: Section, markdown: bool) -> str:
    mark = rng.choice(("- ", "* ")) if markdown else rng.choice(("", "- "))
    return "\n".join(f"{mark}{label}: {values}" for label, values in _rows(section))


def _table(section: Section) -> str:
    return "\n".join(
        ["| What | Value |", "|---|---|", *(f"| {label} | {values} |" for label, values in _rows(section))]
    )


def _heading(section: Section, markdown: bool) -> str:
    return f"## {section.subject}" if markdown else f"{section.subject}:"


def render(rng: Random, title: str, sections: list[Section], layout: str | None = None) -> str:
    """The document's text, with `title` on top; `layout` is one of LAYOUTS or drawn."""
    markdown = rng.random() < 0.6
    layout = layout or rng.choices(LAYOUTS, (40, 35, 10, 15))[0]
    top = f"# {title}" if markdown else title
    if layout == "shuffled":
        sentences = [sentence(rng, facts, facts[0].subject) for section in sections for facts in grouped(section.facts)]
        rng.shuffle(sentences)
        return f"{top}\n\n{' '.join(sentences)}"
    parts = [top]
    for section in sections:
        if layout == "prose":
            body = " ".join(_prose(rng, section))
            parts.append(f"{_heading(section, markdown)}\n{body}" if rng.random() < 0.3 else body)
        else:
            body = _table(section) if layout == "table" else _list(rng, section, markdown)
            parts.append(f"{_heading(section, markdown)}\n{body}")
    return "\n\n".join(parts)
