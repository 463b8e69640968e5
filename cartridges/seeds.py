"""Seed prompts: what speaker A is told when it writes a user's message about a chunk of the corpus.

A seed set holds prompts by kind, the system text that shows the chunk, and general prompts that have nothing to do with
the corpus. The five kinds of "default" are those of the paper (arXiv 2506.06266, section 4.1); "pocket" is the set that
the bundled model was taught. A user's file adds kinds or replaces them.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cartridges.config import YAML_ERRORS, yaml_problem
from cartridges.errors import ConfigError, InputError, unknown_name

GENERAL = "general"  # the kind of conversations that have nothing to do with the corpus
_TEXT_KEYS = {
    "system": ("{chunk}",),
    "follow_up": ("{answer}", "{prompt}"),
    "several": ("{prompt}", "{number}"),
    "bound": ("{prompt}", "{passage}"),
}
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class SeedSet:
    """Prompts by kind and the texts around them; fields in braces are filled in.

    `system` shows the chunk: {chunk}, {document} (its path), {description} (of the corpus). `several` asks for {number}
    messages at once, `follow_up` for a further one after an {answer}, `bound` for one about a {passage} of the chunk;
    {prompt} is the seed prompt. `general` are user messages to be answered without the corpus.
    """

    name: str
    kinds: Mapping[str, tuple[str, ...]]
    system: str = "{chunk}"
    follow_up: str = "{prompt}"
    several: str = "{prompt}\n\nDo that {number} times: {number} messages, numbered, one a line."
    bound: str = "{prompt}\n\nIt should be about this passage:\n\n{passage}"
    general: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The sha256 of all texts, in hex; kinds in their order."""
        texts = asdict(self) | {"kinds": list(self.kinds.items()), "name": ""}
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def only(self, kinds: Iterable[str]) -> "SeedSet":
        """The set with a part of its kinds, in the order of the set. Raises ConfigError for unknown ones."""
        wanted = list(kinds)
        for kind in wanted:
            if kind not in self.kinds:
                raise ConfigError(unknown_name("seed prompt kind", kind, self.kinds))
        if not wanted:
            raise ConfigError(f"given no seed prompt kind, expected some of: {', '.join(self.kinds)}")
        return replace(self, kinds={kind: prompts for kind, prompts in self.kinds.items() if kind in wanted})

    def extended(self, file: Path) -> "SeedSet":
        """The set with the kinds and texts of a YAML or JSON file over its own. Raises InputError.

        The file maps a kind to its list of prompts; the keys `system`, `follow_up`, `several`, `bound` (texts) and
        `general` (a list of user messages) replace those of the set.
        """
        kinds, changes = dict(self.kinds), {}
        for key, value in _read(file).items():
            if key in _TEXT_KEYS:
                changes[key] = _text(file, key, value)
            elif key == GENERAL:
                changes[key] = _prompts(file, key, value)
            else:
                kinds[key] = _prompts(file, key, value)
        return replace(self, name=f"{self.name}+{file.name}", kinds=kinds, **changes)


def file_kinds(file: Path) -> list[str]:
    """The kinds of prompts that a seed file has. Raises InputError."""
    return [key for key in _read(Path(file)) if key not in _TEXT_KEYS and key != GENERAL]


def fill(template: str, **fields: str) -> str:
    """`template` with its fields filled in at once, so that braces within a value stay as they are.

    >>> fill("{a} and {b}", a="{b}", b="2")
    '{b} and 2'
    """
    return _FIELD.sub(lambda found: fields.get(found[1], found[0]), template)


def load_seeds(name: str, file: Path | None = None) -> SeedSet:
    """The built-in seed set of this name, extended by the user's `file`. Raises ConfigError, InputError."""
    if name not in SEED_SETS:
        raise ConfigError(unknown_name("seed set", name, SEED_SETS) + "; your own prompts go into seed_file=FILE.yaml")
    seeds = SEED_SETS[name]()
    return seeds.extended(Path(file)) if file else seeds


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"given the seed file {str(file)!r}, expected a YAML or JSON file; none is there") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the seed file {str(file)!r} is not UTF-8 text; save it as UTF-8") from error
    try:
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except YAML_ERRORS as error:  # JSON's are among them
        reason = yaml_problem(error)
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise InputError(f"the seed file {str(file)!r} is not valid {kind}: {reason}; mend it") from error
    if not isinstance(values, dict) or not values:
        raise InputError(
            f"the seed file {str(file)!r} holds {'nothing' if not values else f'a {type(values).__name__}'}, "
            "expected 'kind: [prompt, ...]' lines"
        )
    return {str(key): value for key, value in values.items()}


def _prompts(file: Path, key: str, value: Any) -> tuple[str, ...]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise InputError(f"the seed file {str(file)!r} gives {value!r} as {key!r}, expected a list of prompts (texts)")
    return tuple(prompt.strip() for prompt in prompts)


def _text(file: Path, key: str, value: Any) -> str:
    missing = [field for field in _TEXT_KEYS[key] if field not in str(value)]
    if isinstance(value, str) and key == "follow_up" and len(missing) == 1:  # either of the two is enough
        missing = []
    if not isinstance(value, str) or missing:
        raise InputError(
            f"the seed file {str(file)!r} gives {value!r} as {key!r}, expected a text with {' and '.join(missing)}"
        )
    return value


_SYSTEM = """\
Below is an excerpt of {description}. It is taken from {document}.

<excerpt>
{chunk}
</excerpt>"""

_SEVERAL = """\
{prompt}

Write {number} such messages instead of one. They should differ from one another and be about different parts of the \
excerpt. Begin each with its number and a dot ("1. ..."), on a line of its own, and write nothing else."""

_BOUND = """\
{prompt}

The message should be about this passage of the excerpt:
<passage>
{passage}
</passage>"""

_FOLLOW_UP = """\
{answer}

---
That was the answer to your message. Write the user's next message: one that follows up on the answer, or goes on to \
something else in the excerpt. As before: {prompt}"""

_RULES = (
    " Write just the message, as the user would type it. The user does not see the excerpt, so name the people, things,"
    " documents or dates that it is about; never refer to 'the text' or 'the excerpt'."
)

_DEFAULT_KINDS: dict[str, tuple[str, ...]] = {
    "structuring": (
        "Write a message in which a user asks for some of the information above in a structured form, such as JSON, "
        "YAML, a table or a list of records. Say which information, and which fields are wanted.",
        "Write a request to pull certain details out of the material above into a form that a program could read. "
        "Choose the form and name the details.",
        "Write a message that asks for a table about one thing described above, naming the columns.",
        "Write a message in which a user wants a timeline, an outline or a nested list of what is told above about one "
        "subject.",
        "Write a request to turn one of the sections above into key-value pairs, naming the section's subject.",
    ),
    "summarization": (
        "Write a message in which a user asks for a summary of one particular part of the material above, naming it.",
        "Write a request to explain in a few sentences what is told above about one person, thing or topic.",
        "Write a message in which a user asks for the main points on one topic above, with the figures and names that "
        "matter.",
        "Write a request for a short overview of one section above, for a reader with little time; say who the reader "
        "is.",
        "Write a message that asks to summarise how two things described above relate to each other.",
    ),
    "question": (
        "Write a question that tests whether someone knows a fact stated above, such as a name, a number, a date or a "
        "condition.",
        "Write a question about a detail above that few readers would remember.",
        "Write a question whose answer needs two or more of the facts above put together.",
        "Write a question that asks why or how something described above is as it is.",
        "Write a question that a careful examiner would ask about the material above. It should have one clear answer.",
        "Write a question that compares two things described above.",
    ),
    "use_case": (
        "Think of someone who needs the information above for their work or life. Write the message in which they tell "
        "their situation and ask for help with it.",
        "Think of a decision for which the information above matters. Write the message of the person who must decide.",
        "Think of a practical task that can be done only by someone who knows the material above, and write the "
        "message that asks for it.",
        "Write the message of a user who has a problem that something above solves, in their own words.",
        "Write the message of a colleague who must apply a rule, a method or a figure from above to a case at hand; "
        "describe the case.",
    ),
    "creative": (
        "Write a message that asks for something creative, such as a poem, a dialogue, a slogan or a short story, that "
        "draws on facts above.",
        "Write a message in which a user wants to hear about something above in an unusual form; choose the form.",
        "Write a request for an analogy, a riddle or a quiz that is built on details above.",
        "Write a message that asks to imagine a conversation between people or things that occur above.",
        "Write an open-ended message that takes something above as the start for a thought of the user's own.",
    ),
}

_QUESTIONS = """\
What causes the seasons?
How does a refrigerator move heat out of its inside?
Why is the sky blue and a sunset red?
What is the difference between weather and climate?
How do vaccines train the immune system?
What does the liver do?
Why do leaves change colour in autumn?
How do bees find their way back to the hive?
What is a prime number, and why are there infinitely many?
Prove that the square root of two is irrational.
A train covers 180 km in 2 hours and 15 minutes. What is its average speed in km/h?
If I save 150 a month at 4% interest a year, about how much do I have after ten years?
What is 17 times 24? Show the steps.
Solve for x: 3x + 7 = 2(x - 4).
What is the probability of at least one six in four throws of a die?
Explain what a derivative is to someone who has never seen calculus.
Write a Python function that tells whether a text is a palindrome.
Write a SQL query for the three customers with the highest total of orders.
What is the difference between a process and a thread?
Explain recursion with an example that is not the factorial.
Why is quicksort fast on average and slow at worst?
How does a hash table handle collisions?
Write a shell command that finds the ten largest files below a folder.
What does 'git rebase' do, and when should I not use it?
How does public-key cryptography let strangers talk in secret?
Write a regular expression for dates such as 2024-03-09, and explain it.
Who was Ada Lovelace, and what is she known for?
What led to the fall of the Western Roman Empire?
Describe the causes of the French Revolution in five sentences.
What was the Silk Road?
When did people first reach the South Pole?
Which countries border Switzerland?
What is the capital of Mongolia, and what is its climate like?
Why is the Dead Sea so salty?
Summarise the plot of Romeo and Juliet in three sentences.
What is the theme of Frankenstein?
Write a haiku about the first snow.
Write a limerick about a cat that hates Mondays.
Write a short story that begins with "The lift stopped between two floors".
Give me five names for a bakery that is open only at night.
Translate into French: "Could you tell me where the station is?"
Translate into German: "We will meet again when the work is done."
What is the difference between "affect" and "effect"?
Rewrite more politely: "Send me the report now."
Correct the grammar: "Me and him was going to the shops yesterday."
Explain the saying "a stitch in time saves nine".
How do I cook rice so that it does not stick?
What can I cook from eggs, potatoes and an onion?
How long should I boil an egg for a soft yolk?
Give me a packing list for three days of hiking in rain.
How can I fall asleep faster?
Plan a beginner's week of exercise without any equipment.
What should I ask before I rent a flat?
Write an e-mail that declines an invitation without hurting anyone.
How do I prepare for a job interview as a nurse?
What are the rules of chess for castling?
How is a tie broken in a football World Cup knockout match?
Is a hot dog a sandwich? Argue both sides.
What are the arguments for and against a four-day week?
What is the trolley problem?
What did Kant mean by the categorical imperative?
How do central banks fight inflation?
What is the difference between a stock and a bond?
Hello! What can you help me with?
I feel stuck in my studies. Any advice?
Tell me something surprising about octopuses."""

_TOPICS = """\
photosynthesis, black holes, plate tectonics, the water cycle, antibiotics, DNA replication, nuclear fusion, lasers,
evolution, sound waves, the Doppler effect, batteries, tides, volcanoes, glaciers, coral reefs, the heart, dreams,
memory, supply and demand, compound interest, insurance, elections, the United Nations, the printing press, the
Renaissance, the Industrial Revolution, the Cold War, ancient Egypt, the Aztecs, jazz, impressionism, sonnets, opera,
photography, binary search, linked lists, operating systems, the internet, neural networks, cryptography, databases,
the metric system, time zones, bread baking, fermentation, gardening, cycling, swimming, chess openings, negotiation,
public speaking"""

_FORMS = (
    "Explain {topic} to a child of ten.",
    "What are three common misunderstandings about {topic}?",
    "Give me a short quiz of four questions about {topic}, with answers.",
    "Why does {topic} matter? Answer in one paragraph.",
    "List the most important terms to know about {topic}, each with one line of explanation.",
    "How would you teach {topic} in half an hour?",
)


@cache
def default_seeds() -> SeedSet:
    """The set for real models."""
    topics = [topic.strip() for topic in _TOPICS.replace("\n", " ").split(",")]
    made = [fill(form, topic=topic) for topic in topics for form in _FORMS]
    kinds = {kind: tuple(prompt + _RULES for prompt in prompts) for kind, prompts in _DEFAULT_KINDS.items()}
    return SeedSet("default", kinds, _SYSTEM, _FOLLOW_UP, _SEVERAL, _BOUND, (*_QUESTIONS.splitlines(), *made))


@cache
def pocket_seeds() -> SeedSet:
    """What the bundled model was taught: a bare text as the system message, and prompts it knows word for word."""
    from cartridges.pocket.knowledge import draw_general, draw_unknown
    from cartridges.pocket.lessons import relations_by_kind
    from cartridges.pocket.seeds import BOUND, SEED_PROMPTS
    from cartridges.rng import rng_of

    rng = rng_of("general prompts")
    relations = relations_by_kind(rng, "train")
    known = [draw_general(rng).text for _ in range(400)]
    unknown = [draw_unknown(rng, "train", relations).text for _ in range(200)]
    return SeedSet("pocket", dict(SEED_PROMPTS), bound=BOUND, general=tuple(dict.fromkeys(known + unknown)))


SEED_SETS: dict[str, Callable[[], SeedSet]] = {"default": default_seeds, "pocket": pocket_seeds}
