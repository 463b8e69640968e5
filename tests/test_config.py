import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from cartridges.config import Config
from cartridges.errors import ConfigError


class Optimizer(Config):
    lr: float = 1e-3
    betas: list[float] = [0.9, 0.95]

    @model_validator(mode="after")
    def _lr_fits(self) -> Self:
        if self.lr == self.betas[0]:
            raise ValueError(f"given lr={self.lr} and betas={self.betas}, expected different ones")
        return self


class Train(Config):
    presets: ClassVar = {"pocket": {"seed": 1, "optimizer": {"lr": 0.5}}, "paper": {"num_steps": 9}}

    seed: int = 0
    num_steps: int = Field(default=100, gt=0)
    name: str = "run"
    output: Path = Path("runs")
    warm: bool = False
    limit: int | None = None
    optimizer: Optimizer = Optimizer(betas=[0.8, 0.99])

    @field_validator("name")
    @classmethod
    def _no_slash(cls, name: str) -> str:
        if "/" in name:
            raise ValueError("a name without '/'")
        return name


class Needy(Config):
    data: Path


def refused(*overrides: str, **sources) -> str:
    with pytest.raises(ConfigError) as caught:
        Train.resolve(overrides=overrides, **sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_order_of_sources(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("seed: 2\nnum_steps: 50\n")
    assert Train.resolve().seed == 0
    assert Train.resolve("pocket").seed == 1
    assert Train.resolve("pocket", file).seed == 2
    resolved = Train.resolve("pocket", file, ["seed=3"])
    assert (resolved.seed, resolved.num_steps, resolved.optimizer.lr) == (3, 50, 0.5)


def test_override_of_one_nested_key_keeps_its_siblings():
    optimizer = Train.resolve("pocket", overrides=["optimizer.lr=1e-4"]).optimizer
    assert optimizer == Optimizer(lr=1e-4, betas=[0.8, 0.99])


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("optimizer.betas=[0.5, 1e-2]", "optimizer", Optimizer(betas=[0.5, 0.01])),
        ("limit=7", "limit", 7),
        ("limit=null", "limit", None),
        ("warm=true", "warm", True),
        ("output=a/b", "output", Path("a/b")),
        ("output=7", "output", Path("7")),
        ("name=1.10", "name", "1.10"),
        ("name=a=b", "name", "a=b"),
        ("name=on", "name", "on"),
        ("name={{TEXT}}", "name", "{{TEXT}}"),
        ("name=2024-02-30", "name", "2024-02-30"),
        ("name=[draft", "name", "[draft"),
        ("name=" + "[" * 700, "name", "[" * 700),
        ("output={{TEXT}}", "output", Path("{{TEXT}}")),
    ],
)
def test_override_values(override, field, value):
    assert getattr(Train.resolve(overrides=[override]), field) == value


def test_wrong_type_names_field_given_source_and_expected():
    assert refused("seed=abc").startswith("'seed': given 'abc' (from the command line), expected a valid integer")


def test_wrong_nested_type():
    message = refused("optimizer.lr=fast")
    assert message.startswith("'optimizer.lr': given 'fast' (from the command line), expected a valid number")


def test_wrong_list_item():
    assert "'optimizer.betas.1': given 'x' (from the command line)" in refused("optimizer.betas=[1, x]")


def test_bounds_and_validators_are_told():
    assert refused("num_steps=0") == "'num_steps': given 0 (from the command line), expected greater than 0"
    assert refused("name=a/b") == "'name': given 'a/b' (from the command line), expected a name without '/'"


def test_a_check_over_several_nested_fields_tells_those_alone():
    told = "'optimizer': given lr=0.5 and betas=[0.5, 0.9], expected different ones"
    assert refused("optimizer.lr=0.5", "optimizer.betas=[0.5, 0.9]") == told


class Several(Config):
    presets: ClassVar = {"paper": {"train": {"seed": 5}}}
    elsewhere: ClassVar = {"train.seed": "seeds=[N]"}

    train: Train = Train()


@pytest.mark.parametrize("preset", [None, "paper"])
def test_what_is_to_be_given_elsewhere_is_told_wherever_it_stands(preset, tmp_path):
    (tmp_path / "x.yaml").write_text("train: {seed: 0}")
    assert Several.resolve(preset, None, ["train.name=x"]).train.seed == (5 if preset else 0)
    for given, source in (
        ({"overrides": ["train.seed=5"]}, "the command line"),
        ({"file": tmp_path / "x.yaml"}, f"file {str(tmp_path / 'x.yaml')!r}"),
        ({"values": {"train": {"seed": 1}}}, "the call"),
    ):
        with pytest.raises(ConfigError) as raised:
            Several.resolve(preset, **given)
        assert str(raised.value) == f"given train.seed (from {source}), expected seeds=[N]"


def test_every_wrong_value_is_told_at_once():
    message = refused("seed=abc", "num_steps=-1")
    assert "'seed'" in message and "'num_steps'" in message


def test_unknown_key_suggests_the_nearest():
    message = refused("sed=1")
    assert message.startswith("unknown key 'sed'; did you mean 'seed'? known: limit, name,")
    assert message.endswith("(from the command line)")


def test_unknown_nested_key_suggests_among_its_siblings():
    message = refused("optimizer.lrr=1")
    assert message == ("unknown key of 'optimizer' 'lrr'; did you mean 'lr'? known: betas, lr (from the command line)")


def test_unknown_preset_suggests_the_nearest():
    assert refused(preset="pockt") == "unknown preset 'pockt'; did you mean 'pocket'? known: paper, pocket"


def test_override_without_equals():
    assert refused("seed") == "given 'seed', expected an override of the form key=value or key.sub=value"


@pytest.mark.parametrize("override", ["=1", "optimizer.=1", ".seed=1"])
def test_override_without_a_key(override):
    assert "expected an override of the form" in refused(override)


def test_override_with_broken_yaml():
    assert "expected a YAML value after '='" in refused("optimizer.betas=[1, 2")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{{N}}", "line 1: found unhashable key"),
        ("2024-02-30", "day is out of range for month"),
        ("!!bool x", "a value does not fit its tag"),
        ("!!int ''", "a value does not fit its tag"),
        ("!!timestamp x", "a value does not fit its tag"),
        ("[" * 700, "it is nested too deep"),
    ],
)
def test_what_yaml_cannot_read_is_told_in_one_line(tmp_path, value, problem):
    for key in ("seed", "limit", "optimizer", "optimizer.betas"):
        override = f"{key}={value}"
        assert refused(override) == f"given {override!r}, expected a YAML value after '=' ({problem}); quote it"
    file = tmp_path / "train.yaml"
    file.write_text(f"seed: {value}\n")
    assert f"is not valid YAML: {problem}" in refused(file=file)


def test_what_yaml_cannot_read_is_no_text_where_any_value_may_stand():
    class Loose(Config):
        anything: dict[str, Any] = {}
        either: int | str = 0

    assert Loose.resolve(overrides=["anything.path=[a, b]", "either=x"]).anything == {"path": ["a", "b"]}
    for wrong in ("anything.path=[a, b", "either=[a"):
        with pytest.raises(ConfigError, match="expected a YAML value after '='"):
            Loose.resolve(overrides=[wrong])


def test_each_override_has_to_be_read():
    assert "expected a YAML value after '='" in refused("seed={{N}}", "seed=3")
    assert "expected a YAML value after '='" in refused("optimizer={{N}}", "optimizer.lr=1")
    assert refused("name={{a/b}}").startswith(
        "'name': given '{{a/b}}' (from the command line), expected a name without"
    )


def test_missing_value_says_how_to_give_it():
    with pytest.raises(ConfigError, match="'data' is required and was not given; set it as data=VALUE"):
        Needy.resolve()


def test_file_errors(tmp_path):
    file = tmp_path / "train.yaml"
    assert "there is none there" in refused(file=file)
    file.write_text("seed: [1\n")
    assert "is not valid YAML: line 2" in refused(file=file)
    file.write_text("- 1\n")
    assert "holds a list, expected 'key: value' lines" in refused(file=file)
    file.write_text("seed: 1\nseed: 2\n")
    assert "line 2: key 'seed' twice" in refused(file=file)
    file.write_bytes(b"name: \xff\xfe\n")
    assert "is not UTF-8 text" in refused(file=file)
    file.write_text("sede: 1\n")
    message = refused(file=file)
    assert "did you mean 'seed'?" in message and f"(from file {str(file)!r})" in message


def test_empty_file_changes_nothing(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert Train.resolve(file=file) == Train()


def test_saved_configuration_loads_equal(tmp_path):
    config = Train.resolve(overrides=["name='1e-4'", "optimizer.lr=3e-5", "limit=4", "output=données"])
    config.save(tmp_path / "config.yaml")
    assert config.name == "1e-4"
    assert Train.load(tmp_path / "config.yaml") == config


def test_configurations_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Train().seed = 3


def test_import_is_free_of_torch():
    check = "import sys, cartridges.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
