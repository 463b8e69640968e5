"""What is settled about conversations before anyone speaks: here the passages that messages are bound to."""

import json
from collections import Counter

import pytest

from cartridges.corpus import Corpus
from cartridges.errors import ConfigError
from cartridges.passages import passages
from cartridges.pocket.seeds import bound
from cartridges.seeds import load_seeds
from cartridges.study_plan import Study
from cartridges.synthesis import synthesize
from tests.server import Server, config_of, make_corpus


@pytest.fixture(scope="module")
def corpus():
    return make_corpus()


def test_messages_are_bound_to_the_passages_of_their_chunk_in_turn(corpus, tiny_tokenizer, tmp_path):
    server = Server(tiny_tokenizer)
    config = config_of(general_share=0.0, passage_len=1)
    synthesize(corpus, server, config, tmp_path / "run")
    study = Study(corpus, server, config, load_seeds("pocket"))
    asked = {request.messages[-1]["content"] for request in server.requests if not request.top_k_logprobs}
    for group in range(11):
        view = study.view(group)
        found, whole = passages(view.chunk.text), corpus.document(view.chunk.document).text
        begins_within_a_line = view.chunk.start and "\n" not in whole[view.chunk.start - 1 : view.chunk.start + 1]
        if begins_within_a_line and len(found) > 2:
            assert found[0] not in view.passages
        assert len(found) - 2 <= len(view.passages) and set(view.passages) <= set(found)
        plans = [study.plan(index) for index in range(4 * group, 4 * group + 4)]
        for number, plan in enumerate(plans):
            assert bound(plan.prompt, view.passages[number % len(view.passages)]) in asked


def test_chunks_cover_the_corpus_evenly_however_many_there_are(tiny_tokenizer):
    texts = {f"{number}.txt": f"the plant {number} " * 40 for number in range(8)}
    study = Study(
        Corpus.from_texts(texts), Server(tiny_tokenizer), config_of(chunk={"kind": "structure"}), load_seeds("pocket")
    )
    for num in (8, 40, 200):
        drawn = Counter(study.view(group).chunk.document for group in range(num))
        for path, num_tokens in study.chunker.num_tokens_of.items():  # drawn one by one, as a rule off by 7
            assert abs(drawn[path] - num * num_tokens / study.chunker.num_tokens) < 2.5


def test_ends_of_a_chunk_that_are_parts_of_a_line_are_no_passages(tiny_tokenizer):
    lines = [f"The room of patient {number} is number {number * 7} on the upper floor." for number in range(60)]
    corpus = Corpus.from_texts({"lines.txt": "\n".join(lines), "line.txt": "one two three four " * 100})
    study = Study(corpus, Server(tiny_tokenizer), config_of(passage_len=1), load_seeds("pocket"))
    views = [study.view(group) for group in range(40)]
    assert {view.chunk.document for view in views} == {"lines.txt", "line.txt"}
    for view in views:
        assert view.passages
        if view.chunk.document == "lines.txt" and len(passages(view.chunk.text)) > 2:
            assert set(view.passages) <= set(lines)


def test_passages_and_several_messages_at_once_are_refused():
    with pytest.raises(ConfigError, match="asked for one by one; set passage_len=0"):
        config_of(passage_len=1, questions_per_call=2)


def test_one_long_line_is_no_reason_to_refuse_a_corpus(tiny_tokenizer):
    records = json.dumps([{"name": f"patient {number}", "room": number * 7} for number in range(600)])
    corpus, server = Corpus.from_texts({"records.json": records}), Server(tiny_tokenizer)
    study = Study(corpus, server, config_of(passage_len=1), load_seeds("pocket"))
    assert study.num_beside_chunk + study.max_chunk_len <= server.window


def test_messages_that_would_not_fit_are_dropped_and_counted(corpus, tiny_tokenizer, tmp_path, monkeypatch):
    server = Server(tiny_tokenizer)
    monkeypatch.setattr(Study, "check_window", lambda study: None)
    monkeypatch.setattr(server, "window", 200, raising=False)
    made = synthesize(corpus, server, config_of(general_share=0.2, passage_len=1), tmp_path / "run")
    assert made.manifest["dropped"]["too_long"] > 0
    assert all(len(request.prompt_ids) + request.max_new_tokens <= 200 for request in server.requests)


def test_no_passage_is_told_where_none_is_asked_for(corpus, tiny_tokenizer):
    study = Study(corpus, Server(tiny_tokenizer), config_of(general_share=0.0, passage_len=0), load_seeds("pocket"))
    view, plan = study.view(0), study.plan(0)
    assert study.prompt(plan, view) == plan.prompt


def test_the_longest_passage_counts_in_the_window(corpus, tiny_tokenizer):
    server = Server(tiny_tokenizer)
    free, held = (Study(corpus, server, config_of(passage_len=n), load_seeds("pocket")) for n in (0, 1))
    longest = max((p for document in corpus for p in passages(document.text)), key=len)
    assert held.num_beside_chunk - free.num_beside_chunk >= len(tiny_tokenizer(longest).input_ids)
