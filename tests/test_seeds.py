import json
import subprocess
import sys

import pytest

from cartridges.errors import ConfigError, InputError
from cartridges.pocket.seeds import SEED_PROMPTS
from cartridges.seeds import SEED_SETS, fill, load_seeds

PAPER_KINDS = ["structuring", "summarization", "question", "use_case", "creative"]


@pytest.mark.parametrize("name", SEED_SETS)
def test_a_built_in_set_has_the_five_kinds_of_the_paper(name):
    seeds = load_seeds(name)
    assert list(seeds.kinds) == PAPER_KINDS
    prompts = [prompt for prompts in seeds.kinds.values() for prompt in prompts]
    assert len(set(prompts)) == len(prompts) >= 10
    assert "{chunk}" in seeds.system


@pytest.mark.parametrize("name", SEED_SETS)
def test_general_prompts_are_many_and_differ(name):
    general = load_seeds(name).general
    assert len(general) >= 300
    assert len(set(general)) == len(general)
    assert all(text.strip() == text and text for text in general)


def test_pocket_is_asked_in_the_words_that_it_was_taught():
    seeds = load_seeds("pocket")
    assert dict(seeds.kinds) == SEED_PROMPTS
    assert seeds.system == "{chunk}"


def test_default_prompts_want_messages_that_stand_alone():
    for prompts in load_seeds("default").kinds.values():
        for prompt in prompts:
            assert "does not see the excerpt" in prompt


def test_fill_leaves_braces_of_values_alone():
    assert (
        fill("{description}: {chunk}", description="{chunk}", chunk="f{x} {description}")
        == "{chunk}: f{x} {description}"
    )
    assert fill("{unknown} {chunk}", chunk="a") == "{unknown} a"


def test_a_part_of_the_kinds_keeps_the_order_of_the_set():
    assert list(load_seeds("default").only(["creative", "question"]).kinds) == ["question", "creative"]


@pytest.mark.parametrize(
    ("kinds", "message"), [(["questions"], "did you mean 'question'"), ([], "given no seed prompt")]
)
def test_kinds_that_do_not_exist_are_refused(kinds, message):
    with pytest.raises(ConfigError, match=message):
        load_seeds("default").only(kinds)


def test_an_unknown_set_is_refused():
    with pytest.raises(ConfigError, match=r"unknown seed set 'pockt'; did you mean 'pocket'.*seed_file="):
        load_seeds("pockt")


@pytest.mark.parametrize("ending", [".yaml", ".json"])
def test_a_file_adds_and_replaces_kinds(tmp_path, ending):
    file = tmp_path / f"mine{ending}"
    content = {"question": ["Ask who."], "study": ["  Propose a way to study this.  ", "Ask for a mnemonic."]}
    file.write_text(json.dumps(content))
    seeds = load_seeds("default", file)
    assert list(seeds.kinds) == [*PAPER_KINDS, "study"]
    assert seeds.kinds["question"] == ("Ask who.",)
    assert seeds.kinds["study"] == ("Propose a way to study this.", "Ask for a mnemonic.")
    assert seeds.kinds["creative"] == load_seeds("default").kinds["creative"]
    assert seeds.digest != load_seeds("default").digest


def test_yaml_may_hold_long_texts_and_those_around_the_prompts(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("system: |\n  From {document}:\n  {chunk}\nquestion: Ask.\ngeneral:\n- Hello!\n")
    seeds = load_seeds("pocket", file)
    assert seeds.system == "From {document}:\n{chunk}\n"
    assert seeds.kinds["question"] == ("Ask.",)
    assert seeds.general == ("Hello!",)


def test_the_digest_is_of_texts_and_not_of_names(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_text("study: [Ask.]\n")
    a, b = (load_seeds("default", tmp_path / name / f"{name}.yaml") for name in "ab")
    assert a.digest == b.digest
    (tmp_path / "a" / "a.yaml").write_text("study: [Ask!]\n")
    assert load_seeds("default", tmp_path / "a" / "a.yaml").digest != b.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question: 3\n", "gives 3 as 'question', expected a list of prompts"),
        ("question: []\n", "expected a list of prompts"),
        ("question: [a, 7]\n", "expected a list of prompts"),
        ("question: ['  ']\n", "expected a list of prompts"),
        ("system: no place for the text\n", r"expected a text with \{chunk\}"),
        ("several: '{prompt}'\n", r"expected a text with \{number\}"),
        ("follow_up: go on\n", r"expected a text with \{answer\} and \{prompt\}"),
        ("- a\n- b\n", "holds a list, expected 'kind:"),
        ("", "holds nothing"),
        ("a: [b\n", "is not valid YAML"),
        ("a: 2024-02-30\n", "is not valid YAML: day is out of range for month; mend it"),
        ("a: !!bool x\n", "is not valid YAML: a value does not fit its tag; mend it"),
        ("a: " + "[" * 700, "is not valid YAML: it is nested too deep; mend it"),
    ],
)
def test_a_file_with_mistakes_is_refused(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_seeds("default", file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="none is there"):
        load_seeds("default", tmp_path / "none.yaml")
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        load_seeds("default", tmp_path / "mine.json")
    (tmp_path / "mine.yaml").write_bytes(b"a: [\xff]")
    with pytest.raises(InputError, match="not UTF-8"):
        load_seeds("default", tmp_path / "mine.yaml")


def test_seeds_need_no_torch():
    program = (
        "import sys; from cartridges.seeds import load_seeds; load_seeds('pocket'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
