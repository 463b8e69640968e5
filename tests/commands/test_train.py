"""`cartridges train` on a tiny random model: what it makes is what `train` makes, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from cartridges.cartridge import Cartridge
from cartridges.conversation import Conversation, TopK
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.log import read_metrics
from cartridges.model import load_model
from cartridges.recipe import TrainConfig
from cartridges.training import train
from tests.architectures import tiny

COMMAND = "train"

SMALL = ["slots=12", "row_len=96", "max_steps=4", "warmup_steps=1", "eval_every=2", "log_every=1", "precision=fp32"]
SMALL += ["holdout_share=0.2"]


def conversation(index: int) -> Conversation:
    """Random ids with a random teacher."""
    rng = np.random.default_rng(index)
    ids = rng.integers(5, 500, 24).astype(np.int32)
    positions = np.arange(12, 24, dtype=np.int32)
    teacher_ids = np.stack([rng.permutation(500)[:4] for _ in positions]).astype(np.int32)
    logprobs = np.tile(np.log([0.4, 0.3, 0.2, 0.05]).astype(np.float32), (12, 1))
    messages = [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": "yes"}]
    teacher = TopK(teacher_ids, logprobs)
    return Conversation(index, messages, ids, positions, teacher, "ward.txt", 0, 10, "question", 10, 12)


class Place:
    """Two saved models, documents, and conversations that the first model is said to have written."""

    def __init__(self, folder, tokenizer):
        self.docs, self.data, self.paths = folder / "docs", folder / "data", {}
        for seed in (0, 1):
            self.paths[seed] = folder / f"model-{seed}"
            tiny("llama", tokenizer, seed).hf.save_pretrained(self.paths[seed])
            tokenizer.save_pretrained(self.paths[seed])
        self.docs.mkdir()
        (self.docs / "ward.txt").write_text("The ward has nine beds and one door. " * 8)
        self.model = load_model(self.paths[0], device="cpu")
        manifest = {"model": self.model.identity.model_dump(mode="json")}
        Dataset.from_conversations([conversation(index) for index in range(16)], manifest).save(self.data)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_tokenizer):
    return Place(tmp_path_factory.mktemp("place"), tiny_tokenizer)


def test_it_makes_the_cartridge_that_train_makes(call, place, tmp_path):
    out = tmp_path / "ward"
    code, stdout, _ = call(place.data, "--docs", place.docs, "--out", out, *SMALL)
    assert code == 0
    config = TrainConfig.resolve("pocket", None, SMALL)
    expected = train(Dataset.load(place.data), place.model, Corpus.from_path(place.docs), config, tmp_path / "judge")
    made = Cartridge.load(out / "cartridge")
    assert made.digest == expected.digest
    assert (made.manifest.name, made.manifest.model.model_id) == ("ward", str(place.paths[0]))
    lines = stdout.splitlines()
    assert lines[0] == f"model: {place.paths[0]}; preset: pocket; 12 slots"
    assert lines[1].startswith("4 steps in ")
    assert f"held-out loss {made.manifest.metrics['heldout_loss']:.4f} nats a token" in lines[1]
    assert lines[2] == f"The cartridge is in {out / 'cartridge'}. Look at it with: cartridges show {out}"


def test_torchrun_shares_the_rows_of_a_step_among_processes(place, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "cartridges"]
    arguments = ["train", place.data, "--docs", place.docs, "--out", tmp_path / "two", *SMALL, "rows_per_step=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)  # the command finds out by itself
    done = subprocess.run(
        [*launch, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("The cartridge is in ") == 1
    config = TrainConfig.resolve("pocket", None, [*SMALL, "rows_per_step=2"])
    alone = train(Dataset.load(place.data), place.model, Corpus.from_path(place.docs), config, tmp_path / "one")
    two = Cartridge.load(tmp_path / "two" / "cartridge")
    for a, b in zip(two.keys + two.values, alone.keys + alone.values, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)  # kept in bfloat16


def test_the_same_command_trains_once(call, place, tmp_path):
    arguments = (place.data, "--docs", place.docs, "--out", tmp_path / "run", *SMALL)
    first = call(*arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cartridge").iterdir()}
    assert call(*arguments)[:2] == first[:2]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cartridge").iterdir()} == before


def test_it_can_be_named(call, place, tmp_path):
    call(place.data, "--docs", place.docs, "--out", tmp_path, "--name", "beds", *SMALL)
    assert Cartridge.load(tmp_path / "cartridge").manifest.name == "beds"


def test_the_preset_and_a_file_can_be_given(call, place, tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 0.003\nholdout_share: 0\n")
    options = ("--docs", place.docs, "--out", tmp_path / "run", "--preset", "default")
    code, stdout, _ = call(place.data, *options, "--config", tmp_path / "mine.yaml", *SMALL[:-1])
    assert code == 0 and "preset: default" in stdout and "held-out" not in stdout
    training = Cartridge.load(tmp_path / "run" / "cartridge").manifest.training
    assert (training["lr"], training["rows_per_step"], training["max_steps"]) == (0.003, 8, 4)


def test_conversations_about_other_documents_are_refused(call, refused, place, tmp_path):
    corpus = Corpus.from_path(place.docs, include=["*.txt"])
    manifest = {**Dataset.load(place.data).manifest, "corpus_digest": corpus.digest}
    Dataset.from_conversations([conversation(index) for index in range(16)], manifest).save(tmp_path / "data")
    shutil.copytree(place.docs, tmp_path / "docs")
    (tmp_path / "docs" / "more.md").write_text("Nobody knows the tenth bed.")
    options = ("--docs", tmp_path / "docs", "--out", tmp_path / "run", *SMALL)
    assert "are about other documents than those given; name the same ones" in refused(tmp_path / "data", *options)
    assert not (tmp_path / "run").exists()
    assert call(tmp_path / "data", "--include", "*.txt", *options)[0] == 0


def test_an_unfinished_self_study_is_told_of(call, place, tmp_path):
    manifest = {**Dataset.load(place.data).manifest, "is_finished": False}
    Dataset.from_conversations([conversation(index) for index in range(16)], manifest).save(tmp_path / "data")
    code, stdout, _ = call(tmp_path / "data", "--docs", place.docs, "--out", tmp_path / "run", *SMALL)
    note = f"note: the self-study in {tmp_path / 'data'} is not finished; training on what is there"
    assert code == 0 and stdout.splitlines()[0] == note


def test_text_needs_no_conversations(call, place, tmp_path):
    options = ("--docs", place.docs, "--out", tmp_path / "run", "--model", place.paths[0], "objective=text")
    code, _, _ = call(*options, *SMALL)
    assert code == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 4
    made = Cartridge.load(tmp_path / "run" / "cartridge").manifest
    assert made.training["objective"] == "text" and made.dataset_digest == ""


def test_wrong_input_is_one_line(refused, place, tmp_path):
    out = ("--out", tmp_path / "run")
    given = ("--docs", place.docs, *out)
    (tmp_path / "empty").mkdir()
    assert "nowhere, expected the folder of a dataset" in refused(tmp_path / "nowhere", *given)
    assert "it holds no shard-*.parquet" in refused(tmp_path / "empty", *given)
    assert "given 2 folders of conversations" in refused(place.data, tmp_path / "empty", *given)
    assert "Missing option '--out'" in refused(place.data)
    assert "expected a file or folder of documents" in refused(place.data, *out, "--docs", tmp_path / "nowhere")
    assert "no file in it" in refused(place.data, *out, "--docs", tmp_path / "empty")
    assert "no model at ./nowhere" in refused(place.data, *given, "--model", "./nowhere")
    assert "'gpu' is not one of" in refused(place.data, *given, "--device", "gpu")
    assert "unknown key 'slot'; did you mean 'slots'?" in refused(place.data, *given, "slot=9")
    assert "unknown key of 'initialize' 'sed'; did you mean 'seed'?" in refused(place.data, *given, "initialize.sed=9")
    assert "unknown preset 'pockt'; did you mean 'pocket'?" in refused(place.data, *given, "--preset", "pockt")
    assert "'slots': given 'abc' (from the command line)" in refused(place.data, *given, "slots=abc")
    assert "there is none there" in refused(place.data, *given, "--config", tmp_path / "nowhere.yaml")
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_one_line(call, place, tmp_path):
    def last_line(*arguments: object) -> str:
        code, _, stderr = call(*arguments)
        assert code == 2 and "Traceback" not in stderr
        assert stderr.splitlines()[-1].startswith("error: ")
        return stderr.splitlines()[-1]

    given = ("--docs", place.docs, "--out", tmp_path / "run", *SMALL)
    assert "given 900 slots for a text of" in last_line(place.data, *given, "slots=900")
    assert "given 1010 slots and conversations of up to 24 tokens" in last_line(place.data, *given, "slots=1010")
    assert "leaves none to train on" in last_line(place.data, *given, "holdout_share=0.999")
    assert "given no corpus, expected one to initialise" in last_line(place.data, "--out", tmp_path / "run", *SMALL)
    assert "given no conversations, expected some for objective=distill" in last_line(*given)


def test_another_configuration_is_refused(call, place, tmp_path):
    arguments = (place.data, "--docs", place.docs, "--out", tmp_path / "run", *SMALL)
    assert call(*arguments)[0] == 0
    code, _, stderr = call(*arguments, "lr=0.5")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "holds a run with another config (lr); give another folder" in stderr


def test_conversations_of_another_tokenizer_are_refused(refused, place, tmp_path):
    data = shutil.copytree(place.data, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["model"]["tokenizer_digest"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert "tokenizer" in refused(data, "--docs", place.docs, "--out", tmp_path / "run", *SMALL)


def test_damaged_conversations_are_told(refused, place, tmp_path):
    data = shutil.copytree(place.data, tmp_path / "data")
    shard = next(data.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    assert str(shard) in refused(data, "--docs", place.docs, "--out", tmp_path / "run", *SMALL)
    (data / "manifest.json").write_text("{")
    assert "manifest.json" in refused(data, "--docs", place.docs, "--out", tmp_path / "run", *SMALL)


def test_help_imports_no_torch():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: cartridges train" in done.stdout
