"""What is settled about conversations before anyone speaks: here the passages that messages are bound to."""

import pytest

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
        assert sorted(view.passages) == sorted(passages(view.chunk.text))
        plans = [study.plan(index) for index in range(4 * group, 4 * group + 4)]
        for number, plan in enumerate(plans):
            assert bound(plan.prompt, view.passages[number % len(view.passages)]) in asked


def test_all_messages_of_one_call_are_about_one_passage(corpus, tiny_tokenizer):
    config = config_of(general_share=0.0, passage_len=1, questions_per_call=2, conversations_per_chunk=8)
    study = Study(corpus, Server(tiny_tokenizer), config, load_seeds("pocket"))
    view = study.view(0)
    prompts = [study.prompt(study.plan(index), view) for index in range(8)]
    told = [prompt.partition("about this part:\n")[2] for prompt in prompts]
    assert told[::2] == told[1::2] == [view.passages[number % len(view.passages)] for number in range(4)]


def test_no_passage_is_told_where_none_is_asked_for(corpus, tiny_tokenizer):
    study = Study(corpus, Server(tiny_tokenizer), config_of(general_share=0.0, passage_len=0), load_seeds("pocket"))
    view, plan = study.view(0), study.plan(0)
    assert study.prompt(plan, view) == plan.prompt


def test_the_longest_passage_counts_in_the_window(corpus, tiny_tokenizer):
    server = Server(tiny_tokenizer)
    free, held = (Study(corpus, server, config_of(passage_len=n), load_seeds("pocket")) for n in (0, 1))
    longest = max((p for document in corpus for p in passages(document.text)), key=len)
    assert held.num_beside_chunk - free.num_beside_chunk >= len(tiny_tokenizer(longest).input_ids)
