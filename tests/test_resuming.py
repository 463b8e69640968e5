"""Going on with a training run: in the precision that it began in, and from checkpoints of this version alone."""

import json
import os
import signal

import pytest
import torch

from cartridges import training as train_module
from cartridges.cartridge import Cartridge
from cartridges.errors import CartridgesError, ConfigError, FormatError, InterruptedRun
from cartridges.log import read_metrics
from cartridges.training import CARTRIDGE, CHECKPOINT, METRICS, Run, train
from tests.architectures import tiny
from tests.test_training import CORPUS, config_of


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


def text_config(**changes):
    return config_of(**{"objective": "text", "row_len": 64, "max_steps": 4, "precision": "auto", **changes})


@pytest.fixture
def device_is_fast(monkeypatch):
    """Tell whether the device is fast at bfloat16."""

    def tell(is_fast):
        monkeypatch.setattr("cartridges.precision.has_fast_bf16", lambda device: is_fast)
        monkeypatch.setattr("cartridges.precision.MIN_WIDTH", 0)

    return tell


@pytest.fixture
def begin(monkeypatch):
    """Begin a run and stop it after two steps."""

    def begin(model, config, out):
        real_step = Run.train_step

        def step(run):
            real_step(run)
            if run.done.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patched, pytest.raises(InterruptedRun):
            patched.setattr(Run, "train_step", step)
            train(None, model, CORPUS, config, out)

    return begin


def change_checkpoint(folder, change):
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    change(state)
    torch.save(state, folder / CHECKPOINT)


@pytest.mark.parametrize(("began_fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_run_goes_on_in_the_precision_that_it_began_in(model, tmp_path, device_is_fast, begin, began_fast, precision):
    device_is_fast(began_fast)
    whole = train(None, model, CORPUS, text_config(), tmp_path / "whole")
    begin(model, text_config(), tmp_path / "run")
    device_is_fast(not began_fast)
    resumed = train(None, model, CORPUS, text_config(), tmp_path / "run")
    assert resumed.digest == whole.digest
    assert resumed.manifest.training["precision"] == whole.manifest.training["precision"] == precision
    other = train(None, model, CORPUS, text_config(), tmp_path / "other")
    assert other.digest != whole.digest, "it matters here"


def test_a_precision_that_cannot_be_had_is_told(model, tmp_path, monkeypatch, device_is_fast, begin):
    device_is_fast(True)
    begin(model, text_config(), tmp_path)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    with pytest.raises(ConfigError, match="holds a run in bf16, which the device cpu has not; go on with it on anot"):
        train(None, model, CORPUS, text_config(), tmp_path)


def test_a_model_in_another_dtype_is_told(model, tmp_path, tiny_tokenizer, begin):
    begin(model, text_config(), tmp_path)
    other = tiny("qwen3", tiny_tokenizer)
    other.hf.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="holds a run of the model in fp32, given it in bf16; load it in fp32"):
        train(None, other, CORPUS, text_config(), tmp_path)


def test_the_precision_of_a_model_in_bfloat16_is_its_own(tiny_tokenizer, tmp_path, device_is_fast):
    device_is_fast(False)
    model = tiny("qwen3", tiny_tokenizer)
    model.hf.to(torch.bfloat16)
    made = train(None, model, CORPUS, text_config(max_steps=1), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["precision"] == "bf16"
    assert made.manifest.training["precision"] == "bf16"


def test_a_checkpoint_that_tells_no_precision_goes_on(model, tmp_path, begin):
    begin(model, text_config(), tmp_path)

    def forget(state):
        del state["precision"], state["dtype"]

    change_checkpoint(tmp_path, forget)
    train(None, model, CORPUS, text_config(), tmp_path)
    assert Cartridge.load(tmp_path / CARTRIDGE).manifest.metrics["steps"] == 4


def with_one_group(state):
    groups = state["optimizer"]["param_groups"]
    groups[:] = [{**groups[0], "params": [number for group in groups for number in group["params"]]}]


def with_a_field_of_its_own(state):
    made_with = json.loads(state["made_with"])
    made_with["config"]["momentum"] = 0.5
    state["made_with"] = json.dumps(made_with)


@pytest.mark.parametrize(("change", "told"), [(with_one_group, "an older"), (with_a_field_of_its_own, "another")])
def test_a_checkpoint_of_another_version_is_told(model, tmp_path, begin, change, told):
    begin(model, text_config(), tmp_path)
    change_checkpoint(tmp_path, change)
    with pytest.raises(FormatError, match=rf"{told} version of cartridges wrote it; .* or delete it to begin anew"):
        train(None, model, CORPUS, text_config(), tmp_path)


def test_both_rates_are_in_the_metrics(model, tmp_path):
    train(None, model, CORPUS, text_config(max_steps=3, values_lr_ratio=4.0), tmp_path)
    rows = [row for row in read_metrics(tmp_path / METRICS) if "lr" in row]
    assert len(rows) == 3 and all(row["values_lr"] == pytest.approx(4 * row["lr"]) for row in rows)


@pytest.mark.parametrize(
    ("ratio", "told"),
    [(1.0, "a lower lr than 0.02, or"), (4.0, "a lower lr than 0.02, a lower values_lr_ratio than 4.0")],
)
def test_divergence_names_the_rates(model, tmp_path, monkeypatch, ratio, told):
    monkeypatch.setattr(train_module, "next_token_loss", lambda hidden, *_, **__: hidden.sum() * float("nan"))
    with pytest.raises(CartridgesError, match=f"the loss became nan .* at step 0; give {told}"):
        train(None, model, CORPUS, text_config(holdout_share=0, values_lr_ratio=ratio), tmp_path)
