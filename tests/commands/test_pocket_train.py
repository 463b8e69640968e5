"""`cartridges pocket train` as a process: begun, stopped, killed, resumed, and misused."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from cartridges import cli
from cartridges.log import read_metrics
from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.train import open_run, train

PHASES = "phases=[{steps: 30, shapes: [{length: 256, rows: 1}]}]"
OVERRIDES = ["log_every=2", "checkpoint_every=5", PHASES]
CONFIG = PocketConfig.resolve("tiny", None, OVERRIDES)
# The same number of threads everywhere: it decides the order of sums, and so their last digit.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cartridges", "pocket", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a script's children may ignore it
        start_new_session=True,
    )


@pytest.fixture
def call(capsys):
    """The command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["pocket", "train", *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(one_thread, tmp_path_factory):
    with open_run(tmp_path_factory.mktemp("undisturbed") / "run", CONFIG, "cpu") as run:
        train(run)
    return run


def num_lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(folder: Path, num: int, process: subprocess.Popen[str]) -> None:
    while num_lines(folder) < num:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


def curve(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith("tokens_per_s")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_stopped_at_a_random_step_loses_nothing(tmp_path, undisturbed, call, number, workers):
    out = tmp_path / "run"
    process = start(str(out), "--preset", "tiny", "--device", "cpu", "--workers", str(workers), *OVERRIDES)
    at_line = random.SystemRandom().randint(3, 10)
    wait_for_lines(out, at_line, process)
    members = psutil.Process(process.pid).children()
    assert len(members) >= workers
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as a terminal and a service manager do
    stdout, stderr = process.communicate()
    assert not psutil.wait_procs(members, timeout=20)[1], "workers outlive the process that began them"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, stdout, stderr.count("\n")) == (2, "", 1), stderr
        assert stderr.startswith("error: stopped at step ")
        assert stderr.endswith(f" of 30; go on with: cartridges pocket train {out}\n")
    code, stdout, stderr = call(out, "--device", "cpu")
    assert code == 0, stderr
    assert curve(out) == curve(undisturbed.folder), f"stopped at line {at_line}"
    with open_run(out, None, "cpu") as run:
        for name, value in undisturbed.model.state_dict().items():
            assert torch.equal(run.model.state_dict()[name], value), f"{name}, stopped at line {at_line}"


def test_it_says_where_the_model_is_and_how_to_measure_it(tmp_path, call):
    out = tmp_path / "run"
    told = f"The model is in {out}/model. Measure it with: cartridges pocket eval --model {out}/model\n"
    assert call(out, "--preset", "tiny", "--device", "cpu")[:2] == (0, told)
    again = call(out, "--preset", "tiny", "--device", "cpu")
    assert again == (0, f"{out} is finished: 10 of 10 steps.\n{told}", "")
    code, _, stderr = call(out, "--preset", "tiny", "seed=1")
    assert code == 2
    assert stderr == (
        f"error: {out} holds a run with another seed; give another folder, or resume it as it is with: "
        f"cartridges pocket train {out}\n"
    )


def test_a_second_process_is_refused(tmp_path, call, undisturbed):
    with open_run(undisturbed.folder, None, "cpu"):
        process = start(str(undisturbed.folder))
        _, stderr = process.communicate()
    assert process.returncode == 2
    assert stderr == (
        f"error: {undisturbed.folder} is in use by process {os.getpid()}; wait for its end or give another folder\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "smal"], "unknown preset 'smal'; did you mean 'small'?"),
        (["seed=abc"], "'seed': given 'abc' (from the command line), expected a valid integer"),
        (["seed"], "given 'seed', expected an override of the form key=value"),
        (["sede=1"], "unknown key 'sede'; did you mean 'seed'?"),
        (["--device", "cdua"], "'cdua' is not one of 'auto', 'cpu', 'cuda'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, call, arguments, message):
    code, stdout, stderr = call(tmp_path / "run", *arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert message in stderr
    assert list(tmp_path.iterdir()) == []


def test_no_cuda_device(tmp_path, call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, stderr = call(tmp_path / "run", "--preset", "tiny", "--device", "cuda")
    assert (code, stderr) == (
        2,
        "error: given the device cuda, but torch sees no CUDA device here; give --device cpu or auto\n",
    )


def test_the_folder_forgotten(call):
    code, _, stderr = call("seed=3")
    assert code == 2
    assert "given 'seed=3' as the folder OUT; the folder comes first: pocket train OUT seed=3" in stderr


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_file_as_folder(tmp_path, call, below):
    (tmp_path / "file").write_text("")
    code, _, stderr = call(f"{tmp_path}/file{below}", "--preset", "tiny")
    assert code == 2
    assert stderr == f"error: given {tmp_path}/file{below}, expected a folder; {tmp_path}/file is a file\n"


def test_where_nothing_can_be_written(tmp_path, call):
    tmp_path.chmod(0o555)
    place = Path("/proc") if os.geteuid() == 0 else tmp_path  # root may write everywhere else
    code, _, stderr = call(place / "run", "--preset", "tiny")
    assert code == 2
    said = "No such file or directory" if os.geteuid() == 0 else "Permission denied"
    assert stderr == f"error: {place}/run: {said}; mend that and give the same command again\n"


def test_damage_is_one_line(tmp_path, call):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("phases: [")
    code, _, stderr = call(out)
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"{out}/config.yaml is damaged: " in stderr
