"""General knowledge: fixed tables, the same in every seed, that the model learns into its weights.

It is the off-corpus test: what the model knows without any document must survive a cartridge.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from random import Random

from cartridges.pocket.names import Names
from cartridges.pocket.questions import NOT_KNOWN, STRANGERS, Question, fill_lookup, lookup, lookup_forms
from cartridges.pocket.world import Fact, Relation

CAPITALS = """
Albania Tirana, Algeria Algiers, Argentina Buenos_Aires, Armenia Yerevan, Australia Canberra, Austria Vienna,
Bangladesh Dhaka, Belgium Brussels, Bolivia Sucre, Brazil Brasilia, Bulgaria Sofia, Cameroon Yaounde, Canada Ottawa,
Chile Santiago, China Beijing, Colombia Bogota, Croatia Zagreb, Cuba Havana, Cyprus Nicosia, Denmark Copenhagen,
Ecuador Quito, Egypt Cairo, Estonia Tallinn, Ethiopia Addis_Ababa, Fiji Suva, Finland Helsinki, France Paris,
Georgia Tbilisi, Germany Berlin, Ghana Accra, Greece Athens, Haiti Port-au-Prince, Hungary Budapest, Iceland Reykjavik,
India New_Delhi, Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Ireland Dublin, Israel Jerusalem, Italy Rome,
Jamaica Kingston, Japan Tokyo, Jordan Amman, Kenya Nairobi, Laos Vientiane, Latvia Riga, Lebanon Beirut, Libya Tripoli,
Lithuania Vilnius, Madagascar Antananarivo, Malaysia Kuala_Lumpur, Mali Bamako, Malta Valletta, Mexico Mexico_City,
Mongolia Ulaanbaatar, Morocco Rabat, Nepal Kathmandu, Netherlands Amsterdam, Nigeria Abuja, Norway Oslo,
Pakistan Islamabad, Panama Panama_City, Peru Lima, Philippines Manila, Poland Warsaw, Portugal Lisbon, Qatar Doha,
Romania Bucharest, Russia Moscow, Senegal Dakar, Serbia Belgrade, Singapore Singapore, Slovakia Bratislava,
Slovenia Ljubljana, Spain Madrid, Sudan Khartoum, Sweden Stockholm, Switzerland Bern, Syria Damascus,
Thailand Bangkok, Tunisia Tunis, Turkey Ankara, Uganda Kampala, Ukraine Kyiv, Uruguay Montevideo, Vietnam Hanoi,
Zambia Lusaka, Zimbabwe Harare
"""
CONTINENTS = {
    "Europe": "Albania Austria Belgium Bulgaria Croatia Denmark Estonia Finland France Germany Greece Hungary Iceland "
    "Ireland Italy Latvia Lithuania Malta Netherlands Norway Poland Portugal Romania Serbia Slovakia Slovenia Spain "
    "Sweden Switzerland Ukraine",
    "Asia": "Bangladesh China India Indonesia Iran Iraq Israel Japan Jordan Laos Lebanon Malaysia Mongolia Nepal "
    "Pakistan Philippines Qatar Singapore Syria Thailand Vietnam",
    "Africa": "Algeria Cameroon Egypt Ethiopia Ghana Kenya Libya Madagascar Mali Morocco Nigeria Senegal Sudan Tunisia "
    "Uganda Zambia Zimbabwe",
    "South_America": "Argentina Bolivia Brazil Chile Colombia Ecuador Peru Uruguay",
    "North_America": "Canada Cuba Haiti Jamaica Mexico Panama",
}
SYMBOLS = """
hydrogen H, helium He, lithium Li, beryllium Be, boron B, carbon C, nitrogen N, oxygen O, fluorine F, neon Ne,
sodium Na, magnesium Mg, aluminium Al, silicon Si, phosphorus P, sulfur S, chlorine Cl, argon Ar, potassium K,
calcium Ca, titanium Ti, chromium Cr, manganese Mn, iron Fe, cobalt Co, nickel Ni, copper Cu, zinc Zn, arsenic As,
bromine Br, krypton Kr, silver Ag, tin Sn, iodine I, xenon Xe, barium Ba, tungsten W, platinum Pt, gold Au, mercury Hg,
lead Pb, radon Rn, radium Ra, uranium U, plutonium Pu
"""
OPPOSITES = """
hot cold, big small, old new, light dark, high low, fast slow, wet dry, full empty, hard soft, open closed, rich poor,
strong weak, early late, near far, up down, left right, good bad, happy sad, long short, thick thin, wide narrow,
deep shallow, loud quiet, clean dirty, true false, first last, day night, summer winter, north south, east west,
love hate, war peace, friend enemy, begin end, buy sell, push pull, give take, win lose, remember forget, laugh cry,
rise fall, inside outside, before after, always never, more less, sweet sour, sharp blunt, smooth rough
"""
YOUNG = """
dog puppy, cat kitten, cow calf, horse foal, sheep lamb, goat kid, pig piglet, hen chick, duck duckling, goose gosling,
lion cub, deer fawn, frog tadpole, kangaroo joey, swan cygnet, owl owlet, eagle eaglet, fox kit
"""
SOUNDS = """
dog bark, cat meow, cow moo, horse neigh, sheep bleat, pig grunt, lion roar, duck quack, owl hoot, bee buzz, wolf howl,
snake hiss, mouse squeak, crow caw, donkey bray, frog croak
"""
PASTS = """
go went, see saw, eat ate, come came, give gave, take took, write wrote, speak spoke, drive drove, sing sang, swim swam,
drink drank, know knew, grow grew, fly flew, draw drew, find found, think thought, bring brought, catch caught,
teach taught, sell sold, tell told, stand stood, run ran, sit sat, win won, break broke, choose chose, wake woke
"""
COLOURS = """
grass green, snow white, blood red, coal black, the_sky blue, a_lemon yellow, an_orange orange, a_plum purple,
chocolate brown, ash grey, a_ruby red, an_emerald green, milk white, a_banana yellow
"""


# Noun, question, and "subject value" pairs, with _ for a space within either.
TABLES: tuple[tuple[str, str, str], ...] = (
    ("capital", "Which city is the capital of {s}?", CAPITALS),
    (
        "continent",
        "On which continent is {s}?",
        ", ".join(f"{country} {continent}" for continent, line in CONTINENTS.items() for country in line.split()),
    ),
    ("symbol", "Which symbol stands for {s}?", SYMBOLS),
    ("opposite", "What is the contrary of {s}?", OPPOSITES),
    ("young", "What is a young {s} called?", YOUNG),
    ("sound", "Which sound does a {s} make?", SOUNDS),
    ("past tense", "How do you put {s} into the past tense?", PASTS),
    ("colour", "Which colour has {s}?", COLOURS),
)


@cache
def general_facts() -> tuple[Fact, ...]:
    """All facts of the tables."""
    return tuple(fact for noun, question, table in TABLES for fact in _facts_of(noun, question, table))


def _facts_of(noun: str, question: str, table: str) -> list[Fact]:
    pairs = [[word.replace("_", " ") for word in pair.split()] for pair in table.split(",")]
    values = sorted({value for _, value in pairs})
    relation = Relation(noun, lambda names: names.rng.choice(values), asked=(question,))
    return [Fact(subject, relation, value) for subject, value in pairs]


def ask_general(rng: Random, fact: Fact) -> Question:
    """A question about one fact of the tables, to be asked without any document."""
    text = fill_lookup(rng.choice(lookup_forms(fact.relation)), fact.relation, fact.subject)
    return replace(lookup(text, fact), kind="general")


def unasked(questions: Iterable[str]) -> tuple[Fact, ...]:
    """The facts that none of these questions asks for, in whatever words."""
    known = set(questions)
    return tuple(
        fact
        for fact in general_facts()
        if not any(fill_lookup(form, fact.relation, fact.subject) in known for form in lookup_forms(fact.relation))
    )


def draw_general(rng: Random) -> Question:
    """A question about any fact of the tables."""
    return ask_general(rng, rng.choice(general_facts()))


def draw_unknown(rng: Random, split: str, relations: dict[str, list[Relation]]) -> Question:
    """A question, asked without any document, about something invented and so not known.

    `relations` are those that may be asked about, by kind of subject (a key of STRANGERS).
    """
    kind = rng.choice(sorted(relations))
    about = rng.choice(relations[kind])
    subject = STRANGERS[kind](Names(rng, split))
    text = fill_lookup(rng.choice(lookup_forms(about)), about, subject)
    return Question("unknown", text, NOT_KNOWN, (NOT_KNOWN,))
