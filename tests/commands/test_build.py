"""`cartridges build` with the bundled model: one small build through the command, and what it refuses."""

import json
import subprocess
import sys

import pytest

from cartridges.building import BuildConfig
from cartridges.cartridge import Cartridge
from cartridges.commands.build import chat_command, parse_slots
from cartridges.dataset import Dataset
from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from cartridges.pocket.families import make_context
from cartridges.questions import Item, write_items
from cartridges.results import Results
from tests.clients.replica import Replica

COMMAND = "build"

SMALL = [
    "synthesize.num_conversations=32",
    "synthesize.batch_size=32",
    "train.max_steps=2",
    "train.row_len=512",
    "evaluate.max_new_tokens=8",
    "evaluate.untrained=false",
    "max_general=1",
]


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "ward"
    folder.mkdir()
    for number, document in enumerate(make_context("ward", "test", 3, 2, 1).documents, start=1):
        (folder / f"document-{number}.md").write_text(document.text + "\n")
    return folder


@pytest.fixture(scope="module")
def questions(docs):
    path = docs.parent / "questions.jsonl"
    write_items(path, [Item("What is the room?", "The room is 4.", ("4",), document="document-1.md")])
    return path


@pytest.fixture(scope="module")
def made(docs, questions, tmp_path_factory):
    """The working folder of a command that names no --out, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    arguments = [docs, "--slots", 16, "--questions", questions, *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "cartridges", "build", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_builds_into_a_folder_of_the_documents_name(made, docs):
    folder, _ = made
    out = folder / "runs" / "ward"
    made_of = Cartridge.load(out / "slots-16" / "cartridge").manifest
    assert (made_of.num_slots, made_of.name, made_of.metrics["steps"]) == (16, "ward", 2)
    assert len(Dataset.load(out / "conversations").conversations) <= 32
    assert json.loads((out / "source.json").read_text())["documents"] == [str(docs)]
    assert (out / "report.html").is_file() and (out / "README.md").is_file()


def test_it_says_what_it_is_going_to_do_and_what_it_found(made):
    folder, stdout = made
    lines = stdout.splitlines()
    assert lines[0] == "preset: pocket (it fits pocket)"
    assert [line.split(":")[0] for line in lines[1:5]] == ["corpus", "model", "cartridge", "study"]
    assert lines[4].startswith("study: 32 conversations, ") and lines[4].endswith("; then 1 questions of your file")
    assert [line[:3] for line in lines if line[1:3] == "/4"] == ["1/4", "2/4", "3/4", "4/4"]
    assert lines[-1] == "The report is runs/ward/report.html. Talk to it: cartridges chat runs/ward"
    for row in Results.load(folder / "runs" / "ward" / "results.json").methods:
        assert row.label.split(",")[0] in stdout


def test_what_to_type_names_a_size_where_there_are_several(tmp_path):
    folder = tmp_path / "a ward"
    told = [chat_command(folder, BuildConfig.resolve(values={"slots": slots})) for slots in ([32], [16, 64, 32])]
    assert told == [f"cartridges chat '{folder}'", f"cartridges chat '{folder}' --slots 64"]


def test_the_same_command_does_nothing_twice(made, call, docs, questions):
    folder, _ = made
    out = folder / "runs" / "ward"
    kept = [*out.glob("conversations/*.parquet"), *out.glob("slots-16/*.pt"), out / "results.json"]
    kept += out.glob("slots-16/cartridge/cartridge.*")
    before = {path: path.stat().st_mtime_ns for path in kept}
    code, _, stderr = call(docs, "--slots", 16, "--questions", questions, "--out", out, *SMALL)
    assert (code, stderr) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in kept} == before and len(kept) == 5


def test_another_build_in_its_folder_is_refused(made, refused, docs, questions, tmp_path):
    folder, _ = made
    options = ("--slots", 16, "--out", folder / "runs" / "ward", *SMALL)
    (tmp_path / "other.md").write_text("Nothing of interest. " * 20)
    message = refused(tmp_path / "other.md", *options)
    assert "was built from other documents, or they have changed; give another --out" in message
    assert "begun with seed=0 (now 3); give the same" in refused(docs, *options, "synthesize.seed=3")
    assert "holds a run with another config (lr); give another folder" in refused(
        docs, *options, "--questions", questions, "train.lr=0.5"
    )


def test_servers_write_the_conversations_where_they_are_named(made, refused, docs, questions):
    options = (docs, "--out", made[0] / "runs" / "ward", "--slots", 16, "--questions", questions, *SMALL)
    with Replica(Engine("pocket")) as served:  # of which just the model's name is known, unlike of the engine here
        assert "was begun with another model" in refused(*options, "--url", served.url)
    assert "no server answers" in refused(*options, "--url", served.url)


@pytest.mark.parametrize(("text", "sizes"), [("64", [64]), ("128,64", [64, 128]), (" 64 , 64", [64]), ("2", [2])])
def test_sizes_are_read(text, sizes):
    assert parse_slots(text) == sizes


@pytest.mark.parametrize("text", ["abc", "", "64,", "1", "-8", "0,64", "6.5", "64;128"])
def test_sizes_that_are_none_are_told(text):
    with pytest.raises(InputError, match=r"given --slots .*, expected a number of at least 2, or several such as"):
        parse_slots(text)


def test_wrong_input_is_one_line(refused, docs, questions, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"question": "Who?"}\n{')
    out = ("--out", tmp_path / "run")
    assert "nowhere', expected a file or folder of documents" in refused(tmp_path / "nowhere", *out)
    assert "no file in it" in refused(tmp_path / "empty", *out)
    assert "Missing argument 'DOCS... [KEY=VALUE]...'" in refused(*out)
    assert "expected at least one path beside KEY=VALUE" in refused("slots=[8]", *out)
    assert "given --slots abc, expected a number of at least 2" in refused(docs, *out, "--slots", "abc")
    assert "bad.jsonl, line 2 is not JSON" in refused(docs, *out, "--questions", tmp_path / "bad.jsonl")
    assert "cannot read the questions in" in refused(docs, *out, "--questions", tmp_path / "nowhere")
    assert "no model at ./nowhere" in refused(docs, *out, "--model", "./nowhere")
    assert "no model at nowhere; expected 'pocket', a folder" in refused(docs, *out, "--model", "nowhere")
    assert "'gpu' is not one of" in refused(docs, *out, "--device", "gpu")
    assert not (tmp_path / "run").exists()


def test_a_wrong_configuration_is_one_line(refused, docs, tmp_path):
    out = ("--out", tmp_path / "run")
    message = refused(docs, *out, "synthesize.num_conversation=4")
    assert "unknown key of 'synthesize' 'num_conversation'; did you mean 'num_conversations'?" in message
    assert "unknown key 'trian'; did you mean 'train'?" in refused(docs, *out, "trian.lr=4")
    assert "unknown preset 'pockt'; did you mean 'pocket'?" in refused(docs, *out, "--preset", "pockt")
    assert "'train.lr': given -1 (from the command line)" in refused(docs, *out, "train.lr=-1")
    assert "there is none there" in refused(docs, *out, "--config", tmp_path / "nowhere.yaml")
    assert "slots for a corpus of" in refused(docs, *out, "--slots", 5000)
    assert "'slots.0': given 0 (from the command line)" in refused(docs, *out, "slots=[0]")
    assert "'evaluate.max_items': given 0" in refused(docs, *out, "evaluate.max_items=0")
    assert not (tmp_path / "run").exists()


def test_help_imports_no_torch():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['build', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: cartridges build" in done.stdout
