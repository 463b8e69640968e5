"""Contexts that were read and made fewer without training: eviction by attention (KVzip), and attention matching."""

from cartridges.compact import Method, compact
from cartridges.evals.method import Answerer, Workshop


def eviction(workshop: Workshop) -> Answerer:
    """The tokens that get most attention while the model repeats the corpus (arXiv 2505.23416)."""
    return _compacted(workshop, "kv_eviction")


def attention_matching(workshop: Workshop) -> Answerer:
    """Kept keys with fitted weights and values (arXiv 2602.16284)."""
    return _compacted(workshop, "attention_matching")


def _compacted(workshop: Workshop, method: Method) -> Answerer:
    made = compact(workshop.engine.model, workshop.corpus, workshop.num_slots, method)
    return Answerer(cartridge=made.to(workshop.engine.model.device, workshop.engine.model.dtype).sealed())
