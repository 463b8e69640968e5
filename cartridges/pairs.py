"""Each conversation twice: as the teacher read it, behind the chunk, and as the model reads it alone.

The answer's tokens are the same on both sides, as the dataset has them; only what stands before differs. The chunk is
cut out of the documents anew, and shown as it was while the conversation was written. Conversations about one chunk
follow each other in a dataset, so it is read once for all of them, for every layer that is fitted.
"""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from cartridges import filters
from cartridges.conversation import Conversation
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.find import find_corpus
from cartridges.model import Model
from cartridges.seeds import fill, load_seeds
from cartridges.self_study import common_len
from cartridges.study_plan import SynthesizeConfig, describe
from cartridges.template import ChatFormat
from cartridges.writer import check_writer

STUDY = "config.yaml"
RELEASED_EVERY = 1024  # conversations, so that no more of them are held
Tokens = Literal["answer", "conversation"]


@dataclass
class Source:
    """A dataset with the documents that it is about; `study` says how chunks were shown, `weight` counts its tokens."""

    dataset: Dataset
    corpus: Corpus | None
    study: SynthesizeConfig | None = None
    weight: float = 1.0
    label: str = "the dataset"

    @classmethod
    def load(cls, path: Path, docs: Sequence[Path] = (), weight: float = 1.0) -> Self:
        """The dataset in a folder, with the documents named, or those of the build around it.

        Raises InputError where there is none, where no documents are known, or where they have changed since.
        """
        path = Path(path)
        dataset = Dataset.load(path)
        about = dataset.manifest.get("corpus_digest", "")
        corpus = find_corpus(path, docs, about)
        if corpus is not None and about and corpus.digest != about:
            raise InputError(f"the documents given for {path} are not those that it was written about; give those")
        study = SynthesizeConfig.load(path / STUDY) if (path / STUDY).is_file() else None
        return cls(dataset, corpus, study, weight, str(path))


@dataclass(frozen=True)
class Pair:
    """One conversation on both sides: `prefix_ids` and `teacher_ids` behind the chunk, `student_ids` alone.

    Row m of both kinds of positions is the same token, counted without the prefix.
    """

    prefix_ids: tuple[int, ...]
    teacher_ids: list[int]
    student_ids: list[int]
    teacher_positions: list[int]
    student_positions: list[int]
    weight: float
    index: int


@dataclass
class Batch:
    """Pairs behind one chunk."""

    prefix_ids: tuple[int, ...]
    pairs: list[Pair] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Of the teacher's side, without the chunk."""
        return sum(len(pair.teacher_ids) for pair in self.pairs)


class Views:
    """How the conversations of one source were written: its chat format, and the system texts that showed chunks."""

    def __init__(self, source: Source, model: Model, tokens: Tokens = "answer", general_weight: float = 1.0) -> None:
        """Raises InputError for a dataset of another tokenizer."""
        self.source, self.model, self.tokens, self.general_weight = source, model, tokens, general_weight
        manifest = source.dataset.manifest
        check_writer(source.dataset, model, "transmute for that model", source.label)
        now = datetime.datetime.fromisoformat(manifest["now"]) if "now" in manifest else model.chat.now
        tokenizer = model.tokenizer
        self.formats = [ChatFormat(tokenizer, thinking=thinking, now=now) for thinking in (False, True)]
        self.study = source.study or SynthesizeConfig.resolve(model.profile)
        seeds = load_seeds(self.study.seed_set, self.study.seed_file)
        self.system_form = seeds.system
        self.seen: tuple[tuple[str, int, int], str] = (("", 0, 0), "")
        self.shared: tuple[str, bool, list[int]] = ("", False, [])

    @cached_property
    def described(self) -> str:
        return self.study.description or (describe(self.source.corpus) if self.source.corpus else "")

    def system(self, talk: Conversation) -> str:
        """The system text that showed the chunk; "" where there was none."""
        if not talk.document:
            return ""
        place = (talk.document, talk.start, talk.stop)
        if self.seen[0] != place:
            if self.source.corpus is None:
                raise InputError(f"nothing tells which documents {self.source.label} is about; name them with --docs")
            text = self.source.corpus.document(talk.document).text[talk.start : talk.stop]
            if self.study.filters.instructions == "mask":
                text = filters.masked(text, filters.instruction_spans(text))
            shown = fill(self.system_form, description=self.described, document=talk.document, chunk=text)
            self.seen = (place, shown)
        return self.seen[1]

    def shared_ids(self, chat: ChatFormat, system: str) -> list[int]:
        """What all prompts with this system text begin with."""
        if not system:
            return []
        if self.shared[:2] != (system, chat.thinking):
            self.shared = (system, chat.thinking, chat.system_prefix(system))
        return self.shared[2]

    def pair(self, talk: Conversation) -> Pair | None:
        """Both sides of a conversation; None where its ids are not those of the chat format, or nothing is common.

        Raises InputError where the teacher's side does not fit the window.
        """
        ids, system = talk.token_ids.tolist(), self.system(talk)
        user = talk.messages[:1]
        for chat in self.formats:
            student_prompt = chat.prompt(user)
            if ids[: len(student_prompt)] == student_prompt:
                break
        else:
            return None
        teacher_prompt = chat.prompt([{"role": "system", "content": system}, *user]) if system else student_prompt
        whole = [*teacher_prompt, *ids[len(student_prompt) :]]
        if len(whole) > self.model.window:
            raise InputError(
                f"conversation {talk.index} of {self.source.label} has {len(whole)} tokens with its chunk, expected at "
                f"most {self.model.window}, the window of {self.model.identity.model_id}; synthesize shorter chunks"
            )
        shared = self.shared_ids(chat, system)
        shared = shared if whole[: len(shared)] == shared else []
        longer = len(teacher_prompt) - len(student_prompt)
        common = common_len(student_prompt[::-1], teacher_prompt[::-1])
        first = max(len(student_prompt) - common, len(shared) - longer)
        if self.tokens == "answer":
            places = [place for place in (talk.target_positions - 1).tolist() if place >= first]
        else:
            places = list(range(first, len(ids)))
        offset = longer - len(shared)
        weight = self.source.weight * (1.0 if talk.document else self.general_weight)
        if not places or not weight:
            return None
        return Pair(tuple(shared), whole[len(shared) :], ids, [p + offset for p in places], places, weight, talk.index)


def batches(views: Iterable[Views], row_len: int, limit: int | None = None) -> Iterator[Batch]:
    """All pairs in the order of the datasets, up to `limit` of each; neighbours that share their chunk go together.

    General ones, which have no chunk, stand between the others and are gathered beside them. A batch has at most
    `row_len` tokens beside the chunk, or one conversation. Nothing is kept of what was given.
    """
    for view in views:
        open_batches: dict[bool, Batch] = {}  # by whether there is a chunk
        conversations = view.source.dataset.conversations
        for place in range(len(conversations) if limit is None else min(limit, len(conversations))):
            pair = view.pair(conversations[place])
            if place % RELEASED_EVERY == RELEASED_EVERY - 1:
                view.source.dataset.release()
            if pair is None:
                continue
            has_chunk = bool(pair.prefix_ids)
            batch = open_batches.setdefault(has_chunk, Batch(pair.prefix_ids))
            is_full = batch.pairs and batch.num_tokens + len(pair.teacher_ids) > row_len
            if is_full or batch.prefix_ids != pair.prefix_ids:
                yield batch
                batch = open_batches[has_chunk] = Batch(pair.prefix_ids)
            batch.pairs.append(pair)
        yield from open_batches.values()
        view.source.dataset.release()
