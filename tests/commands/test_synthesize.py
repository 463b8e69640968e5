"""`cartridges synthesize` with the bundled model and a small document: what it writes, shows and refuses."""

import subprocess
import sys

import numpy as np
import pytest

from cartridges.dataset import Dataset
from cartridges.engine.engine import Engine
from cartridges.pocket.families import make_context
from tests.clients.replica import Replica

COMMAND = "synthesize"

SMALL = ["num_conversations=16", "batch_size=16", "conversations_per_chunk=16", "answer.max_new_tokens=64"]


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "ward.md").write_text(make_context("ward", "test", 3, 1, 1).text + "\n")
    (folder / "notes.txt").write_text("Nothing of interest. " * 5)
    return folder


@pytest.fixture(scope="module")
def made(docs, tmp_path_factory):
    """The folder of a run of one file, and what the command printed."""
    out = tmp_path_factory.mktemp("runs") / "data"
    arguments = ["synthesize", docs, "--include", "*.md", "--out", out, "--preview", 2, *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "cartridges", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_writes_conversations_and_says_what_it_kept(made, docs):
    out, stdout = made
    dataset = Dataset.load(out)
    about = dataset.manifest
    lines = stdout.splitlines()
    assert lines[0].startswith("corpus: 1 document") and lines[0].endswith("; preset: pocket")
    assert dataset.preview(2) in stdout
    dropped = ", ".join(f"{num} {reason}" for reason, num in about["dropped"].items()) or "none"
    assert lines[-2] == f"{len(dataset.conversations)} of 16 conversations kept; dropped: {dropped}"
    named = f"--docs {docs} --include '*.md' --out runs/train"
    assert lines[-1] == f"Train on them with: cartridges train {out} {named}"
    assert {talk.document for talk in dataset.conversations} <= {"ward.md", ""}
    assert sum(about["dropped"].values()) == 16 - len(dataset.conversations)


def test_a_finished_run_is_taken_up(call, made, docs):
    out, stdout = made
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    again = call(docs, "--include", "*.md", "--out", out, "--preview", 2, *SMALL)
    assert again[:2] == (0, stdout)
    code, shorter, _ = call(docs, "--include", "*.md", "--out", out, "--preview", 0, *SMALL)
    assert code == 0 and shorter.splitlines() == [stdout.splitlines()[0], *stdout.splitlines()[-2:]]
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == before


def test_another_run_in_its_folder_is_refused(refused, made, docs):
    out, _ = made
    options = ("--out", out, *SMALL)
    assert "was begun with another corpus" in refused(docs, *options)
    assert "was begun with seed=0 (now 3)" in refused(docs, "--include", "*.md", *options, "seed=3")
    assert "expected at least the 16 of" in refused(docs, "--include", "*.md", *options, "num_conversations=8")


@pytest.mark.parametrize("dialect", ["vllm", "openai", "sglang"])
def test_servers_give_the_same_data_as_the_engine_here(call, made, docs, tmp_path, dialect):
    """Up to rounding: the servers answer one by one, the engine in batches."""
    expected = Dataset.load(made[0])
    with Replica(Engine("pocket")) as a, Replica(Engine("pocket")) as b:
        options = ("--url", a.url, "--url", b.url, "--dialect", dialect, "--preview", 0, *SMALL)
        code, stdout, stderr = call(docs, "--include", "*.md", "--out", tmp_path / "run", *options)
    assert code == 0, stderr
    found = Dataset.load(tmp_path / "run")
    assert len(found.conversations) == len(expected.conversations)
    for mine, theirs in zip(found.conversations, expected.conversations, strict=True):
        assert (mine.messages, mine.token_ids.tolist()) == (theirs.messages, theirs.token_ids.tolist())
        np.testing.assert_allclose(mine.teacher.logprobs, theirs.teacher.logprobs, atol=1e-3)
    assert found.manifest["num_tokens"]["new"] == expected.manifest["num_tokens"]["new"]
    assert found.manifest["model"] == {"model_id": "pocket"}
    lines = [line for line in stdout.splitlines() if line.startswith("http")]
    assert len(lines) == 2 and sum(int(line.split()[1]) for line in lines) == len(a.bodies) + len(b.bodies)


def test_servers_that_do_not_answer_are_told(refused, docs, tmp_path):
    options = ("--out", tmp_path / "run", "--url", "http://127.0.0.1:1")
    assert "no server answers (http://127.0.0.1:1: ConnectError" in refused(docs, *options)
    assert "'vlm' is not one of" in refused(docs, *options, "--dialect", "vlm")
    assert "nowhere: No such file" in refused(docs, *options, "--api-key-file", tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_wrong_input_is_one_line(refused, docs, tmp_path):
    out = ("--out", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "nowhere', expected a file or folder of documents" in refused(tmp_path / "nowhere", *out)
    assert "no file in it" in refused(tmp_path / "empty", *out)
    assert "Missing option '--out'" in refused(docs)
    assert "Missing argument 'DOCS... [KEY=VALUE]...'" in refused(*out)
    assert "expected at least one path beside KEY=VALUE" in refused("seed=3", *out)
    assert "no model at ./nowhere" in refused(docs, *out, "--model", "./nowhere")
    assert "-1 is not in the range x>=0" in refused(docs, *out, "--preview", -1)
    assert "'gpu' is not one of" in refused(docs, *out, "--device", "gpu")
    assert not (tmp_path / "run").exists()


def test_a_wrong_configuration_is_one_line(refused, docs, tmp_path):
    out = ("--out", tmp_path / "run")
    message = refused(docs, *out, "num_conversation=4")
    assert "unknown key 'num_conversation'; did you mean 'num_conversations'?" in message
    assert "unknown key of 'chunk' 'max_ln'; did you mean 'max_len'?" in refused(docs, *out, "chunk.max_ln=4")
    assert "unknown preset 'pockt'; did you mean 'pocket'?" in refused(docs, *out, "--preset", "pockt")
    assert "'num_conversations': given 'many' (from the command line)" in refused(docs, *out, "num_conversations=many")
    (tmp_path / "bad.yaml").write_text("seed: [")
    assert "is not valid YAML" in refused(docs, *out, "--config", tmp_path / "bad.yaml")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_files_is_refused(refused, docs, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    assert "holds other files (letter.txt) and no config.yaml" in refused(docs, "--out", tmp_path, *SMALL)
    assert "letter.txt is a file" in refused(docs, "--out", tmp_path / "letter.txt", *SMALL)


def test_help_imports_no_torch():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['synthesize', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: cartridges synthesize" in done.stdout
