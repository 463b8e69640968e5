"""Claims: findings round-trip, name their failures, and are never of two commits; the page is made of them alone."""

import json
import re
from pathlib import Path

import pytest

from cartridges.errors import ConfigError, FormatError, InputError
from cartridges.evals import lab as lab_module
from cartridges.evals.claiming import CLAIMS, check_names, measure_claims
from cartridges.evals.claims.initializers import steps_to
from cartridges.evals.claims_page import BEGIN, HEAD, ORDER, claims_region, load_all, table, write_page
from cartridges.evals.finding import Check, Finding, lead, loss, share
from cartridges.evals.lab import ClaimsConfig, Lab
from cartridges.evals.record import Answer, Record
from cartridges.evals.task import loaded

ROW = {"label": "full context", "accuracy": 0.8, "ci95": [0.7, 0.9], "num": 80, "kv_bytes": 3302400}


def finding(**changes):
    told = {"rows": [ROW], "curves": {"cartridge": [[20, 0.7, 0.6, 0.8], [50, 0.5, 0.4, 0.6]]}, "log_x": True}
    told |= {"checks": [Check("a ratio", 0.97, 0.91), Check("harm", 0.02, 0.01, at_least=False)]}
    told |= {
        "provenance": {"command": "cartridges claims", "commit": "abc", "hardware": "2 cores", "date": "2026-01-01"}
    }
    return Finding("capacity", "A claim", "published", **{**told, **changes})


def test_a_finding_comes_back_from_its_file(tmp_path):
    finding().save(tmp_path / "capacity.json")
    assert Finding.load(tmp_path / "capacity.json") == finding()
    with pytest.raises(InputError, match="no finding at"):
        Finding.load(tmp_path / "gone.json")
    (tmp_path / "capacity.json").write_text('{"name": "capacity"}')
    with pytest.raises(FormatError, match=r"cannot be read .* measure again"):
        Finding.load(tmp_path / "capacity.json")


def test_a_table_of_two_commits_is_refused(tmp_path):
    finding(rows=[{**ROW, "commit": "abc"}, {**ROW, "commit": "def"}]).save(tmp_path / "capacity.json")
    with pytest.raises(FormatError, match="mixes results of the commits abc, def"):
        load_all(tmp_path)


def test_checks_hold_or_do_not():
    assert [check.holds for check in finding().checks] == [False, True]
    assert not Check("unmeasured", 0.0, None).holds


def test_a_lead_that_may_be_chance_does_not_hold():
    seen = {gap: Check("a lead", 0.0, gap, bounds=[gap - 0.1, gap + 0.1]) for gap in (0.2, 0.05, -0.2)}
    assert [check.holds for check in seen.values()] == [True, False, False]
    assert [check.verdict for check in seen.values()] == ["holds", "**may be chance**", "**does not hold**"]
    assert Check("a share", 0.9, 0.95, bounds=[0.8, 1.1]).holds, "a target is compared with what was measured"


def test_leads_shares_and_losses_are_of_the_same_questions():
    ours, theirs = (
        Record({"method": "m"}, [Answer(number, "r", float(number < right), 1, False) for number in range(40)])
        for right in (30, 20)
    )
    assert lead("l", ours, theirs).measured == 0.25 and lead("l", ours, theirs).holds
    assert not lead("l", theirs, ours).holds and lead("l", theirs, ours).measured == -0.25
    assert share("s", 0.6, theirs, ours).measured == pytest.approx(0.6667) and share("s", 0.6, theirs, ours).holds
    assert not loss("x", 0.02, ours, theirs).holds and loss("x", 0.02, theirs, ours).holds
    low, high = loss("x", 0.02, ours, theirs).bounds or (0, 0)
    assert 0 < low < 0.25 < high
    others = Record({"method": "m"}, [Answer(7, "r", 1.0, 1, False)])
    with pytest.raises(InputError, match="different questions"):
        lead("l", ours, others)


def test_replies_that_were_cut_off_are_told():
    assert "replies cut off" in table([{**ROW, "num_cut": 3, "num_empty": 0}])[0]
    assert "cut off" not in table([{**ROW, "num_cut": 0, "num_empty": 0}])[0]


def test_the_page_says_what_does_not_hold_and_where_it_is_from(tmp_path):
    folder = tmp_path / "results" / "claims"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match="no findings in"):
        claims_region(folder)
    finding().save(folder / "capacity.json")
    write_page(tmp_path / "claims.md", folder)
    page = (tmp_path / "claims.md").read_text()
    assert "| a ratio | at least 0.97 | 0.91 | **does not hold** |" in page
    assert "| harm | at most 0.02 | 0.01 | holds |" in page
    assert "80.0% (70.0–90.0), n=80" in page and "3.30 MB" in page
    assert "`cartridges claims`, preset , 2 cores, 0 s, commit abc" in page
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert claims_region(folder) in page


def test_every_claim_can_be_loaded_and_has_a_place_on_the_page():
    assert list(CLAIMS) == ORDER
    assert all(callable(loaded(place)) for place in CLAIMS.values())
    assert check_names(["cost", "capacity"]) == ["capacity", "cost"]
    with pytest.raises(InputError, match="unknown claim 'capcity'; did you mean 'capacity'"):
        check_names(["capcity"])
    with pytest.raises(ConfigError, match="qick"):
        ClaimsConfig.resolve("qick")


def test_steps_to_a_loss_are_told_in_proportion():
    curve = [(0, 2.0), (10, 1.0), (20, 1.2), (30, 0.5)]
    assert steps_to(curve, 1.0) == 10 and steps_to(curve, 1.5) == 5
    assert steps_to(curve, 0.85) == 25 and steps_to(curve, 3.0) == 0
    assert steps_to(curve, 0.4) is None


def test_a_lab_belongs_to_one_commit(engine, tmp_path, monkeypatch):
    config = ClaimsConfig.resolve("smoke")
    Lab(engine, config, tmp_path)
    Lab(engine, config, tmp_path)
    monkeypatch.setattr(lab_module, "commit", lambda: "another")
    with pytest.raises(InputError, match=r"holds a run with commit .* \(now .*\); give another folder"):
        Lab(engine, config, tmp_path)
    (tmp_path / "commit.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        Lab(engine, config, tmp_path)


def test_a_claim_is_measured_once(engine, tmp_path, monkeypatch):
    calls = []

    def counted(lab):
        calls.append(lab)
        return finding()

    monkeypatch.setitem(CLAIMS, "capacity", counted)
    lab = Lab(engine, ClaimsConfig.resolve("smoke"), tmp_path / "runs")
    first = measure_claims(lab, tmp_path, ["capacity"], "smoke")
    again = measure_claims(lab, tmp_path, ["capacity"], "smoke")
    assert len(calls) == 1 and again == first and first[0].preset == "smoke"
    lab.config = ClaimsConfig.resolve("smoke", values={"steps": 4})
    measure_claims(lab, tmp_path, ["capacity"], "smoke")
    assert len(calls) == 2
    told = json.loads((tmp_path / "results" / "claims" / "capacity.json").read_text())
    assert told["provenance"]["versions"]["torch"] and told["about"]["config"]["steps"] == 4


def test_what_the_page_says_beside_its_tables_is_written_here():
    page = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[0] == HEAD
