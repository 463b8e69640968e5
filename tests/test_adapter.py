"""The artifact: what is written is read back, and what is damaged or of another model is refused in one line."""

import json

import pytest
import torch

from cartridges.adapter import MANIFEST, TENSORS, AdapterManifest, ThoughtAdapter, combined
from cartridges.errors import FormatError, InputError
from tests.adapters import random_adapter
from tests.architectures import tiny


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("llama", tiny_tokenizer)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"rank": 3}, {"rank": 3, "bias": True}])
def test_what_is_saved_is_loaded(model, tmp_path, options):
    made = random_adapter(model, **options)
    made.save(tmp_path)
    found = ThoughtAdapter.load(tmp_path)
    assert found.digest == made.digest == AdapterManifest.read(tmp_path).digest
    assert {name: tuple(t.shape) for name, t in found.tensors.items()} == {
        name: tuple(t.shape) for name, t in made.tensors.items()
    }
    assert all(torch.equal(tensor, made.tensors[name]) for name, tensor in found.tensors.items())
    assert [patch.rank for patch in found.patches] == [options.get("rank")] * 2
    assert found.num_bytes == 4 * found.num_numbers
    found.check_fits(model.identity)


def test_the_digest_covers_tensors_and_model(model, tiny_tokenizer):
    made, other = random_adapter(model), random_adapter(tiny("llama", tiny_tokenizer, 1))
    assert made.digest == random_adapter(model).digest
    assert len({made.digest, other.digest, random_adapter(model, 1).digest}) == 3


def test_an_adapter_of_another_model_is_refused(model, tiny_tokenizer):
    made = random_adapter(model)
    for other, part in [
        (tiny("llama", tiny_tokenizer, 1), "other weights of the same shape; load it with its own model"),
        (tiny("qwen3", tiny_tokenizer), "other layers"),
        (tiny("llama", tiny_tokenizer, intermediate_size=80), "another configuration"),
    ]:
        with pytest.raises(FormatError, match=f"the adapter adapter-0 was made for tiny-llama, given .*{part}"):
            made.check_fits(other.identity)


def test_damage_is_told(model, tmp_path):
    with pytest.raises(InputError, match=r"no adapter in .*: expected a folder that holds adapter\.json and"):
        ThoughtAdapter.load(tmp_path)
    made = random_adapter(model)
    made.save(tmp_path)
    raw = (tmp_path / TENSORS).read_bytes()
    for content, part in [
        (raw[:-9], "is damaged"),
        (raw[:-1] + bytes([raw[-1] ^ 1]), r"do not belong together \(another digest\)"),
        (b"", "is damaged"),
    ]:
        (tmp_path / TENSORS).write_bytes(content)
        with pytest.raises(FormatError, match=part):
            ThoughtAdapter.load(tmp_path)
    as_other = raw.replace(b'"F32"', b'"I32"')
    (tmp_path / TENSORS).write_bytes(as_other)
    with pytest.raises(FormatError, match=r"layers\.0\.mlp\.down_proj\.delta is of int32, expected float32; copy the"):
        ThoughtAdapter.load(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(FormatError, match="is missing; copy the whole folder again"):
        ThoughtAdapter.load(tmp_path)
    (tmp_path / TENSORS).write_bytes(raw)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["patches"][0]["num_inputs"] += 1
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=r"layers\.0\.mlp\.down_proj\.delta is \(64, 96\), expected \(64, 97\)"):
        ThoughtAdapter.load(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"format_version": 9}))
    with pytest.raises(FormatError, match="has format version 9, expected 1; install a newer cartridges"):
        ThoughtAdapter.load(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        ThoughtAdapter.load(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_nothing_can_be_multiplied_with_is_refused(model, tmp_path, number, monkeypatch):
    made = random_adapter(model)
    delta = made.patches[1].delta
    assert delta is not None
    delta[3, 4] = number
    told = r"the adapter adapter-0 has layers\.1\.mlp\.down_proj\.delta infinite or no number; make it anew"
    with pytest.raises(FormatError, match=told):
        made.save(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(ThoughtAdapter, "check_finite", lambda adapter: None)
        made.save(tmp_path)
    with pytest.raises(FormatError, match=told):
        ThoughtAdapter.load(tmp_path)


@pytest.mark.parametrize("ranks", [(None, None), (2, 3), (2, None)])
def test_several_are_summed(model, ranks):
    parts = [random_adapter(model, seed, bias=seed == 1, rank=rank) for seed, rank in enumerate(ranks)]
    whole = combined(parts, [0.5, 2.0])
    x = torch.randn(4, 96)
    for place, patch in enumerate(whole.patches):
        wanted = 0.5 * parts[0].patches[place].added(x) + 2 * parts[1].patches[place].added(x)
        torch.testing.assert_close(patch.added(x), wanted, atol=1e-4, rtol=1e-4)
    assert whole.manifest.parents == [part.digest for part in parts]
    assert whole.patches[0].rank == (5 if None not in ranks else None)
    assert combined(parts[:1]) is parts[0]


def test_what_cannot_be_summed_is_refused(model, tiny_tokenizer):
    with pytest.raises(InputError, match="given 0 adapters and 0 weights, expected as many, at least one"):
        combined([])
    with pytest.raises(InputError, match="given 1 adapters and 2 weights"):
        combined([random_adapter(model)], [1.0, 2.0])
    with pytest.raises(FormatError, match="other weights of the same shape"):
        combined([random_adapter(model), random_adapter(tiny("llama", tiny_tokenizer, 1))])
    with pytest.raises(InputError, match="given the adapter adapter-0 twice, expected different ones"):
        combined([random_adapter(model), random_adapter(model)])
