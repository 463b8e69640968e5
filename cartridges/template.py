"""Chat formats: messages to token ids by the tokenizer's own chat template, and a conversation's next turn without
tokenizing its replies again.

What a template does is found out by rendering it, never by its name: whether it takes a system message, what ends a
reply, what all prompts with one system text begin with.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cartridges.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # "role" and "content"

THINKING_SWITCHES = ("enable_thinking", "thinking")
BETWEEN_SYSTEM_AND_USER = "\n\n"  # where a template has no system role

# Stand-ins whose place in the rendered text tells what the template put around them.
_SYSTEM, _USER, _REPLY, _NEXT = "Sysq7", "Userq7", "Replyq7", "Nextq7"

# Beginnings of a user message that tokenizers join with what stands before it, each in its own way.
_BEGINNINGS = [
    "x",
    "",
    " x",
    "  x",
    "\n\nx",
    "\r\nx",
    "\tx",
    "Z9",
    "0",
    ".",
    "'s",
    '"',
    "#",
    "<",
    "]",
    "ß",
    "\u0301",
    "中",
]
_BEGINNINGS += ["🙂", "\u200d"]


class ChatFormat:
    """How one tokenizer writes a chat.

    `thinking` sets the switch of templates that know one. `now` is the time that templates with a date header are given
    instead of the clock, so that one format gives the same ids at any time; by default the time when it was made.
    A template without a system role gets the system text in front of the first user message.

    stop_ids: the ids that end a reply, the tokenizer's end of sequence and the template's end of a turn.
    has_system_role: whether the template takes a system message.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", thinking: bool = False, now: datetime.datetime | None = None
    ) -> None:
        """Look the template over. Raises InputError where the tokenizer has none that writes a chat."""
        self.tokenizer = tokenizer
        self.thinking = thinking
        self.now = now or datetime.datetime.now()
        self.template = _template_of(tokenizer)
        self._given = self._variables()
        self.has_system_role = True
        self._check_template()
        self.has_system_role = self._takes_system()
        self._system_moves = self.has_system_role and self._moves_system()
        self._turn_end = self._find_turn_end()
        self.stop_ids = self._find_stop_ids()

    def prompt(self, messages: list[Message]) -> list[int]:
        """The ids of `messages` and of the beginning of the reply to them.

        Raises InputError where the messages are malformed, or where the template refuses them.
        """
        return self._apply(self._folded(_checked(messages)), tokenize=True, return_dict=False)

    def system_prefix(self, text: str) -> list[int]:
        """The ids that every prompt of the system text `text` and one user message begins with; may be empty.

        At most one id shorter than it could be: the last one may join with the message where no probe shows it.
        """
        ids = self.prompt(_chat(system=text, user=_BEGINNINGS[0]))
        behind = self._behind_system
        if behind and ids[-len(behind) :] == behind:
            return ids[: -len(behind)]
        return self._shared_beginning(text)

    def context_head(self) -> list[int]:
        """The ids that stand before a system text: the head of its message, or of the user's that it is put into."""
        return self._ids(self._render(self._folded(_chat(system=_SYSTEM, user=_USER))).partition(_SYSTEM)[0])

    def turn(self, messages_so_far: list[Message], reply_ids: Sequence[int], next_user: str) -> list[int]:
        """The ids between the last of `reply_ids` and the reply to `next_user`.

        `messages_so_far` are those that the reply answers. Where the reply was cut before its end, the end is supplied.
        With `prompt(messages_so_far)` and the reply in front, this is what the template gives for the whole, save what
        it strips from earlier turns or writes elsewhere when the chat goes on (a system text that moves to the last
        message). Raises InputError.
        """
        messages = _checked(messages_so_far)
        if messages[-1]["role"] == "assistant":
            raise InputError("given messages that end with an assistant's, expected those that the reply answers")
        if self._system_moves and messages[0]["role"] == "system":
            messages = messages[1:]
        reply = _REPLY
        while any(reply in text for text in (next_user, *(message["content"] for message in messages))):
            reply += "q"
        chat = [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": next_user}]
        ids = self._ids_behind(reply, self._render(_checked(chat)))
        ended = len(reply_ids) > 0 and reply_ids[-1] == self._turn_end
        return ids[ids.index(reply_ids[-1]) + 1 :] if ended else ids

    def decode(self, ids: Sequence[int], with_special: bool = False) -> str:
        """The text of `ids`, without special tokens unless they are asked for."""
        if self._backend is not None:
            return self._backend.decode(list(map(int, ids)), skip_special_tokens=not with_special)
        return str(
            self.tokenizer.decode(
                list(map(int, ids)), skip_special_tokens=not with_special, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer's own decoder, where transformers adds nothing to it but time; else None."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        kind, plain = type(self.tokenizer), PreTrainedTokenizerFast
        is_plain = kind.decode is PreTrainedTokenizerBase.decode and kind._decode is plain._decode
        return getattr(self.tokenizer, "backend_tokenizer", None) if is_plain else None

    @cached_property
    def digest(self) -> str:
        """The sha256 of the tokenizer and its chat template, in hex."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rules = {"vocab": self.tokenizer.get_vocab(), "class": type(self.tokenizer).__name__}
        else:
            rules = json.loads(backend.to_str())
            for changed_by_use in ("padding", "truncation"):
                rules.pop(changed_by_use, None)
        content = json.dumps([rules, self.template], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _variables(self) -> dict[str, Any]:
        """What is given to the template besides the messages."""
        words = set(re.findall(r"\w+", self.template))
        given: dict[str, Any] = {name: self.thinking for name in THINKING_SWITCHES if name in words}
        if "strftime_now" in words:
            given["strftime_now"] = self.now.strftime  # comes before the clock that transformers offers
        return given

    def _apply(self, messages: list[Message], generation: bool = True, **options: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=generation, **options, **self._given
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"the chat template of {_name(self.tokenizer)} refuses messages of the roles {roles}: {error}; "
                "give others, or a tokenizer with another template"
            ) from error

    def _render(self, messages: list[Message], generation: bool = True) -> str:
        return self._apply(self._folded(messages), generation, tokenize=False)

    def _folded(self, messages: list[Message]) -> list[Message]:
        """The messages, with the system text put in front of the first user message where there is no system role."""
        if self.has_system_role or messages[0]["role"] != "system":
            return messages
        system, *rest = messages
        if not rest or rest[0]["role"] != "user":
            raise InputError(
                f"the chat template of {_name(self.tokenizer)} has no system role; "
                "expected a user message behind the system message, to hold its text"
            )
        texts = [text for text in (system["content"], rest[0]["content"]) if text]
        return [{"role": "user", "content": BETWEEN_SYSTEM_AND_USER.join(texts)}, *rest[1:]]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids_behind(self, stand_in: str, text: str) -> list[int]:
        """The ids of what comes after the last `stand_in` in `text`, as they are in the middle of a text."""
        behind = text.rpartition(stand_in)[2]
        before, ids = self._ids(stand_in), self._ids(stand_in + behind)
        return ids[len(before) :] if ids[: len(before)] == before else self._ids(behind)

    def _check_template(self) -> None:
        text = self._render(_chat(user=_USER, assistant=_REPLY, next=_NEXT))
        if not text.find(_USER) < text.find(_REPLY) < text.find(_NEXT) or _USER not in text:
            raise InputError(
                f"the chat template of {_name(self.tokenizer)} leaves out messages; "
                "expected one that writes user and assistant messages in order; give a chat model's tokenizer"
            )

    def _takes_system(self) -> bool:
        try:
            return _SYSTEM in self._render(_chat(system=_SYSTEM, user=_USER))
        except InputError:
            return False

    def _moves_system(self) -> bool:
        """Whether the system text leaves its place when the chat goes on."""
        text = self._render(_chat(system=_SYSTEM, user=_USER, assistant=_REPLY, next=_NEXT))
        return text.find(_SYSTEM) > text.find(_USER)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset([*(index for index, token in added if token.special), *self.tokenizer.all_special_ids])

    def _find_turn_end(self) -> int | None:
        """The first special token between a reply and the next user message."""
        text = self._render(_chat(user=_USER, assistant=_REPLY, next=_NEXT))
        return self._first_special(_REPLY, text.rpartition(_NEXT)[0])

    def _first_special(self, stand_in: str, text: str) -> int | None:
        return next((index for index in self._ids_behind(stand_in, text) if index in self._special_ids), None)

    def _find_stop_ids(self) -> frozenset[int]:
        """The end of sequence, and the first special token behind a reply that ends the chat, or else goes on."""
        last = self._first_special(_REPLY, self._render(_chat(user=_USER, assistant=_REPLY), generation=False))
        found: list[Any] = [self.tokenizer.eos_token_id, self._turn_end if last is None else last]
        return frozenset(index for index in found if isinstance(index, int))

    def _shared_beginning(self, system: str) -> list[int]:
        """What the prompts of all probes begin with, less its last id where that is no special token."""
        shared: list[int] | None = None
        for beginning in _BEGINNINGS:
            try:
                ids = self.prompt(_chat(system=system, user=beginning))
            except InputError:  # some templates refuse an empty message; then there is no such prompt
                continue
            shared = ids if shared is None else _common_beginning(shared, ids)
        shared = shared or []
        return shared if shared and shared[-1] in self._special_ids else shared[:-1]

    @cached_property
    def _behind_system(self) -> list[int]:
        """The ids behind the shared beginning in the prompt of the first probe.

        Empty where no special token parts system text and message, so that these ids depend on the text.
        """
        shared = self._shared_beginning(_SYSTEM)
        messages = _chat(system=_SYSTEM, user=_BEGINNINGS[0])
        up_to_text = self._ids("".join(self._render(messages).partition(_SYSTEM)[:2]))
        num_parting = sum(ids in self._special_ids for ids in shared[len(up_to_text) :])
        return self.prompt(messages)[len(shared) :] if num_parting else []


def _template_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(
            f"the tokenizer of {_name(tokenizer)} has no chat template, or several and no default; expected that "
            "of a chat model; give an instruction-tuned model, or put its chat_template.jinja beside the tokenizer"
        ) from error


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _chat(**texts: str) -> list[Message]:
    """Messages by role; `next` is a second user message."""
    return [{"role": "user" if role == "next" else role, "content": text} for role, text in texts.items()]


def _checked(messages: list[Message]) -> list[Message]:
    if not messages:
        raise InputError("given no messages, expected at least one of a user")
    for number, message in enumerate(messages):
        known = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not known or not isinstance(message.get("content"), str):
            raise InputError(
                f"message {number} is {str(message)[:80]!r}; expected a dict with the texts 'role' and 'content'"
            )
    return messages


def _common_beginning(a: list[int], b: list[int]) -> list[int]:
    num_equal = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:num_equal]
