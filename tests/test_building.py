"""A whole build of two small documents with the bundled model: stopped, taken up, repeated, and measured anew."""

import dataclasses
import hashlib
import json
import os
import shutil
from itertools import pairwise

import pytest

import cartridges.building as build_module
from cartridges.building import BuildConfig, build, check_sizes, claim_source, general_items, heldout_items, plan_lines
from cartridges.cartridge import Cartridge
from cartridges.corpus import Corpus
from cartridges.engine.engine import Engine
from cartridges.errors import ConfigError, InputError
from cartridges.find import find_cartridge, find_corpus
from cartridges.log import read_metrics
from cartridges.model import load_model
from cartridges.pocket.families import make_context
from cartridges.pocket.items import item_of
from cartridges.pocket.knowledge import general_facts
from cartridges.pocket.questions import draw, fill_lookup, lookup_forms
from cartridges.questions import Item
from cartridges.results import Results
from cartridges.rng import rng_of
from cartridges.training import Run
from tests.architectures import tiny

SIZES = [8, 16]
CONFIG = BuildConfig.resolve(
    "pocket",
    None,
    [
        "slots=[8, 16]",
        "synthesize.num_conversations=32",
        "synthesize.batch_size=32",
        "train.max_steps=3",
        "train.row_len=512",
        "train.holdout_share=0.2",
        "evaluate.max_new_tokens=12",
        "max_general=2",
    ],
)
CONTEXT = make_context("ward", "test", 3, 2, 1)
PATHS = ["document-1.md", "document-2.md"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    for path, document in zip(PATHS, CONTEXT.documents, strict=True):
        (folder / path).write_text(document.text + "\n")
    return folder


@pytest.fixture(scope="module")
def corpus(documents):
    return Corpus.from_path(documents)


@pytest.fixture(scope="module")
def engine():
    return Engine(load_model("pocket", device="cpu"))


class Made:
    """A build that was stopped after its self-study and then taken up, with what it said and left there."""

    def __init__(self, folder, corpus, engine, documents):
        self.folder, self.said = folder, []
        arguments = (corpus, engine, folder, CONFIG, (), self.said.append, {"documents": [str(documents)]})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build_module, "train", stop)
            with pytest.raises(KeyboardInterrupt):
                build(*arguments)
        self.after_study = state(folder)
        self.build = build(*arguments)
        self.after = state(folder)


def stop(*_, **__):
    raise KeyboardInterrupt


def state(folder):
    """Of each file its digest, and when it was written; a finished self-study writes its metrics again as they are."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            0 if path.parent.name == "conversations" and path.name == "metrics.jsonl" else path.stat().st_mtime_ns,
        )
        for path in files
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus, engine, documents):
    return Made(tmp_path_factory.mktemp("build") / "ward", corpus, engine, documents)


def test_all_files_are_there(made):
    names = {path.rsplit("/", 1)[0] if "/" in path else path for path in made.after}
    assert names >= {"conversations", "results.json", "README.md", "report.html", "source.json", "measured.json"}
    assert {"conversations/manifest.json", "conversations/shard-00000.parquet"} <= set(made.after)
    for size in SIZES:
        run = f"slots-{size}"
        for name in ("config.yaml", "metrics.jsonl", "checkpoint.pt", "curves.png"):
            assert f"{run}/{name}" in made.after
        for name in ("cartridge.json", "cartridge.safetensors", "README.md"):
            assert f"{run}/cartridge/{name}" in made.after
    assert not [path for path in made.after if path.endswith((".partial", ".tmp"))]


def test_a_stopped_build_goes_on_from_its_conversations(made):
    assert all(path.startswith("conversations/") or path == "source.json" for path in made.after_study)
    assert "conversations/shard-00000.parquet" in made.after_study
    assert {path: made.after[path] for path in made.after_study} == made.after_study


def test_every_size_is_trained(made):
    for size in SIZES:
        cartridge = Cartridge.load(find_cartridge(made.folder, size))
        assert cartridge.num_slots == size and cartridge.digest == made.build.cartridges[size].digest
        assert cartridge.manifest.dataset_digest == made.build.dataset.digest
        assert read_metrics(made.folder / f"slots-{size}" / "metrics.jsonl")[-1]["step"] == 3
    assert made.build.cartridges[8].manifest.name == "ward"


def test_it_says_what_it_does(made):
    numbers = [line.split("/")[0] for line in made.said]
    assert numbers == ["1", "2", "1", "2", "2", "3", "4"]
    assert "2/4 training 16 slots to answer as the model that has read the piece (2 of 2)" in made.said


def test_the_results_are_of_every_method(made):
    found = Results.load(made.folder / "results.json")
    assert found == made.build.results
    names = [row.method for row in found.methods]
    assert names[0] == found.reference == "full_context"
    assert {f"{kind}-{size}" for kind in ("untrained", "cartridge") for size in SIZES} <= set(names)
    assert "truncated-16" in names and "truncated-8" not in names
    assert any(note.startswith("8 tokens are too few for any text") for note in found.notes)
    assert [row.method for row in found.off_corpus] == ["no_context", "cartridge-8", "cartridge-16"]
    assert found.row("cartridge-8").kv_bytes * 2 == found.row("cartridge-16").kv_bytes
    assert all(row.build_s > 0 for row in found.cartridges)
    assert found.about["questions"] == "held-out conversations"
    heldout = heldout_items(made.build.dataset, CONFIG.train)
    assert [(reply.question, reply.answer) for reply in found.replies] == [(i.question, i.answer) for i in heldout]


def test_the_report_tells_of_it(made):
    page = made.build.report.read_text()
    card = (made.folder / "README.md").read_text()
    for text in ("full context", "cartridge, 8 slots", "cartridge, 16 slots"):
        assert text in page and text in card
    assert "<img" in page or "<svg" in page
    for size in SIZES:
        folder = made.folder / f"slots-{size}" / "cartridge"
        assert (folder / "README.md").read_text() == card
        assert (
            {path.name for path in folder.glob("*.png")} == {path.name for path in made.folder.glob("*.png")} != set()
        )


def test_the_second_time_nothing_is_done(made, corpus, engine, documents, monkeypatch):
    for owner, name in ((Run, "train_step"), (Engine, "generate"), (Engine, "distributions_batch")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    again = build(corpus, engine, made.folder, CONFIG, source={"documents": [str(documents)]})
    assert again.results == made.build.results
    after = state(made.folder)
    assert after.keys() == made.after.keys()
    changed = {path for path, (digest, _) in after.items() if digest != made.after[path][0]}
    written = {path for path, at in after.items() if at != made.after[path]}
    assert changed == set()
    assert all(path.endswith((".md", ".html", ".png")) for path in written)  # the report, from the same results


@pytest.fixture
def items():
    drawn = [draw(rng_of("test_build", kind), CONTEXT, kind) for kind in ("lookup", "multiple_choice")]
    return [item_of(question, CONTEXT, PATHS) for question in drawn if question]


@pytest.fixture
def copied(made, tmp_path):
    """The build in another place, for those that change it."""
    return shutil.copytree(made.folder, tmp_path / "copy")


def test_other_questions_are_measured_without_training_anew(corpus, engine, documents, items, copied, monkeypatch):
    monkeypatch.setattr(Run, "train_step", lambda run: pytest.fail("trained"))
    quick = CONFIG.evaluate.model_copy(update={"max_new_tokens": 6, "untrained": False})
    config = CONFIG.model_copy(update={"max_general": 0, "evaluate": quick})
    found = build(corpus, engine, copied, config, items, source={"documents": [str(documents)]}).results
    assert [reply.question for reply in found.replies] == [item.question for item in items]
    assert found.about["questions"] == "given"
    assert found.row("full_context").accuracy is not None
    assert Results.load(copied / "results.json") == found


@pytest.fixture
def measure(made, copied, corpus, engine, monkeypatch):
    """Measures given questions in the copy; returns how often that was done anew. No model is asked."""
    asked = []

    def evaluate(*given):
        asked.append(given)
        return dataclasses.replace(made.build.results, about={})

    def measure(*items):
        build_module.measured(copied, corpus, engine, made.build.dataset, made.build.cartridges, list(items), CONFIG)
        return len(asked)

    monkeypatch.setattr(build_module, "evaluate", evaluate)
    return measure


def test_the_same_questions_are_measured_once(measure):
    item = Item("Who?", "Ada", ("Ada",))
    assert measure(item) == measure(item) == 1
    assert measure(item, Item("What?", "")) == 2
    assert measure(dataclasses.replace(item, golds=("Bo",))) == 3


@pytest.mark.parametrize("change", [{"match": "exact"}, {"document": PATHS[1]}, {"kind": "mine"}, {"answer": "Bo"}])
def test_any_change_of_the_questions_is_measured(measure, change):
    item = Item("Who?", "Ada", ("Ada",))
    assert measure(item) == 1
    assert measure(dataclasses.replace(item, **change)) == 2


def test_questions_with_half_a_surrogate_pair_are_measured_once(measure, copied):
    item = Item("Who, ä?", "\ud83d", ("Ada",), document="docs\udcff")
    assert measure(item) == measure(item) == 1
    content = (copied / "measured.json").read_text(encoding="utf-8")
    assert "Who, ä?" in content and json.loads(content)["items"][0]["answer"] == "\ud83d"


def test_what_it_is_built_from_is_found_again(made, documents):
    assert find_corpus(made.folder, ()).digest == Corpus.from_path(documents).digest
    about = json.loads((made.folder / "source.json").read_text())
    assert about["documents"] == [str(documents)] and about["summary"].startswith("2 documents")


def test_documents_of_an_undecodable_name_are_found_again(corpus, documents, tmp_path):
    named = tmp_path / os.fsdecode(b"docs\xff")  # as a command line gives it
    shutil.copytree(documents, named)
    claim_source(tmp_path / "out", corpus, {"documents": [str(named)]})
    claim_source(tmp_path / "out", corpus, {"documents": [str(named)]})
    assert find_corpus(tmp_path / "out", ()).digest == corpus.digest


def test_changed_documents_are_refused(made, engine):
    changed = Corpus.from_texts({PATHS[0]: CONTEXT.documents[0].text, PATHS[1]: "Another text."})
    with pytest.raises(ConfigError, match="was built from other documents, or they have changed; give another --out"):
        build(changed, engine, made.folder, CONFIG)


def test_a_damaged_source_is_told(corpus, engine, tmp_path):
    for content in ("{", "[]", "{}", "[" * 200_000):
        (tmp_path / "source.json").write_text(content)
        with pytest.raises(InputError, match=r"source.json cannot be read; give another folder, or delete this one"):
            build(corpus, engine, tmp_path, CONFIG)


def test_results_whose_stamp_was_not_written_are_measured_anew(measure, monkeypatch):
    one, other = Item("Who?", ""), Item("What?", "")
    assert measure(one) == 1
    with monkeypatch.context() as patched:
        patched.setattr(build_module, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt):
            measure(other)
    assert measure(one) == 3


def test_damaged_results_are_measured_anew(measure, copied):
    item = Item("Who?", "")
    assert measure(item) == 1
    (copied / "results.json").write_text("{")
    assert measure(item) == 2


def test_more_conversations_than_it_was_trained_on_are_refused(made, corpus, engine):
    study = CONFIG.synthesize.model_copy(update={"num_conversations": 64})
    with pytest.raises(ConfigError, match=r"was trained on 32 conversations, given 64; give another --out, or delete"):
        build(corpus, engine, made.folder, CONFIG.model_copy(update={"synthesize": study}))


def test_a_folder_of_other_files_is_refused(corpus, engine, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(InputError, match=r"holds other files \(letter.txt\); give a new or empty folder as --out"):
        build(corpus, engine, tmp_path, CONFIG)


def test_a_folder_that_is_a_file_is_told(corpus, engine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: File exists"):
        build(corpus, engine, tmp_path / "file", CONFIG)


def test_more_slots_than_tokens_are_refused_before_any_work(corpus, engine, tmp_path):
    config = CONFIG.model_copy(update={"slots": [8, 5000]})
    with pytest.raises(InputError, match=r"given 5000 slots for a corpus of 2\d\d tokens; give fewer slots, or read"):
        build(corpus, engine, tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("slots", [0, 1, -5])
def test_sizes_without_a_slot_to_train_are_refused_before_any_work(slots):
    with pytest.raises(ConfigError, match=rf"'slots.0': given {slots} "):
        BuildConfig.resolve("pocket", None, [f"slots=[{slots}]"])


def test_sizes_beyond_the_window_are_refused_before_any_work(tiny_tokenizer):
    corpus = Corpus.from_texts({"a.txt": "The ward has nine beds and one door. " * 300})
    with pytest.raises(InputError, match="window"):
        check_sizes(corpus, tiny("llama", tiny_tokenizer), BuildConfig.resolve("pocket", None, ["slots=[1024]"]))


def test_the_training_is_checked_against_the_sizes_that_are_built():
    assert BuildConfig.resolve("pocket", None, ["slots=[300]", "train.frozen_slots=200"]).train.frozen_slots == 200
    with pytest.raises(
        ConfigError, match=r"^given train.slots \(from the command line\), expected slots=\[N\] in a build"
    ):
        BuildConfig.resolve("pocket", None, ["train.slots=128"])
    with pytest.raises(ConfigError, match=r"^'train': given slots=100 and frozen_slots=100, expected at least"):
        BuildConfig.resolve("pocket", None, ["slots=[100]", "train.frozen_slots=100"])


def test_no_preset_fits_by_force(tiny_tokenizer):
    assert BuildConfig.resolve("default").slots == [1024] and BuildConfig.resolve("pocket").slots == [128]
    assert CONFIG.train_config(8).slots == 8 and CONFIG.train_config(8).lr == CONFIG.train.lr
    with pytest.raises(ConfigError, match="'slots': given"):
        BuildConfig.resolve("pocket", None, ["slots=[]"])
    with pytest.raises(ConfigError, match="unknown key of 'synthesize' 'num_conversation'; did you mean 'num_conv"):
        BuildConfig.resolve("pocket", None, ["synthesize.num_conversation=3"])


def test_the_plan_is_told(corpus, engine):
    lines = plan_lines(corpus, engine.model, CONFIG, 0)
    assert [line.split(":")[0] for line in lines] == ["corpus", "model", "cartridge", "study"]
    assert "2 documents" in lines[0] and "window 8,192" in lines[1]
    assert lines[2].startswith("cartridge: 8 slots (") and ", 16 slots (" in lines[2]
    assert lines[3] == f"study: 32 conversations, {CONFIG.train.epochs} epochs; then held-out conversations"
    assert plan_lines(corpus, engine.model, CONFIG, 3)[3].endswith("then 3 questions of your file")


def test_heldout_questions_are_about_the_corpus_and_not_trained_on(made):
    items = heldout_items(made.build.dataset, CONFIG.train)
    training, heldout = made.build.dataset.split(0.2, 0)
    assert items and {item.document for item in items} <= set(PATHS)
    assert all(not item.golds for item in items)
    asked = [talk.messages[0]["content"] for talk in heldout.conversations if talk.document]
    assert [item.question for item in items] == list(dict.fromkeys(asked))
    assert not {talk.messages[0]["content"] for talk in training.conversations} & set(asked)
    cartridge = made.build.cartridges[8]
    assert heldout_items(made.build.dataset, cartridge) == items, "a cartridge tells what was held out for it"
    other = Cartridge(cartridge.keys, cartridge.values, cartridge.manifest.model_copy(update={"training": {}}))
    with pytest.raises(InputError, match="not trained, or by an older version, expected one of `train`"):
        heldout_items(made.build.dataset, other)


def fact_of(question: str) -> object:
    """The fact of general knowledge that a question asks for."""
    return next(
        fact
        for fact in general_facts()
        if question in {fill_lookup(form, fact.relation, fact.subject) for form in lookup_forms(fact.relation)}
    )


def test_questions_off_the_corpus_were_never_trained_on(made, engine, tiny_tokenizer):
    dataset = made.build.dataset
    asked = {talk.messages[0]["content"] for talk in dataset.conversations if not talk.document}
    known = general_items(engine.model, dataset, 40)
    assert len(known) == 40 and all(item.golds for item in known)
    others = general_items(tiny("llama", tiny_tokenizer), dataset, 40)
    assert others and not any(item.golds for item in others)
    for items in (known, others):
        assert not asked & {item.question for item in items}
        assert all(a.question != b.question for a, b in pairwise(items))
    assert {fact_of(item.question) for item in known}.isdisjoint(map(fact_of, asked)), "nor asked for in other words"
    assert general_items(engine.model, dataset, 0) == []


def test_nothing_held_out_is_told_before_training(made, corpus, engine, copied, documents, monkeypatch):
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"holdout_share": 1e-6})})
    monkeypatch.setattr(build_module, "train", stop)
    with pytest.raises(
        InputError, match=r"none of \d+ conversations about the corpus is held out to measure with; give"
    ):
        build(corpus, engine, copied, config, (), lambda text: None, {"documents": [str(documents)]})
    asked = [Item("Who?", "")]
    stamped = build_module.measured(copied, corpus, engine, made.build.dataset, {}, asked, CONFIG)
    assert [reply.question for reply in stamped.replies] == ["Who?"]
