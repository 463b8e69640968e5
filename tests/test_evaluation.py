"""Evaluation, judged by Hugging Face: its own greedy replies, and one plain forward pass a question and method.

Sums in batches differ in the last bits from those of one request alone, hence tolerances of 1e-3 nats.
"""

import pytest
import torch
from transformers import DynamicCache

from cartridges.adapting import applied
from cartridges.cartridge import Cartridge
from cartridges.corpus import Corpus
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import ConfigError, FormatError, InputError
from cartridges.evaluation import EvaluateConfig, Evaluation, evaluate
from cartridges.initialization import InitializeConfig, initialize
from cartridges.intervals import Z
from cartridges.questions import Item
from tests.adapters import random_adapter
from tests.architectures import tiny
from tests.engine.judges import judge_generate, judge_logprobs

TEXTS = {
    "ward.txt": "The ward has nine beds and one door. Room four holds Ada. " * 3,
    "firm.txt": "The firm sells copper wire to seven towns. Its head is Bo. " * 3,
}
CORPUS = Corpus.from_texts(TEXTS)
ASKED = ["How many beds has the ward?", "Who heads the firm?", "Where is Ada?", "What is sold?", "To whom?"]
ITEMS = [Item(text, "an answer", document=list(TEXTS)[number % 2]) for number, text in enumerate(ASKED)]
SHORT = EvaluateConfig(max_new_tokens=10)
SLOTS = 40


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model)


def moved(start: Cartridge, seed: int = 1) -> Cartridge:
    """A cartridge as training might leave it: the same origin, other slots."""
    torch.manual_seed(seed)
    keys, values = (
        [part + 0.3 * part.std() * torch.randn_like(part) for part in parts] for parts in (start.keys, start.values)
    )
    metrics = {"build_s": 4.5, "seconds": 1.5}
    return Cartridge(keys, values, start.manifest.model_copy(update={"metrics": metrics})).sealed()


@pytest.fixture(scope="module")
def start(model):
    return initialize(model, CORPUS, SLOTS, InitializeConfig())


@pytest.fixture(scope="module")
def cartridge(start):
    return moved(start)


@pytest.fixture(scope="module")
def results(engine, cartridge):
    return evaluate(engine, CORPUS, ITEMS, {"40": cartridge}, SHORT, [Item("What is two and two?", "")])


def request(model, question, system="", cartridge=None, max_new_tokens=10):
    messages = [{"role": "system", "content": system}] if system else []
    ids = model.chat.prompt([*messages, {"role": "user", "content": question}])
    return Request(tuple(ids), max_new_tokens, cartridge=cartridge)


def asked_by_hand(model, start, cartridge):
    """For each method the requests that ask, with no sharing."""
    ids = model.tokenizer(CORPUS.text, add_special_tokens=False).input_ids
    cut = model.tokenizer.decode(ids[: SLOTS - len(model.chat.system_prefix("x"))])
    own = {document.path: document.text for document in CORPUS}
    return {
        "full_context": [request(model, item.question, CORPUS.text) for item in ITEMS],
        "document": [request(model, item.question, own[item.document]) for item in ITEMS],
        "no_context": [request(model, item.question) for item in ITEMS],
        "truncated-40": [request(model, item.question, cut) for item in ITEMS],
        "untrained-40": [request(model, item.question, "", start) for item in ITEMS],
        "cartridge-40": [request(model, item.question, "", cartridge) for item in ITEMS],
    }


def test_replies_and_closeness_are_those_of_hugging_face(model, start, cartridge, results):
    by_hand = asked_by_hand(model, start, cartridge)
    assert [row.method for row in results.methods] == list(by_hand)
    teacher = by_hand["full_context"]
    replies = [judge_generate(model, one) for one in teacher]
    assert all(replies) and len({tuple(reply) for reply in replies}) > 1
    teacher_rows = [
        judge_logprobs(model, one, reply)[len(one.prompt_ids) - 1 : -1]
        for one, reply in zip(teacher, replies, strict=True)
    ]
    for row in results.methods:
        student_rows = [
            judge_logprobs(model, one, reply)[len(one.prompt_ids) - 1 : -1]
            for one, reply in zip(by_hand[row.method], replies, strict=True)
        ]
        told, given = torch.cat(teacher_rows).double(), torch.cat(student_rows).double()
        assert row.kl_per_token == pytest.approx(float((told.exp() * (told - given)).sum(-1).mean()), abs=1e-3)
        assert row.top1_agreement == pytest.approx(float((told.argmax(-1) == given.argmax(-1)).double().mean()))
        texts = [model.chat.decode(judge_generate(model, one)) for one in by_hand[row.method]]
        assert [reply.replies[row.method] for reply in results.replies] == texts


def test_the_reference_agrees_with_itself(results):
    row = results.row(results.reference)
    assert results.reference == "full_context"
    assert row.kl_per_token == pytest.approx(0, abs=1e-6) and row.top1_agreement == 1.0
    assert results.row("no_context").kl_per_token > 0.01


def test_bytes_and_tokens_are_those_of_the_cache(model, start, cartridge, results):
    by_hand = asked_by_hand(model, start, cartridge)
    plain = [len(one.prompt_ids) for one in by_hand["no_context"]]
    for row in results.methods:
        longer = [len(one.prompt_ids) - num for one, num in zip(by_hand[row.method], plain, strict=True)]
        assert row.prompt_tokens == round(sum(longer) / len(longer))
        num_kept = SLOTS if row.method.startswith(("cartridge", "untrained")) else row.prompt_tokens
        cache = DynamicCache()
        if num_kept:
            model.hf(input_ids=torch.tensor([[5] * num_kept]), past_key_values=cache, use_cache=True)
        numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
        assert row.kv_bytes == 2 * numbers
    assert results.row("cartridge-40").prompt_tokens == results.row("no_context").kv_bytes == 0


def test_a_truncated_context_is_no_larger_than_the_cartridge(results):
    truncated, cartridge = results.row("truncated-40"), results.row("cartridge-40")
    assert 0 < truncated.kv_bytes <= cartridge.kv_bytes < results.row("full_context").kv_bytes
    assert truncated.num_slots == cartridge.num_slots == SLOTS


def test_what_it_cost_is_told(results):
    assert results.row("cartridge-40").build_s == 4.5
    assert [row.build_s for row in results.methods if row.method != "cartridge-40"] == [0.0] * 5
    assert all(row.question_s > 0 for row in results.methods)
    assert results.about["num_documents"] == 2 and results.about["digest"] == CORPUS.digest
    assert results.about["num_tokens"] > 50 and results.about["window"] == 1024
    assert results.provenance


def test_without_known_answers_there_is_no_accuracy(results):
    assert {(row.accuracy, row.ci95) for row in results.methods} == {(None, None)}
    assert [reply.scores for reply in results.replies] == [{}] * 5
    assert results.notes == []


def test_accuracy_counts_right_replies_with_wilsons_interval(engine, results):
    said = [reply.replies["full_context"] for reply in results.replies]
    items = [
        Item(text, said[number], (said[number],) if number % 2 == 0 else ("no reply says this",), "exact")
        for number, text in enumerate(ASKED)
    ] + [Item("Unscored?", "")]
    found = evaluate(engine, CORPUS, items, {}, SHORT)
    assert found.row("full_context").accuracy == 3 / 5  # questions without a known answer do not count
    assert found.row("full_context").num_questions == 6
    for row in found.methods:
        scores = [reply.scores[row.method] for reply in found.replies[:5]]
        assert row.accuracy == sum(scores) / 5
        share = sum(scores) / 5
        for bound in row.ci95:  # Wilson's bounds are the rates from which what was seen lies Z deviations away
            assert 5 * (share - bound) ** 2 == pytest.approx(Z**2 * bound * (1 - bound), abs=1e-9)
    assert found.replies[5].scores == {}


def test_untrained_is_what_initialize_gives(engine, start):
    found = evaluate(engine, CORPUS, ITEMS, {"40": start}, SHORT)
    untrained, same = found.row("untrained-40"), found.row("cartridge-40")
    assert (untrained.kl_per_token, untrained.top1_agreement) == (same.kl_per_token, same.top1_agreement)
    assert all(reply.replies["untrained-40"] == reply.replies["cartridge-40"] for reply in found.replies)
    for kind in ("chunks", "random"):
        given = initialize(engine.model, CORPUS, SLOTS, InitializeConfig(kind=kind, seed=3), 2)
        (method,) = Evaluation(engine, CORPUS, ITEMS, {}, SHORT).untrained("x", moved(given))
        assert method.cartridge.digest == given.digest


@pytest.mark.parametrize(
    "compaction", [{"keys": "highest_attention", "bias": False}, {"values": "kept", "seed": 2}], ids=str
)
def test_untrained_of_a_compacted_context_has_its_settings(engine, compaction):
    config = InitializeConfig.resolve(values={"kind": "attention_matching", "compact": compaction})
    given = initialize(engine.model, CORPUS, SLOTS, config)
    (method,) = Evaluation(engine, CORPUS, ITEMS, {}, SHORT).untrained("x", moved(given))
    assert method.cartridge.digest == given.digest
    assert (method.cartridge.bias is None) == (not compaction.get("bias", True))


@pytest.mark.parametrize(
    ("initializer", "message"),
    [
        ({}, "cannot be made anew from this corpus"),
        ({"kind": "learned"}, "cannot be made anew ('kind': given 'learned'"),
        (
            {"kind": "kv_eviction", "queries": "self_study"},
            "was matched to the conversations of its training, which are not at hand here",
        ),
    ],
    ids=str,
)
def test_untrained_that_cannot_be_the_same_is_left_out_and_told(engine, start, initializer, message):
    manifest = start.manifest.model_copy(update={"initializer": initializer})
    run = Evaluation(engine, CORPUS, ITEMS, {}, SHORT)
    assert run.untrained("x", Cartridge(start.keys, start.values, manifest)) == []
    (note,) = run.notes
    assert note.startswith(f"the untrained form of x {message}") and note.endswith("and is left out")


def test_untrained_can_be_left_out(engine, cartridge):
    found = evaluate(engine, CORPUS, ITEMS[:1], {"40": cartridge}, EvaluateConfig(max_new_tokens=4, untrained=False))
    assert not any(row.method.startswith("untrained") for row in found.methods)


def test_untrained_of_another_corpus_is_left_out_and_told(engine, cartridge):
    other = Corpus.from_texts({"a.txt": "Nothing is known here. " * 5, "b.txt": "Nor here. " * 5})
    found = evaluate(engine, other, [Item("What?", "")], {"40": cartridge}, SHORT)
    assert found.notes == [
        "the cartridge 40 was not made of these documents, or they have changed since",
        "the untrained form of 40 cannot be made anew from this corpus, and is left out",
    ]
    assert "untrained-40" not in [row.method for row in found.methods]


def test_several_cartridges_have_rows_of_their_own(engine, cartridge, start):
    small = moved(initialize(engine.model, CORPUS, 30, InitializeConfig()))
    found = evaluate(engine, CORPUS, ITEMS[:2], {"40": cartridge, "30": small}, SHORT)
    names = [row.method for row in found.methods]
    assert names[3:5] == ["truncated-30", "truncated-40"]
    assert [row.num_slots for row in found.cartridges] == [30, 40]
    assert len(set(names)) == len(names)


def test_a_document_is_compared_only_where_all_questions_name_one(engine):
    found = evaluate(engine, CORPUS, [*ITEMS, Item("Of none?", "")], {}, SHORT)
    assert "document" not in [row.method for row in found.methods]


@pytest.fixture(scope="module")
def large():
    """A corpus beyond the window of 1024 tokens, whose documents fit one by one."""
    return Corpus.from_texts({path: (text * 20)[:1400] for path, text in TEXTS.items()})


def test_the_right_document_is_read_where_all_do_not_fit(engine, large):
    found = evaluate(engine, large, ITEMS[:3], {}, SHORT)
    assert found.about["num_tokens"] > 1024 - 74
    assert found.reference == "document" and "full_context" not in [row.method for row in found.methods]
    (note,) = found.notes
    assert f"has {found.about['num_tokens']} tokens, more than the window leaves" in note
    assert "the reference reads the one document that answers the question" in note
    documents = {document.path: document.text for document in large}
    texts = [
        engine.model.chat.decode(judge_generate(engine.model, request(engine.model, i.question, documents[i.document])))
        for i in ITEMS[:3]
    ]
    assert [reply.replies["document"] for reply in found.replies] == texts


def test_the_beginning_is_read_where_nothing_tells_the_document(engine, large):
    found = evaluate(engine, large, [Item("How many beds has the ward?", "")], {}, SHORT)
    assert found.reference == "window_context" and "full_context" not in [row.method for row in found.methods]
    assert found.row("window_context").label == "context cut to the window"
    assert 800 < found.row("window_context").prompt_tokens < 1024
    (note,) = found.notes
    assert "the questions do not all name their documents: the reference reads the corpus' beginning alone" in note


@pytest.mark.parametrize(
    ("documents", "note"),
    [
        (["ward.txt", "firm.txt"], None),
        (["ward.txt", "Firm.txt"], "a question names the document 'Firm.txt', which is none of the corpus"),
        (["ward.txt", ""], "1 of 2 questions name no document"),
        (["", ""], None),
    ],
)
def test_questions_that_do_not_all_name_their_documents_are_told(engine, documents, note):
    items = [Item(text, "", document=name) for text, name in zip(ASKED, documents, strict=False)]
    run = Evaluation(engine, CORPUS, items, {}, SHORT)
    assert ("document" in [method.name for method in run.methods()]) == (documents == ["ward.txt", "firm.txt"])
    assert run.notes == ([f"{note}; the right one is left out"] if note else [])


def test_a_document_beyond_the_window_is_told(engine):
    corpus = Corpus.from_texts({"ward.txt": TEXTS["ward.txt"] * 20, "firm.txt": "Copper."})
    found = evaluate(engine, corpus, ITEMS[:1], {}, SHORT)
    assert found.reference == "window_context"
    assert "and the document is as long: the reference reads the corpus' beginning alone" in found.notes[0]


def test_questions_off_the_corpus_are_compared_with_the_model_alone(model, cartridge, results):
    alone, behind = results.off_corpus
    assert (alone.method, behind.method) == ("no_context", "cartridge-40")
    assert alone.kl_per_token == pytest.approx(0, abs=1e-6) and alone.top1_agreement == 1.0
    assert alone.num_questions == behind.num_questions == 1
    plain = request(model, "What is two and two?")
    reply = judge_generate(model, plain)
    told, given = (
        judge_logprobs(model, one, reply)[len(plain.prompt_ids) - 1 : -1].double()
        for one in (plain, request(model, "What is two and two?", "", cartridge))
    )
    assert behind.kl_per_token == pytest.approx(float((told.exp() * (told - given)).sum(-1).mean()), abs=1e-3)


def test_without_cartridges_nothing_is_asked_off_the_corpus(engine):
    assert evaluate(engine, CORPUS, ITEMS[:1], {}, SHORT, [Item("What?", "")]).off_corpus == []


def test_questions_beyond_the_limit_are_told(engine):
    found = evaluate(engine, CORPUS, ITEMS, {}, EvaluateConfig(max_new_tokens=4, max_items=2))
    assert found.notes == ["2 of 5 questions, drawn at random, were asked (max_items)"]
    assert len(found.replies) == 2
    assert {reply.question for reply in found.replies} < set(ASKED)


@pytest.mark.parametrize("override", ["max_items=0", "max_items=-1", "max_new_tokens=0", "seed=-1"])
def test_a_measurement_of_nothing_is_refused(override):
    with pytest.raises(ConfigError, match=rf"'{override.split('=')[0]}': given"):
        EvaluateConfig.resolve(overrides=[override])


def test_seconds_of_training_alone_are_told(engine, cartridge):
    trained = Cartridge(
        cartridge.keys, cartridge.values, cartridge.manifest.model_copy(update={"metrics": {"seconds": 2}})
    )
    config = EvaluateConfig(max_new_tokens=4, untrained=False)
    found = evaluate(engine, CORPUS, ITEMS[:1], {"40": trained}, config)
    assert found.row("cartridge-40").build_s == 2
    assert found.notes == ["the build seconds of cartridge 40 are those of training alone"]


def test_cut_replies_are_counted(engine):
    found = evaluate(engine, CORPUS, ITEMS[:2], {}, EvaluateConfig(max_new_tokens=1))
    assert found.about["num_cut"] == 2 * len(found.methods)


def test_results_are_written_and_read(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert type(results).load(tmp_path / "results.json") == results


def test_nothing_to_ask_is_told(engine):
    with pytest.raises(InputError, match="given no questions, expected at least one; give a file of questions or"):
        evaluate(engine, CORPUS, [], {})


def test_a_cartridge_of_another_model_is_refused(engine, tiny_tokenizer):
    other = initialize(tiny("qwen3", tiny_tokenizer, seed=1), CORPUS, 8, InitializeConfig())
    with pytest.raises(FormatError, match="other weights of the same shape; load it with its own model"):
        evaluate(engine, CORPUS, ITEMS, {"8": other})


def test_a_question_beyond_the_window_is_told(engine):
    with pytest.raises(InputError, match="expected at most 1024, the window of tiny-qwen3"):
        evaluate(engine, CORPUS, [Item("Why? " * 1000, "")], {}, SHORT)


def test_adapters_are_methods_beside_the_others(model, engine, cartridge):
    other, nothing = random_adapter(model, bias=True), random_adapter(model)
    for patch in nothing.patches:
        patch.delta.zero_()
    adapters = {"other": other, "nothing": nothing.sealed()}
    general = [Item("What is two and two?", "four", ("four",))]
    found = evaluate(engine, CORPUS, ITEMS, {"40": cartridge}, SHORT, general, adapters)
    none, same, changed = (found.row(name) for name in ("no_context", "adapter-nothing", "adapter-other"))
    assert same.kl_per_token == pytest.approx(none.kl_per_token, abs=1e-6)
    assert changed.label == f"adapter other, {2 * other.num_numbers / 1e6:.3g} MB of weights"
    assert [reply.replies["adapter-nothing"] for reply in found.replies] == [
        reply.replies["no_context"] for reply in found.replies
    ]
    total, num = 0.0, 0
    for item, reply in zip(ITEMS, found.replies, strict=True):
        full = engine.generate([request(model, item.question, CORPUS.text)])[0]
        assert full.text == reply.replies[found.reference]
        reading, alone = request(model, item.question, CORPUS.text), request(model, item.question)
        num_new = len(full.token_ids)
        teacher = judge_logprobs(model, reading, full.token_ids)[-num_new - 1 : -1]
        with applied(model, other):
            student = judge_logprobs(model, alone, full.token_ids)[-num_new - 1 : -1]
        total += float((teacher.exp() * (teacher - student)).sum())
        num += num_new
    assert changed.kl_per_token == pytest.approx(total / num, abs=1e-3)
    off = [row.method for row in found.off_corpus]
    assert off == ["no_context", "cartridge-40", "adapter-other", "adapter-nothing"]
    assert not any(module._forward_hooks for module in model.hf.modules())
