"""Claims end to end on the bundled model, at the size of a trial: every row is measured, nothing is made twice."""

import pytest

from cartridges.engine.engine import Engine
from cartridges.evals.claiming import measure_claims
from cartridges.evals.claims_page import section
from cartridges.evals.lab import ClaimsConfig, Lab
from cartridges.model import load_model

SMALL = {"num_items": 4, "steps": 2, "factors": [20]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    config = ClaimsConfig.resolve("smoke", values=SMALL)
    return Lab(Engine(load_model("pocket")), config, tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("capacity", {"full context", "no context", "cartridge, 20x", "retrieval, BM25, 20x"}),
        ("composition", {"2 together, as they are", "2 together, one sink, keys turned"}),
        ("cost", {"full context", "cartridge, 20x"}),
        ("data", {"all kinds of seed prompts, temperature 1.0, top_p 0.95", "duplicates kept"}),
        ("initializers", {"attention matching alone", "trained from eviction by attention, published rate"}),
        ("long_corpus", {"cartridge, 20x fewer than the whole text", "truncated to the window"}),
    ],
)
def test_a_claim_is_measured(lab, tmp_path, name, labels):
    (found,) = measure_claims(lab, tmp_path, [name], "smoke")
    assert labels <= {row["label"] for row in found.rows}
    if name == "capacity":  # so few bytes hold no LoRA, and that is told
        assert any(note.startswith("LoRA at 20x: given") for note in found.notes)
    assert all(0 <= row["accuracy"] <= 1 for row in found.rows if "accuracy" in row)
    assert (tmp_path / "claims.md").read_text().count(f"\n{section(found, 'claims')}") == 1


def test_the_same_cartridge_is_trained_once(lab):
    trained = sorted(path.name for path in lab.folder.glob("train-*"))
    task = lab.task()
    data = lab.study(task.corpus)
    lab.train(data, task.corpus, lab.slots_for(task.corpus, 20))
    assert sorted(path.name for path in lab.folder.glob("train-*")) == trained
