"""The artifact: what is written is read, and nothing that is damaged or of another model is."""

import json
import os
import subprocess
import sys

import pytest
import torch

from cartridges.cartridge import MANIFEST, TENSORS, Cartridge, Manifest
from cartridges.errors import FormatError, InputError
from cartridges.model import prefix_kv
from tests.architectures import tiny

IDS = list(range(20, 32))


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("llama", tiny_tokenizer)


@pytest.fixture
def cartridge(model):
    keys, values = prefix_kv(model, IDS)
    return Cartridge(keys, values, Manifest(model=model.identity, num_slots=len(IDS), num_frozen=1, name="ids"))


@pytest.fixture
def folder(cartridge, tmp_path):
    cartridge.save(tmp_path / "c")
    return tmp_path / "c"


def test_what_is_written_is_read(cartridge, folder):
    read = Cartridge.load(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(read.keys + read.values, cartridge.keys + cartridge.values, strict=True)
    )
    assert read.manifest == cartridge.manifest and len(read.digest) == 64
    assert read.num_bytes == 2 * 2 * 2 * len(IDS) * 16 * 4


def test_a_name_that_is_no_unicode_is_written_as_text(cartridge, tmp_path):
    cartridge.manifest.name = os.fsdecode("wärd\xff".encode("latin-1"))  # as that of a folder may be
    cartridge.save(tmp_path)
    assert Cartridge.load(tmp_path).manifest.name == "w?rd?"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_kept(cartridge, tmp_path, dtype):
    cartridge.to("cpu", dtype).save(tmp_path)
    read = Cartridge.load(tmp_path)
    assert read.keys[0].dtype == dtype and read.digest != cartridge.sealed().digest


def test_the_digest_covers_tensors_and_identity_and_nothing_else(cartridge):
    digest = cartridge.sealed().digest
    told = cartridge.manifest.model_copy(update={"metrics": {"loss": 1}, "name": "other"})
    assert Cartridge(cartridge.keys, cartridge.values, told).sealed().digest == digest
    frozen = cartridge.manifest.model_copy(update={"num_frozen": 2})
    assert Cartridge(cartridge.keys, cartridge.values, frozen).sealed().digest != digest
    keys = [cartridge.keys[0] + 1e-3, *cartridge.keys[1:]]
    assert Cartridge(keys, cartridge.values, cartridge.manifest).sealed().digest != digest


def test_a_manifest_is_read_without_torch(folder):
    program = (
        "import sys; from pathlib import Path; from cartridges.cartridge import Manifest, check_tensors;"
        f"m = Manifest.read(Path({str(folder)!r})); check_tensors(Path({str(folder)!r}), m);"
        "assert 'torch' not in sys.modules; print(m.num_slots)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == str(len(IDS)), found.stderr


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("kind", ["keys are", "values are", "bias is"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_no_number_is_refused(cartridge, tmp_path, monkeypatch, kind, wrong, dtype):
    name, verb = kind.split()
    cartridge = cartridge.to("cpu", dtype)
    cartridge.bias = [torch.zeros(2, len(IDS)) for _ in range(2)]
    getattr(cartridge, name)[1][0, 3] = wrong
    what = f"{'a ' if verb == 'is' else ''}{name} in layer 1 that {verb} infinite or no number; make it anew"
    with pytest.raises(FormatError, match=f"the cartridge ids has {what}"):
        cartridge.save(tmp_path)
    with monkeypatch.context() as patched:  # one that something else wrote
        patched.setattr(Cartridge, "check_finite", lambda self: None)
        cartridge.save(tmp_path)
    with pytest.raises(FormatError, match=f"the cartridge ids has {what}"):
        Cartridge.load(tmp_path)


def test_tensors_of_other_dtypes_than_the_file_has_are_refused(cartridge, tmp_path):
    mixed = Cartridge(cartridge.keys, [values.half() for values in cartridge.values], cartridge.manifest)
    with pytest.raises(
        FormatError, match=r"the cartridge ids has layers.0.values of float16, expected keys and values"
    ):
        mixed.save(tmp_path)
    whole = [[tensor.int() for tensor in part] for part in (cartridge.keys, cartridge.values)]
    with pytest.raises(FormatError, match=r"has layers.0.keys of int32, .* one of float64, float32, bfloat16, float16"):
        Cartridge(*whole, cartridge.manifest).sealed()
    bias = [torch.zeros(2, len(IDS), dtype=torch.bfloat16) for _ in range(2)]
    with pytest.raises(FormatError, match=r"has layers.0.bias of bfloat16, expected .* a bias of float32; convert"):
        Cartridge(cartridge.keys, cartridge.values, cartridge.manifest, bias).sealed()
    assert not any(tmp_path.iterdir())


def test_saving_again_replaces(cartridge, folder, model):
    keys, values = prefix_kv(model, IDS[:5])
    Cartridge(keys, values, cartridge.manifest.model_copy(update={"num_slots": 5})).save(folder)
    assert Cartridge.load(folder).num_slots == 5


def test_no_cartridge_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no cartridge in .*: expected a folder that holds cartridge.json"):
        Cartridge.load(tmp_path)


def edit(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_header(folder, header):
    path = folder / TENSORS
    body = path.read_bytes()[8 + int.from_bytes(path.read_bytes()[:8], "little") :]
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


def change_header(folder, **entry):
    """Change the entry of layers.0.keys."""
    raw = (folder / TENSORS).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header["layers.0.keys"] |= entry
    write_header(folder, json.dumps(header).encode())


def cut(folder, name, share=0.5):
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f, MANIFEST), "cartridge.json cannot be read"),
        (lambda f: (f / MANIFEST).write_text("[]"), "cartridge.json cannot be read"),
        (lambda f: edit(f, format_version=9), "has format version 9, expected 1; install a newer"),
        (lambda f: edit(f, num_slots=-3), "cartridge.json cannot be read"),
        (lambda f: edit(f, num_slots=7), r"layers.0.keys is \(2, 12, 16\), expected \(2, 7, 16\)"),
        (lambda f: edit(f, num_frozen=3), "do not belong together"),
        (lambda f: edit(f, num_frozen=300), "do not belong together"),
        (lambda f: (f / TENSORS).unlink(), "cartridge.safetensors is missing"),
        (lambda f: cut(f, TENSORS), "cartridge.safetensors is damaged"),
        (lambda f: cut(f, TENSORS, 0), "cartridge.safetensors is damaged"),
        (lambda f: (f / TENSORS).write_bytes(b"\xff" * 1000), "cartridge.safetensors is damaged"),
        (lambda f: (f / MANIFEST).write_text('{"format_version": 1, "a": ' + "[" * 200_000), r"\(RecursionError: "),
        (lambda f: write_header(f, b"[" * 200_000), r"cartridge.safetensors is damaged \(RecursionError: "),
        (lambda f: change_header(f, dtype="I32"), "layers.0.keys is of 'I32', expected 'F32'; copy the folder again"),
        (lambda f: change_header(f, dtype="X32"), "layers.0.keys is of 'X32', expected 'F32'"),
        (lambda f: change_header(f, dtype=["F32"]), r"layers.0.keys is of \['F32'\], expected 'F32'"),
        (lambda f: change_header(f, data_offsets=["a", 5]), "cartridge.safetensors is damaged"),
        (lambda f: change_header(f, shape=[2.0, 12, 16]), "cartridge.safetensors is damaged"),
    ],
)
def test_damage_is_told_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(FormatError, match=message) as raised:
        Cartridge.load(folder)
    assert "\n" not in str(raised.value)


def test_the_dtype_of_a_bias_is_checked_too(cartridge, tmp_path):
    cartridge.bias = [torch.zeros(2, len(IDS)) for _ in range(2)]
    cartridge.to("cpu", torch.bfloat16).save(tmp_path)
    assert Cartridge.load(tmp_path).bias[0].dtype == torch.float32
    raw = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(raw.replace(b'"F32"', b'"I32"'))
    with pytest.raises(FormatError, match=r"layers.0.bias is of 'I32', expected 'F32'"):
        Cartridge.load(tmp_path)


def test_one_changed_bit_is_noticed(folder):
    raw = bytearray((folder / TENSORS).read_bytes())
    raw[-5] ^= 1
    (folder / TENSORS).write_bytes(bytes(raw))
    with pytest.raises(FormatError, match="do not belong together"):
        Cartridge.load(folder)


def test_another_model_is_told(cartridge, tiny_tokenizer, model):
    cartridge.check_fits(model.identity)
    with pytest.raises(FormatError, match=r"made for tiny-llama, given tiny-qwen3: other layers \(llama, 2 layers of"):
        cartridge.check_fits(tiny("qwen3", tiny_tokenizer).identity)
    with pytest.raises(FormatError, match="other layers"):
        cartridge.check_fits(tiny("llama", tiny_tokenizer, num_key_value_heads=1).identity)
    with pytest.raises(FormatError, match="other weights of the same shape"):
        cartridge.check_fits(tiny("llama", tiny_tokenizer, seed=1).identity)
    turned = tiny("llama", tiny_tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    with pytest.raises(FormatError, match="another configuration"):
        cartridge.check_fits(turned.identity)
    other = model.identity.model_copy(update={"tokenizer_digest": "x"})
    with pytest.raises(FormatError, match="another tokenizer or chat template"):
        cartridge.check_fits(other)


def test_a_place_that_cannot_be_written_is_told(cartridge, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory; mend that"):
        cartridge.save(tmp_path / "file" / "c")
