"""`cartridges chat` on a tiny random model: what it answers is what the engine answers, piece by piece."""

import io
import json
import shutil
import subprocess
import sys

import pytest

from cartridges.cartridge import TENSORS, Cartridge
from cartridges.commands.chat import HELP, Local, Talk, is_change, parts_of
from cartridges.compose import compose
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.find import SOURCE
from cartridges.initialization import InitializeConfig, initialize
from cartridges.model import load_model
from tests.clients.replica import Replica

COMMAND = "chat"

LENGTH = ("--max-new-tokens", 12)


@pytest.fixture(scope="module")
def other(place):
    """A second cartridge, beside the build of the first."""
    made = initialize(place.model, place.corpus, 20, InitializeConfig(kind="chunks", seed=3))
    made.manifest.name = "other"
    made.save(place.folder / "other" / "cartridge")
    return place.folder / "other"


@pytest.fixture(scope="module")
def say(place):
    """What the engine says to messages, behind cartridges or after a system text; it is asked for ids, not for text."""
    engine, slots = Engine(place.model), Cartridge.load(place.cartridge)

    def say(*questions: str, system: str = "", cartridges: object = None) -> str:
        """The reply to the last of several questions of one conversation."""
        chat, ids = engine.model.chat, []
        composed = compose([slots] if cartridges is None else cartridges, place.model) if not system else None
        messages = [{"role": "system", "content": system}] if system else []
        text, reply = "", []
        for question in questions:
            ids += chat.turn(messages[:-1], reply, question) if reply else []
            messages = [*messages, {"role": "user", "content": question}]
            ids = ids or chat.prompt(messages)
            result = engine.generate([Request(tuple(ids), 12, cartridge=composed)])[0]
            text, reply = result.text, result.token_ids
            ids = [*ids, *reply]
            messages = [*messages, {"role": "assistant", "content": text}]
        return text + "\n"

    return say


@pytest.fixture
def typed(monkeypatch):
    """Puts lines on a stdin that is a pipe."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_a_question_is_answered_as_the_engine_does(call, place, say):
    code, stdout, stderr = call(place.cartridge, "How", "many beds?", *LENGTH)
    assert (code, stdout, stderr) == (0, say("How many beds?"), "")
    assert len(stdout) > 5


def test_a_reply_comes_in_pieces(place, say, monkeypatch):
    written = []
    monkeypatch.setattr("cartridges.commands.chat.click.echo", lambda text="", nl=True, **_: written.append(text))
    Talk(Local.load([str(place.cartridge)], None, [], 12, None, "cpu")).say("How many beds?")
    assert len(written) > 3
    assert "".join(written) == say("How many beds?").rstrip("\n")


def test_piped_lines_are_one_conversation(call, place, say, typed):
    typed("How many beds?", "", "   ", "  Who sells wire? ", "Why?", "/quit", "Never asked?")
    code, stdout, stderr = call(place.cartridge, *LENGTH)
    asked = ["How many beds?", "Who sells wire?", "Why?"]
    assert (code, stdout, stderr) == (0, "".join(say(*asked[: n + 1]) for n in range(3)), "")
    assert say(*asked[:2]) != say(asked[1])


def test_new_forgets_what_was_said(call, place, say, typed):
    typed("Who?", "/new", "How many beds?")
    assert call(place.cartridge, *LENGTH)[1] == say("Who?") + say("How many beds?")


@pytest.mark.parametrize("form", ["with", "plus", "line", "name"])
def test_several_cartridges_at_once(call, place, other, say, typed, form):
    both = [Cartridge.load(place.cartridge), Cartridge.load(other / "cartridge")]
    expected = say("How many beds?", cartridges=both)
    assert expected != say("How many beds?")
    if form == "with":
        assert call(place.cartridge, "How many beds?", "--with", other, *LENGTH)[:2] == (0, expected)
    elif form == "plus":
        assert call(f"{place.cartridge}+{other}", "How many beds?", *LENGTH)[:2] == (0, expected)
    else:
        typed(f"+{other}" if form == "line" else "+other", "How many beds?")
        told = "cartridge + other: 49 slots\n"
        assert call(place.cartridge, *LENGTH) == (0, told + expected, "")


def test_cartridges_are_taken_off(call, place, other, say, typed):
    typed(
        "-cartridge", "How many beds?", "-other", "/new", "How many beds?", "-other", "+nowhere", f"+{other}", "+other"
    )
    code, stdout, stderr = call(place.cartridge, "--with", other, *LENGTH)
    alone = say("How many beds?", cartridges=[Cartridge.load(other / "cartridge")])
    bare = Engine(place.model).chat("How many beds?", max_new_tokens=12) + "\n"
    assert code == 0
    assert stdout == f"other: 20 slots\n{alone}no cartridge: 0 slots\n{bare}other: 20 slots\n"
    assert [line.split(";")[0] for line in stderr.splitlines()] == [
        "error: other is not on",
        "error: nowhere is not there",
        "error: other is on already",
    ]


def test_a_question_may_begin_with_a_sign():
    assert is_change("+other") and is_change("-other")
    assert not any(map(is_change, ("+", "-5 degrees, or more", "-5?", "other", "")))


def test_a_name_with_a_plus_is_a_name_where_it_exists(tmp_path):
    (tmp_path / "a+b").mkdir()
    assert parts_of(str(tmp_path / "a+b")) == [str(tmp_path / "a+b")]
    assert parts_of("a+b") == ["a", "b"] == parts_of("a++b")


def test_no_line_is_no_answer(call, place, typed):
    typed()
    assert call(place.cartridge) == (0, "", "")


def test_full_reads_the_documents(call, place, say, typed):
    typed("How many beds?", "/full", "/new", "/full Who sells wire?", "/full")
    code, stdout, stderr = call(place.cartridge, "--docs", place.docs, *LENGTH)
    full = [say(question, system=place.corpus.text) for question in ("How many beds?", "Who sells wire?")]
    assert (code, stderr) == (0, "")
    assert stdout == say("How many beds?") + full[0] + full[1] * 2
    assert full[0] != say("How many beds?")


def test_full_answers_in_the_conversation_and_is_not_part_of_it(call, place, say, typed):
    asked = ["How many beds?", "Who sells wire?", "Why?"]
    typed(asked[0], asked[1], "/full", asked[2])
    lines = call(place.cartridge, "--docs", place.docs, *LENGTH)[1]
    said = [say(*asked[: n + 1]) for n in range(3)]
    assert lines.startswith(said[0] + said[1]) and lines.endswith(said[2])
    full = lines[len(said[0] + said[1]) : -len(said[2])]
    assert full not in ("", said[1]) and full.endswith("\n")


def test_the_documents_of_a_build_are_found(call, place, say, typed, tmp_path):
    shutil.copytree(place.cartridge, tmp_path / "cartridge")
    (tmp_path / SOURCE).write_text(json.dumps({"documents": [str(place.docs)]}))
    typed("/full How many beds?")
    assert call(tmp_path, *LENGTH) == (0, say("How many beds?", system=place.corpus.text), "")


@pytest.fixture
def served(place, other):
    with Replica(Engine(place.model)) as replica:
        replica.cartridges = {"ward": Cartridge.load(place.cartridge), "other": Cartridge.load(other / "cartridge")}
        yield replica


def test_a_server_answers_instead(call, place, say, typed, served):
    typed("How many beds?", "+other", "How many beds?", "-ward", "-other", "/new", "How many beds?", "/full")
    code, stdout, stderr = call("ward", "--url", served.url, "--docs", place.docs, *LENGTH)
    bare = Engine(place.model).chat("How many beds?", max_new_tokens=12) + "\n"
    full = say("How many beds?", system=place.corpus.text)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(say("How many beds?") + f"ward + other at {served.url}\n")
    assert stdout.endswith(f"no cartridge at {served.url}\n" + bare + full)
    asked = [body for path, body in served.bodies]
    assert [body["model"] for body in asked] == ["ward", "ward+other", "served", "served"]
    assert [len(body["messages"]) for body in asked] == [1, 3, 1, 2]


def test_what_a_server_refuses_is_one_line(refused, served):
    assert f"{served.url} refused the request (404): there is no model nobody" in refused(
        "nobody", "Who?", "--url", served.url
    )
    asked = ("ward", "Who?", "--url", served.url)
    served.faults = ["drop", 'data: {"error": {"message": "it stopped"}}\n\n', "data: [1]\n\n"]
    assert "cannot be reached or went away" in refused(*asked)
    assert "ended the reply: it stopped" in refused(*asked)
    assert "sent what is no stream of a chat ([1])" in refused(*asked)
    assert "given the URL 'nowhere', expected one such as" in refused("ward", "Who?", "--url", "nowhere")


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
