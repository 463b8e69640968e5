"""Whatever interrupts a run, its dataset must be that of one that nobody disturbed, to the bit."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cartridges.corpus import Corpus
from cartridges.errors import ConfigError, FormatError, InputError, InterruptedRun
from cartridges.log import read_metrics
from cartridges.run_folder import claim
from cartridges.synthesis import SynthesizeConfig, synthesize
from tests import server as server_program
from tests.server import Server, config_of, conversations_of, make_corpus, shard_times


@pytest.fixture(scope="module")
def corpus():
    return make_corpus()


@pytest.fixture(scope="module")
def whole(corpus, tiny_tokenizer, tmp_path_factory):
    """A run that nobody disturbed: its server and its dataset."""
    server = Server(tiny_tokenizer)
    folder = tmp_path_factory.mktemp("whole") / "run"
    return server, synthesize(corpus, server, config_of(), folder), folder


def test_the_manifest_tells_where_the_dataset_comes_from(whole, corpus):
    _, dataset, folder = whole
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["is_finished"]
    assert manifest["corpus_digest"] == corpus.digest
    assert manifest["dataset_digest"] == dataset.digest
    assert manifest["num_kept"] == len(dataset.conversations)
    assert manifest["num_openings"] == len({talk.messages[0]["content"] for talk in dataset.conversations})
    assert manifest["num_kept"] + sum(manifest["dropped"].values()) == manifest["num_conversations"] == 44
    assert manifest["dropped"].keys() >= {"cut_off", "malformed"}
    assert 0 < manifest["coverage"]["character_ratio"] <= 1
    assert manifest["num_tokens"]["new"] > 0
    assert manifest["seconds"].keys() == {"questions", "answers"}
    assert len(read_metrics(folder / "metrics.jsonl")) == 3
    assert SynthesizeConfig.load(folder / "config.yaml") == config_of()


def test_a_server_that_answers_in_another_order_changes_nothing(whole, corpus, tiny_tokenizer, tmp_path):
    again = synthesize(corpus, Server(tiny_tokenizer, order_seed=7), config_of(), tmp_path / "run")
    assert conversations_of(again) == conversations_of(whole[1])
    assert again.digest == whole[1].digest


@pytest.mark.parametrize("first", [16, 20, 37])
def test_an_extended_run_is_one_that_was_long_from_the_start(whole, corpus, tiny_tokenizer, tmp_path, first):
    folder = tmp_path / "run"
    short = synthesize(corpus, Server(tiny_tokenizer), config_of(num_conversations=first), folder)
    assert {c.index for c in short.conversations} == {c.index for c in whole[1].conversations if c.index < first}
    before = shard_times(folder)
    long = synthesize(corpus, Server(tiny_tokenizer), config_of(), folder)
    assert long.digest == whole[1].digest
    assert conversations_of(long) == conversations_of(whole[1])
    assert long.manifest["dropped"] == whole[1].manifest["dropped"]
    after = shard_times(folder)
    assert [after[name] == time for name, time in before.items()][: first // 16] == [True] * (first // 16)


def test_a_finished_run_is_not_made_again(whole, corpus, tiny_tokenizer):
    server = Server(tiny_tokenizer)
    before = (whole[2] / "manifest.json").read_bytes()
    assert synthesize(corpus, server, config_of(), whole[2]).digest == whole[1].digest
    assert server.requests == []
    assert (whole[2] / "manifest.json").read_bytes() == before


def begin(out: Path, tokenizer_path: Path) -> subprocess.Popen:
    command = [sys.executable, server_program.__file__, str(out), str(tokenizer_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "started\n"
    return process


def test_kill_9_loses_no_finished_shard(whole, corpus, tiny_tokenizer, tmp_path):
    tokenizer_path, folder = tmp_path / "tokenizer", tmp_path / "run"
    tiny_tokenizer.save_pretrained(tokenizer_path)
    rng = random.Random()
    finished: dict[str, int] = {}
    for _ in range(3):
        process = begin(folder, tokenizer_path)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        now = shard_times(folder)
        assert finished.items() <= now.items()
        finished = now
    dataset = synthesize(corpus, Server(tiny_tokenizer), config_of(), folder)
    assert finished.items() <= shard_times(folder).items()
    assert dataset.digest == whole[1].digest
    assert conversations_of(dataset) == conversations_of(whole[1])
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [0, 1, 2]


def test_ctrl_c_finishes_the_batch(whole, corpus, tiny_tokenizer, tmp_path):
    class Interrupted(Server):
        def reply(self, request):
            if request is self.requests[2]:  # within the first batch
                os.kill(os.getpid(), signal.SIGINT)
            return super().reply(request)

    folder, server = tmp_path / "run", Interrupted(tiny_tokenizer)
    with pytest.raises(InterruptedRun, match=r"stopped with 1 of 3 batches finished .* same command again"):
        synthesize(corpus, server, config_of(), folder)
    assert list(shard_times(folder)) == ["shard-00000.parquet"]
    assert json.loads((folder / "manifest.json").read_text())["is_finished"] is False
    assert synthesize(corpus, Server(tiny_tokenizer), config_of(), folder).digest == whole[1].digest


def test_a_line_without_its_shard_is_made_again(whole, corpus, tiny_tokenizer, tmp_path):
    folder = tmp_path / "run"
    synthesize(corpus, Server(tiny_tokenizer), config_of(), folder)
    (folder / "shard-00001.parquet").unlink()
    assert synthesize(corpus, Server(tiny_tokenizer), config_of(), folder).digest == whole[1].digest
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [0, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, r"was begun with top_k=4 \(now 5\); give the same, or another folder"),
        ({"chunk__max_len": 99, "seed": 1}, r"begun with chunk.max_len=120 \(now 99\), seed=0 \(now 1\)"),
        ({"num_conversations": 43}, "num_conversations=43, expected at least the 44"),
    ],
)
def test_another_configuration_is_refused(whole, corpus, tiny_tokenizer, changes, message):
    with pytest.raises(ConfigError, match=message):
        synthesize(corpus, Server(tiny_tokenizer), config_of(**changes), whole[2])


def test_another_corpus_or_model_is_refused(whole, tiny_tokenizer):
    with pytest.raises(InputError, match="was begun with another corpus; give the same"):
        synthesize(Corpus.from_texts({"a": "b" * 500}), Server(tiny_tokenizer), config_of(), whole[2])
    other = Server(tiny_tokenizer)
    other.model_id = "b-server"
    with pytest.raises(InputError, match="was begun with another model"):
        synthesize(make_corpus(), other, config_of(), whole[2])


def test_a_run_whose_chunks_were_drawn_one_by_one_is_not_mixed_with_others(corpus, tiny_tokenizer, tmp_path):
    synthesize(corpus, Server(tiny_tokenizer), config_of(num_conversations=16), tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["chunks"]  # as before there was a choice
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was begun with another way of drawing chunks; give the same, or another"):
        synthesize(corpus, Server(tiny_tokenizer), config_of(num_conversations=16), tmp_path / "run")


def test_another_text_in_the_seed_file_is_refused(corpus, tiny_tokenizer, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("study: [Ask.]\n")
    config = config_of(seed_file=str(file), num_conversations=16)
    dataset = synthesize(corpus, Server(tiny_tokenizer, bad_share=0.0), config, tmp_path / "run")
    assert "study" in dataset.manifest["num_by_kind"] or len(dataset.conversations) < 16
    file.write_text("study: [Ask!]\n")
    with pytest.raises(InputError, match="another text in the seed prompts"):
        synthesize(corpus, Server(tiny_tokenizer), config, tmp_path / "run")


def test_kinds_of_a_seed_file_are_used_beside_those_that_are_chosen(corpus, tiny_tokenizer, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("study: [Ask.]\ngeneral: [Hello.]\n")
    config = config_of(seed_file=str(file), seed_kinds=["question"], general_share=0.0)
    dataset = synthesize(corpus, Server(tiny_tokenizer, bad_share=0.0), config, tmp_path / "run")
    assert set(dataset.manifest["num_by_kind"]) == {"question", "study"}


def test_a_folder_in_use_or_of_others_is_refused(whole, corpus, tiny_tokenizer, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter.txt").write_text("Dear")
    with pytest.raises(InputError, match=r"holds other files \(letter.txt\) and no config.yaml"):
        synthesize(corpus, Server(tiny_tokenizer), config_of(), tmp_path / "a")
    with claim(tmp_path / "b"), pytest.raises(InputError, match="is in use by process"):
        synthesize(corpus, Server(tiny_tokenizer), config_of(), tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("slots: 3\n")
    with pytest.raises(FormatError, match=r"config.yaml is no configuration of synthesize: unknown key 'slots'"):
        synthesize(corpus, Server(tiny_tokenizer), config_of(), tmp_path / "c")


def test_a_damaged_manifest_is_told(corpus, tiny_tokenizer, tmp_path):
    synthesize(corpus, Server(tiny_tokenizer), config_of(num_conversations=16), tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{")
    with pytest.raises(FormatError, match=r"manifest.json is damaged .* restore it"):
        synthesize(corpus, Server(tiny_tokenizer), config_of(num_conversations=16), tmp_path / "run")


def test_a_run_that_keeps_nothing_says_why(corpus, tiny_tokenizer, tmp_path):
    class Endless(Server):
        def reply(self, request):
            return replace(super().reply(request), finish_reason="length")

    with pytest.raises(InputError, match=r"none of 44 conversations .* was kept: 44 cut_off; give more max_new_tokens"):
        synthesize(corpus, Endless(tiny_tokenizer, bad_share=0.0), config_of(), tmp_path / "run")


def test_within_a_running_event_loop(whole, corpus, tiny_tokenizer, tmp_path):
    async def notebook():
        return synthesize(corpus, Server(tiny_tokenizer), config_of(), tmp_path / "run")

    assert asyncio.run(notebook()).digest == whole[1].digest
