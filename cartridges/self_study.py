"""Self-study (arXiv 2506.06266, section 4): a model asks itself about chunks of a corpus, and answers seeing them.

Speaker A sees a chunk and a seed prompt and writes a user's message; speaker B sees the chunk and answers it. The
student will see the messages alone: what is kept are its token ids and B's distributions at them.

Shapes: M targets, K entries of a distribution.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cartridges import filters
from cartridges.clients.base import ChatRequest, ChatResult, Client
from cartridges.conversation import Conversation, TopK
from cartridges.errors import InputError
from cartridges.seeds import fill
from cartridges.study_plan import NO_VIEW, Plan, Study, View
from cartridges.template import ChatFormat, Message

_PROBES = ("A", "7")  # two messages without a common beginning or end


@dataclass
class Draft:
    """A conversation in the making: the ids that teacher and student see so far, and the teacher's rows."""

    plan: Plan
    view: View
    format: ChatFormat
    prompts: list[str]  # speaker A's, one a round
    messages: list[Message] = field(default_factory=list)
    student_ids: list[int] = field(default_factory=list)
    teacher_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[TopK] = field(default_factory=list)
    message: str = ""  # the user's next one, not answered yet
    message_ids: tuple[list[int], list[int]] = ([], [])  # with which it goes on for student and teacher
    question: range = range(0)  # positions of the message among the student's ids
    reply_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    dropped: bool = False
    is_open: bool = True  # another round may follow

    @property
    def system(self) -> list[Message]:
        return [{"role": "system", "content": self.view.system}] if self.view.system else []

    def hear(self, message: str) -> None:
        """Take the user's next message; it counts once it is answered."""
        user = {"role": "user", "content": message}
        self.message = message
        if self.messages:
            turn = self.format.turn(self.messages[:-1], self.reply_ids, message)
            self.message_ids = (turn, turn)
        else:
            self.message_ids = (self.format.prompt([user]), self.format.prompt([*self.system, user]))

    def find_question(self) -> int | None:
        """Find the message among the ids; gives its place among the teacher's, None where the two differ there."""
        if self.messages:
            a, b = (self.format.turn(self.messages[:-1], self.reply_ids, probe) for probe in _PROBES)
        else:
            a, b = (self.format.prompt([{"role": "user", "content": probe}]) for probe in _PROBES)
        head, tail = common_len(a, b), common_len(a[::-1], b[::-1])
        student, teacher = self.message_ids
        from_end = len(student) - head
        if from_end <= tail or student[head:] != teacher[len(teacher) - from_end :]:
            return None
        start = len(self.student_ids) + head
        self.question = range(start, start + from_end - tail)
        return len(self.teacher_ids) + len(teacher) - from_end

    def take(self, result: ChatResult, logprobs: TopK) -> None:
        """Take speaker B's reply, with the teacher's distributions."""
        student, teacher = self.message_ids
        self.student_ids += student
        if result.prompt_logprobs is not None and self.question:
            self.rows.append(result.prompt_logprobs.take(slice(0, len(self.question))))
            self.positions += self.question
        self.positions += range(len(self.student_ids), len(self.student_ids) + len(result.token_ids))
        self.rows.append(logprobs)
        self.student_ids += result.token_ids
        self.teacher_ids += [*teacher, *result.token_ids]
        self.reply_ids = result.token_ids
        self.messages += [{"role": "user", "content": self.message}, {"role": "assistant", "content": result.text}]
        self.question = range(0)

    def conversation(self) -> Conversation:
        """What is stored."""
        chunk = self.view.chunk
        return Conversation(
            index=self.plan.index,
            messages=self.messages,
            token_ids=np.asarray(self.student_ids, dtype=np.int32),
            target_positions=np.asarray(self.positions, dtype=np.int32),
            teacher=TopK.concat(self.rows),
            document=chunk.document,
            start=chunk.start,
            stop=chunk.stop,
            seed_kind=self.plan.kind,
            num_prompt_tokens=self.num_prompt_tokens,
            num_new_tokens=self.num_new_tokens,
        )


@dataclass
class Batch:
    """The conversations kept of a range of numbers, and what became of the others."""

    numbers: range
    conversations: list[Conversation] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # what did not drop a conversation
    tokens: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """A line for the metrics."""
        return {
            "first": self.numbers.start,
            "stop": self.numbers.stop,
            "num_kept": len(self.conversations),
            "dropped": {reason: num for reason, num in sorted(self.dropped.items()) if num},
            "noted": {what: num for what, num in sorted(self.noted.items()) if num},
            "tokens": dict(self.tokens),
            "seconds": {part: round(value, 3) for part, value in self.seconds.items()},
        }

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds of a part."""
        started = time.monotonic()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started


Tell = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def common_len(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids the two begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


async def converse(study: Study, client: Client, numbers: range, tell: Tell) -> Batch:
    """The conversations of these numbers: whole calls of speaker A, so `numbers` must begin at a multiple of a call."""
    return await _Talk(study, client, numbers, tell).run()


class _Talk:
    """All conversations of one batch, a round at a time: first all messages, then all answers."""

    def __init__(self, study: Study, client: Client, numbers: range, tell: Tell) -> None:
        self.study, self.client, self.config, self.tell = study, client, study.config, tell
        self.batch = Batch(numbers)
        self.views: dict[int, View] = {}
        self.prefix_lens: dict[tuple[str, bool], int] = {}
        self.drafts = [self.begin(study.plan(index)) for index in numbers]

    async def run(self) -> Batch:
        for round_number in range(self.config.rounds):
            await self.ask(round_number)
            await self.answer(round_number)
        self.batch.conversations = [
            draft.conversation() for draft in self.drafts if draft.messages and not draft.dropped
        ]
        return self.batch

    def begin(self, plan: Plan) -> Draft:
        """A draft with its view; one that is general has its message already."""
        chat_format = self.study.thinking_format if plan.thinking else self.study.format
        if plan.is_general:
            draft = Draft(plan, NO_VIEW, chat_format, [])
            draft.hear(plan.prompt)
            return draft
        group = plan.index // self.config.conversations_per_chunk
        if group not in self.views:
            self.views[group] = self.study.view(group)
            self.batch.noted["instruction_spans"] += self.views[group].num_spans
        view = self.views[group]
        draft = Draft(plan, view, chat_format, [self.study.prompt(plan, view)])
        if draft.view.num_spans and self.config.filters.instructions == "drop":
            self.end(draft, filters.INSTRUCTIONS)
        return draft

    def judge(self, draft: Draft, verdict: str | None) -> bool:
        """Whether the draft goes on; counts the verdict, if there is one."""
        if verdict and self.config.filters.drops(verdict):
            self.end(draft, verdict)
        elif verdict:
            self.batch.noted[verdict] += 1
        return draft.is_open

    def end(self, draft: Draft, verdict: str) -> None:
        """Drop the draft; one with rounds behind it keeps those, and ends there."""
        draft.is_open, draft.dropped = False, not draft.messages
        (self.batch.noted if draft.messages else self.batch.dropped)[
            f"ended_{verdict}" if draft.messages else verdict
        ] += 1

    def prefix_len(self, draft: Draft, chat_format: ChatFormat) -> int:
        """How many ids all prompts about the draft's chunk begin with."""
        system = draft.view.system
        key = (system, chat_format.thinking)
        if key not in self.prefix_lens:
            self.prefix_lens[key] = len(chat_format.system_prefix(system)) if system else 0
        return self.prefix_lens[key]

    async def ask(self, round_number: int) -> None:
        """Have speaker A write the next message of each open conversation that is not general."""
        asked = [draft for draft in self.drafts if draft.is_open and not draft.plan.is_general]
        calls: dict[int, list[Draft]] = {}
        for draft in asked:
            calls.setdefault(draft.plan.index if round_number else draft.plan.call, []).append(draft)
        with self.batch.timed("questions"):
            made = [(self.question_request(drafts[0], round_number), drafts) for drafts in calls.values()]
            sent = [(request, drafts) for request, drafts in made if request]
            for drafts in (drafts for request, drafts in made if not request):
                for draft in drafts:
                    self.end(draft, filters.TOO_LONG)
            results = await self.send("writing messages", [request for request, _ in sent])
            for (request, drafts), result in zip(sent, results, strict=True):
                self.count(drafts[0], request, result)
                self.hear(drafts, result, round_number)
            self.drop_duplicates([draft for draft in asked if draft.is_open], round_number)

    def question_request(self, draft: Draft, round_number: int) -> ChatRequest | None:
        """What speaker A is asked; None where it does not fit the window."""
        seeds, speaker, plan = self.study.seeds, self.config.question, draft.plan
        num_messages = 1 if round_number else plan.num_in_call
        user = draft.prompts[0]
        if num_messages > 1:
            user = fill(seeds.several, prompt=user, number=str(num_messages))
        messages: list[Message] = [*draft.system, {"role": "user", "content": user}]
        if round_number:
            draft.prompts.append(self.study.draw("follow_up", plan.index, round_number).choice(seeds.kinds[plan.kind]))
            for turn, prompt in enumerate(draft.prompts[1:]):
                message, answer = (said["content"] for said in draft.messages[2 * turn : 2 * turn + 2])
                user = fill(seeds.follow_up, answer=filters.without_thoughts(answer), prompt=prompt)
                messages += [{"role": "assistant", "content": message}, {"role": "user", "content": user}]
        first = plan.index if round_number else plan.call
        prompt_ids, max_new_tokens = self.study.format.prompt(messages), speaker.max_new_tokens * num_messages
        if len(prompt_ids) + max_new_tokens > self.client.window:
            return None
        return ChatRequest(
            messages,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            temperature=speaker.temperature,
            top_p=speaker.top_p,
            seed=self.study.draw("question", first, round_number).getrandbits(31),
            shared_len=self.prefix_len(draft, self.study.format),
        )

    def hear(self, drafts: list[Draft], result: ChatResult, round_number: int) -> None:
        """Hand the messages of one call to its conversations."""
        cut_off = result.finish_reason != "stop"
        has_special = filters.has_special(result.token_ids, self.study.special_ids)
        several = drafts[0].plan.num_in_call > 1 and not round_number
        messages = filters.split_messages(result.text) if several else [filters.clean_message(result.text)]
        for draft in drafts:
            slot = draft.plan.slot if several else 0
            message = messages[slot] if slot < len(messages) else ""
            is_cut_off = cut_off and slot >= len(messages) - 1
            if self.judge(draft, filters.message_verdict(message, is_cut_off, has_special)):
                draft.hear(message)

    def drop_duplicates(self, drafts: list[Draft], round_number: int) -> None:
        """Of equal messages about one chunk keep the first; of a conversation that repeats itself what was before."""
        groups: dict[int, list[Draft]] = {}
        for draft in drafts:
            key = draft.plan.index if round_number else draft.plan.index // self.config.conversations_per_chunk
            groups.setdefault(key, []).append(draft)
        for members in groups.values():
            earlier = [said["content"] for said in members[0].messages[::2]]
            repeated = filters.duplicates([*earlier, *(draft.message for draft in members)])[len(earlier) :]
            for draft, is_repeated in zip(members, repeated, strict=True):
                self.judge(draft, filters.DUPLICATE if is_repeated else None)

    async def answer(self, round_number: int) -> None:
        """Have speaker B answer the messages, with its distributions."""
        asked: list[Draft] = []
        requests: list[ChatRequest] = []
        with self.batch.timed("answers"):
            for draft in self.drafts:
                if draft.is_open and (request := self.answer_request(draft, round_number)):
                    asked.append(draft)
                    requests.append(request)
            results = await self.send("answering", requests)
            for draft, request, result in zip(asked, requests, results, strict=True):
                self.count(draft, request, result)
                logprobs = self.checked_logprobs(result)
                cut_off = result.finish_reason != "stop"
                verdict = filters.reply_verdict(result.text, result.token_ids, cut_off, self.study.special_ids)
                if draft.plan.is_general and verdict == filters.UNTOLD:  # there is no text that could tell
                    verdict = None
                if self.judge(draft, verdict):
                    draft.take(result, logprobs)
                    draft.is_open = not cut_off and not draft.plan.is_general

    def answer_request(self, draft: Draft, round_number: int) -> ChatRequest | None:
        speaker = self.config.answer
        prompt_ids = [*draft.teacher_ids, *draft.message_ids[1]]
        if len(prompt_ids) + speaker.max_new_tokens > self.client.window:
            self.end(draft, filters.TOO_LONG)
            return None
        question_from = None
        if self.config.question_logprobs:
            question_from = draft.find_question()
            self.batch.noted["unaligned_questions"] += question_from is None
        return ChatRequest(
            [*draft.system, *draft.messages, {"role": "user", "content": draft.message}],
            prompt_ids,
            max_new_tokens=speaker.max_new_tokens,
            temperature=speaker.temperature,
            top_p=speaker.top_p,
            seed=self.study.draw("answer", draft.plan.index, round_number).getrandbits(31),
            top_k_logprobs=self.config.top_k,
            prompt_logprobs_from=question_from,
            shared_len=self.prefix_len(draft, draft.format),
            thinking=draft.plan.thinking,
        )

    async def send(self, doing: str, requests: list[ChatRequest]) -> list[ChatResult]:
        if not requests:
            return []
        num_done = 0

        def on_done(num: int) -> None:
            nonlocal num_done
            num_done += num
            self.tell(doing, num_done, len(requests))

        self.tell(doing, 0, len(requests))
        results = await self.client.chat(requests, on_done)
        if len(results) != len(requests):
            raise InputError(
                f"the client of {self.client.model_id} gave {len(results)} replies to {len(requests)} requests; "
                "use another client"
            )
        return results

    def count(self, draft: Draft, request: ChatRequest, result: ChatResult) -> None:
        num_prompt = result.num_prompt_tokens or len(request.prompt_ids or ())
        draft.num_prompt_tokens += num_prompt
        draft.num_new_tokens += len(result.token_ids)
        self.batch.tokens.update(prompt=num_prompt, cached=result.num_cached_tokens, new=len(result.token_ids))

    def checked_logprobs(self, result: ChatResult) -> TopK:
        """The distributions [M, K] of a reply. Raises InputError where the client does not give them."""
        found, asked = result.logprobs, (len(result.token_ids), self.config.top_k)
        if found is None:
            raise InputError(
                f"the client of {self.client.model_id} gives no logprobs, so it cannot be a teacher; use another client"
            )
        if found.ids.shape != asked:
            raise InputError(
                f"asked {self.client.model_id} for logprobs of shape {asked} (tokens, top_k), got {found.ids.shape}; "
                "give a lower top_k, or use another client"
            )
        return found
