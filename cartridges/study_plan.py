"""What is settled about every conversation of a self-study before anyone speaks: its chunk, seed prompt and sampling.

Conversation i is a function of the run's seed and of i, so conversations can be made in any order, and again. Those
about one chunk are a group of consecutive numbers, so that the chunk is read once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from cartridges import filters
from cartridges.chunking import Chunk, ChunkConfig, Chunker
from cartridges.clients.base import Client
from cartridges.config import Config
from cartridges.corpus import Corpus
from cartridges.errors import InputError
from cartridges.filters import FilterConfig
from cartridges.passages import passages
from cartridges.rng import rng_of, spread
from cartridges.seeds import GENERAL, SeedSet, fill
from cartridges.template import ChatFormat, Message

if TYPE_CHECKING:
    import datetime

WINDOW_SLACK = 16  # tokens by which a chunk may grow when it is tokenized within a prompt


class SpeakerConfig(Config):
    """How one of the two speakers writes."""

    temperature: float = Field(default=0.0, ge=0, description="0 for greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw among the fewest tokens with this mass together")
    max_new_tokens: int = Field(default=1024, gt=0, description="of one message or answer")


class SynthesizeConfig(Config):
    """The conversations to be made. The defaults are the paper's."""

    seed: int = Field(default=0, description="of the whole run")
    num_conversations: int = Field(default=8192, gt=0, description="may grow when a run is taken up again")
    conversations_per_chunk: int = Field(default=16, gt=0, description="about one chunk, which is then read once")
    chunk: ChunkConfig = ChunkConfig(kind="tokens", min_len=512, max_len=4096)
    seed_set: str = Field(default="default", description="default or pocket")
    seed_file: Path | None = Field(default=None, description="YAML or JSON: kinds of seed prompts to add or to replace")
    seed_kinds: list[str] | None = Field(default=None, description="use these kinds only, and those of the seed_file")
    passage_len: int = Field(
        default=0,
        ge=0,
        description="least characters of the passage that a message is bound to; 0: to none, as in the paper",
    )
    rounds: int = Field(default=1, gt=0, description="messages with their answers in a conversation, at most")
    question: SpeakerConfig = SpeakerConfig(temperature=0.6, max_new_tokens=512)
    answer: SpeakerConfig = SpeakerConfig(temperature=0.0, max_new_tokens=1024)
    questions_per_call: int = Field(default=1, gt=0, description="messages that speaker A writes at once")
    thinking_share: float = Field(
        default=0.0, ge=0, le=1, description="of the conversations; for models that can think"
    )
    top_k: int = Field(default=20, gt=0, description="entries of the teacher's distributions that are kept")
    question_logprobs: bool = Field(default=False, description="learn the messages too, and not just the answers")
    description: str = Field(
        default="", description="what the corpus is, in a few words; by default its files are named"
    )
    general_share: float = Field(
        default=0.05, ge=0, le=1, description="of the conversations, about anything but the corpus"
    )
    batch_size: int = Field(default=64, gt=0, description="conversations made at once and written as one shard")
    filters: FilterConfig = FilterConfig()

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "pocket": {
            "num_conversations": 7680,
            "conversations_per_chunk": 32,
            "batch_size": 512,
            "general_share": 0.2,
            "chunk": {"kind": "structure", "min_len": 100, "max_len": 600},
            "passage_len": 1,
            "seed_set": "pocket",
            "seed_kinds": ["question"],
            "question": {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 96},
            "answer": {"temperature": 0.0, "max_new_tokens": 160},
            "filters": {"untold": True},
        },
    }

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        for whole, part in (
            ("batch_size", "conversations_per_chunk"),
            ("conversations_per_chunk", "questions_per_call"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"given {whole}={getattr(self, whole)} and {part}={getattr(self, part)}, "
                    f"expected {whole} to be a multiple of {part}"
                )
        if self.passage_len and self.questions_per_call > 1:
            raise ValueError(
                f"given passage_len={self.passage_len} and questions_per_call={self.questions_per_call}, expected one "
                "of them: messages that are bound to passages are asked for one by one; set passage_len=0"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """What is settled about conversation `index` before anyone speaks. `prompt` is the message where it is general.

    Speaker A writes the messages of one call at once: this one is number `slot` of `num_in_call`.
    """

    index: int
    kind: str
    prompt: str
    thinking: bool
    call: int
    slot: int = 0
    num_in_call: int = 1

    @property
    def is_general(self) -> bool:
        return self.kind == GENERAL


@dataclass(frozen=True)
class View:
    """What both speakers see of the corpus: a chunk, and the system text that shows it ("" for nothing).

    Messages are bound to the `passages` in turn; to none where there are none.
    """

    chunk: Chunk
    system: str = ""
    num_spans: int = 0  # that read like instructions
    passages: tuple[str, ...] = ()


NO_VIEW = View(Chunk("", 0, 0, ""))


class Study:
    """The plan of all conversations, checked against what the model can hold."""

    def __init__(
        self,
        corpus: Corpus,
        client: Client,
        config: SynthesizeConfig,
        seeds: SeedSet,
        now: "datetime.datetime | None" = None,
    ) -> None:
        """`now` is the time for templates with a date header. Raises InputError where nothing could be made."""
        self.corpus, self.client, self.config, self.seeds = corpus, client, config, seeds
        tokenizer = client.chat_format.tokenizer
        self.format = ChatFormat(tokenizer, now=now)
        self.thinking_format = ChatFormat(tokenizer, thinking=True, now=now) if config.thinking_share else self.format
        added = tokenizer.added_tokens_decoder.items()
        self.special_ids = {index for index, token in added if token.special} | set(tokenizer.all_special_ids)
        self.chunker = Chunker(corpus, config.chunk, tokenizer)
        self.check_vocabulary()
        self.check_window()

    def check_vocabulary(self) -> None:
        identity = self.client.identity
        num_entries = identity.vocab_size if identity else len(self.format.tokenizer)
        if self.config.top_k > num_entries:
            raise InputError(
                f"given top_k={self.config.top_k}, expected at most the {num_entries} entries of the vocabulary of "
                f"{self.client.model_id}"
            )

    @cached_property
    def num_beside_chunk(self) -> int:
        """The most tokens that a prompt and its reply have besides the chunk."""
        config = self.config
        prompts = [prompt for prompts in self.seeds.kinds.values() for prompt in prompts]
        several = config.questions_per_call > 1
        asked = [fill(self.seeds.several, prompt=p, number="99") if several else p for p in prompts]
        num_passage = 0
        if config.passage_len:  # a passage is a part of the chunk, so it has no more tokens, and as a rule much fewer
            found = (passage for document in self.corpus for passage in passages(document.text, config.passage_len))
            longest = self.format.tokenizer(max(found, key=len), add_special_tokens=False).input_ids
            num_passage = min(len(longest), self.max_chunk_len)
            asked = [fill(self.seeds.bound, prompt=text, passage="") for text in asked]
        longest = max(len(self.format.prompt(self.messages(self.system_text(None), text))) for text in asked)
        longest += num_passage
        num_asked = config.question.max_new_tokens * config.questions_per_call
        num_round = config.question.max_new_tokens + config.answer.max_new_tokens
        return longest + max(num_asked, num_round) + (config.rounds - 1) * (num_round + longest) + WINDOW_SLACK

    @property
    def max_chunk_len(self) -> int:
        """The most tokens that a chunk has, or characters where those are counted."""
        if self.config.chunk.kind == "characters":
            return self.config.chunk.max_len
        return min(self.config.chunk.max_len, max(self.chunker.num_tokens_of.values()))

    def check_window(self) -> None:
        """See that the longest chunk fits. Chunks counted in characters are looked at one by one."""
        if self.config.chunk.kind != "characters":
            self.check_fits(self.max_chunk_len)

    def check_fits(self, num_chunk_tokens: int) -> None:
        window, beside = self.client.window, self.num_beside_chunk
        if num_chunk_tokens + beside > window:
            room = window - beside
            advice = f"give chunk.max_len={room} or less, or shorter" if room > 0 else "give shorter"
            raise InputError(
                f"a chunk of {num_chunk_tokens} tokens does not fit the window of {self.client.model_id}: with the "
                f"prompts, messages and answers ({beside} tokens) it is {num_chunk_tokens + beside}, expected at most "
                f"{window}; {advice} question.max_new_tokens and answer.max_new_tokens"
            )

    def draw(self, *key: object) -> Random:
        """A random generator of its own for each key."""
        return rng_of(self.config.seed, *key)

    def messages(self, system: str, user: str) -> list[Message]:
        return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": user}]

    def system_text(self, chunk: Chunk | None) -> str:
        described = self.config.description or describe(self.corpus)
        shown, document = (chunk.text, chunk.document) if chunk else ("", "")
        return fill(self.seeds.system, description=described, document=document, chunk=shown)

    def view(self, group: int) -> View:
        """The chunk of the conversations of a group, as it is shown. Groups cover the corpus as evenly as they can."""
        chunk = self.chunker.sample(self.draw("chunk", group), spread(group, self.draw("chunks").random()))
        if self.config.chunk.kind == "characters":
            self.check_fits(len(self.format.tokenizer(chunk.text, add_special_tokens=False).input_ids))
        spans = filters.instruction_spans(chunk.text)
        text = filters.masked(chunk.text, spans) if self.config.filters.instructions == "mask" else chunk.text
        shown = Chunk(chunk.document, chunk.start, chunk.stop, text)
        found = self.whole_passages(shown) if self.config.passage_len else []
        self.draw("passages", group).shuffle(found)
        return View(shown, self.system_text(shown), len(spans), tuple(found))

    def whole_passages(self, chunk: Chunk) -> list[str]:
        """The passages of a chunk, without those at its ends that are parts of a line, as long as others are left."""
        found, whole = passages(chunk.text, self.config.passage_len), self.corpus.document(chunk.document).text
        begins = chunk.start == 0 or whole[chunk.start - 1] == "\n" or chunk.text[:1] == "\n"
        ends = chunk.stop >= len(whole) or whole[chunk.stop] == "\n" or chunk.text[-1:] == "\n"
        return found[0 if begins else 1 : None if ends else -1] or found

    def prompt(self, plan: Plan, view: View) -> str:
        """What speaker A is told: the plan's seed prompt, bound to the next passage of the view."""
        if not view.passages:
            return plan.prompt
        number = plan.index % self.config.conversations_per_chunk
        return fill(self.seeds.bound, prompt=plan.prompt, passage=view.passages[number % len(view.passages)])

    def is_general(self, index: int) -> bool:
        return self.draw("general", index).random() < self.config.general_share and bool(self.seeds.general)

    def plan(self, index: int) -> Plan:
        """What is settled about conversation `index`: a function of the run's seed and the index."""
        num = self.config.questions_per_call
        call = index - index % num
        thinking = self.draw("thinking", index).random() < self.config.thinking_share
        if self.is_general(index):
            return Plan(index, GENERAL, self.draw(GENERAL, "prompt", index).choice(self.seeds.general), thinking, call)
        others = [other for other in range(call, call + num) if not self.is_general(other)]
        rng = self.draw("prompt", call)
        kind = rng.choice(list(self.seeds.kinds))
        prompt = rng.choice(self.seeds.kinds[kind])
        return Plan(index, kind, prompt, thinking, call, others.index(index), len(others))


def describe(corpus: Corpus, num_named: int = 3) -> str:
    """The corpus in a few words, for speakers who see a chunk of it alone."""
    paths = [document.path for document in corpus.documents]
    if len(paths) == 1:
        return f"the document {paths[0]}"
    named = ", ".join(paths[:num_named])
    return f"a collection of {len(paths)} documents ({named}{', ...' if len(paths) > num_named else ''})"
