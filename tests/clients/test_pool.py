"""Many servers as one: who is asked, what is done about faults, and a server that is killed in the middle of a run."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from cartridges.clients.pool import Pool, PoolConfig, base_url, retry_after, said_by
from cartridges.clients.remote import connect
from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from cartridges.synthesis import synthesize
from tests.architectures import tiny
from tests.clients.replica import Replica
from tests.clients.test_remote import check_same, client_of, replies, requests_of
from tests.server import config_of, make_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine(tiny_tokenizer):
    return Engine(tiny("llama", tiny_tokenizer))


@pytest.fixture(scope="module")
def expected(engine):
    with Replica(engine) as served:
        return replies(client_of(engine, [served.url]), requests_of(engine))


def test_without_a_key_the_least_busy_is_asked_in_turn(engine):
    with Replica(engine, pause_s=0.1) as a, Replica(engine, pause_s=0.1) as b:
        replies(client_of(engine, [a.url, b.url]), requests_of(engine, 8, shared_len=0))
    assert (len(a.bodies), len(b.bodies)) == (4, 4)


def test_requests_with_one_prefix_go_to_one_server(engine):
    with Replica(engine) as a, Replica(engine) as b:
        client = client_of(engine, [a.url, b.url])
        replies(client, requests_of(engine, 4))
        assert sorted([len(a.bodies), len(b.bodies)]) == [0, 4]
        replies(client, requests_of(engine, 4, shared_len=7))  # another prefix, another server
        assert (len(a.bodies), len(b.bodies)) == (4, 4)
        replies(client, requests_of(engine, 2))
        assert sorted([len(a.bodies), len(b.bodies)]) == [4, 6]


def test_no_server_gets_more_than_it_may_have(engine):
    with Replica(engine, pause_s=0.02) as a, Replica(engine, pause_s=0.02) as b:
        replies(client_of(engine, [a.url, b.url], max_running=2), requests_of(engine, 12, shared_len=0))
    assert a.most_running == b.most_running == 2
    assert len(a.bodies) + len(b.bodies) == 12


def test_two_calls_at_once_share_what_a_server_may_have(engine):
    with Replica(engine, pause_s=0.1) as served:
        client = client_of(engine, [served.url], max_running=2)

        async def both():
            first = asyncio.create_task(client.chat(requests_of(engine, 6)))
            while not served.num_running:
                await asyncio.sleep(0.005)
            await asyncio.gather(first, client.chat(requests_of(engine, 6)))

        asyncio.run(both())
    assert served.most_running == 2 and len(served.bodies) == 12
    assert client.pool.replicas[0].num_running == 0


@pytest.mark.parametrize("fault", ["drop", 500, 502, 429, 503, "slow"])
def test_a_fault_is_mended_by_another_attempt(engine, expected, fault):
    with Replica(engine, [fault, fault]) as served:
        client = client_of(engine, [served.url], reply_s=0.5)
        check_same(replies(client, requests_of(engine)), expected)
    (replica,) = client.pool.replicas
    assert replica.num_requests == 4 and replica.num_retries == 2
    assert replica.num_failures == 0 and replica.last_error


def test_the_time_that_is_waited_grows(engine):
    pool = Pool(["http://a"], PoolConfig.resolve(values={"wait_s": 1.0, "max_wait_s": 5.0}))
    for num_before, longest in ((0, 1.0), (1, 2.0), (2, 4.0), (3, 5.0), (30, 5.0)):
        pauses = [pool._pause(num_before) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


def test_a_server_that_is_down_leaves_its_work_to_the_others(engine, expected):
    with Replica(engine) as gone:
        pass
    with Replica(engine) as served:
        client = client_of(engine, [gone.url, served.url], wait_s=30.0)
        started = time.monotonic()
        check_same(replies(client, requests_of(engine)), expected)
        assert time.monotonic() - started < 20
    down, up = client.pool.replicas
    assert (down.num_requests, up.num_requests) == (0, 4)
    assert down.num_failures == 1 and "ConnectError" in down.last_error
    assert f"{down.url}: 0 replies" in client.pool.lines()[0] and "attempts in vain" in client.pool.lines()[0]


@pytest.mark.parametrize("fault", [503, 500, "slow"])
@pytest.mark.parametrize("shared_len", [0, 9])
def test_what_a_server_has_no_time_for_goes_to_another(engine, fault, shared_len):
    """With one request at a time nothing else keeps the faulty server from being the least busy again."""
    asked = requests_of(engine, 1, shared_len=shared_len)
    with Replica(engine) as alone:
        (expected,) = replies(client_of(engine, [alone.url]), asked)
    with Replica(engine, [fault] * 99) as faulty, Replica(engine) as served:
        client = client_of(engine, [faulty.url, served.url], reply_s=0.5)
        (found,) = replies(client, asked)
    assert found.token_ids == expected.token_ids
    bad, good = client.pool.replicas
    assert (bad.num_requests, bad.num_retries, good.num_requests) == (0, 1, 1)


def test_a_refused_request_is_not_asked_again(engine):
    with Replica(engine, [400] * 9) as served:
        client = client_of(engine, [served.url])
        with pytest.raises(InputError, match=r"/v1/completions refused a request \(400\): fault 400"):
            replies(client, requests_of(engine, 1))
        assert len(served.bodies) == 1


def test_it_is_given_up_in_the_end(engine):
    with Replica(engine, ["drop"] * 99) as served:
        with pytest.raises(InputError, match=r"no answer after \d attempts at 1 server\(s\); the last: http"):
            replies(client_of(engine, [served.url]), requests_of(engine))
        assert len(served.bodies) < 20
    with Replica(engine, [429] * 99) as served:
        with pytest.raises(InputError, match=r"no answer after 3 attempts .* 429 fault 429"):
            replies(client_of(engine, [served.url]), requests_of(engine, 1))
        assert len(served.bodies) == 3


def test_a_cancelled_task_leaves_nothing_counted(engine):
    with Replica(engine, pause_s=1.0) as served:
        client = client_of(engine, [served.url])

        async def cancelled():
            task = asyncio.create_task(client.chat(requests_of(engine)))
            while not served.bodies:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        assert client.pool.replicas[0].num_running == 0


def test_the_ledger_counts_what_was_read_and_written(engine, expected):
    with Replica(engine) as served:
        client = client_of(engine, [served.url])
        replies(client, requests_of(engine))
    ((step, num_read, num_written, seconds),) = client.pool.ledger().entries
    assert step == f"answers of {served.url}"
    assert num_read == sum(reply.num_prompt_tokens for reply in expected)
    assert num_written == sum(len(reply.token_ids) for reply in expected)
    assert 0 < seconds < 60


def test_small_forms():
    assert base_url(" http://a:8000/v1/ ") == "http://a:8000" == base_url("http://a:8000")
    assert [retry_after(text, 5.0) for text in ("2", "99", "-1", "", "Wed, 21 Oct")] == [2.0, 5.0, 0.0, 0.0, 0.0]
    for content, said in (
        ({"error": {"message": "too\nlong"}}, "too long"),
        ({"detail": "nothing"}, "nothing"),
        ("plain", "plain"),
    ):
        raw = content if isinstance(content, str) else json.dumps(content)
        assert said_by(httpx.Response(400, text=raw)) == said


def started(command):
    """Two processes of a server of pocket, each with its URL, which it prints; killed in the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    try:
        yield [(process, re.search(r"http://[\d.:]+", process.stdout.readline())[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def processes():
    yield from started(["tests.clients.replica", "pocket", "0.02"])


def test_a_server_is_killed_and_nothing_is_lost_or_doubled(processes, tmp_path):
    check_kill(processes, tmp_path)


def check_kill(processes, tmp_path):
    """The data is that of the engine of this process, up to rounding, though one of two servers is killed."""
    config = config_of(num_conversations=32, answer__max_new_tokens=96)
    expected = synthesize(make_corpus(), Engine("pocket"), config, tmp_path / "local")
    (victim, url), (_, other_url) = processes
    values = PoolConfig.resolve(values={"max_running": 4, "wait_s": 0.05})
    client = connect([url, other_url], "vllm", "pocket", values)
    first = client.pool.replicas[0]
    num_before = []

    def kill():
        while first.num_requests < 3 or not first.num_running:
            time.sleep(0.002)
        num_before.append(first.num_requests)
        os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = synthesize(make_corpus(), client, config, tmp_path / "remote")
    killer.join(10)
    assert victim.wait(10) == -signal.SIGKILL and num_before
    assert first.num_retries > 0 and client.pool.replicas[1].num_requests > 0
    assert first.num_requests + client.pool.replicas[1].num_requests >= len(found.conversations)
    assert found.manifest["dropped"] == expected.manifest["dropped"]
    assert found.manifest["num_tokens"]["new"] == expected.manifest["num_tokens"]["new"]
    assert len(found.conversations) == len(expected.conversations) > 15
    for mine, theirs in zip(found.conversations, expected.conversations, strict=True):
        assert (mine.index, mine.messages, mine.seed_kind) == (theirs.index, theirs.messages, theirs.seed_kind)
        assert np.array_equal(mine.token_ids, theirs.token_ids)
        assert np.array_equal(mine.target_positions, theirs.target_positions)
        np.testing.assert_allclose(mine.teacher.logprobs, theirs.teacher.logprobs, atol=1e-3)


def test_pauses_stay_finite_however_long_a_server_is_down():
    pool = Pool(["http://127.0.0.1:9"], PoolConfig.resolve())
    assert 0 < pool._pause(5000) <= pool.config.max_wait_s
