"""The command line as a product: help, the one error policy, laziness."""

import errno
import subprocess
import sys
import time
from importlib.util import find_spec

import click
import pytest

from cartridges import __version__, cli
from cartridges.errors import InputError

EXISTING = [path for path in cli.COMMANDS if find_spec("cartridges.commands." + path.replace(" ", "_"))]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cartridges", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def call(capsys, monkeypatch):
    """Run one command line whose `pocket demo` does `act`; returns exit code, stdout and stderr."""

    def call(*arguments, act=lambda: None):
        monkeypatch.setattr(cli, "_load", lambda path: with_debug(click.Command("demo", callback=act)))
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        return caught.value.code, *capsys.readouterr()

    return call


def with_debug(command: click.Command) -> click.Command:
    command.params.append(cli._DEBUG_OPTION)
    return command


def raising(error: BaseException):
    def act():
        raise error

    return act


@pytest.mark.parametrize("arguments", [[], ["--help"], ["pocket"], ["pocket", "--help"]])
def test_help_lists_the_commands(arguments):
    result = run(*arguments)
    assert result.returncode == 0
    assert result.stderr == ""
    members = [path.split()[-1] for path in cli.COMMANDS if path.startswith("pocket ") == ("pocket" in arguments)]
    for name in members:
        assert f"  {name} " in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["pocket", "--help"]])
def test_help_is_quick(arguments):
    def seconds():
        start = time.perf_counter()
        run(*arguments)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    "arguments", [["--help"], ["pocket", "--help"], *([*path.split(), "--help"] for path in EXISTING)]
)
def test_help_imports_no_torch(arguments):
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--debug" in result.stdout


def test_version():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"cartridges {__version__}\n")


def test_unknown_command_suggests_the_nearest():
    result = run("pocket", "trian")
    assert result.returncode == 2
    assert result.stderr == (
        "error: unknown command 'trian'; did you mean 'train'? known: card, demo, eval, train, world; "
        "see 'cartridges pocket --help'\n"
    )


def test_unknown_option_is_one_line():
    result = run("--verson")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: No such option")
    assert "--version" in result.stderr


def test_usage_error_of_a_command_names_its_help(call):
    code, _, stderr = call("pocket", "demo", "surplus")
    assert code == 2
    assert stderr == "error: Got unexpected extra argument (surplus); see 'cartridges pocket demo --help'\n"


def test_success_exits_0(call):
    assert call("pocket", "demo", act=lambda: click.echo("done")) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("given a,\nexpected b"), "error: given a, expected b"),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), "error: /out: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left on device"),
        (OSError("no model here;\n\nlook elsewhere"), "error: no model here; look elsewhere"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"), "is not utf-8 text (byte 1: invalid start"),
        (KeyboardInterrupt(), "error: interrupted"),
    ],
)
def test_errors_are_one_line_and_exit_2(call, error, line):
    code, stdout, stderr = call("pocket", "demo", act=raising(error))
    assert (code, stdout) == (2, "")
    assert line in stderr.strip()
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["--debug", "pocket", "demo"], ["pocket", "--debug", "demo"], ["pocket", "demo", "--debug"]]
)
def test_debug_shows_the_traceback_wherever_it_stands(call, arguments):
    code, _, stderr = call(*arguments, act=raising(InputError("given a")))
    assert code == 2
    assert "Traceback" in stderr and "in act" in stderr
    assert stderr.endswith("error: given a\n")


def test_a_bug_is_not_disguised(monkeypatch):
    monkeypatch.setattr(cli, "_load", lambda path: click.Command("demo", callback=raising(ZeroDivisionError())))
    with pytest.raises(ZeroDivisionError):
        cli.main(["pocket", "demo"])


def test_missing_command_module_is_told(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "pocket nowhere", "Nothing.")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pocket", "nowhere"])
    assert capsys.readouterr().err == (
        "error: 'cartridges pocket nowhere' is not in this installation "
        "(cartridges.commands.pocket_nowhere is missing); reinstall\n"
    )


def test_missing_package_is_named(monkeypatch, capsys):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'sacrebleu'", name="sacrebleu")

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pocket", "eval"])
    assert (
        capsys.readouterr().err
        == "error: 'cartridges pocket eval' needs the package 'sacrebleu'; install it with pip\n"
    )


def test_closed_pipe_is_quiet(tmp_path):
    program = tmp_path / "chatter.py"
    program.write_text(
        "import click\nfrom cartridges import cli\n"
        "cli._load = lambda path: click.Command('demo', callback=lambda: print('x\\n' * 200_000))\n"
        "cli.main(['pocket', 'demo'])\n"
    )
    pipe = f"set -o pipefail; {sys.executable} {program} | head -n 1"
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("x\n", "")
    assert result.returncode in (1, cli.EXIT_BROKEN_PIPE)


@pytest.mark.parametrize("path", EXISTING)
def test_every_command_has_its_own_help(path):
    result = run(*path.split(), "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Usage: cartridges {path} ")
