"""The recipe: phases, learning rates, and what cannot be trained."""

import pytest

from cartridges.errors import ConfigError
from cartridges.pocket.recipe import PocketConfig


@pytest.mark.parametrize("preset", PocketConfig.presets)
def test_every_preset_is_a_recipe(preset):
    config = PocketConfig.resolve(preset)
    assert config.num_steps == sum(phase.steps for phase in config.phases)
    assert config.shape_at(0) == config.phases[0].shapes[0]
    assert config.shape_at(config.num_steps - 1) in config.phases[-1].shapes
    with pytest.raises(IndexError):
        config.shape_at(config.num_steps)


def test_a_phase_begins_where_the_one_before_ends():
    phases = "phases=[{steps: 3, shapes: [{length: 64, rows: 1}]}, {steps: 2, shapes: [{length: 32, rows: 1}]}]"
    config = PocketConfig.resolve("tiny", None, [phases])
    assert [config.shape_at(step).length for step in range(5)] == [64, 64, 64, 32, 32]


def test_shapes_of_a_phase_are_mixed_by_weight():
    shapes = "[{length: 64, rows: 1, weight: 3}, {length: 32, rows: 1}]"
    config = PocketConfig.resolve("tiny", None, [f"phases=[{{steps: 400, shapes: {shapes}}}]"])
    lengths = [config.shape_at(step).length for step in range(400)]
    assert 270 < lengths.count(64) < 330
    assert {32, 64} == set(lengths[:40]) == set(lengths[-40:])


def test_the_rate_warms_up_stays_and_falls():
    config = PocketConfig.resolve(
        "tiny",
        None,
        [
            "phases=[{steps: 100, shapes: [{length: 64, rows: 1}]}]",
            "warmup_steps=10",
            "decay_share=0.4",
            "final_lr_ratio=0.05",
        ],
    )
    ratios = [config.lr_ratio(step) for step in range(100)]
    assert ratios[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert set(ratios[10:61]) == {1.0}
    assert ratios[61:98] == pytest.approx([left / 40 for left in range(39, 2, -1)])
    assert ratios[98:] == pytest.approx([0.05, 0.05])


def test_without_warm_up_the_first_rate_is_the_top():
    assert PocketConfig.resolve("tiny", None, ["warmup_steps=0"]).lr_ratio(0) == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "'seed': given 'abc' (from the command line), expected a valid integer"),
        ("seed=-1", "'seed': given -1"),
        ("phases=[]", "'phases': given [] (from the command line), expected"),
        ("phases=[{steps: 0, shapes: [{length: 64, rows: 1}]}]", "'phases.0.steps': given 0"),
        (
            "phases=[{steps: 1, shapes: [{length: 9000, rows: 1}]}]",
            "given a phase of length 9000, expected at most the window",
        ),
        ("num_kv_heads=3", "given num_heads=1 and num_kv_heads=3, expected a multiple of num_kv_heads"),
        ("head_size=15", "'head_size': given 15 (from the command line), expected a multiple of 2"),
        ("muon_lr=.inf", "'muon_lr': given inf (from the command line), expected a finite number"),
        ("adam_lr=.nan", "'adam_lr': given nan"),
        ("target_share=1e-6", "given target_share=1e-06, expected at least one target in the 512 tokens of a batch"),
        ("warmup=3", "unknown key 'warmup'; did you mean 'warmup_steps'?"),
    ],
)
def test_what_cannot_be_trained_is_told(override, message):
    with pytest.raises(ConfigError) as raised:
        PocketConfig.resolve("tiny", None, [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'smal'; did you mean 'small'"):
        PocketConfig.resolve("smal")
