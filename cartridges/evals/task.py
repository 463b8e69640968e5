"""A task: documents, questions with known answers and how they are asked. It never touches a model.

`TASKS` names the loaders, as "module:function"; a loader takes keyword options and gives a Task. `task_named` is the
way in, and `own_tasks` takes loaders that are not part of this package.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, create_model

from cartridges.corpus import Corpus
from cartridges.errors import InputError, unknown_name
from cartridges.questions import RULES, Item

Loader = Callable[..., "Task"]

TASKS: dict[str, str] = {
    "pocket": "cartridges.evals.tasks.pocket:pocket_task",
    "pocket_general": "cartridges.evals.tasks.pocket:general_task",
    "longhealth": "cartridges.evals.tasks.longhealth:longhealth_task",
    "mtob": "cartridges.evals.tasks.mtob:mtob_task",
    "qasper": "cartridges.evals.tasks.qasper:qasper_task",
    "ruler": "cartridges.evals.tasks.ruler:ruler_task",
}
own_tasks: dict[str, Loader] = {}


@dataclass(frozen=True)
class Task:
    """Questions about a corpus. `metric` says in words what the mean of the scores is; `published` what others got."""

    name: str
    corpus: Corpus
    items: tuple[Item, ...]
    metric: str = "accuracy"
    max_new_tokens: int = 160
    published: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not be measured. Raises InputError."""
        if not self.items:
            raise InputError(f"the task {self.name} has no items, expected at least one; a metric on none is no number")
        documents = {document.path for document in self.corpus} | {""}
        for number, item in enumerate(self.items):
            where = f"the task {self.name}, item {number}"
            if not item.question.strip():
                raise InputError(f"{where} has no question, expected a text")
            if not item.golds:
                raise InputError(f"{where} has no gold answer, expected one: nothing scores {item.question[:60]!r}")
            if item.match not in RULES:
                raise InputError(f"{where}: {unknown_name('match', item.match, RULES)}")
            if item.document not in documents:
                raise InputError(f"{where}: {unknown_name('document', item.document, documents - {''})}")

    @cached_property
    def digest(self) -> str:
        """The sha256 of documents and items, in hex."""
        told = json.dumps([self.corpus.digest, [asdict(item) for item in self.items], self.max_new_tokens])
        return hashlib.sha256(told.encode()).hexdigest()

    def only(self, *kinds: str) -> "Task":
        """The same with items of these kinds alone. Raises InputError where there are none."""
        items = tuple(item for item in self.items if item.kind in kinds)
        return Task(self.name, self.corpus, items, self.metric, self.max_new_tokens, self.published)


def task_named(name: str, **options: Any) -> Task:
    """The task of that name, whose loader is given options of the types that it names.

    Raises InputError for an unknown name or option and for an option of another type, and what the loader raises.
    """
    known = {**TASKS, **own_tasks}
    if name not in known:
        raise InputError(unknown_name("task", name, known))
    loader = loaded(known[name])
    accepted = _parameters(loader)
    for option in options:
        if option not in accepted:
            raise InputError(f"the task {name}: {unknown_name('option', option, accepted)}")
    for option, parameter in accepted.items():
        if parameter.default is parameter.empty and option not in options:
            raise InputError(f"the task {name} needs the option {option}; on the command line: task.{option}=...")
    return loader(**{option: _typed(name, accepted[option], value) for option, value in options.items()})


def _parameters(loader: Loader) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(loader, eval_str=True).parameters
    except NameError:  # annotations that type checkers alone can resolve
        return inspect.signature(loader).parameters


def _typed(name: str, parameter: inspect.Parameter, value: Any) -> Any:
    """The value of an option as its annotation has it: a list becomes a tuple, "10" a number. Raises InputError."""
    hint = parameter.annotation
    if hint is parameter.empty or isinstance(hint, str):
        return value
    rules = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
    try:
        told: Any = create_model("Option", __config__=rules, value=(hint, ...)).model_validate({"value": value})
        if isinstance(value, bool) and not isinstance(told.value, bool):
            raise ValueError("true is no number")
    except ValueError as error:
        raise InputError(
            f"the task {name}: given {parameter.name}={value!r:.60}, expected {inspect.formatannotation(hint)}; "
            f"on the command line: task.{parameter.name}=..."
        ) from error
    return told.value


def loaded(place: Any) -> Any:
    """What "module:name" stands for; anything else as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
