"""The bundled weights: they are there, they fit, and they read. The full table is `cartridges pocket eval`."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cartridges.engine.engine import Engine
from cartridges.model import load_model
from cartridges.pocket import WEIGHTS
from cartridges.pocket.evaluate import DOCUMENT, TARGETS, Evaluation
from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.generate import generate


@pytest.fixture(scope="module")
def pocket():
    return Engine(load_model("pocket", "cpu"))


@pytest.fixture(scope="module")
def report(pocket):
    """One document of each family, with questions of every kind."""
    run = Evaluation(pocket, split="validation", seed=1, scale=1.0)
    for family in FAMILIES:
        run.one_document(family, 0)
    return run.report


def test_they_take_at_most_32_mb():
    assert 1e6 < sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 32e6


def test_plain_transformers_loads_them_in_bf16():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(WEIGHTS), AutoTokenizer.from_pretrained(WEIGHTS)
    assert str(model.dtype) == "torch.bfloat16"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=20, do_sample=False)
    assert (
        tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        == "The capital of France is Paris."
    )


def test_the_shape_fits_vllms_cpu_kernels():
    config = AutoConfig.from_pretrained(WEIGHTS)
    assert config.model_type == "qwen3"
    assert config.head_dim == 64
    assert config.max_position_embeddings >= 4096


LEAST = {
    "lookup": 0.9,
    "multiple_choice": 0.9,
    "comparison": 0.9,
    "count": 0.9,
    "unanswerable": 0.9,
    "general": 0.95,
    "ask": 0.8,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", LEAST)
def test_it_answers_about_documents_it_has_never_seen(report, kind):
    scores = report.pooled((kind,), DOCUMENT)
    assert len(scores) >= 9
    assert sum(scores) / len(scores) >= LEAST[kind]


def test_it_cannot_answer_without_the_document(pocket):
    context = make_context("ward", "validation", "unread", size=3)
    fact = next(fact for fact in context.singles if fact.relation.noun == "doctor")
    question = f"Who treats {fact.subject}?"
    with_text, without = generate(pocket, context.text, [question])[0], generate(pocket, "", [question])[0]
    assert with_text == f"The doctor of {fact.subject} is {fact.value}."
    assert without == "I do not know."


def test_the_committed_table_is_of_these_weights():
    measured = json.loads((WEIGHTS / "eval.json").read_text())
    assert [line["name"] for line in measured["targets"]] == [target.name for target in TARGETS]
    assert measured["split"] == "test"
    assert all(line["num"] >= 20 for line in measured["targets"])
    assert (
        measured["weights_sha256"] == json.loads((WEIGHTS / "manifest.json").read_text())["sha256"]["model.safetensors"]
    )
