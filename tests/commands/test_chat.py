"""`cartridges chat` on a tiny random model: what it answers is what the engine answers, piece by piece."""

import io
import json
import shutil
import subprocess
import sys

import pytest

from cartridges.cartridge import TENSORS, Cartridge
from cartridges.commands.chat import HELP, Talk
from cartridges.engine.engine import Engine
from cartridges.find import SOURCE
from cartridges.initialization import InitializeConfig, initialize
from cartridges.model import load_model

COMMAND = "chat"

LENGTH = ("--max-new-tokens", 12)


@pytest.fixture(scope="module")
def say(place):
    """What the engine says to a question, behind the cartridge or after a system text."""
    engine, slots = Engine(place.model), Cartridge.load(place.cartridge)

    def say(question: str, system: str = "") -> str:
        return engine.chat(question, system, [] if system else [slots], max_new_tokens=12) + "\n"

    return say


@pytest.fixture
def typed(monkeypatch):
    """Puts lines on a stdin that is a pipe."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_a_question_is_answered_as_the_engine_does(call, place, say):
    code, stdout, stderr = call(place.cartridge, "How", "many beds?", *LENGTH)
    assert (code, stdout, stderr) == (0, say("How many beds?"), "")
    assert len(stdout) > 5


def test_a_reply_comes_in_pieces(place, monkeypatch):
    written = []
    monkeypatch.setattr("cartridges.commands.chat.click.echo", lambda text="", nl=True, **_: written.append(text))
    talk = Talk(Engine(place.model), Cartridge.load(place.cartridge), place.cartridge, [], 12)
    talk.say("How many beds?")
    assert len(written) > 3
    assert "".join(written) == Engine(place.model).chat(
        "How many beds?", cartridges=[Cartridge.load(place.cartridge)], max_new_tokens=12
    )


def test_piped_lines_are_answered_one_by_one(call, place, say, typed):
    typed("How many beds?", "", "   ", "  Who sells wire? ", "/quit", "Never asked?")
    code, stdout, stderr = call(place.cartridge, *LENGTH)
    assert (code, stdout, stderr) == (0, say("How many beds?") + say("Who sells wire?"), "")


def test_a_question_does_not_depend_on_those_before(call, place, say, typed):
    typed("Who?", "How many beds?")
    assert call(place.cartridge, *LENGTH)[1] == say("Who?") + say("How many beds?")


def test_no_line_is_no_answer(call, place, typed):
    typed()
    assert call(place.cartridge) == (0, "", "")


def test_full_reads_the_documents(call, place, say, typed):
    typed("How many beds?", "/full", "/full Who sells wire?", "/full")
    code, stdout, stderr = call(place.cartridge, "--docs", place.docs, *LENGTH)
    full = [say(question, place.corpus.text) for question in ("How many beds?", "Who sells wire?")]
    assert (code, stderr) == (0, "")
    assert stdout == say("How many beds?") + full[0] + full[1] * 2
    assert full[0] != say("How many beds?")


def test_the_documents_of_a_build_are_found(call, place, say, typed, tmp_path):
    shutil.copytree(place.cartridge, tmp_path / "cartridge")
    (tmp_path / SOURCE).write_text(json.dumps({"documents": [str(place.docs)]}))
    typed("/full How many beds?")
    assert call(tmp_path, *LENGTH) == (0, say("How many beds?", place.corpus.text), "")


def test_help_is_told_and_so_is_what_cannot_be_done(call, place, say, typed):
    typed("/full", "/help", "/fulll", "How many beds?", "/full", "/exit")
    code, stdout, stderr = call(place.cartridge, *LENGTH)
    assert code == 0
    assert stdout == f"{HELP}\n{HELP}\n" + say("How many beds?")
    assert stderr.splitlines() == [
        "error: given no question yet, expected one before or behind /full",
        "error: nothing tells which documents this cartridge stands for; start with --docs",
    ]


def test_a_question_that_does_not_fit_ends_nothing(call, place, say, typed):
    typed("Why? " * 500, "How many beds?")
    code, stdout, stderr = call(place.cartridge, *LENGTH)
    assert (code, stdout) == (0, say("How many beds?"))
    assert stderr.startswith("error: the request has 30 slots + ") and stderr.count("\n") == 1


def test_documents_that_do_not_fit_are_told(call, place, say, typed, tmp_path):
    (tmp_path / "long.txt").write_text("The ward has nine beds. " * 500)
    typed("/full How many beds?", "How many beds?")
    code, stdout, stderr = call(place.cartridge, "--docs", tmp_path, *LENGTH)
    assert (code, stdout) == (0, say("How many beds?"))
    assert "expected at most 1024, the window of" in stderr and stderr.count("\n") == 1


def test_another_model_is_refused(refused, place):
    message = refused(place.cartridge, "Who?", "--model", place.paths[1])
    assert "other weights of the same shape; load it with its own model" in message
    assert "was made for pocket" not in message and str(place.paths[0]) in message


def test_wrong_input_is_one_line(refused, place, tmp_path):
    assert "nowhere is not there; expected a cartridge's folder" in refused(tmp_path / "nowhere", "Who?")
    assert "holds no cartridge; expected a cartridge's folder" in refused(tmp_path, "Who?")
    assert "no model at ./nowhere" in refused(place.cartridge, "Who?", "--model", "./nowhere")
    assert "'abc' is not a valid integer" in refused(place.cartridge, "--slots", "abc")
    assert "0 is not in the range x>=1" in refused(place.cartridge, "--max-new-tokens", 0)
    assert "'gpu' is not one of" in refused(place.cartridge, "--device", "gpu")
    assert "Missing argument 'CARTRIDGE'" in refused()


def test_a_model_that_is_gone_is_told(refused, place, tmp_path):
    model = load_model(place.paths[0], device="cpu")
    gone = tmp_path / "org" / "gone"
    model.identity = model.identity.model_copy(update={"model_id": str(gone)})
    initialize(model, place.corpus, 8, InitializeConfig()).save(tmp_path / "cartridge")
    assert f"no model at {gone}" in refused(tmp_path, "Who?")


def test_a_damaged_cartridge_is_told(refused, place, tmp_path):
    copy = shutil.copytree(place.cartridge, tmp_path / "cartridge")
    raw = bytearray((copy / TENSORS).read_bytes())
    (copy / TENSORS).write_bytes(raw[:-7])
    assert f"{copy / TENSORS} is damaged" in refused(copy, "Who?")
    raw[-1] ^= 1
    (copy / TENSORS).write_bytes(raw)
    assert "do not belong together (another digest)" in refused(copy, "Who?")


def test_help_imports_no_torch():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['chat', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: cartridges chat" in done.stdout
