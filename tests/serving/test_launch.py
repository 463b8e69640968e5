import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from cartridges.errors import CartridgesError, InputError
from cartridges.model import load_model
from cartridges.serving import launch
from cartridges.serving.catalogue import Catalogue
from cartridges.serving.launch import cause_in, identity_of, serve_vllm, supervise, vllm_command

# Stands for vLLM: healthy after a moment, and ended by SIGTERM with a child of its own left behind.
HEALTHY = """
import http.server, subprocess, sys, time
time.sleep(0.3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DYING = """
print("INFO 12:00 starting")
print("(EngineCore pid=1) ERROR 12:00 [core.py:1] ValueError: the window is too long")
print("(APIServer pid=2) RuntimeError: Engine core initialization failed. See root cause above.")
raise SystemExit(3)
"""


@pytest.fixture
def port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_without_vllm_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CartridgesError, match=r"--engine vllm needs vLLM, which .* does not have; .*docs/vllm\.md"):
        serve_vllm("pocket", [], "127.0.0.1", 0)


def test_a_port_that_another_server_has_is_told_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(launch, "supervise", lambda *args: pytest.fail("it was started"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"cannot listen at 127\.0\.0\.1 port {port} \(.*; give another with --port"
        ):
            serve_vllm("pocket", [], "127.0.0.1", port)


def test_the_bundled_model_is_identified_as_when_it_is_loaded():
    assert identity_of("pocket") == load_model("pocket").identity


def test_the_command_names_all_parts_and_ends_with_what_the_user_adds():
    identity = identity_of("pocket")
    catalogue = Catalogue.of(identity, {})
    command = vllm_command("/weights", identity, catalogue, "::1", 81, ["--dtype", "bfloat16"], has_gpu=False)
    options = dict(zip(command[3:-2:2], command[4:-2:2], strict=True))
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert (options["--model"], options["--served-model-name"]) == ("/weights", "pocket")
    assert (options["--host"], options["--port"], options["--dtype"]) == ("::1", "81", "float32")
    assert command[-2:] == ["--dtype", "bfloat16"]
    connector = json.loads(options["--kv-transfer-config"])
    assert connector["kv_load_failure_policy"] == "fail"
    assert Catalogue.from_config(connector["kv_connector_extra_config"]).description == catalogue.description
    assert "--dtype" not in vllm_command("/weights", identity, catalogue, "::1", 81)


def test_it_runs_until_a_signal_and_leaves_no_process_behind(port, capfd):
    def end_when_ready() -> None:
        while not launch.is_healthy(f"http://127.0.0.1:{port}"):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_when_ready).start()
    before = signal.getsignal(signal.SIGTERM)
    command = [sys.executable, "-c", HEALTHY, str(port)]
    assert supervise(command, dict(os.environ), f"http://127.0.0.1:{port}", ["a", "b"], 60) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    told, log = capfd.readouterr()
    assert f"serving a, b at http://127.0.0.1:{port}/v1 after" in told
    child = int(log.split("child ")[1].split()[0])
    until = time.monotonic() + 20  # SIGKILL is on its way when `killpg` returns, and takes its time on a busy machine
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended yet; who inherits orphans may be slow to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second where it goes while it is read
        return False


def test_a_server_that_ends_by_itself_says_why(port):
    with pytest.raises(CartridgesError, match="exit code 3: ValueError: the window is too long"):
        supervise([sys.executable, "-c", DYING], dict(os.environ), f"http://127.0.0.1:{port}", [], 60)


def test_a_server_that_is_never_ready_is_ended(port):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    started = time.monotonic()
    with pytest.raises(CartridgesError, match=rf"no answer at http://127\.0\.0\.1:{port} after 1 s; vLLM"):
        supervise(command, dict(os.environ), f"http://127.0.0.1:{port}", [], 1)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (["fine\n"], "its log says more"),
        (["  torch.OutOfMemoryError: no memory\n", "bye\n"], "torch.OutOfMemoryError: no memory"),
        (["api_server.py: error: unrecognized arguments: --nope\n"], "error: unrecognized arguments: --nope"),
        (["RuntimeError: See root cause above.\n"], "RuntimeError: See root cause above."),
    ],
)
def test_the_cause_in_a_log(lines, cause):
    assert cause_in(lines) == cause
