"""`cartridges demo`, small: what it shows, and the figures that it leaves."""

import json
import subprocess
import sys

import pytest

from cartridges.commands.demo import chosen
from cartridges.results import Reply, Results

SMALL = [
    *("synthesize.num_conversations=32", "synthesize.batch_size=32", "train.max_steps=2", "slots=[40]"),
    *("evaluate.max_items=6", "max_general=2"),
]
MEASURED = {"accuracy", "ci95", "kl_per_token", "top1_agreement", "kv_bytes", "prompt_tokens", "build_s"}


@pytest.mark.timeout(600)
def test_it_shows_the_table_three_questions_and_where_the_report_is(tmp_path):
    command = [sys.executable, "-m", "cartridges", "demo", "--out", str(tmp_path / "demo"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("A ward's records, 10 documents")
    assert sum(line.startswith("  full context: ") for line in lines) == 3
    assert sum(line.startswith("  cartridge, 40 slots: ") for line in lines) == 3
    assert [line.split(" took ")[0] for line in lines if " took " in line] == ["All of this"]
    measured = json.loads((tmp_path / "demo" / "results.json").read_text())["methods"]
    assert {"full_context", "truncated-40", "no_context", "cartridge-40"} <= {row["method"] for row in measured}
    assert all(row.keys() >= MEASURED for row in measured)
    assert (tmp_path / "demo" / "report.html").is_file()


def test_each_kind_is_shown_once_and_then_the_next_questions():
    replies = [Reply(f"q{place}?", "", kind, {}, {}) for place, kind in enumerate(["a", "a", "b", "a"])]
    results = Results([], "full_context", replies=replies)
    assert [reply.question for reply in chosen(results)] == ["q0?", "q2?", "q1?"]
    assert len(chosen(Results([], "full_context", replies=replies[:2]))) == 2
