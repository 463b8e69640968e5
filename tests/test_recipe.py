"""The configuration of training: presets, limits, and the rate over the steps."""

import pytest

from cartridges.errors import ConfigError
from cartridges.recipe import TrainConfig


def test_the_defaults_are_the_papers():
    config = TrainConfig.resolve()
    assert config == TrainConfig.resolve("default") == TrainConfig()
    assert (config.lr, config.frozen_slots, config.objective, config.initialize.kind) == (
        2e-2,
        1,
        "distill",
        "first_tokens",
    )


def test_the_preset_of_pocket_changes_just_what_it_names():
    default, pocket = (TrainConfig.resolve(name).model_dump() for name in ("default", "pocket"))
    assert {key for key in default if default[key] != pocket[key]} == set(TrainConfig.presets["pocket"])


def test_what_is_saved_is_loaded(tmp_path):
    config = TrainConfig.resolve("pocket", None, ["max_steps=7", "initialize.kind=random", "trackers=[wandb]"])
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=0", "'lr': given 0 .* greater than 0"),
        ("lr=1e38", "'lr': given 1e\\+38 .* less than or equal to"),
        ("lr=.nan", "'lr': given nan"),
        ("lr=.inf", "'lr': given inf"),
        ("slots=0", "'slots': given 0"),
        ("frozen_slots=-1", "'frozen_slots': given -1"),
        ("slots=1", "given slots=1 and frozen_slots=1, expected at least one slot to train"),
        ("epochs=0", "'epochs': given 0"),
        ("max_steps=0", "'max_steps': given 0"),
        ("row_len=7", "'row_len': given 7"),
        ("holdout_share=1", "'holdout_share': given 1"),
        ("beta1=1", "'beta1': given 1"),
        ("clip=-1", "'clip': given -1"),
        ("objective=distil", "'objective': given 'distil' .* 'distill'"),
        ("precision=fp16", "'precision': given 'fp16'"),
        ("initialize.kind=txt", "'initialize.kind': given 'txt'"),
        ("initialize.kind=text", "no initialize.text, expected the text to read"),
        ("initialize.kind=cartridge", "no initialize.cartridge, expected its folder"),
        ("learning_rate=1", "unknown key 'learning_rate'"),
        ("epoch=2", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("initialize.sed=2", "unknown key of 'initialize' 'sed'; did you mean 'seed'?"),
    ],
)
def test_nonsense_is_told(override, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.resolve(overrides=[override])


def test_an_unknown_preset_is_told():
    with pytest.raises(ConfigError, match=r"unknown preset 'pockt'; did you mean 'pocket'\?"):
        TrainConfig.resolve("pockt")


@pytest.mark.parametrize(
    ("warmup", "num_steps"), [(0, 1), (0, 10), (1, 1), (5, 5), (5, 6), (20, 3), (20, 100), (99, 100)]
)
@pytest.mark.parametrize("final", [0.0, 0.02, 1.0])
def test_the_rate_is_within_its_bounds_up_then_down(warmup, num_steps, final):
    config = TrainConfig(warmup_steps=warmup, final_lr_ratio=final)
    ratios = [config.lr_ratio(step, num_steps) for step in range(num_steps)]
    assert all(0 < ratio <= 1 for ratio in ratios)
    rising = ratios[: min(warmup, num_steps)]
    assert rising == sorted(rising)
    assert ratios[warmup:] == sorted(ratios[warmup:], reverse=True)
    assert all(ratio >= final for ratio in ratios[warmup:])


def test_the_rate_is_linear_in_both_parts():
    config = TrainConfig(warmup_steps=10, final_lr_ratio=0.0)
    ratios = [config.lr_ratio(step, 110) for step in range(110)]
    assert ratios[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert ratios[10:] == pytest.approx([1 - step / 100 for step in range(100)])
