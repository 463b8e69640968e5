"""What all claims share: the model, the sizes of a preset, and a folder in which nothing is made twice.

Conversations and trainings are runs of the package's own verbs in folders named after what they are made with, so a lab
that was stopped goes on, and two claims that need the same cartridge train it once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from cartridges.cartridge import Cartridge
from cartridges.config import Config
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.engine.engine import Engine
from cartridges.evals.harness import measure
from cartridges.evals.method import Answerer, Workshop, built
from cartridges.evals.record import Record
from cartridges.evals.task import Task
from cartridges.evals.tasks.pocket import pocket_task
from cartridges.log import read_metrics
from cartridges.provenance import commit
from cartridges.recipe import TrainConfig
from cartridges.run_folder import check_stamp
from cartridges.study_plan import SynthesizeConfig
from cartridges.synthesis import study_seconds, synthesize
from cartridges.training import METRICS, train

OBJECTIVES = {"cartridge": "distill", "next_token": "next_token", "raw_text": "text"}
MIXED = ("lookup", "reverse", "multiple_choice", "json", "count")


class ClaimsConfig(Config):
    """How much of everything is done."""

    seed: int = Field(default=0, ge=0, description="of corpora and questions")
    num_tokens: int = Field(default=650, gt=0, description="of the corpus, about")
    num_items: int = Field(default=80, gt=0, description="questions of a table, about")
    num_conversations: int = Field(default=1024, gt=0)
    seed_kinds: list[str] | None = Field(
        default=["question", "use_case"],
        description="of the study where look-ups are asked; chosen on validation documents",
    )
    steps: int = Field(default=300, gt=0, description="of each training")
    thorough: int = Field(default=2, ge=1, description="times the study and the steps of a second row at 20x; 1: none")
    factors: list[int] = Field(default=[5, 20, 50, 100], description="how many times fewer bytes than the full context")
    window: int = Field(default=1024, gt=0, description="that the model is held to for the claim about long corpora")
    windows: list[int] = Field(default=[1, 8], description="how many windows of corpus")
    most_study: int = Field(
        default=3, ge=1, description="times the study of one window that a long corpus gets, at most"
    )
    num_composed: list[int] = Field(default=[2, 4], description="how many cartridges are composed")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "quick": {},
        "full": {
            "num_tokens": 2600,
            "num_items": 300,
            "num_conversations": 8192,
            "steps": 4000,
            "thorough": 1,
            "factors": [2, 5, 10, 20, 50, 100],
            "window": 2048,
            "windows": [1, 2, 4, 8],
            "most_study": 8,
            "num_composed": [2, 4, 8],
        },
        "smoke": {
            "num_tokens": 250,
            "num_items": 10,
            "num_conversations": 64,
            "steps": 3,
            "thorough": 2,
            "factors": [5, 20],
            "window": 768,
            "windows": [1, 2],
            "num_composed": [2],
        },
    }


def key_of(values: Mapping[str, Any]) -> str:
    """A short digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


@dataclass
class Lab:
    """One engine and one folder of runs, all at one commit."""

    engine: Engine
    config: ClaimsConfig
    folder: Path

    def __post_init__(self) -> None:
        """Claim the folder for this commit. Raises OtherRun where it was begun at another one."""
        check_stamp(self.folder / "commit.json", {"commit": commit()})

    @property
    def model(self) -> Any:
        return self.engine.model

    def task(self, kinds: Sequence[str] = ("lookup",), **options: Any) -> Task:
        """A task of the world at the preset's size; `options` are those of `pocket_task`."""
        told = {"seed": self.config.seed, "num_tokens": self.config.num_tokens, **options}
        return pocket_task(kinds=tuple(kinds), num_each=max(1, self.config.num_items // len(kinds)), **told)

    def num_tokens(self, corpus: Corpus) -> int:
        return len(self.model.ids(corpus.text))

    def slots_for(self, corpus: Corpus, factor: float) -> int:
        """Slots that take so many times fewer bytes than the whole corpus; at least 2."""
        return max(2, round(self.num_tokens(corpus) / factor))

    def study(self, corpus: Corpus, **values: Any) -> Dataset:
        """Conversations about the corpus; `values` are fields of the configuration over preset "pocket"."""
        told = {"num_conversations": self.config.num_conversations, "seed_kinds": self.config.seed_kinds, **values}
        config = SynthesizeConfig.resolve("pocket", values=told)
        name = f"study-{key_of({'corpus': corpus.digest, **told})}"
        return synthesize(corpus, self.engine, config, self.folder / name)

    def training(self, num_slots: int, **values: Any) -> TrainConfig:
        """A training of the preset's length."""
        told = {"max_steps": self.config.steps, "slots": num_slots, **values}
        told["eval_every"] = max(1, told["max_steps"] // 12)
        return TrainConfig.resolve("pocket", values=told)

    def train(self, dataset: Dataset | None, corpus: Corpus, num_slots: int, **values: Any) -> Cartridge:
        """A cartridge, trained in a folder of its own; `values` are fields of the training's configuration."""
        config, folder = self._training_in(dataset, corpus, num_slots, values)
        return train(dataset, self.model, corpus, config, folder, name="claims")

    def heldout_curve(
        self, dataset: Dataset | None, corpus: Corpus, num_slots: int, **values: Any
    ) -> list[tuple[int, float]]:
        """Steps, and the held-out loss after so many, of what `train` with the same arguments has trained."""
        _, folder = self._training_in(dataset, corpus, num_slots, values)
        rows = read_metrics(folder / METRICS)
        return sorted({row["step"]: row["heldout_loss"] for row in rows if "heldout_loss" in row}.items())

    def _training_in(
        self, dataset: Dataset | None, corpus: Corpus, num_slots: int, values: Mapping[str, Any]
    ) -> tuple[TrainConfig, Path]:
        """A training's configuration, and its folder."""
        config = self.training(num_slots, **values)
        told = {"data": dataset.digest if dataset else "", "corpus": corpus.digest, **config.model_dump(mode="json")}
        return config, self.folder / f"train-{key_of(told)}"

    def answers(self, cartridge: Cartridge, dataset: Dataset | None = None) -> Answerer:
        """What answers with the cartridge, and what it cost."""
        seconds = float(cartridge.manifest.metrics.get("seconds", 0.0))
        return Answerer(cartridge=cartridge, build_s=seconds + (study_seconds(dataset) if dataset else 0.0))

    def workshop(self, task: Task, num_slots: int, engine: Engine | None = None, **study: Any) -> Workshop:
        """For methods of the registry, with the lab's training and the shared conversations."""
        chat = self.model.chat
        longest = max(len(chat.prompt([{"role": "user", "content": item.question}])) for item in task.items)
        folder = self.folder / f"methods-{key_of({'corpus': task.corpus.digest, **study})}"
        return Workshop(
            engine or self.engine,
            task.corpus,
            folder,
            num_slots,
            lambda: self.study(task.corpus, **study),
            self.training(max(2, num_slots)),  # methods without slots have a budget of 0
            task.max_new_tokens,
            longest,
        )

    def measure(self, task: Task, answerer: Answerer, name: str, label: str, engine: Engine | None = None) -> Record:
        """The record of what answers, under a name that is its own within the task."""
        folder = self.folder / "answers" / f"{task.name}-{task.digest[:8]}"
        return measure(task, name, answerer, engine or self.engine, folder, label)

    def run(self, task: Task, method: str, label: str, num_slots: int, **study: Any) -> Record:
        """Build a method of the registry at a budget, and measure it."""
        if method in OBJECTIVES:  # the same trainings as those of other claims
            data = None if method == "raw_text" else self.study(task.corpus, **study)
            made = self.train(data, task.corpus, num_slots, objective=OBJECTIVES[method])
            answerer = self.answers(made, data)
        else:
            answerer = built(method, self.workshop(task, num_slots, **study))
        record = self.measure(task, answerer, f"{method}-{num_slots}", label)
        record.num_slots = num_slots
        return record
