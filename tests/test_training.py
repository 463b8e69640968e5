"""Training, judged by undisturbed runs, by rows taken apart, and by what it is for: a lower loss."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from cartridges import training as train_module
from cartridges.attention import attend
from cartridges.cartridge import Cartridge
from cartridges.conversation import Conversation, TopK
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset, DatasetWriter
from cartridges.errors import CartridgesError, ConfigError, FormatError, InputError, InterruptedRun
from cartridges.initialization import initialize
from cartridges.log import read_metrics
from cartridges.model import load_model
from cartridges.recipe import TrainConfig
from cartridges.rows import RowPlan
from cartridges.training import CHECKPOINT, METRICS, Run, train
from tests.architectures import tiny
from tests.reference import logits_behind

CORPUS = Corpus.from_texts({"a.txt": "The ward has nine beds and one door. " * 20})
SMALL = {
    "slots": 12,
    "row_len": 96,
    "rows_per_step": 2,
    "lr": 0.02,
    "epochs": 2,
    "warmup_steps": 2,
    "eval_every": 3,
    "save_every": 2,
    "log_every": 1,
    "holdout_share": 0.2,
    "precision": "fp32",
    "save_dtype": "float32",
}


def config_of(**changes):
    return TrainConfig.model_validate({**SMALL, **changes})


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


@pytest.fixture(scope="module")
def dataset(model):
    """Random conversations whose teacher is the same model behind other slots."""
    rng = random.Random(4)
    teacher_slots = [[torch.randn(2, 5, 16) for _ in range(2)] for _ in range(2)]
    conversations = []
    for index in range(24):
        ids = [rng.randrange(4, 500) for _ in range(rng.randint(12, 40))]
        with torch.no_grad():
            logprobs = logits_behind(model, *teacher_slots, ids).log_softmax(-1)
        positions = np.arange(6, len(ids), dtype=np.int32)
        top = logprobs[positions - 1].topk(10)
        rows = TopK(top.indices.numpy().astype(np.int32), top.values.numpy().astype(np.float32))
        messages = [{"role": "user", "content": f"question {index}"}, {"role": "assistant", "content": "answer"}]
        ids_T = np.array(ids, dtype=np.int32)
        conversations.append(
            Conversation(index, messages, ids_T, positions, rows, "a.txt", 0, 10, "question", 10, len(positions))
        )
    return Dataset.from_conversations(conversations, {})


def curve(folder):
    timed = ("seconds",)
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(folder / METRICS)]


@pytest.fixture(scope="module")
def undisturbed(dataset, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, train(dataset, model, CORPUS, config_of(), folder)


def test_training_lowers_the_heldout_loss(undisturbed):
    folder, cartridge = undisturbed
    losses = [row["heldout_loss"] for row in curve(folder) if "heldout_loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    assert cartridge.manifest.metrics["heldout_loss"] == min(losses)
    assert (folder / "curves.png").stat().st_size > 1000


def test_only_slots_behind_the_frozen_ones_move(undisturbed, model):
    _, cartridge = undisturbed
    from cartridges.initialization import InitializeConfig, initialize

    start = initialize(model, CORPUS, 12, InitializeConfig())
    for trained, untrained in zip(cartridge.keys + cartridge.values, start.keys + start.values, strict=True):
        assert torch.equal(trained[:, :1], untrained[:, :1])
        assert ((trained - untrained)[:, 1:].abs().amax((0, 2)) > 0).all()


def test_a_finished_run_is_given_back(undisturbed, dataset, model):
    folder, cartridge = undisturbed
    before = (folder / CHECKPOINT).stat().st_mtime_ns
    assert train(dataset, model, CORPUS, config_of(), folder).digest == cartridge.digest
    assert (folder / CHECKPOINT).stat().st_mtime_ns == before


@pytest.mark.parametrize("steps_before", [1, 4, 7])
def test_a_stopped_run_goes_on_with_the_same_curve(undisturbed, dataset, model, tmp_path, monkeypatch, steps_before):
    real_step, done = Run.train_step, []

    def step(run):
        real_step(run)
        done.append(1)
        if len(done) == steps_before:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Run, "train_step", step)
    with pytest.raises(InterruptedRun, match=rf"stopped at step {steps_before} of .* give the same command again"):
        train(dataset, model, CORPUS, config_of(), tmp_path / "run")
    monkeypatch.undo()
    cartridge = train(dataset, model, CORPUS, config_of(), tmp_path / "run")
    folder, whole = undisturbed
    assert curve(tmp_path / "run") == curve(folder)
    assert cartridge.digest == whole.digest


def test_a_run_that_dies_goes_on_with_the_same_curve(undisturbed, dataset, model, tmp_path, monkeypatch):
    real_step, done = Run.train_step, []

    def step(run):
        if len(done) == 5:  # between two checkpoints; lines were written since
            raise KeyboardInterrupt
        real_step(run)
        done.append(1)

    monkeypatch.setattr(Run, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, model, CORPUS, config_of(), tmp_path / "run")
    monkeypatch.undo()
    cartridge = train(dataset, model, CORPUS, config_of(), tmp_path / "run")
    folder, whole = undisturbed
    assert curve(tmp_path / "run") == curve(folder)
    assert cartridge.digest == whole.digest


def test_accumulation_gives_the_gradient_of_one_long_row(dataset, model, tmp_path):
    def gradient(**changes):
        run = Run(dataset, model, CORPUS, config_of(holdout_share=0, **changes), tmp_path, Accelerator(cpu=True))
        rows = run.plan.step_rows(0)
        with attend(model):
            for row in rows:
                (run.loss_of(row) / sum(row.num_targets for row in rows)).backward()
        return [parameter.grad for parameter in run.slots.trained], len(rows)

    apart, num_apart = gradient(row_len=48, rows_per_step=1000)
    together, num_together = gradient(row_len=4000, rows_per_step=1)
    assert num_apart > 10 and num_together == 1
    for a, b in zip(apart, together, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"frozen_slots": 0}, {"objective": "next_token"}])
def test_variants_train(dataset, model, tmp_path, changes):
    train(dataset, model, CORPUS, config_of(max_steps=12, **changes), tmp_path)
    losses = [row["heldout_loss"] for row in curve(tmp_path) if "heldout_loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("trained", "moved", "held"), [("values", "values", "keys"), ("keys", "keys", "values")])
def test_one_part_of_the_slots_can_be_held(dataset, model, tmp_path, trained, moved, held):
    made = train(dataset, model, CORPUS, config_of(trained=trained, max_steps=2), tmp_path)
    start = Run(dataset, model, CORPUS, config_of(max_steps=2), tmp_path, Accelerator(cpu=True)).slots.cartridge
    for layer in range(2):
        assert torch.equal(getattr(made, held)[layer], getattr(start, held)[layer])
        assert not torch.equal(getattr(made, moved)[layer], getattr(start, moved)[layer])


def test_checkpointing_changes_nothing(dataset, model, tmp_path):
    digests = {
        train(dataset, model, CORPUS, config_of(max_steps=3, checkpointing=on), tmp_path / str(on)).digest
        for on in (False, True)
    }
    assert len(digests) == 1


def test_raw_text_needs_no_conversations(model, tmp_path):
    train(None, model, CORPUS, config_of(objective="text", max_steps=60, row_len=64, lr=0.1), tmp_path)
    losses = [row["loss"] for row in curve(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]


def test_values_have_a_rate_of_their_own(dataset, model, tmp_path):
    start = initialize(model, CORPUS, 12, config_of().initialize)
    made = train(dataset, model, CORPUS, config_of(max_steps=1, warmup_steps=0, lr=0.02, values_lr_ratio=4.0), tmp_path)
    for kind, lr in (("keys", 0.02), ("values", 0.08)):  # Adam's first step is the rate itself
        moved = [(b - a).abs().max() for a, b in zip(getattr(start, kind), getattr(made, kind), strict=True)]
        assert moved == [pytest.approx(lr, rel=1e-3)] * len(moved)


@pytest.mark.parametrize(("is_fast", "told"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_chosen_by_the_device(dataset, model, tmp_path, monkeypatch, is_fast, told):
    monkeypatch.setattr("cartridges.precision.has_fast_bf16", lambda device: is_fast)
    monkeypatch.setattr("cartridges.precision.MIN_WIDTH", 0)
    runs = [train(dataset, model, CORPUS, config_of(max_steps=2, precision=p), tmp_path / p) for p in ("auto", told)]
    assert torch.equal(runs[0].keys[0], runs[1].keys[0])
    assert json.loads((tmp_path / "auto" / "manifest.json").read_text())["precision"] == told


def test_bf16_comes_close(dataset, model, tmp_path, undisturbed):
    cartridge = train(dataset, model, CORPUS, config_of(precision="bf16"), tmp_path)
    exact, found = (made.manifest.metrics["heldout_loss"] for made in (undisturbed[1], cartridge))
    assert found == pytest.approx(exact, rel=0.1) and found != exact


def test_early_stopping_keeps_the_best(dataset, model, tmp_path):
    config = config_of(lr=3.0, warmup_steps=0, eval_every=1, patience=2, epochs=20)
    cartridge = train(dataset, model, CORPUS, config, tmp_path)
    losses = [row["heldout_loss"] for row in curve(tmp_path) if "heldout_loss" in row]
    metrics = cartridge.manifest.metrics
    assert metrics["steps"] < RowPlan.of(dataset, model, CORPUS, config).num_steps
    assert min(losses[-2:]) > min(losses)
    assert metrics["heldout_loss"] == min(losses) == losses[metrics["kept_step"]]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("Tried to"), RuntimeError("Error: can't allocate memory")])
def test_a_lack_of_memory_is_told(dataset, model, tmp_path, monkeypatch, error):
    monkeypatch.setattr(Run, "loss_of", Mock(side_effect=[error, RuntimeError("another")]))
    told = (
        "^a row of 256 tokens behind 8 slots does not fit into memory; give a lower row_len, then checkpointing=true$"
    )
    with pytest.raises(CartridgesError, match=told):
        train(dataset, model, CORPUS, config_of(row_len=256, slots=8), tmp_path)
    with pytest.raises(RuntimeError, match="another"):
        train(dataset, model, CORPUS, config_of(row_len=256, slots=8), tmp_path)


def test_a_loss_that_is_no_number_is_told(dataset, model, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "distillation_loss", lambda hidden, *_, **__: hidden.sum() * float("nan"))
    with pytest.raises(CartridgesError, match=r"the loss became nan .* at step 0; give a lower lr than 0.02"):
        train(dataset, model, CORPUS, config_of(holdout_share=0), tmp_path)


def test_another_configuration_is_refused(undisturbed, dataset, model):
    with pytest.raises(ConfigError, match=r"holds a run with another config \(lr\); give another folder"):
        train(dataset, model, CORPUS, config_of(lr=0.5), undisturbed[0])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged"])
def test_a_damaged_checkpoint_is_told(dataset, model, tmp_path, content):
    train(dataset, model, CORPUS, config_of(max_steps=2), tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(FormatError, match=r"cannot resume from .*: it is damaged"):
        train(dataset, model, CORPUS, config_of(max_steps=2), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 4000}, "given 4000 slots"),
        ({"slots": 1000}, "given 1000 slots and conversations of up to"),
        ({"objective": "text", "row_len": 4096}, "given row_len=4096 behind 12 slots"),
        ({"holdout_share": 0.999999}, "which leaves none to train on"),
    ],
)
def test_what_does_not_fit_is_told(dataset, model, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(dataset, model, CORPUS, config_of(**changes), tmp_path)


def test_nothing_to_train_on_is_told(model, tmp_path):
    with pytest.raises(InputError, match="given no conversations, expected some for objective=distill"):
        train(None, model, CORPUS, config_of(), tmp_path)


def test_no_slot_to_train_is_told():
    with pytest.raises(ConfigError, match="given slots=4 and frozen_slots=4"):
        TrainConfig.resolve(overrides=["slots=4", "frozen_slots=4"])


def test_the_rate_warms_up_and_falls():
    config = config_of(warmup_steps=4, final_lr_ratio=0.1)
    ratios = [config.lr_ratio(step, 24) for step in range(24)]
    assert ratios[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert ratios[4:] == sorted(ratios[4:], reverse=True)
    assert ratios[14] == pytest.approx(0.5) and ratios[-1] == pytest.approx(0.1)


def test_the_artifact_tells_where_it_comes_from(undisturbed, dataset):
    folder, cartridge = undisturbed
    manifest = cartridge.manifest
    assert manifest.dataset_digest == dataset.digest and manifest.corpus_digest == CORPUS.digest
    assert manifest.training["lr"] == 0.02 and manifest.metrics["steps"] > 5
    assert json.loads((folder / "manifest.json").read_text())["slots"] == 12
    assert Cartridge.load(folder / "cartridge").digest == manifest.digest


def test_a_run_begun_anew_gives_a_new_cartridge(dataset, model, tmp_path):
    before = train(dataset, model, CORPUS, config_of(max_steps=2), tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    after = train(dataset, model, CORPUS, config_of(max_steps=2, lr=0.5), tmp_path)
    assert after.manifest.training["lr"] == 0.5 and after.digest != before.digest


def test_a_folder_of_conversations_is_not_overwritten(dataset, model, tmp_path):
    dataset.save(tmp_path)
    with pytest.raises(InputError, match="holds a dataset, which a training run would overwrite"):
        train(dataset, model, CORPUS, config_of(), tmp_path)


def test_the_last_slots_have_the_last_loss(dataset, model, tmp_path):
    config = config_of(lr=3.0, warmup_steps=0, eval_every=1, keep_best=False, max_steps=6)
    cartridge = train(dataset, model, CORPUS, config, tmp_path)
    losses = [row["heldout_loss"] for row in curve(tmp_path) if "heldout_loss" in row]
    assert cartridge.manifest.metrics["heldout_loss"] == losses[-1] > min(losses)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patience": 3, "holdout_share": 0}, "given patience=3 and holdout_share=0"),
        ({"trackers": ["nonsense"]}, "given trackers=.*nonsense"),
    ],
)
def test_configurations_that_cannot_work_are_told(dataset, model, tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        train(dataset, model, CORPUS, config_of(**values), tmp_path)


def test_fields_can_be_given_by_name(dataset, model, tmp_path):
    cartridge = train(dataset, model, CORPUS, out=tmp_path, slots=6, max_steps=1, save_dtype="float32")
    assert cartridge.num_slots == 6
    with pytest.raises(ConfigError, match="unknown key 'slot'"):
        train(dataset, model, CORPUS, out=tmp_path, slot=6)
    with pytest.raises(ConfigError, match="given a config and slots; give one or the other"):
        train(dataset, model, CORPUS, config_of(), tmp_path, slots=6)


PROGRAM = """
import sys
from pathlib import Path
from accelerate import PartialState
sys.path.insert(0, {root!r})
from tests.test_training import CORPUS, Dataset, config_of, load_model, torch, train
torch.set_num_threads(1)
model = load_model({model!r}, device="cpu")
train(Dataset.load(Path({data!r})), model, CORPUS, config_of(max_steps={max_steps}, rows_per_step=3), Path({out!r}))
"""


@pytest.fixture
def program(dataset, model, tmp_path, tiny_tokenizer):
    """Writes a program that trains into a folder of that name."""
    model.hf.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    DatasetWriter(tmp_path / "data").write_shard(0, list(dataset.conversations))

    def write(name: str, max_steps: int) -> str:
        paths = {kind: str(tmp_path / folder) for kind, folder in (("model", "model"), ("data", "data"), ("out", name))}
        root = os.fspath(train_module.Path(__file__).parent.parent)
        (tmp_path / "program.py").write_text(PROGRAM.format(root=root, max_steps=max_steps, **paths))
        return str(tmp_path / "program.py")

    return write


def test_two_processes_take_the_steps_of_one(program, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    found = subprocess.run([*launch, program("two", 4)], capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    loaded, read = load_model(tmp_path / "model", device="cpu"), Dataset.load(tmp_path / "data")
    alone = train(read, loaded, CORPUS, config_of(max_steps=4, rows_per_step=3), tmp_path / "one")
    two = Cartridge.load(tmp_path / "two" / "cartridge")
    for a, b in zip(two.keys + two.values, alone.keys + alone.values, strict=True):
        assert (a - b).abs().max() < 1e-4


def test_kill_9_loses_no_finished_checkpoint(program, tmp_path):
    process = subprocess.Popen([sys.executable, program("run", 60)], stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(random.random() / 2)
    process.kill()
    process.wait()
    loaded, read = load_model(tmp_path / "model", device="cpu"), Dataset.load(tmp_path / "data")
    config = config_of(max_steps=60, rows_per_step=3)
    torch.set_num_threads(1)  # as in the program, so that sums are of the same order
    resumed, whole = (train(read, loaded, CORPUS, config, tmp_path / name) for name in ("run", "whole"))
    assert curve(tmp_path / "run") == curve(tmp_path / "whole") and resumed.digest == whole.digest
