"""The model card is made of the run's own files."""

import json

import pytest

from cartridges.errors import FormatError, InputError
from cartridges.pocket.card import figures, rows_of, train_command, write_card
from cartridges.pocket.model import check_files
from cartridges.pocket.recipe import PocketConfig
from cartridges.run_folder import file_digest

LINES = [
    {"name": "lookup", "least": 0.99, "mean": 0.9917, "low": 0.98, "high": 0.995, "num": 1000},
    {"name": "count", "least": 0.90, "mean": 0.75, "low": 0.7, "high": 0.8, "num": 300},
]
MEASURED = {
    "split": "test",
    "command": "cartridges pocket eval",
    "seconds": 61.4,
    "hardware": "a chip",
    "commit": "abc",
    "scale": 1.0,
}


@pytest.fixture
def run(tmp_path, tiny_model, tiny_tokenizer, tiny_config):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    tiny_config.save(tmp_path / "config.yaml")
    digest = file_digest(tmp_path / "model" / "model.safetensors")
    measured = {**MEASURED, "weights_sha256": digest, "targets": LINES, "cells": []}
    (tmp_path / "eval.json").write_text(json.dumps(measured))
    (tmp_path / "manifest.json").write_text(
        json.dumps({"num_parameters": 3_250_000, "hardware": "two cores", "command": "x"})
    )
    rows = [
        {"step": 3, "steps_at_256": 3, "tokens_per_s_at_256": 1000},
        {"step": 6, "steps_at_256": 3, "tokens_per_s_at_256": 3000},
        {"step": 8, "steps_at_320": 2, "tokens_per_s_at_320": 640},
        {"step": 10, "steps_at_256": 1, "tokens_per_s_at_256": 2000, "steps_at_320": 1, "tokens_per_s_at_320": 640},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "curves.png").write_bytes(b"a picture")
    return tmp_path


def test_the_card_tells_what_was_measured(run):
    text = (write_card(run) / "README.md").read_text()
    assert "| lookup | 99% | 99.2% | 98.0% - 99.5% | 1000 |" in text
    assert "| count | 90% | 75.0% (not reached) | 70.0% - 80.0% | 300 |" in text
    assert "3.2 million parameters" in text
    assert "`cartridges pocket train OUT --preset tiny`" in text
    assert "10 steps of 7 x 256 tokens, 3 x 320 tokens" in text
    assert "2000 in rows of 256, 640 in rows of 320" in text
    assert "more than 320 tokens were never trained" in text
    assert "`cartridges pocket eval` in 61 s on a chip, commit abc" in text


def test_a_line_over_the_border_of_two_phases_counts_for_both(run):
    phases = "[{steps: 6, shapes: [{length: 256, rows: 2}]}, {steps: 4, shapes: [{length: 320, rows: 3}]}]"
    config = PocketConfig.resolve("tiny", overrides=[f"phases={phases}"])
    row = {"steps_at_256": 2, "tokens_per_s_at_256": 1000, "steps_at_320": 4, "tokens_per_s_at_320": 640}
    rows = [{"step": 4, "steps_at_256": 4, "tokens_per_s_at_256": 1000}, {"step": 10, **row}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = figures(run, config, *(json.loads((run / name).read_text()) for name in ("eval.json", "manifest.json")))
    assert told["num_steps"] == 10 and told["phases"] == "6 x 256 tokens, 4 x 320 tokens"
    assert told["num_tokens"] == pytest.approx((6 * 2 * 256 + 4 * 3 * 320) / 1e6)


def test_rows_that_differ_between_phases_count_by_their_mean():
    phases = "[{steps: 6, shapes: [{length: 256, rows: 2}]}, {steps: 4, shapes: [{length: 256, rows: 6}]}]"
    config = PocketConfig.resolve("tiny", overrides=[f"phases={phases}"])
    assert [rows_of(config, *steps) for steps in ((0, 6), (5, 7), (6, 10))] == [{256: 2}, {256: 4}, {256: 6}]


def test_a_step_beyond_the_configuration_is_one_line(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "steps_at_256": 1, "tokens_per_s_at_256": 2000}\n')
    with pytest.raises(FormatError, match=r"a file of .* is damaged \(IndexError: 10\)"):
        write_card(run)


def test_a_card_of_fewer_questions_says_so(run):
    assert "Asked at scale" not in (write_card(run) / "README.md").read_text()
    measured = json.loads((run / "eval.json").read_text())
    (run / "eval.json").write_text(json.dumps({**measured, "scale": 0.3}))
    assert (
        "Asked at scale 0.3: the facts touched are those of 300 messages."
        in (write_card(run) / "README.md").read_text()
    )


def test_notes_go_into_the_card(run):
    (run / "notes.md").write_text("Made on a rainy day.\n")
    text = (write_card(run) / "README.md").read_text()
    assert "\nMade on a rainy day.\n" in text
    assert "cartridges pocket train OUT" not in text  # that command alone did not make them


def test_the_folder_is_complete_and_its_digests_are_right(run):
    folder = write_card(run)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(manifest["sha256"])
    assert all(file_digest(folder / name) == digest for name, digest in manifest["sha256"].items())
    assert {"README.md", "eval.json", "curves.png", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
    check_files(folder)
    write_card(run)  # again, over its own files
    check_files(folder)


@pytest.mark.parametrize(
    "missing", ["eval.json", "curves.png", "metrics.jsonl", "model/model.safetensors", "manifest.json"]
)
def test_what_is_missing_is_named(run, missing):
    (run / missing).unlink()
    with pytest.raises(
        InputError, match=rf"{missing} is missing; train .* to the end and measure it: cartridges pocket"
    ):
        write_card(run)


@pytest.mark.parametrize("change", [{"weights_sha256": "0"}, {"split": "validation"}])
def test_a_measurement_of_other_weights_or_of_another_split_is_refused(run, change):
    measured = json.loads((run / "eval.json").read_text())
    (run / "eval.json").write_text(json.dumps({**measured, **change}))
    with pytest.raises(InputError, match=r"eval.json is not the table of these weights on the test split"):
        write_card(run)
    assert not (run / "model" / "README.md").exists()


@pytest.mark.parametrize(("name", "content"), [("eval.json", "{"), ("eval.json", "[]"), ("manifest.json", "{}")])
def test_a_damaged_file_is_one_line(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(FormatError, match=r"a file of .* is damaged"):
        write_card(run)


def test_a_configuration_that_is_no_preset_is_told_by_what_differs():
    assert train_command(PocketConfig.resolve("small")) == "cartridges pocket train OUT --preset small"
    assert train_command(PocketConfig.resolve("small", overrides=["seed=3"])) == "cartridges pocket train OUT seed=3"
    phases = "phases=[{steps: 5, shapes: [{length: 256, rows: 2}]}]"
    told = train_command(PocketConfig.resolve("small", overrides=[phases]))
    assert told.startswith("cartridges pocket train OUT 'phases=[{")
