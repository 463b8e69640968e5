"""The end of a server: SIGTERM under load, and a drain that takes too long."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.serving.place import events_of, running

LONG = {"max_tokens": 900, "ignore_eos": True, "temperature": 0}


def ask(server, found, **fields):
    found.append(server.chat(**fields))


def test_what_runs_may_finish(served_model):
    with running(served_model, drain_s=60) as server:
        expected = server.chat(**LONG).json()["choices"]
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=ask, args=(server, found), kwargs=LONG) for _ in range(3)]
        threads.append(threading.Thread(target=ask, args=(server, found), kwargs={**LONG, "stream": True}))
        for thread in threads:
            thread.start()
        while server.num_taken + len(found) < 4:
            time.sleep(0.001)
        server.server.should_exit = True
        for thread in threads:
            thread.join(60)
        whole = [response for response in found if response.headers["content-type"] == "application/json"]
        assert [response.json()["choices"] for response in whole] == [expected] * 3
        (stream,) = (response for response in found if response not in whole)
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(stream))
        assert text == expected[0]["message"]["content"]


def test_what_takes_longer_is_told_that_it_ends(served_model):
    with running(served_model, drain_s=0.2) as server:
        found: list[httpx.Response] = []
        threads = [
            threading.Thread(target=ask, args=(server, found), kwargs={**LONG, "n": 8, "stream": stream})
            for stream in (True, False)
        ]
        for thread in threads:
            thread.start()
        while server.num_taken < 16 and not found:
            time.sleep(0.001)
        server.server.should_exit = True
        for thread in threads:
            thread.join(60)
        (whole,) = (response for response in found if response.headers["content-type"] == "application/json")
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "shutting_down")
        (stream,) = (response for response in found if response is not whole)
        assert events_of(stream)[-1]["error"]["code"] == "shutting_down"
        server.settle()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, served_model, tiny_tokenizer):
    """A model and a cartridge on disk, for a process of its own."""
    from cartridges.model import load_model
    from tests.engine.judges import make_cartridge

    folder = tmp_path_factory.mktemp("served")
    served_model.hf.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    make_cartridge(load_model(folder / "model", device="cpu"), 12).save(folder / "beds" / "cartridge")
    return folder


def num_told(url: str) -> int:
    """How many replies are being written, or wait for room."""
    lines = httpx.get(f"{url.removesuffix('/v1')}/metrics").text.splitlines()
    return sum(int(float(line.split()[1])) for line in lines if re.match(r"cartridges_(running|waiting) ", line))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_in_order_under_load(folders, number):
    command = [sys.executable, "-m", "cartridges", "serve", "beds", "--port", "0", "drain_s=1"]
    process = subprocess.Popen(
        command,
        cwd=folders,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout and process.stderr
    line = process.stdout.readline()
    url = line.partition(" at ")[2].partition(";")[0]
    assert line.startswith("serving beds and ") and "curl" in line, (line, process.stderr.read() if not line else "")
    body = {"model": "beds", "messages": [{"role": "user", "content": "Hello"}], **LONG}
    ends: list[str] = []

    def listen(stream):
        with httpx.Client(timeout=60) as client:
            response = client.post(f"{url}/chat/completions", json={**body, "stream": stream})
        if not stream:
            ends.append("whole" if response.status_code == 200 else response.json()["error"]["code"])
            return
        last = json.loads(response.text.split("\n\n")[-3].removeprefix("data: "))
        ends.append(last["error"]["code"] if "error" in last else "whole")

    threads = [threading.Thread(target=listen, args=(place % 2 == 0,)) for place in range(6)]
    for thread in threads:
        thread.start()
    while num_told(url) + len(ends) < 6:
        time.sleep(0.01)
    process.send_signal(number)
    for thread in threads:
        thread.join(60)
    assert process.wait(60) == 0
    assert len(ends) == 6 and set(ends) <= {"whole", "shutting_down"}, ends
    assert (process.stdout.read(), process.stderr.read()) == ("", "")
