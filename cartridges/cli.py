"""The command `cartridges`: the table of commands and the one error policy.

No command is imported before it is called, so help is quick and imports no torch. To add a command, write
`cartridges/commands/<path>.py` with a click command named `command`, and add a line to the table.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from cartridges import __version__
from cartridges.errors import CartridgesError, unknown_name

GROUPS: dict[str, str] = {
    "pocket": "The small bundled model: train it, measure it, try it.",
}
COMMANDS: dict[str, str] = {
    "build": "From documents to a trained, measured cartridge with its report.",
    "synthesize": "Have the model write conversations about documents.",
    "train": "Train a cartridge on conversations.",
    "transmute": "Turn conversations into changes of the weights.",
    "lora": "Write an adapter as a LoRA, for PEFT and vLLM.",
    "eval": "Measure cartridges beside reading everything.",
    "bench": "Compare methods on a benchmark at equal bytes.",
    "claims": "Measure the field's claims on the bundled model.",
    "chat": "Talk to a cartridge.",
    "serve": "Answer requests in the form of the OpenAI API.",
    "show": "Tell what a cartridge or an adapter is.",
    "demo": "Build, measure and try a cartridge of the bundled documents.",
    "pocket train": "Train the pocket model from nothing.",
    "pocket eval": "Measure the pocket model.",
    "pocket demo": "Read a document never seen before, and answer.",
    "pocket world": "Print or write documents of the generated world, with questions.",
    "pocket card": "Write the model card of a trained and measured run.",
}

EXIT_ERROR = 2
EXIT_BROKEN_PIPE = 128 + 13  # what the shell reports for a process ended by SIGPIPE

_DEBUG_OPTION = click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")


class LazyGroup(click.Group):
    """A group that knows its commands from the tables and imports one only to run it or to show its own help."""

    def __init__(self, path: str, help: str) -> None:
        """`path` is the group's place in the tables, empty for the root."""
        super().__init__(
            path.split()[-1] if path else None, help=help, callback=_show_help, invoke_without_command=True
        )
        self.path = path
        self.params.append(_DEBUG_OPTION)

    def members(self) -> dict[str, str]:
        """Name and one-line help of what is directly in this group."""
        prefix = f"{self.path} " if self.path else ""
        below = {
            path.removeprefix(prefix): text for path, text in (GROUPS | COMMANDS).items() if path.startswith(prefix)
        }
        return {name: text for name, text in below.items() if " " not in name}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the tables."""
        return list(self.members())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one member."""
        if cmd_name not in self.members():
            raise click.UsageError(unknown_name("command", cmd_name, self.members()), ctx)
        path = f"{self.path} {cmd_name}".strip()
        return LazyGroup(path, GROUPS[path]) if path in GROUPS else _load(path)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the members without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.members().items()))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line (default: the process's own) and exit: 0 done, 2 an error told in one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        code = _root().main(arguments, prog_name="cartridges", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps the exit's own flush quiet
        sys.exit(EXIT_BROKEN_PIPE)
    except (
        CartridgesError,
        click.ClickException,
        click.Abort,
        OSError,
        UnicodeDecodeError,
        KeyboardInterrupt,
    ) as error:
        if "--debug" in options:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    sys.exit(code if isinstance(code, int) else 0)


def one_line(error: BaseException) -> str:
    """What the user reads of an error."""
    match error:
        case click.UsageError(ctx=click.Context() as ctx):
            text = f"{error.format_message().rstrip('.')}; see '{ctx.command_path} --help'"
        case click.ClickException():
            text = error.format_message()
        case click.Abort() | KeyboardInterrupt():
            text = "interrupted"
        case UnicodeDecodeError():
            text = (
                f"given a file that is not {error.encoding} text (byte {error.start}: {error.reason}); save it as UTF-8"
            )
        case OSError(strerror=str(reason), filename=str(name)):
            text = f"{name}: {reason}"
        case _:
            text = str(error)
    return " ".join(text.split())


def _root() -> LazyGroup:
    root = LazyGroup("", "Train, measure and serve cartridges: small KV caches that stand for large corpora.")
    return click.version_option(__version__, prog_name="cartridges", message="%(prog)s %(version)s")(root)


@click.pass_context
def _show_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _load(path: str) -> click.Command:
    module = "cartridges.commands." + path.replace(" ", "_").replace("-", "_")
    try:
        command: click.Command = importlib.import_module(module).command
    except ModuleNotFoundError as error:
        if error.name == module:
            raise CartridgesError(
                f"'cartridges {path}' is not in this installation ({module} is missing); reinstall"
            ) from error
        raise CartridgesError(f"'cartridges {path}' needs the package {error.name!r}; install it with pip") from error
    command.name = path.split()[-1]
    if _DEBUG_OPTION not in command.params:
        command.params.append(_DEBUG_OPTION)
    return command
