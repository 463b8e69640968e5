"""Yearly reports of firms: people, places and tables of figures. Firms of one context report the same years."""

from random import Random

from cartridges.pocket.names import Names
from cartridges.pocket.render import Section, render
from cartridges.pocket.world import Document, Fact, Relation

YEARS = range(2015, 2026)  # Names.year and the year before it
FIGURES = {"revenue": "million", "profit": "million", "staff": "people", "output": "tons"}

FOUNDER = Relation(
    "founder",
    Names.person,
    ("{s} was founded by {v}.", "{v} founded {s}."),
    ("Who founded {s}?",),
    ("Which firm was founded by {v}?",),
)
HEAD = Relation(
    "head",
    Names.person,
    ("{s} is led by {v}.", "{v} leads {s}."),
    ("Who leads {s}?",),
    ("Which firm is led by {v}?",),
)
SEAT = Relation(
    "seat", Names.town, ("{s} is based in {v}.",), ("Where is {s} based?",), ("Which firm is based in {v}?",)
)
PRODUCT = Relation(
    "main product", Names.product, ("{s} sells {v}.",), ("What does {s} sell?",), ("Which firm sells {v}?",)
)
AUDITOR = Relation("auditor", Names.person, ("{s} is audited by {v}.",), ("Who audits {s}?",))
PLANT = Relation(
    "plant",
    Names.town,
    ("{s} runs plants in {v}.", "{s} produces in {v}."),
    (),
    ("Which firm runs a plant in {v}?",),
    plural="plants",
)
HOME = Relation(
    "home town", Names.town, ("{s} comes from {v}.",), ("Where does {s} come from?",), ("Who comes from {v}?",)
)

PORTRAIT = (FOUNDER, HEAD, SEAT, PRODUCT, AUDITOR)
PEOPLE = (FOUNDER, HEAD, AUDITOR)


def _figure(year: int, what: str) -> Relation:
    unit = FIGURES[what]
    return Relation(
        f"{year} {what}",
        lambda names: names.number(unit),
        (f"In {year} the {what} of {{s}} was {{v}}.",),
        (f"What was the {what} of {{s}} in {year}?",),
        is_number=True,
    )


FIGURE_RELATIONS = {(year, what): _figure(year, what) for year in YEARS for what in FIGURES}


def _firm_sections(rng: Random, names: Names, figures: list[Relation], kind_of: dict[str, str]) -> list[Section]:
    """A firm, and those of its people of whom something is told; `kind_of` grows by them."""
    name = names.firm()
    kind_of[name] = "firm"
    facts = [Fact(name, relation, relation.draw(names)) for relation in rng.sample(PORTRAIT, rng.randint(2, 4))]
    rng.shuffle(facts)
    people = [fact.value for fact in facts if fact.relation in PEOPLE]
    plants = [Fact(name, PLANT, PLANT.draw(names)) for _ in range(rng.choice((0, 1, 2, 3, 4)))]
    facts[rng.randint(0, len(facts)) : 0] = plants
    numbers = [Fact(name, relation, relation.draw(names)) for relation in figures]
    sections = [Section(name, tuple(facts + numbers))]
    for person in people:
        if rng.random() < 0.6:
            kind_of[person] = "person"
            sections.append(Section(person, (Fact(person, HOME, HOME.draw(names)),)))
    return sections


def firm(rng: Random, names: Names, size: int) -> Document:
    """A yearly report with `size` firms that report the same figures."""
    kind_of: dict[str, str] = {}
    year = names.year
    keys = [(y, what) for what in FIGURES for y in (year - 1, year)]
    figures = [FIGURE_RELATIONS[key] for key in rng.sample(keys, rng.randint(2, 4))]
    sections = [section for _ in range(size) for section in _firm_sections(rng, names, figures, kind_of)]
    title = rng.choice(("Report {year}", "Yearly report {year}", "Firms in {year}")).format(year=year)
    text = render(rng, title, sections, layout=rng.choices((None, "table"), (70, 30))[0])
    return Document("firm", title, text, tuple(fact for section in sections for fact in section.facts), kind_of)
