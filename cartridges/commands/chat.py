"""`cartridges chat`: talk to the model that has a cartridge, and compare with reading everything."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.errors import CartridgesError, InputError

if TYPE_CHECKING:
    from cartridges.cartridge import Cartridge
    from cartridges.engine.engine import Engine

HELP = "/full [question] reads everything instead (again the last question if none is given), /help, /quit"


@click.command()
@click.argument("cartridge", type=click.Path(path_type=Path))
@click.argument("question", nargs=-1)
@click.option("--docs", type=click.Path(path_type=Path), multiple=True, help="The documents, for /full.")
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of the cartridge by default.")
@click.option("--slots", type=int, help="Which size, where a build made several.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def command(
    cartridge: Path,
    question: tuple[str, ...],
    docs: tuple[Path, ...],
    model: str | None,
    slots: int | None,
    max_new_tokens: int,
    device: str,
) -> None:
    """Talk to CARTRIDGE; with a QUESTION, answer just that. Each question is asked on its own."""
    from cartridges.find import find_cartridge

    folder = find_cartridge(cartridge, slots)
    from cartridges.cartridge import Cartridge
    from cartridges.engine.engine import Engine
    from cartridges.model import load_for

    slots_read = Cartridge.load(folder)
    used = load_for(slots_read.manifest.model, model, device)
    slots_read.check_fits(used.identity)
    talk = Talk(Engine(used), slots_read, folder, docs, max_new_tokens)
    if question:
        talk.say(" ".join(question))
        return
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo(f"{slots_read.manifest.name}: {slots_read.num_slots} slots. {HELP}")
    talk.listen(_prompted() if is_terminal else (line.rstrip("\n") for line in sys.stdin))


def _prompted() -> Iterable[str]:
    """Lines typed at a prompt, until the input ends."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return


class Talk:
    """Questions answered one by one, streamed to the terminal."""

    def __init__(
        self, engine: "Engine", cartridge: "Cartridge", folder: Path, docs: Sequence[Path], max_new_tokens: int
    ) -> None:
        """The documents, `docs` or those of the build around `folder`, are read only when asked for."""
        self.engine, self.cartridge, self.max_new_tokens = engine, cartridge, max_new_tokens
        self.folder, self.docs = folder, docs
        self.last = ""
        self.corpus_text = ""

    def listen(self, lines: Iterable[str]) -> None:
        """Answer every line, until /quit."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            try:
                if word in ("/quit", "/exit"):
                    return
                if word == "/full":
                    self.say_full(rest or self.last)
                elif word.startswith("/"):
                    click.echo(HELP)
                elif line.strip():
                    self.say(line.strip())
            except CartridgesError as error:
                click.echo(f"error: {error}", err=True)

    def say(self, question: str) -> None:
        """Answer with the cartridge."""
        self.last = question
        self._stream(question, "", self.cartridge)

    def say_full(self, question: str) -> None:
        """Answer by reading all documents."""
        if not question:
            raise InputError("given no question yet, expected one before or behind /full")
        self.last = question
        if not self.corpus_text:
            from cartridges.find import find_corpus

            corpus = find_corpus(self.folder, self.docs, self.cartridge.manifest.corpus_digest)
            if corpus is None:
                raise InputError("nothing tells which documents this cartridge stands for; start with --docs")
            self.corpus_text = corpus.text
        self._stream(question, self.corpus_text, None)

    def _stream(self, question: str, system: str, cartridge: "Cartridge | None") -> None:
        from cartridges.engine.request import Request

        messages = [{"role": "system", "content": system}] if system else []
        chat = self.engine.model.chat
        ids = chat.prompt([*messages, {"role": "user", "content": question}])
        shared = len(chat.system_prefix(system)) if system else 0
        request = Request(tuple(ids), self.max_new_tokens, shared_len=shared, cartridge=cartridge)
        for piece in self.engine.stream(request):
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
