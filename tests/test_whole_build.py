"""The whole job with the bundled model: a cartridge that answers like the model that has read everything."""

import time

from cartridges.building import BuildConfig, build
from cartridges.corpus import Corpus
from cartridges.engine.engine import Engine
from cartridges.evals.tasks.pocket import paths_of
from cartridges.model import load_model
from cartridges.pocket.families import make_context
from cartridges.pocket.items import draw_questions, item_of

FACTOR, NUM_QUESTIONS = 8, 40
CPU_S = 2 * 180  # three minutes on two cores


def test_eight_times_fewer_slots_answer_like_the_full_context(tmp_path):
    context = make_context("ward", "validation", "whole", 2, 2)
    paths = paths_of(context)
    corpus = Corpus.from_texts(dict(zip(paths, (document.text for document in context.documents), strict=True)))
    questions, _ = draw_questions(context, ("whole",), NUM_QUESTIONS, ["lookup"])
    engine = Engine(load_model("pocket", "cpu"))
    num_slots = len(engine.model.ids(corpus.text)) // FACTOR
    overrides = [f"slots=[{num_slots}]", "synthesize.num_conversations=1024", "train.epochs=6", "max_general=0"]
    config = BuildConfig.resolve("pocket", None, overrides)
    started = time.process_time()
    made = build(corpus, engine, tmp_path / "run", config, [item_of(each, context, paths) for each in questions])
    taken = time.process_time() - started
    full, cartridge = made.results.row("full_context").accuracy, made.results.cartridges[0].accuracy
    assert full > 0.8
    assert cartridge >= 0.95 * full
    assert made.results.row("no_context").accuracy < 0.3
    assert taken < CPU_S
