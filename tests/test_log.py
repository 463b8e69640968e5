import io
import json
import logging

import numpy as np
import pytest

from cartridges import log
from cartridges.errors import CartridgesError, FormatError, InputError
from cartridges.log import MetricsLog, plot_curves, progress, read_metrics, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def metrics(tmp_path):
    with MetricsLog(tmp_path / "run" / "metrics.jsonl") as metrics:
        yield metrics


def test_track_yields_everything_in_silence_when_not_on_a_terminal(capsys):
    assert list(track(range(5), "counting")) == list(range(5))
    assert capsys.readouterr() == ("", "")


def test_track_says_a_line_now_and_then_when_not_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(log, "LINE_EVERY_S", 0.0)
    assert list(track(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert capsys.readouterr().err == "letters: 1/2\nletters: 2/2\n"


def test_track_draws_a_bar_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert list(track([1, 2], "drawing")) == [1, 2]
    assert "drawing" in screen.getvalue()


def test_progress_shows_notes_and_is_silent_when_disabled(capsys, monkeypatch):
    monkeypatch.setattr(log, "LINE_EVERY_S", 0.0)
    with progress("training", total=10) as bar:
        bar.advance(4, note="loss 1.50")
    assert capsys.readouterr().err == "training: 4/10 loss 1.50\n"
    with progress("training", enabled=False) as bar:
        bar.advance(4)
    assert bar.done == 4
    assert capsys.readouterr().err == ""


def test_each_line_is_on_disk_at_once(metrics):
    metrics.append(step=1, loss=2.5)
    assert json.loads(metrics.path.read_text()) == {"step": 1, "loss": 2.5}


def test_reopened_log_appends(metrics):
    metrics.append(step=1)
    with MetricsLog(metrics.path) as again:
        again.append(step=2)
    assert [row["step"] for row in read_metrics(metrics.path)] == [1, 2]


def test_numpy_numbers_are_written_as_numbers(metrics):
    metrics.append(step=np.int64(3), loss=np.float32(0.5))
    assert read_metrics(metrics.path) == [{"step": 3, "loss": 0.5}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(metrics, value):
    with pytest.raises(CartridgesError, match="expected finite numbers; see why the run diverged"):
        metrics.append(step=1, loss=value)
    assert read_metrics(metrics.path) == []


def test_values_that_are_no_metrics_are_refused(metrics):
    with pytest.raises(CartridgesError, match="expected a number, text, or lists and dicts of them"):
        metrics.append(step=1, thing=object())


def test_truncate_after_drops_later_steps_and_goes_on(metrics):
    metrics.append(event="start")
    for step in (1, 2, 3):
        metrics.append(step=step)
    assert metrics.truncate_after(2) == 1
    metrics.append(step=3, again=True)
    assert read_metrics(metrics.path) == [{"event": "start"}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_half_written_last_line_is_cut_off_and_reported(metrics, caplog):
    metrics.append(step=1)
    with metrics.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(metrics.path) == [{"step": 1}]
    with caplog.at_level(logging.WARNING), MetricsLog(metrics.path) as again:
        again.append(step=2)
    assert "cut off a half-written last line (15 bytes)" in caplog.text
    assert [row["step"] for row in read_metrics(metrics.path)] == [1, 2]


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(FormatError, match="line 2: given 'nonsense', expected a JSON object"):
        read_metrics(path)


def test_curves_are_drawn(metrics, tmp_path):
    for step in range(3):
        metrics.append(step=step, loss=1.0 / (step + 1))
    metrics.append(step=2, accuracy=0.5)
    png = tmp_path / "pictures" / "curves.png"
    plot_curves(metrics.path, png, {"loss": ["loss"], "score": ["accuracy", "not_yet"]})
    assert png.read_bytes().startswith(b"\x89PNG")


def test_curves_without_any_value_are_refused(metrics, tmp_path):
    metrics.append(step=1, loss=1.0)
    with pytest.raises(InputError, match=r"given the keys los, expected some in .*; it has loss"):
        plot_curves(metrics.path, tmp_path / "curves.png", {"loss": ["los"]})


def test_missing_metrics_file_is_told(tmp_path):
    with pytest.raises(InputError, match="expected a JSONL file; there is none there"):
        read_metrics(tmp_path / "none.jsonl")
