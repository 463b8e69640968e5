"""Long filler with a few needles in it."""

from random import Random

from cartridges.pocket.names import Names
from cartridges.pocket.render import capitalized, sentence
from cartridges.pocket.world import Document, Fact, Relation

PASS = Relation(
    "pass code",
    Names.code,
    ("Nobody enters {s} without the pass code {v}.",),
    (),
    ("Which place has the pass code {v}?",),
)
KEEPER = Relation(
    "keeper", Names.person, ("The gate of {s} is kept by {v}.",), ("Who keeps {s}?",), ("What is kept by {v}?",)
)
TREASURE = Relation("treasure", Names.word, ("In {s} lies a {v}.",), ("What lies in {s}?",), ("Where does a {v} lie?",))
HEIGHT = Relation(
    "height",
    lambda names: names.number("feet"),
    ("The tower of {s} is {v} high.",),
    ("How high is the tower of {s}?",),
    is_number=True,
)
LUCKY = Relation("lucky number", lambda names: names.number(), ("{s} always bets on {v}.",), is_number=True)

WHO = (
    "the wind,the old road,a grey cat,the river,our neighbour,a tired horse,the evening light,the baker,a cold rain,"
    "the market"
).split(",")
DID = "moved over,came back to,forgot,looked at,waited near,sang about,left,crossed,remembered,slept beside".split(",")
WHAT = (
    "the hills,the empty square,the stone wall,a quiet garden,the harbour,the long bridge,the fields,an open door,"
    "the mill,the sea"
).split(",")
WHEN = (
    "in spring,at night,before dawn,for a while,after the feast,once again,without a word,all day,that year,in silence"
).split(",")


def _filler(rng: Random) -> str:
    return capitalized(f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHEN)}.")


def haystack(rng: Random, names: Names, size: int) -> Document:
    """Filler around about two needles for each unit of `size`."""
    kind_of: dict[str, str] = {}
    facts: list[Fact] = []
    for _ in range(max(1, size)):
        place = names.town()
        kind_of[place] = "place"
        for relation in rng.sample((PASS, KEEPER, TREASURE, HEIGHT), rng.randint(1, 3)):
            facts.append(Fact(place, relation, relation.draw(names)))
            if relation is KEEPER and rng.random() < 0.6:
                keeper = facts[-1].value
                kind_of[keeper] = "person"
                facts.append(Fact(keeper, LUCKY, LUCKY.draw(names)))
    rng.shuffle(facts)
    num_fillers = len(facts) * rng.randint(1, 4)
    sentences = [_filler(rng) for _ in range(num_fillers)]
    places = sorted(rng.sample(range(num_fillers + 1), min(len(facts), num_fillers + 1)), reverse=True)
    for place, fact in zip(places, facts, strict=False):
        sentences.insert(place, sentence(rng, [fact], fact.subject))
    paragraphs = []
    while sentences:
        length = rng.randint(4, 9)
        paragraphs.append(" ".join(sentences[:length]))
        sentences = sentences[length:]
    title = rng.choice(("Notes from the road", "A long walk", "Evenings", "The diary"))
    return Document("haystack", title, f"{title}\n\n" + "\n\n".join(paragraphs), tuple(facts), kind_of)
