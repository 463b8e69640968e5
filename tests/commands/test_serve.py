"""`cartridges serve`: what it takes for its arguments, what it refuses, and one server as a process."""

import json
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cartridges.commands.serve import name_of, named_folders, split_extra
from cartridges.errors import InputError
from cartridges.initialization import InitializeConfig, initialize

COMMAND = "serve"


@pytest.fixture(scope="module")
def builds(place):
    """Two builds: one of one size, one of two."""
    folder = place.folder / "builds"
    shutil.copytree(place.cartridge, folder / "ward" / "slots-30" / "cartridge")
    shutil.copytree(place.cartridge, folder / "both" / "slots-30" / "cartridge")
    initialize(place.model, place.corpus, 8, InitializeConfig()).save(folder / "both" / "slots-8" / "cartridge")
    return folder


def test_a_folder_is_served_under_its_name_or_another(builds):
    inner = builds / "ward" / "slots-30" / "cartridge"
    assert named_folders([str(builds / "ward")], None) == [("ward", inner)]
    assert named_folders([str(inner)], None) == [("ward", inner)]
    assert named_folders([f"legal={inner}", str(builds / "ward")], None) == [("legal", inner), ("ward", inner)]
    small = builds / "both" / "slots-8" / "cartridge"
    assert named_folders([str(builds / "both")], 8) == [("both", small)]
    assert name_of(Path("runs/a b+c/cartridge")) == "a-b-c"


def test_names_that_cannot_be_are_refused(builds):
    for arguments, part in [
        ([f"a/b={builds / 'ward'}"], "given the name 'a/b'"),
        ([f"a+b={builds / 'ward'}"], "given the name 'a+b'"),
        ([str(builds / "ward"), f"ward={builds / 'ward'}"], "given two cartridges called 'ward'"),
        ([str(builds / "both")], "choose one with --slots"),
        ([str(builds / "nowhere")], "is not there"),
    ]:
        with pytest.raises(InputError, match=part.replace("+", r"\+")):
            named_folders(arguments, None)


def test_what_stands_behind_two_dashes_is_for_vllm():
    assert split_extra(["ward", "--max-model-len", "4096"]) == (["ward"], ["--max-model-len", "4096"])
    assert split_extra(["ward", "port=0"]) == (["ward", "port=0"], [])


def test_vllm_is_handed_over_to(call, builds, place, monkeypatch):
    given = []
    monkeypatch.setattr("cartridges.serving.launch.serve_vllm", lambda *arguments: given.append(arguments) or 0)
    code, _, _ = call(builds / "ward", "--engine", "vllm", "--port", 9000, "--", "--max-model-len", "512")
    folder = builds / "ward" / "slots-30" / "cartridge"
    assert given == [(str(place.paths[0]), [("ward", folder)], "127.0.0.1", 9000, ["--max-model-len", "512"], [], ())]
    assert code == 0


def test_what_vllm_would_not_be_told_of_is_refused(refused, builds, place, tmp_path):
    (tmp_path / "keys").write_text("secret-of-the-admin\n")
    told = refused(
        builds / "ward", "--engine", "vllm", "--device", "cpu", "--admin-key-file", tmp_path / "keys", "max_replies=3"
    )
    assert "given max_replies=..., --admin-key-file, --device, of which stock vLLM knows nothing" in told


def test_wrong_input_is_one_line(refused, builds, place, tmp_path):
    assert "given nothing to serve, expected a cartridge's folder, or --model NAME" in refused()
    assert "nowhere is not there; expected a cartridge's folder" in refused(tmp_path / "nowhere")
    assert "max_replies" in refused(builds / "ward", "max_replies=0")
    assert "expected a folder" in refused(builds / "ward", "--allow", tmp_path / "nowhere")
    assert "behind --, which is for --engine vllm" in refused(builds / "ward", "--", "--max-model-len", "5")
    assert "99999 is not in the range" in refused(builds / "ward", "--port", 99999)
    (tmp_path / "keys").write_text("short\n")
    assert "given a key of 5 characters" in refused(builds / "ward", "--api-key-file", tmp_path / "keys")
    message = refused(builds / "ward", "--model", place.paths[1], "--port", 0)
    assert "other weights of the same shape; load it with its own model" in message


def test_a_port_in_use_is_told(refused, builds):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = refused(builds / "ward", "--port", taken.getsockname()[1])
    assert "cannot listen at 127.0.0.1 port" in message and "give another with --port, or 0" in message


def test_the_example_that_it_prints_is_answered(builds):
    command = [
        sys.executable,
        "-m",
        "cartridges",
        "serve",
        str(builds / "ward"),
        f"firm={builds / 'ward'}",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        try:
            line = process.stdout.readline()
            assert line.startswith("serving ward, firm and "), line or process.stderr.read()
            curl = shlex.split(line.partition("; try: ")[2])
            reply = json.loads(subprocess.run([*curl, "-s"], capture_output=True, check=True, timeout=60).stdout)
            (choice,) = reply["choices"]  # drawn, so that it may well be empty
            assert reply["model"] == "ward" and choice["finish_reason"] in ("stop", "length")
            assert isinstance(choice["message"]["content"], str) and reply["usage"]["completion_tokens"]
        finally:
            process.terminate()
        assert process.wait(60) == 0


def test_help_imports_neither_torch_nor_fastapi():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: cartridges serve" in done.stdout
