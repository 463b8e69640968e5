"""The model that wrote a dataset is loaded again, in its revision, and another tokenizer is refused."""

import pytest

from cartridges import writer
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.pocket import WEIGHTS
from cartridges.writer import check_writer, load_writer
from tests.architectures import tiny


def test_it_is_loaded_as_it_was():
    identity = load_writer(Dataset([], {"model": {"model_id": str(WEIGHTS)}}), None, "cpu").identity
    assert len(identity.layers) == 5 and identity.model_id == "pocket"


def test_its_revision_goes_with_its_name_only(monkeypatch):
    """A hub would be needed to load one."""
    asked = []
    monkeypatch.setattr(writer, "load_model", lambda *given, **more: asked.append((given, more)))
    dataset = Dataset([], {"model": {"model_id": "org/it", "revision": "abc"}})
    load_writer(dataset, None, "cpu")
    load_writer(dataset, "org/other", "cpu")
    assert asked == [(("org/it", "cpu"), {"revision": "abc"}), (("org/other", "cpu"), {"revision": None})]


@pytest.mark.parametrize("manifest", [{}, {"model": None}, {"model": {}}])
def test_one_that_is_not_told_must_be_named(manifest):
    with pytest.raises(InputError, match="DATA does not tell which model wrote it; name it with --model"):
        load_writer(Dataset([], manifest), None, "cpu", "DATA")


def test_another_tokenizer_is_refused(tiny_tokenizer):
    model = tiny("llama", tiny_tokenizer)
    check_writer(Dataset([], {}), model, "mend it")
    check_writer(Dataset([], {"tokenizer_digest": model.identity.tokenizer_digest}), model, "mend it")
    written = Dataset([], {"model": {"model_id": "org/it", "tokenizer_digest": "other"}})
    with pytest.raises(InputError, match="was written with the tokenizer of org/it, given tiny-llama; mend it"):
        check_writer(written, model, "mend it")
