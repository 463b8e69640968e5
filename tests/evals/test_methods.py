"""Methods: each answers within its budget; trained ones are built once; retrieval finds the words of a question."""

import numpy as np
import pytest

from cartridges.corpus import Corpus
from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from cartridges.evals.harness import run
from cartridges.evals.method import Answerer, Workshop, built, own_methods
from cartridges.evals.methods.adapter import rank_for as adapter_rank_for
from cartridges.evals.methods.lora import rank_for
from cartridges.evals.methods.retrieval import Bm25, own_vectors
from cartridges.model import load_model
from cartridges.questions import Item
from cartridges.recipe import TrainConfig
from cartridges.study_plan import SynthesizeConfig
from cartridges.synthesis import synthesize


@pytest.fixture(scope="module")
def pocket():
    return Engine(load_model("pocket"))


@pytest.fixture(scope="module")
def shop(pocket, task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    values = {"num_conversations": 64, "general_share": 0.0}
    config = SynthesizeConfig.resolve("pocket", values=values)
    training = TrainConfig.resolve("pocket", values={"max_steps": 2, "eval_every": 1})

    def study():
        return synthesize(task.corpus, pocket, config, folder / "study")

    return Workshop(pocket, task.corpus, folder, 40, study, training)


@pytest.mark.parametrize("name", ["no_context", "truncated", "summary", "bm25", "embeddings"])
def test_texts_fit_the_budget(name, shop, task):
    answerer = built(name, shop)
    longest = max(len(shop.engine.model.chat.system_prefix(answerer.system(item) or "x")) for item in task.items)
    assert longest <= shop.num_slots
    assert (name == "no_context") == (not any(answerer.system(item) for item in task.items))


def test_the_full_context_and_the_right_document(shop, task):
    assert built("full_context", shop).system(task.items[0]) == task.corpus.text
    oracle = built("document", shop)
    assert oracle.system(task.items[0]) == task.corpus.document(task.items[0].document).text
    assert oracle.system(Item("Who?", "")) == ""


def test_a_corpus_beyond_the_window_is_refused(engine, shop):
    long = Corpus.from_texts({"long.md": "The ward has nine beds. " * 600})
    small = Workshop(engine, long, shop.folder, 40, shop.study, shop.train)
    for name in ("full_context", "document"):
        with pytest.raises(InputError, match="expected at most"):
            built(name, small)


@pytest.mark.parametrize("name", ["cartridge", "next_token", "raw_text", "untrained", "eviction", "attention_matching"])
def test_slots_have_the_size_of_the_budget(name, shop, task):
    record = run(task, name, shop)
    bias = 40 * 4 * sum(layer.num_kv_heads for layer in shop.engine.model.identity.layers)
    assert record.num_slots == 40
    assert record.kv_bytes == shop.engine.model.kv_bytes(40) + bias * (name == "attention_matching")
    assert record.build_s > 0 and len(record.answers) == len(task.items)


def test_the_text_is_trained_on_for_as_many_steps_as_the_conversations(shop, tmp_path):
    config = shop.train.model_copy(update={"max_steps": None, "epochs": 2})
    whole = Workshop(shop.engine, shop.corpus, tmp_path, 24, shop.study, config)
    steps = {name: built(name, whole).cartridge.manifest.metrics["steps"] for name in ("cartridge", "raw_text")}
    assert steps["raw_text"] == steps["cartridge"] > 2


def test_what_was_trained_is_not_trained_again(shop):
    first = built("cartridge", shop)
    again = built("cartridge", shop)
    assert first.cartridge.digest == again.cartridge.digest and first.build_s == again.build_s


def test_lora_has_no_more_bytes_than_the_slots_and_leaves_the_model_alone(shop, task):
    model = shop.engine.model
    before = model.hf.get_decoder().layers[0].mlp.up_proj.weight.clone()
    budget = Workshop(shop.engine, shop.corpus, shop.folder, 64, shop.study, shop.train)
    record, again = run(task, "lora", budget), built("lora", budget)
    assert 0 < record.kv_bytes <= model.kv_bytes(64)
    assert (model.hf.get_decoder().layers[0].mlp.up_proj.weight == before).all()
    assert again.kept_bytes == record.kv_bytes and again.build_s == record.build_s
    with pytest.raises(InputError, match=r"expected at least .* those of rank 1"):
        rank_for(model, 100)


def test_adapters_leave_the_model_alone_and_one_keeps_to_the_budget(shop, task):
    model = shop.engine.model
    before = model.hf.get_decoder().layers[0].mlp.down_proj.weight.clone()
    whole, cut = run(task, "adapter", shop), run(task, "adapter_at_budget", shop)
    assert 0 < cut.kv_bytes <= model.kv_bytes(shop.num_slots) < whole.kv_bytes
    assert (model.hf.get_decoder().layers[0].mlp.down_proj.weight == before).all()
    with pytest.raises(InputError, match=r"expected at least .* those of rank 1"):
        adapter_rank_for(model, 100)


def test_bm25_ranks_as_its_formula_does():
    texts = ["nine beds in the ward", "the firm sells wire", "wire wire in the ward"]
    rank = Bm25(texts)
    assert rank.rank("Who sells wire?")[0] == 1
    assert rank.rank("beds")[0] == 0
    k1, b, mean_len = 1.2, 0.75, (5 + 4 + 5) / 3
    rarity = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = rarity * 2 * (k1 + 1) / (2 + k1 * (1 - b + b * 5 / mean_len))
    assert rank.score(2, ["wire"]) == pytest.approx(expected)


def test_vectors_are_means_of_hidden_states(engine):
    texts = ["nine beds", "the firm sells wire"]
    found = own_vectors(engine.model, texts)
    assert found.shape[0] == 2 and np.isfinite(found).all() and np.abs(found[0] - found[1]).max() > 0


def test_unknown_methods_and_own_ones(shop):
    with pytest.raises(InputError, match="unknown method 'bm52'; did you mean 'bm25'"):
        built("bm52", shop)
    own_methods["shout"] = lambda workshop: Answerer(lambda item: "LOUD")
    try:
        assert built("shout", shop).system(Item("?", "")) == "LOUD"
    finally:
        del own_methods["shout"]
