"""`cartridges chat`: talk to a model that has cartridges, here or on a server, and compare with reading everything."""

import queue
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from cartridges.commands.arguments import read_key
from cartridges.errors import CartridgesError, InputError

if TYPE_CHECKING:
    from cartridges.cartridge import Cartridge
    from cartridges.commands.weights import Weights
    from cartridges.engine.engine import Engine
    from cartridges.engine.request import Event
    from cartridges.template import Message

HELP = (
    "+NAME adds a cartridge, -NAME takes one off, /full [question] reads everything instead (again the last question "
    "if none is given), /new forgets the conversation, /help, /quit"
)


@click.command()
@click.argument("cartridge", required=False, metavar="CARTRIDGE[+CARTRIDGE]...")
@click.argument("question", nargs=-1)
@click.option("--with", "others", multiple=True, help="One more cartridge; may be repeated.")
@click.option("--adapter", type=click.Path(path_type=Path), multiple=True, help="Change the weights instead.")
@click.option("--docs", type=click.Path(path_type=Path), multiple=True, help="The documents, for /full.")
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of the cartridge by default.")
@click.option("--slots", type=int, help="Which size, where a build made several.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--url", help="A server that answers instead; CARTRIDGE is a name there, or left out.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="File whose first line is the server's key.")
def command(
    cartridge: str | None,
    question: tuple[str, ...],
    others: tuple[str, ...],
    adapter: tuple[Path, ...],
    docs: tuple[Path, ...],
    model: str | None,
    slots: int | None,
    max_new_tokens: int,
    device: str,
    url: str | None,
    api_key_file: Path | None,
) -> None:
    """Talk to CARTRIDGE, or to several at once; with a QUESTION, answer just that.

    Questions see what was said before; /new starts again.
    """
    if adapter and url is not None:
        raise InputError(f"given --adapter {adapter[0]} and --url, expected one; a server has its own")
    if adapter and cartridge is not None:  # what stands there is the question
        cartridge, question = None, (cartridge, *question)
    if cartridge is None and url is None and not adapter:
        raise click.UsageError("Missing argument 'CARTRIDGE'")
    given = [*(parts_of(cartridge) if cartridge else ()), *others]
    if url is not None:
        voice: Voice = Remote(url, given, docs, max_new_tokens, model or "", read_key(api_key_file))
    elif adapter:
        if given:
            raise InputError(f"given --adapter {adapter[0]} and --with, expected one; cartridges fit the model alone")
        from cartridges.commands.weights import Weights

        weights = Weights.load(adapter, model, device)
        voice = Local(weights.engine(), docs, max_new_tokens, weights=weights)
    else:
        voice = Local.load(given, slots, docs, max_new_tokens, model, device)
    talk = Talk(voice)
    if question:
        talk.say(" ".join(question))
        return
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo(f"{voice.told}. {HELP}")
    talk.listen(_prompted() if is_terminal else (line.rstrip("\n") for line in sys.stdin))


def parts_of(text: str) -> list[str]:
    """`a+b` as a and b, unless there is something of that very name."""
    return [text] if Path(text).exists() else [part for part in text.split("+") if part]


def _prompted() -> Iterator[str]:
    """Lines typed at a prompt, until the input ends."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return


class Voice(Protocol):
    """Who answers: the model with the cartridges that are on. Pieces of a reply come as they are made."""

    @property
    def told(self) -> str:
        """What is on, in a few words."""
        ...

    def add(self, name: str) -> None:
        """Put one more cartridge on. Raises CartridgesError."""
        ...

    def remove(self, name: str) -> None:
        """Take one off. Raises InputError for one that is not on."""
        ...

    def say(self, turns: "Sequence[Message]", question: str) -> Iterator[str]:
        """The reply behind what was said before."""
        ...

    def say_full(self, turns: "Sequence[Message]", question: str) -> Iterator[str]:
        """The reply of the model that reads all documents and has no cartridge."""
        ...


class Talk:
    """One conversation, streamed to the terminal."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.turns: list[Message] = []
        self.last: tuple[str, list[Message]] = ("", [])  # the question asked last, and what was said before it

    def listen(self, lines: Iterable[str]) -> None:
        """Answer every line, until /quit."""
        for line in map(str.strip, lines):
            word, _, rest = line.partition(" ")
            try:
                if word in ("/quit", "/exit"):
                    return
                if word == "/full":
                    self.say_full(rest.strip())
                elif word == "/new":
                    self.turns = []
                elif word.startswith("/"):
                    click.echo(HELP)
                elif is_change(line):
                    (self.voice.add if line[0] == "+" else self.voice.remove)(line[1:])
                    click.echo(self.voice.told)
                elif line:
                    self.say(line)
            except CartridgesError as error:
                click.echo(f"error: {error}", err=True)

    def say(self, question: str) -> None:
        """Answer, and remember it."""
        before = list(self.turns)
        reply = self._print(self.voice.say(before, question))
        self.last = (question, before)
        self.turns = [*before, {"role": "user", "content": question}, {"role": "assistant", "content": reply}]

    def say_full(self, question: str) -> None:
        """Answer a new question, or again the last one, by reading all documents; it is not remembered."""
        asked, before = (question, list(self.turns)) if question else self.last
        if not asked:
            raise InputError("given no question yet, expected one before or behind /full")
        self.last = (asked, before)
        self._print(self.voice.say_full(before, asked))

    @staticmethod
    def _print(pieces: Iterator[str]) -> str:
        told = ""
        for piece in pieces:
            told += piece
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
        return told


def is_change(line: str) -> bool:
    """Whether a line is `+name` or `-name` and no question that begins so."""
    return len(line) > 1 and line[0] in "+-" and " " not in line and not line.endswith("?")


def with_question(turns: "Sequence[Message]", question: str, system: str = "") -> "list[Message]":
    """The messages up to the question."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *turns, {"role": "user", "content": question}]


def documents(docs: Sequence[Path], folders: "Sequence[tuple[Path, str]]" = ()) -> str:
    """The text of the documents named, or of those that cartridges stand for: folders with their corpus' digests."""
    from cartridges.corpus import Corpus
    from cartridges.find import find_corpus

    if docs:
        return Corpus.from_path(*docs).text
    found = [find_corpus(folder, (), digest) for folder, digest in folders]
    texts = [corpus.text for corpus in found if corpus is not None]
    if not texts or len(texts) < len(found):
        raise InputError("nothing tells which documents this cartridge stands for; start with --docs")
    return "\n\n".join(texts)


class Local:
    """The engine of this process. Cartridges are folders, or names of folders beside one that is on."""

    def __init__(
        self,
        engine: "Engine",
        docs: Sequence[Path],
        max_new_tokens: int,
        slots: int | None = None,
        weights: "Weights | None" = None,
    ) -> None:
        """`weights` are of adapters that are merged into the engine's model."""
        self.engine, self.docs, self.max_new_tokens, self.slots = engine, docs, max_new_tokens, slots
        self.weights = weights
        self.on: dict[str, tuple[Path, Cartridge]] = {}
        self.said: list[tuple[list[Message], list[int], list[int]]] = []  # messages, their ids, the reply's

    @classmethod
    def load(
        cls,
        names: Sequence[str],
        slots: int | None,
        docs: Sequence[Path],
        max_new_tokens: int,
        model: str | None,
        device: str,
    ) -> "Local":
        """The first cartridge's model, unless another is named, with all cartridges on."""
        from cartridges.find import find_cartridge

        if not names:
            raise InputError("given no cartridge, expected a folder")
        folder = find_cartridge(Path(names[0]), slots)
        from cartridges.cartridge import Cartridge
        from cartridges.engine.engine import Engine
        from cartridges.model import load_for

        first = Cartridge.load(folder)
        used = load_for(first.manifest.model, model, device)
        first.check_fits(used.identity)
        voice = cls(Engine(used), docs, max_new_tokens, slots)
        voice.put(names[0], folder, first)
        for name in names[1:]:
            voice.add(name)
        return voice

    @property
    def told(self) -> str:
        if self.weights and not self.on:
            return f"{self.engine.model.identity.model_id}, changed by an adapter"
        names = " + ".join(self.on) or "no cartridge"
        return f"{names}: {self.cartridge.num_slots if self.cartridge else 0} slots"

    @property
    def cartridge(self) -> "Cartridge | None":
        """What those that are on compose."""
        return self.engine.shelf.composed([cartridge for _, cartridge in self.on.values()]) if self.on else None

    def put(self, given: str, folder: Path, cartridge: "Cartridge") -> None:
        """Have a cartridge on, under its name, or that of its folder where it has none or another has it."""
        name = cartridge.manifest.name or Path(given).name
        self.on[name if name not in self.on else given] = (folder, cartridge)

    def add(self, name: str) -> None:
        from cartridges.cartridge import Cartridge
        from cartridges.find import find_cartridge

        if name in self.on:
            raise InputError(f"{name} is on already")
        folder = find_cartridge(self._path(name), self.slots)
        cartridge = Cartridge.load(folder)
        cartridge.check_fits(self.engine.model.identity)
        before = dict(self.on)
        self.put(name, folder, cartridge)
        try:
            _ = self.cartridge
        except CartridgesError:
            self.on = before
            raise

    def _path(self, name: str) -> Path:
        """The folder of that name, here or beside one that is on."""
        beside = [parent / name for folder, _ in self.on.values() for parent in list(folder.resolve().parents)[:3]]
        return next((path for path in (Path(name), *beside) if path.exists()), Path(name))

    def remove(self, name: str) -> None:
        if name not in self.on:
            raise InputError(f"{name} is not on; on: {', '.join(self.on) or 'none'}")
        del self.on[name]

    def say(self, turns: "Sequence[Message]", question: str) -> Iterator[str]:
        messages, chat = with_question(turns, question), self.engine.model.chat
        known = next((said for said in reversed(self.said) if said[0] == messages[: len(said[0])]), None)
        if known is not None and len(messages) == len(known[0]) + 2:
            asked, ids, reply_ids = known
            ids = [*ids, *reply_ids, *chat.turn(asked, reply_ids, question)]
        else:
            ids = chat.prompt(messages)
        return self._stream(ids, 0, self.cartridge, lambda reply: self.said.append((messages, ids, reply)))

    def say_full(self, turns: "Sequence[Message]", question: str) -> Iterator[str]:
        told = [(folder, cartridge.manifest.corpus_digest) for folder, cartridge in self.on.values()]
        told += self.weights.sources if self.weights else []
        text, chat = documents(self.docs, told), self.engine.model.chat
        ids, shared_len = chat.prompt(with_question(turns, question, text)), len(chat.system_prefix(text))
        if self.weights is None:
            return self._stream(ids, shared_len, None)
        return self.weights.plainly(lambda plain: Local(plain, (), self.max_new_tokens)._stream(ids, shared_len, None))

    def _stream(
        self,
        ids: list[int],
        shared: int,
        cartridge: "Cartridge | None",
        keep: "Callable[[list[int]], None]" = lambda reply: None,
    ) -> Iterator[str]:
        from cartridges.engine.request import Request

        request = Request(tuple(ids), self.max_new_tokens, shared_len=shared, cartridge=cartridge)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        handle = self.engine.submit(request, events.put)
        try:
            while True:
                event = events.get()
                if event.text:
                    yield event.text
                if event.finish_reason:
                    break
        finally:
            handle.abort()
        keep(handle.result().token_ids)


class Remote:
    """A server; cartridges are names there."""

    def __init__(
        self, url: str, names: Sequence[str], docs: Sequence[Path], max_new_tokens: int, model: str, api_key: str
    ) -> None:
        """`model` is what the server calls the model without cartridges; "" where it is to be asked."""
        self.url, self.docs, self.max_new_tokens, self.api_key = url, docs, max_new_tokens, api_key
        self.names, self.model = list(names), model

    @property
    def told(self) -> str:
        return f"{' + '.join(self.names) or 'no cartridge'} at {self.url}"

    def add(self, name: str) -> None:
        if name in self.names:
            raise InputError(f"{name} is on already")
        self.names.append(name)

    def remove(self, name: str) -> None:
        if name not in self.names:
            raise InputError(f"{name} is not on; on: {', '.join(self.names) or 'none'}")
        self.names.remove(name)

    @property
    def base(self) -> str:
        """The model's own name; the server is asked once."""
        if not self.model:
            from cartridges.clients.pool import Pool
            from cartridges.clients.remote import asked_about

            about = asked_about(Pool([self.url]), self.api_key)
            if not about:
                raise InputError(f"{self.url} does not tell what it serves; name its model with --model")
            plain = [entry for entry in about if not entry.get("parent")]
            self.model = str((plain or about)[0].get("id"))
        return self.model

    def say(self, turns: "Sequence[Message]", question: str) -> Iterator[str]:
        return self._stream(with_question(turns, question), "+".join(self.names) or self.base)

    def say_full(self, turns: "Sequence[Message]", question: str) -> Iterator[str]:
        return self._stream(with_question(turns, question, documents(self.docs)), self.base)

    def _stream(self, messages: "list[Message]", model: str) -> Iterator[str]:
        from cartridges.clients.openai import stream_chat

        return stream_chat(self.url, messages, model, max_new_tokens=self.max_new_tokens, api_key=self.api_key)
