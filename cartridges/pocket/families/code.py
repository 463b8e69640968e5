"""Modules of small functions that call each other, as Python source."""

from random import Random

from cartridges.pocket.names import Names
from cartridges.pocket.world import Document, Fact, Relation

RESULT = Relation(
    "result", lambda names: names.number(), ("{s} returns {v}.",), ("What does {s} return?",), is_number=True
)
CALLEE = Relation("callee", Names.function, (), ("What does {s} call?",), ("Which function calls {v}?",))
AUTHOR = Relation("author", Names.person, (), ("Who wrote {s}?",), ("Which function was written by {v}?",))
ERROR = Relation("error", Names.error, (), ("What does {s} raise?",), ("Which function raises {v}?",))
LIMIT = Relation("limit", lambda names: names.number(), is_number=True)
PARAMETER = Relation("parameter", Names.word, asked_back=("Which function takes {v}?",), plural="parameters")


def _source(rng: Random, facts: list[Fact]) -> str:
    """One function definition that states `facts`, the first of which is its result or its callee."""
    name = facts[0].subject
    value = {fact.relation.noun: fact.value for fact in facts}
    parameters = [fact.value for fact in facts if fact.relation is PARAMETER]
    lines = [f"def {name}({', '.join(parameters)}):"]
    notes = []
    if "author" in value:
        notes.append(rng.choice(("Written by {v}.", "Author: {v}.")).format(v=value["author"]))
    if "limit" in value:
        notes.append(rng.choice(("The limit is {v}.", "Limit: {v}.")).format(v=value["limit"]))
    if notes and rng.random() < 0.6:
        lines.append(f'    """{" ".join(notes)}"""')
    else:
        lines[:0] = [f"# {note}" for note in notes]
    if "error" in value:
        lines.append(f"    if not ready: raise {value['error']}")
    lines.append(f"    return {value['callee'] + '()' if 'callee' in value else value['result']}")
    return "\n".join(lines)


def code(rng: Random, names: Names, size: int) -> Document:
    """A module with about three functions for each unit of `size`; a caller always calls one that returns a number."""
    num_leaves = max(1, size + rng.randint(0, size))
    leaves = [names.function() for _ in range(num_leaves)]
    callers = rng.sample(leaves, rng.randint(1, min(len(leaves), size + 1)))
    functions: list[list[Fact]] = [[Fact(leaf, RESULT, RESULT.draw(names))] for leaf in leaves]
    functions += [[Fact(names.function(), CALLEE, leaf)] for leaf in callers]
    for facts in functions:
        name = facts[0].subject
        for relation in (AUTHOR, ERROR, LIMIT):
            if rng.random() < 0.4:
                facts.append(Fact(name, relation, relation.draw(names)))
        facts += [Fact(name, PARAMETER, PARAMETER.draw(names)) for _ in range(rng.choice((0, 0, 1, 2, 3, 4)))]
    rng.shuffle(functions)
    module = names.word()
    title = f"{module}.py"
    text = "\n\n".join([f"# {title}", *(_source(rng, facts) for facts in functions)])
    everything = tuple(fact for facts in functions for fact in facts)
    return Document("code", title, text, everything, {facts[0].subject: "function" for facts in functions})
