"""Ward books: patients, their illnesses, drugs and doctors (the LongHealth kind)."""

from random import Random

from cartridges.pocket.names import Names
from cartridges.pocket.render import Section, render
from cartridges.pocket.world import Document, Fact, Relation

BIRTH = Relation(
    "birth date", Names.date, ("{s} was born on {v}.",), ("When was {s} born?",), ("Who was born on {v}?",)
)
TOWN = Relation(
    "home town",
    Names.town,
    ("{s} comes from {v}.", "{s} lives in {v}."),
    ("Where does {s} come from?",),
    ("Who comes from {v}?",),
)
ROOM = Relation("room", Names.code, ("{s} stays in room {v}.",), ("Where does {s} stay?",), ("Who stays in room {v}?",))
ALLERGY = Relation("allergy", Names.word, ("{s} is allergic to {v}.",), ("What is {s} allergic to?",))
HEIGHT = Relation(
    "height",
    lambda names: names.number("cm", 120, 210),
    ("{s} is {v} tall.",),
    ("How tall is {s}?",),
    is_number=True,
)
PLATELETS = Relation(
    "platelet count", lambda names: names.number("G/l"), ("{s} has a platelet count of {v}.",), is_number=True
)
DOCTOR = Relation(
    "doctor",
    Names.person,
    ("{s} is treated by {v}.", "{v} looks after {s}."),
    ("Who treats {s}?",),
    ("Who is treated by {v}?",),
)
DRUG = Relation(
    "drug",
    Names.drug,
    ("{s} takes {v}.", "{s} was given {v}."),
    ("What does {s} take?",),
    ("Who takes {v}?",),
    plural="drugs",
)
ILLNESS = Relation(
    "diagnosis",
    Names.illness,
    ("{s} was diagnosed with {v}.", "{s} suffers from {v}."),
    (),
    ("Who was diagnosed with {v}?",),
    plural="diagnoses",
)
ADMISSION = Relation(
    "admission date",
    lambda names: names.date(2005),
    ("The admission for {s} was on {v}.",),
    ("When was the admission for {s}?",),
)
DOSE = Relation(
    "dose",
    lambda names: names.number("mg"),
    ("The daily dose of {s} is {v}.",),
    ("How much {s} is given?",),
    is_number=True,
)
OFFICE = Relation(
    "office", Names.code, ("{s} works in office {v}.",), ("Where does {s} work?",), ("Who works in office {v}?",)
)
EXTENSION = Relation("extension", lambda names: names.number(), ("{s} can be called at {v}.",), is_number=True)

PATIENT = (BIRTH, TOWN, ROOM, ALLERGY, HEIGHT, PLATELETS)


def _patient_section(rng: Random, names: Names, doctors: list[str], kind_of: dict[str, str]) -> Section:
    """A patient with what is told of their drugs and diagnoses; `kind_of` grows by all of them."""
    patient = names.person()
    kind_of[patient] = "patient"
    blocks = [[Fact(patient, relation, relation.draw(names))] for relation in rng.sample(PATIENT, rng.randint(2, 5))]
    if doctors and rng.random() < 0.8:
        blocks.append([Fact(patient, DOCTOR, rng.choice(doctors))])
    for relation, detail in ((DRUG, DOSE), (ILLNESS, ADMISSION)):
        values = [relation.draw(names) for _ in range(rng.choice((0, 1, 1, 2, 3, 4)))]
        if values:
            blocks.append([Fact(patient, relation, value) for value in values])
        for value in values:
            kind_of[value] = relation.noun
            if rng.random() < 0.5:
                blocks[-1].append(Fact(value, detail, detail.draw(names)))
    rng.shuffle(blocks)
    return Section(patient, tuple(fact for block in blocks for fact in block), short=patient.split()[-1])


def ward(rng: Random, names: Names, size: int) -> Document:
    """A ward book with `size` patients."""
    kind_of: dict[str, str] = {}
    doctors = [names.person() for _ in range(max(1, (size + 1) // 2))]
    sections = [_patient_section(rng, names, doctors, kind_of) for _ in range(size)]
    for doctor in doctors:
        relations = rng.sample((OFFICE, EXTENSION), rng.choice((1, 1, 2)))
        sections.append(Section(doctor, tuple(Fact(doctor, relation, relation.draw(names)) for relation in relations)))
        kind_of[doctor] = "doctor"
    title = f"{rng.choice(('Ward', 'Clinic', 'Station'))} {names.town()}"
    text = render(rng, title, sections)
    return Document("ward", title, text, tuple(fact for section in sections for fact in section.facts), kind_of)
