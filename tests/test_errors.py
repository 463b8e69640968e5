import pytest

from cartridges.errors import (
    MAX_NAMES_SHOWN,
    CartridgesError,
    ConfigError,
    FormatError,
    InputError,
    InterruptedRun,
    TooLong,
    half_pair,
    unknown_name,
)


@pytest.mark.parametrize("kind", [ConfigError, FormatError, InputError, InterruptedRun, TooLong])
def test_one_tree(kind):
    assert issubclass(kind, CartridgesError)


def test_message_is_one_line():
    assert str(InputError("given a,\nexpected b")) == "given a, expected b"


def test_half_of_a_surrogate_pair_is_told_with_its_place():
    assert half_pair("caf\u00e9 \U0001f600") == half_pair("") == ""
    assert half_pair("ab\ud83d") == "half of a surrogate pair at 2, expected Unicode"


def test_unknown_name_suggests_the_nearest():
    message = unknown_name("preset", "pockt", ["paper", "pocket"])
    assert message == "unknown preset 'pockt'; did you mean 'pocket'? known: paper, pocket"


def test_unknown_name_suggests_despite_case():
    assert "did you mean 'Qwen3'?" in unknown_name("model", "QWEN3", ["Qwen3", "Llama"])


def test_unknown_name_without_a_near_one():
    assert unknown_name("task", "zzz", ["ward", "code"]) == "unknown task 'zzz'; known: code, ward"


def test_unknown_name_with_nothing_known():
    assert unknown_name("preset", "x", []) == "unknown preset 'x'; there are none to choose from"


def test_unknown_name_says_how_many_it_leaves_out():
    known = [f"name{i:02}" for i in range(MAX_NAMES_SHOWN + 3)]
    assert unknown_name("thing", "q", known).endswith("name19 and 3 more")
