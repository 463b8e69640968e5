"""A training run, judged by one that nobody disturbed: same curve to the last digit, same weights to the bit."""

import errno
import json
import os
import shutil
import signal
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cartridges import run_folder
from cartridges.errors import CartridgesError, FormatError, InputError, InterruptedRun
from cartridges.log import read_metrics
from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.train import Run, open_run, train
from cartridges.run_folder import write_whole_folder

# Lines of the metrics and checkpoints fall on different steps, so that a stop lands between them.
CONFIG = PocketConfig.resolve("tiny", None, ["log_every=3", "checkpoint_every=4"])


def curve(folder) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith("tokens_per_s")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def assert_same(run: Run, undisturbed: Run) -> None:
    assert curve(run.folder) == curve(undisturbed.folder)
    for (name, mine), reference in zip(run.model.state_dict().items(), weights(undisturbed).values(), strict=True):
        assert torch.equal(mine, reference), name


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small operations wait for their threads where other programs hold the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(one_thread, tmp_path_factory):
    """A finished run."""
    with open_run(tmp_path_factory.mktemp("undisturbed") / "run", CONFIG, "cpu") as run:
        train(run)
    return run


@pytest.fixture
def begun(tmp_path, undisturbed):
    """The folder of a run that has its tokenizer, and no step yet."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.folder, folder, ignore=shutil.ignore_patterns("model", "checkpoint.pt", "*.png", "*l"))
    shutil.copy(undisturbed.folder / "config.yaml", folder)
    return folder


@pytest.fixture
def finished(tmp_path, undisturbed):
    """A finished run to be damaged."""
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def at_step(monkeypatch):
    """Have something happen within a step."""

    def at_step(number, act):
        real = Run.train_step

        def train_step(run, batch):
            if run.step == number:
                act()
            return real(run, batch)

        monkeypatch.setattr(Run, "train_step", train_step)

    return at_step


def test_the_run_is_complete(undisturbed):
    assert [row["step"] for row in curve(undisturbed.folder)] == [3, 6, 9, 10]
    assert (undisturbed.folder / "curves.png").exists()
    assert not [path for path in undisturbed.folder.rglob("*") if path.suffix in (".partial", ".old")]
    origin = json.loads((undisturbed.folder / "manifest.json").read_text())
    assert origin["num_parameters"] == sum(parameter.numel() for parameter in undisturbed.model.parameters())
    assert origin["preset"] is None
    assert origin["hardware"]


def test_the_loss_falls(undisturbed):
    rows = curve(undisturbed.folder)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 4, 7])
def test_a_run_stopped_and_resumed_is_the_undisturbed_one(begun, undisturbed, at_step, step, number):
    at_step(step, lambda: signal.raise_signal(number))
    with (
        open_run(begun, None, "cpu") as run,
        pytest.raises(InterruptedRun, match=rf"stopped at step {step + 1} of 10; go on with: cartridges pocket train "),
    ):
        train(run)
    at_step(-1, None)
    with open_run(begun, None, "cpu") as run:
        assert run.step == step + 1
        train(run)
        assert_same(run, undisturbed)


@pytest.mark.parametrize("began_fast", [True, False])
def test_a_run_goes_on_in_the_precision_that_it_began_in(undisturbed, tmp_path, at_step, monkeypatch, began_fast):
    def train_where(is_fast, name):
        monkeypatch.setattr("cartridges.precision.has_fast_bf16", lambda device: is_fast)
        with open_run(tmp_path / name, None, "cpu") as run:
            train(run)
        return weights(run)

    config = PocketConfig.resolve("tiny", None, ["phases=[{steps: 4, shapes: [{length: 256, rows: 2}]}]"])
    for name in ("whole", "other", "run"):
        shutil.copytree(undisturbed.folder / "tokenizer", tmp_path / name / "tokenizer")
        config.save(tmp_path / name / "config.yaml")
    whole, other = train_where(began_fast, "whole"), train_where(not began_fast, "other")
    at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(InterruptedRun):
        train_where(began_fast, "run")
    at_step(-1, None)
    run = train_where(not began_fast, "run")
    assert all(torch.equal(run[name], value) for name, value in whole.items())
    assert not all(torch.equal(run[name], value) for name, value in other.items()), "it matters here"


def test_a_run_that_dies_within_a_step_goes_on_from_the_checkpoint(begun, undisturbed, at_step, monkeypatch):
    def die():
        raise SystemError

    at_step(6, die)
    with open_run(begun, None, "cpu") as run, pytest.raises(SystemError):
        train(run)
    assert curve(begun)[-1]["step"] == 6
    monkeypatch.undo()
    with open_run(begun, None, "cpu") as run:
        assert run.step == 4
        train(run)
        assert_same(run, undisturbed)


def test_two_signals_interrupt_at_once(begun, at_step):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(1, twice)
    before = signal.getsignal(signal.SIGINT)
    with open_run(begun, None, "cpu") as run, pytest.raises(KeyboardInterrupt):
        train(run)
    assert signal.getsignal(signal.SIGINT) is before


def test_plain_transformers_load_the_export(undisturbed):
    model = AutoModelForCausalLM.from_pretrained(undisturbed.exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(undisturbed.exported)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Where does Dodo Deka stay?"}], tokenize=False)
    ids = torch.tensor([tokenizer(text).input_ids])
    assert (
        ids[0].tolist()
        == undisturbed.tokenizer(text).input_ids
        == undisturbed.encoder.message("user", "Where does Dodo Deka stay?")
    )
    with torch.no_grad():
        mine, exported = undisturbed.model(ids).logits, model(ids).logits
    torch.testing.assert_close(exported, mine, rtol=0.02, atol=0.02)  # weights rounded to 8 bits of mantissa
    assert (exported.argmax(-1) == mine.argmax(-1)).float().mean() > 0.9
    assert AutoModelForCausalLM.from_pretrained(undisturbed.exported).dtype == torch.bfloat16


def test_export_is_silent(undisturbed, tmp_path, capfd):
    undisturbed.export(tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_a_finished_run_is_left_as_it_is(finished):
    def stamps():
        names = ("model/model.safetensors", "checkpoint.pt", "metrics.jsonl", "curves.png", "manifest.json")
        return [(finished / name).stat().st_mtime_ns for name in names]

    before = stamps()
    with open_run(finished, None, "cpu") as run:
        assert run.is_finished
        train(run)
    assert stamps() == before


def test_a_run_that_died_before_its_export_exports(finished, undisturbed):
    shutil.rmtree(finished / "model")
    (finished / "model.partial").mkdir()
    (finished / "model.partial" / "config.json").write_text("{")
    with open_run(finished, None, "cpu") as run:
        assert run.is_trained and not run.is_finished
        train(run)
    exported = [folder / "model" / "model.safetensors" for folder in (finished, undisturbed.folder)]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    assert not (finished / "model.partial").exists()


def test_a_half_written_tokenizer_is_made_anew(begun, undisturbed):
    (begun / "tokenizer").rename(begun / "tokenizer.partial")
    (begun / "tokenizer.partial" / "tokenizer.json").write_text("{")
    with open_run(begun, None, "cpu") as run:
        assert run.made_with() == undisturbed.made_with()


def damaged(path, kind: str) -> None:
    content = path.read_bytes()
    if kind in ("momentum", "shapes", "step", "list"):
        state = torch.load(path, weights_only=True)
        if kind == "momentum":
            first = next(iter(state["optimizers"][0]["state"].values()))
            first["momentum_buffer"] = first["momentum_buffer"][:-1]
        elif kind == "shapes":
            state["model"] = {name: value[:-1] for name, value in state["model"].items()}
        elif kind == "step":
            state["step"] = 11
        torch.save([state] if kind == "list" else state, path)
        return
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "noise": bytes(range(256)) * 9, "flip": bytes(flipped)}[
            kind
        ]
    )


@pytest.mark.parametrize("kind", ["cut", "empty", "noise", "flip", "shapes", "momentum", "step", "list"])
def test_a_damaged_checkpoint_is_one_line(finished, kind):
    damaged(finished / "checkpoint.pt", kind)
    with pytest.raises(FormatError, match=r"cannot resume from .*checkpoint.pt: it is damaged \(") as raised:
        open_run(finished, None, "cpu")
    assert str(raised.value).endswith("restore it, or delete it to begin anew")
    with pytest.raises(FormatError):  # and the folder was let go
        open_run(finished, None, "cpu")


def test_begun_anew_it_is_the_same_run(finished, undisturbed):
    (finished / "checkpoint.pt").unlink()
    (finished / "model" / "README.md").write_text("of the run before")
    with open_run(finished, None, "cpu") as run:
        train(run)
        assert_same(run, undisturbed)
    assert not (finished / "model" / "README.md").exists()


def test_a_checkpoint_without_sums_and_origin_is_resumed(finished):
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.save({key: state[key] for key in ("step", "model", "optimizers")}, finished / "checkpoint.pt")
    with open_run(finished, None, "cpu") as run:
        assert run.is_finished


def test_an_edited_config_is_told(finished):
    path = finished / "config.yaml"
    path.write_text(path.read_text().replace("muon_lr: 0.02", "muon_lr: 0.03"))
    with pytest.raises(FormatError, match=r"was made with another muon_lr than .*config.yaml says; restore that file"):
        open_run(finished, None, "cpu")


@pytest.mark.parametrize("content", ["", "seed: [", "phases: 3\n", "nonsense: 1\n", "just text"])
def test_a_damaged_config_is_one_line(finished, content):
    (finished / "config.yaml").write_text(content)
    with pytest.raises(FormatError, match=r"config.yaml is damaged: .*; restore it, or give another folder") as raised:
        open_run(finished, None, "cpu")
    assert "\n" not in str(raised.value)


def test_a_damaged_tokenizer_is_one_line(finished):
    (finished / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"the tokenizer in .* cannot be read .*; delete that folder to make it anew"):
        open_run(finished, None, "cpu")


def test_another_tokenizer_than_the_checkpoints_is_told(finished):
    path = finished / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(FormatError, match="was made with another tokenizer than"):
        open_run(finished, None, "cpu")


def test_another_configuration_is_refused_and_named(finished):
    other = PocketConfig.resolve("tiny", None, ["log_every=3", "seed=5"])
    with pytest.raises(InputError, match="holds a run with another seed; give another folder, or resume it as it is"):
        open_run(finished, other, "cpu")


def test_nothing_to_resume(tmp_path):
    with pytest.raises(InputError, match="nowhere holds no run to resume; give a preset to begin one"):
        open_run(tmp_path / "nowhere", None)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\) and no config.yaml of a run"):
        open_run(tmp_path, CONFIG)


def test_one_run_at_a_time(finished):
    with (
        open_run(finished, None, "cpu"),
        pytest.raises(InputError, match=r"is in use by process \d+; wait for its end or give another folder"),
    ):
        open_run(finished, None, "cpu")
    open_run(finished, None, "cpu").close()


def test_no_cuda_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="given the device cuda, but torch sees no CUDA device here"):
        open_run(tmp_path / "run", CONFIG, "cuda")


def test_a_diverging_run_stops(begun):
    with open_run(begun, None, "cpu") as run:
        run.model.get_input_embeddings().weight.data.fill_(torch.nan)
        with pytest.raises(CartridgesError, match="the loss became nan at step 0; lower muon_lr and adam_lr"):
            train(run)
    assert not (begun / "checkpoint.pt").exists()


def test_a_full_memory_is_told(begun, at_step):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    at_step(2, fail)
    with (
        open_run(begun, None, "cpu") as run,
        pytest.raises(CartridgesError, match="step 2 does not fit into memory; give fewer rows"),
    ):
        train(run)


def test_a_full_disk_is_told_and_the_old_checkpoint_stays(finished, monkeypatch):
    before = (finished / "checkpoint.pt").read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(finished, None, "cpu") as run:
        run.step = 9
        monkeypatch.setattr(run_folder.os, "fsync", full)
        with pytest.raises(InputError, match=r"checkpoint.pt: No space left on device; mend that and give the same"):
            train(run)
    assert (finished / "checkpoint.pt").read_bytes() == before
    assert not (finished / "checkpoint.pt.partial").exists()


def test_a_full_disk_told_by_a_library_in_rust(tmp_path):
    def fill(folder):
        (folder / "half").write_text("half")
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left on device") as raised:
        write_whole_folder(tmp_path / "model", fill)
    assert raised.value.filename == str(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_within_is_not_disguised(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_whole_folder(tmp_path / "model", lambda folder: 1 / 0)


def test_checkpoints_hold_no_code(undisturbed):
    assert zipfile.is_zipfile(undisturbed.checkpoint)
    assert set(torch.load(undisturbed.checkpoint, weights_only=True)) == {
        "step",
        "model",
        "optimizers",
        "recent",
        "precision",
        "made_with",
    }
