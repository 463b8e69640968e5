"""Servers of other kinds: started again, over two processes, without prefix caching, with sliding windows."""

import signal
import threading
import time

import pytest

from cartridges.initialization import InitializeConfig, initialize
from cartridges.model import load_model
from tests.architectures import tiny
from tests.vllm.serving import Server, agree, expected

PROMPT = [20, 21, 22, 23, 24]


def test_two_processes_no_prefix_caching_small_steps_and_an_end_under_load(
    server, model, cartridges, folders, tmp_path
):
    """The same folders as of the first server: what is on disk is all that a restart needs."""
    extra = [
        "--max-model-len",
        "512",
        "--block-size",
        "32",
        "--tensor-parallel-size",
        "2",
        "--no-enable-prefix-caching",
    ]
    extra += ["--enable-chunked-prefill", "--max-num-batched-tokens", "64", "--max-num-seqs", "16"]
    wanted = {name: expected(model, cartridges.get(name), PROMPT * 30, 16) for name in ["pocket", *cartridges]}
    one_core_each = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with Server(tmp_path / "log", folders, extra=extra, environment=one_core_each) as running:
        right: list[bool] = []

        def ask(name: str, num_new: int) -> None:
            given = running.complete(name, PROMPT * 30, num_new)
            right.append(agree((given[0][:16], given[1][:16]), wanted[name]))

        threads = [threading.Thread(target=ask, args=(name, 16)) for name in [*wanted, *wanted]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * 2 * len(wanted)
        last = threading.Thread(target=ask, args=("odd", 200))
        last.start()
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        last.join()
        assert right[-1], "what was running was finished"
        assert running.process.wait(180) == 0
    assert agree(server.complete("odd", PROMPT * 30, 16), wanted["odd"]), "the two servers agree"


@pytest.fixture
def gemma(tiny_tokenizer, tmp_path):
    """Layers with a window of 32 and layers without: two groups of blocks in vLLM."""
    made = tiny("gemma3", tiny_tokenizer, sliding_window=32, num_attention_heads=4, head_dim=32)
    made.hf.save_pretrained(tmp_path / "gemma")
    tiny_tokenizer.save_pretrained(tmp_path / "gemma")
    return load_model(tmp_path / "gemma")


def test_sliding_windows_and_a_load_that_fails(gemma, tmp_path):
    text = " ".join(f"word{number} is in line {number * 7}" for number in range(200))
    made = initialize(gemma, None, 77, InitializeConfig(kind="text", text=text))
    made.save(tmp_path / "of-gemma")
    prompt = gemma.ids("what is in line 7")
    extra = ["--max-model-len", "512", "--block-size", "32"]
    with Server(tmp_path / "log", {"slides": tmp_path / "of-gemma"}, [], extra, str(tmp_path / "gemma")) as running:
        for name, cartridge in (("slides", made), (gemma.identity.model_id, None), ("slides", made)):
            assert agree(running.complete(name, prompt, 24), expected(gemma, cartridge, prompt, 24)), name
        bad = {"kv_transfer_params": {"cartridges": ["nobody"]}, "input": "word", "max_output_tokens": 4}
        assert running.post("/v1/responses", model=gemma.identity.model_id, **bad).status_code >= 400
        assert agree(running.complete("slides", prompt, 4), expected(gemma, made, prompt, 4))
