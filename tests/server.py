"""A client that stands for a server, for tests of whoever talks to one; run as a program, it makes a dataset slowly."""

import asyncio
import json
import random
import sys
import time
from pathlib import Path

import numpy as np

from cartridges.clients.base import ChatRequest, ChatResult
from cartridges.conversation import TopK
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.pocket.families import make_context
from cartridges.synthesis import SynthesizeConfig, synthesize
from cartridges.template import ChatFormat

PROMPT_LOGPROB = -2.5
FAMILIES = ("ward", "firm", "code")


def make_corpus() -> Corpus:
    return Corpus.from_texts({f"{family}.md": make_context(family, "train", 1).text for family in FAMILIES})


class Server:
    """Answers from a hash of the request alone, in pieces and in any order; remembers what it was asked."""

    window = 2048
    identity = None
    model_id = "a-server"
    told_k = None  # how many logprobs it gives at most

    def __init__(self, tokenizer, order_seed: int = 0, pause_s: float = 0.0, bad_share: float = 0.2):
        self.chat_format = ChatFormat(tokenizer)
        self.order = random.Random(order_seed)
        self.pause_s, self.bad_share = pause_s, bad_share
        self.requests: list[ChatRequest] = []

    async def chat(self, requests, on_done=None):
        self.requests += requests
        replies: dict[int, ChatResult] = {}
        for place in self.order.sample(range(len(requests)), len(requests)):
            await asyncio.sleep(0)
            replies[place] = self.reply(requests[place])
            if on_done:
                on_done(1)
        time.sleep(self.pause_s)
        return [replies[place] for place in range(len(requests))]

    def reply(self, request: ChatRequest) -> ChatResult:
        ids = list(request.prompt_ids)
        rng = random.Random(str((ids, request.seed, request.temperature)))
        tokenizer, (stop, *_) = self.chat_format.tokenizer, sorted(self.chat_format.stop_ids)
        text, finish_reason = self.text(request, rng), "stop"
        new = [*tokenizer(text, add_special_tokens=False).input_ids, self.stop_id]
        if rng.random() < self.bad_share:
            bad = rng.choice(["cut", "empty", "special"])
            if bad == "cut":
                new, finish_reason = new[:-1], "length"
            else:
                new = [stop] if bad == "empty" else [*new[:2], tokenizer.pad_token_id, *new[2:]]
        return ChatResult(
            text=self.chat_format.decode(new),
            token_ids=new,
            finish_reason=finish_reason,
            logprobs=self.rows(rng, len(new), request.top_k_logprobs),
            prompt_logprobs=self.prompt_rows(request),
            num_prompt_tokens=len(ids),
        )

    @property
    def stop_id(self) -> int:
        return self.chat_format.tokenizer.eos_token_id

    def text(self, request: ChatRequest, rng: random.Random) -> str:
        words = request.messages[0]["content"].split()
        if request.top_k_logprobs:
            return f"That is {rng.choice(words)} {rng.choice(words)}."
        asked = [f"What of {rng.choice(words[:40])} {rng.randrange(9)}?" for _ in range(self.num_asked(request))]
        return asked[0] if len(asked) == 1 else "\n".join(f"{n}. {text}" for n, text in enumerate(asked, 1))

    def num_asked(self, request: ChatRequest) -> int:
        words = request.messages[-1]["content"].partition("Do that ")[2].split()
        return int(words[0]) if words else 1

    def rows(self, rng: random.Random, num_rows: int, k: int) -> TopK | None:
        if not k:
            return None
        k = min(k, self.told_k or k)
        ids = np.array([rng.sample(range(200), k) for _ in range(num_rows)], dtype=np.int32).reshape(num_rows, k)
        masses = np.array([[rng.uniform(0.1, 1) / k for _ in range(k)] for _ in range(num_rows)]).reshape(num_rows, k)
        return TopK(ids, np.log(-np.sort(-masses)).astype(np.float32))

    def prompt_rows(self, request: ChatRequest) -> TopK | None:
        """Rows of a fixed logprob whose first entry is the id itself, so that a row shows which token it belongs to."""
        if request.prompt_logprobs_from is None:
            return None
        ids = np.array(request.prompt_ids[request.prompt_logprobs_from :], dtype=np.int32)
        entries = ids[:, None] + 1000 * np.arange(request.top_k_logprobs, dtype=np.int32)
        return TopK(entries, np.full(entries.shape, PROMPT_LOGPROB, dtype=np.float32))


def config_of(**changes) -> SynthesizeConfig:
    overrides = {
        "num_conversations": 44,
        "conversations_per_chunk": 4,
        "batch_size": 16,
        "chunk.kind": "tokens",
        "chunk.min_len": 40,
        "chunk.max_len": 120,
        "top_k": 4,
        "passage_len": 0,
        "seed_kinds": None,
        "general_share": 0.1,
        "question.max_new_tokens": 40,
        "answer.max_new_tokens": 40,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return SynthesizeConfig.resolve("pocket", None, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def conversations_of(dataset: Dataset) -> list[dict]:
    """Everything that is stored, to be compared."""
    found = []
    for conversation in dataset.conversations:
        values = vars(conversation) | {"ids": conversation.teacher.ids, "logprobs": conversation.teacher.logprobs}
        values.pop("teacher")
        found.append({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()})
    return found


def shard_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*.parquet"))}


def by_prompt(server: Server, asked_for_logprobs: bool) -> dict[tuple, ChatRequest]:
    return {tuple(r.prompt_ids): r for r in server.requests if bool(r.top_k_logprobs) == asked_for_logprobs}


def child(out: str, tokenizer_path: str) -> None:
    """A run in a process of its own, with a server that takes its time."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    print("started", flush=True)
    synthesize(make_corpus(), Server(tokenizer, pause_s=0.1), config_of(), Path(out))


if __name__ == "__main__":
    child(*sys.argv[1:])
