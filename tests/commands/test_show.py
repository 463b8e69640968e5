"""`cartridges show`: what it tells of a cartridge, and what it says of one that is damaged."""

import json
import subprocess
import sys

import pytest
from safetensors import safe_open

from cartridges.adapter import MANIFEST as ADAPTER_MANIFEST
from cartridges.adapter import TENSORS as ADAPTER_TENSORS
from cartridges.cartridge import MANIFEST, TENSORS, Cartridge
from cartridges.corpus import Corpus
from cartridges.initialization import InitializeConfig, initialize
from tests.adapters import random_adapter
from tests.architectures import tiny

COMMAND = "show"

CORPUS = Corpus.from_texts({"a.txt": "The ward has nine beds and one door. " * 20})


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny("gemma3", tiny_tokenizer)


@pytest.fixture(scope="module")
def qwen3(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


def put(model, folder, num_slots=12) -> Cartridge:
    made = initialize(model, CORPUS, num_slots, InitializeConfig(), 2)
    made.manifest.name = "beds"
    made.manifest.training = {"objective": "distill", "lr": 0.02}
    made.manifest.metrics = {"steps": 7, "seconds": 4.5, "kept_step": 5, "heldout_loss": 0.123456}
    made.manifest.created = "2026-01-02"
    made.save(folder)
    return made


@pytest.fixture
def folder(model, tmp_path):
    put(model, tmp_path / "cartridge")
    return tmp_path / "cartridge"


def test_it_tells_what_the_cartridge_is(call, folder):
    code, stdout, stderr = call(folder)
    lines = {line[:12].strip(): line[13:] for line in stdout.splitlines()}
    made = Cartridge.load(folder)
    assert (code, stderr) == (0, "")
    assert lines == {
        "cartridge": f"beds, digest {made.digest[:12]}",
        "size": f"12 slots (2 frozen), {(folder / TENSORS).stat().st_size / 1e6:.2f} MB, float32",
        "model": "tiny-gemma3 (gemma3_text, 2 layers, 2 KV heads of 16)",
        "started from": "first_tokens",
        "training": "distill, lr 0.02, 7 steps, 4.5 s, kept step 5",
        "held-out": "0.1235 nats a token from the teacher",
        "made": f"2026-01-02, corpus {CORPUS.digest[:12]}, data ",
        "folder": str(folder),
    }


def test_the_json_is_the_manifest(call, folder):
    code, stdout, _ = call(folder, "--json")
    told = json.loads(stdout)
    assert code == 0
    assert told.pop("num_bytes") == (folder / TENSORS).stat().st_size
    assert told == json.loads((folder / MANIFEST).read_text())
    with safe_open(folder / TENSORS, "pt") as tensors:
        assert tensors.get_slice("layers.0.keys").get_shape()[1] == told["num_slots"]


def test_an_untrained_cartridge_without_a_name_is_told(call, model, tmp_path):
    initialize(model, CORPUS, 5, InitializeConfig(kind="random")).save(tmp_path)
    _, stdout, _ = call(tmp_path)
    assert "(unnamed), digest" in stdout and "5 slots" in stdout and "random" in stdout
    assert "training" not in stdout and "held-out" not in stdout


def test_the_size_can_be_chosen(call, refused, model, tmp_path):
    for size in (5, 9):
        put(model, tmp_path / f"slots-{size}" / "cartridge", size)
    _, stdout, _ = call(tmp_path, "--slots", 9)
    assert "9 slots" in stdout
    assert "holds cartridges of 5, 9 slots, given None; choose one with --slots" in refused(tmp_path)
    assert "given 7; choose one with --slots" in refused(tmp_path, "--slots", 7)


def test_nothing_to_show_is_told(refused, tmp_path):
    assert "nowhere is not there; expected a cartridge's folder" in refused(tmp_path / "nowhere")
    assert "holds no cartridge; expected a cartridge's folder" in refused(tmp_path)
    assert "'abc' is not a valid integer" in refused(tmp_path, "--slots", "abc")
    assert "Missing argument 'CARTRIDGE'" in refused()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_slots_are_told(refused, folder, kept):
    raw = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(raw[:kept])
    assert f"{folder / TENSORS} is damaged" in refused(folder)


def test_edited_slots_are_told(refused, folder):
    raw = bytearray((folder / TENSORS).read_bytes())
    raw[-1] ^= 1
    (folder / TENSORS).write_bytes(raw)
    assert "do not belong together (another digest); copy the folder again" in refused(folder)
    assert "another digest" in refused(folder, "--json")


def test_missing_slots_are_told(refused, folder):
    (folder / TENSORS).unlink()
    assert "is missing; copy the whole folder again" in refused(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"num_slots": 13}, "layers.0.keys is (2, 12, 16), expected (2, 13, 16)"),
        ({"num_frozen": 3}, "another digest"),
        ({"format_version": 99}, "has format version 99, expected 1; install a newer cartridges"),
        ({"num_slots": "many"}, "cannot be read (ValidationError"),
        ({"model": None}, "cannot be read (ValidationError"),
    ],
)
def test_an_edited_manifest_is_told(refused, folder, edit, message):
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **edit}))
    assert message in refused(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_manifest_that_is_none_is_told(refused, folder, content):
    (folder / MANIFEST).write_bytes(content)
    assert f"{folder / MANIFEST} cannot be read" in refused(folder)


def test_it_imports_no_torch(folder):
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        f"for arguments in (['--help'], [{str(folder)!r}], [{str(folder)!r}, '--json']):\n"
        "    try: main(['show', *arguments])\n"
        "    except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_adapter_is_told(call, refused, qwen3, tmp_path):
    made = random_adapter(qwen3, bias=True, rank=3)
    made.manifest.transmutation = {"method": "down", "ridge": 0.1}
    made.manifest.metrics = {"seconds": 2.5, "layers": [{"unexplained": 0.25}, {"unexplained": 0.5}]}
    made.manifest.dataset_digests, made.manifest.created = ["d" * 64], "2026-01-02"
    made.save(tmp_path)
    code, stdout, stderr = call(tmp_path)
    assert (code, stderr) == (0, "")
    size = (tmp_path / ADAPTER_TENSORS).stat().st_size
    assert {line[:12].strip(): line[13:] for line in stdout.splitlines()} == {
        "adapter": f"adapter-0, digest {made.digest[:12]}",
        "size": f"rank 3, 2 biases, {size / 1e6:.2f} MB, float32",
        "changes": "mlp.down_proj of 2 layers",
        "model": "tiny-qwen3 (qwen3, 2 layers, 2 KV heads of 16)",
        "made by": "down, ridge 0.1, 2.5 s",
        "unexplained": "25% to 50% of what was to be added, by layer",
        "made": "2026-01-02, data dddddddddddd",
        "folder": str(tmp_path),
    }
    told = json.loads(call(tmp_path, "--json")[1])
    assert told.pop("num_bytes") == size
    assert told == json.loads((tmp_path / ADAPTER_MANIFEST).read_text())
    assert "is an adapter, which has none; leave it out" in refused(tmp_path, "--slots", 3)
    raw = bytearray((tmp_path / ADAPTER_TENSORS).read_bytes())
    raw[-1] ^= 1
    (tmp_path / ADAPTER_TENSORS).write_bytes(raw)
    assert "do not belong together (another digest)" in refused(tmp_path)
