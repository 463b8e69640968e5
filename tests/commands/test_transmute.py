"""`cartridges transmute` and what takes its adapters: each does what the functions behind it do, or says why not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cartridges.adapter import ThoughtAdapter, combined
from cartridges.adapting import applied
from cartridges.dataset import Dataset
from cartridges.engine.engine import Engine
from cartridges.evaluation import EvaluateConfig
from cartridges.find import SOURCE
from cartridges.pairs import Source
from cartridges.questions import Item, write_items
from cartridges.results import Results
from cartridges.transmutation import transmute
from tests.adapters import conversation

COMMAND = "transmute"
FAST = ("layers=[1]", "ridge=0.01")


@pytest.fixture(scope="module")
def data(place):
    """Conversations that the first model is said to have written."""
    folder = place.folder / "talks"
    manifest = {"model": place.model.identity.model_dump(mode="json"), "corpus_digest": place.corpus.digest}
    talks = [conversation(place.model, index, document=["ward.txt", "firm.txt"][index // 4]) for index in range(8)]
    Dataset.from_conversations(talks, manifest).save(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(place, data):
    made = transmute([Source.load(data, [place.docs])], place.model, name="ward", layers=[0, 1], ridge=0.01)
    made.save(place.folder / "adapter")
    return place.folder / "adapter"


@pytest.fixture
def run(request, monkeypatch, capsys):
    """Another command, in this process."""
    from cartridges import cli

    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([*map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return run


def test_it_makes_the_adapter_that_transmute_makes(call, place, data, tmp_path):
    code, stdout, _ = call(data, "-o", tmp_path / "ward", "--docs", place.docs, *FAST)
    assert code == 0
    made = ThoughtAdapter.load(tmp_path / "ward")
    wanted = transmute([Source.load(data, [place.docs])], place.model, layers=[1], ridge=0.01)
    assert made.digest == wanted.digest and made.manifest.name == "ward"
    lines = stdout.splitlines()
    assert lines[0] == f"model: {place.paths[0]}; preset: pocket; method: down"
    assert lines[1].startswith("layer 1: ") and lines[1].endswith("% of the change of the block output")
    assert lines[2].startswith("8 conversations in ")
    assert (
        lines[3]
        == f"The adapter is in {tmp_path / 'ward'}. Talk to it with: cartridges chat --adapter {tmp_path / 'ward'}"
    )


def test_the_documents_of_the_build_are_the_default(call, place, data, tmp_path):
    shutil.copytree(data, tmp_path / "conversations")
    (tmp_path / SOURCE).write_text(json.dumps({"documents": [str(place.docs)]}))
    assert call(tmp_path / "conversations", "-o", tmp_path / "out", *FAST)[0] == 0


def test_several_datasets_are_weighted(call, place, data, tmp_path):
    options = ("--docs", place.docs, "--docs", place.docs, "--weight", 1, "--weight", 2, "--name", "both")
    assert call(data, data, "-o", tmp_path / "out", *options, *FAST)[0] == 0
    made = ThoughtAdapter.load(tmp_path / "out").manifest
    assert (made.name, made.transmutation["weights"]) == ("both", [1.0, 2.0])


def test_wrong_input_is_one_line(refused, place, data, tmp_path):
    out = ("-o", tmp_path / "out")
    given = (data, *out, "--docs", place.docs)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    assert "Missing option '-o'" in refused(data)
    assert "expected at least one path beside KEY=VALUE" in refused("rank=3", *out)
    assert "nothing tells which documents" in refused(data, *out)
    assert "nowhere, expected the folder of a dataset" in refused(tmp_path / "nowhere", *out)
    assert "given 2 --weight for 1 datasets, expected one for each" in refused(*given, "--weight", 1, "--weight", 2)
    assert "given --weight -1, expected a number above 0" in refused(*given, "--weight", -1)
    assert "given --weight 0, expected a number above 0" in refused(*given, "--weight", 0)
    assert "given --weight nan, expected a number above 0" in refused(*given, "--weight", "nan")
    assert "given 1 --docs for 2 datasets, expected one for each" in refused(data, *given)
    assert "holds other files; give a new or empty folder" in refused(data, "-o", tmp_path / "other")
    assert "expected a folder; it is a file" in refused(data, "-o", tmp_path / "other" / "file")
    assert "expected 0 to 1, the layers of" in refused(*given, "layers=[2]")
    assert "unknown key 'rnak'; did you mean 'rank'?" in refused(*given, "rnak=3")
    assert "are singular" in refused(*given, "ridge=0")
    assert not (tmp_path / "out").exists()


def test_it_is_talked_to(run, place, adapter):
    engine = Engine(place.model)
    with applied(place.model, ThoughtAdapter.load(adapter), merged=True):
        wanted = engine.chat("How many beds?", max_new_tokens=12)
    assert wanted != engine.chat("How many beds?", max_new_tokens=12)
    code, stdout, _ = run("chat", "--adapter", adapter, "How many beds?", "--max-new-tokens", 12)
    assert (code, stdout) == (0, wanted + "\n")
    code, _, stderr = run("chat", "--adapter", adapter, "--with", place.cartridge, "Why?")
    assert code == 2 and "and --with, expected one; cartridges fit the model alone" in stderr
    code, _, stderr = run("chat", "--adapter", adapter, "--model", place.paths[1], "Why?")
    assert code == 2 and "other weights of the same shape; load it with its own model" in stderr
    code, _, stderr = run("chat", "--adapter", adapter, "--url", "http://127.0.0.1:1", "Why?")
    assert code == 2 and "and --url, expected one; a server has its own" in stderr


def test_full_is_asked_of_the_model_alone(place, adapter):
    from cartridges.commands.chat import Local, Talk
    from cartridges.commands.weights import Weights

    weights = Weights.load([adapter], None, "cpu")
    voice = Local(weights.engine(), [place.docs], 12, weights=weights)
    assert voice.told.endswith(":ward, changed by an adapter")
    adapted, full = "".join(voice.say([], "How many beds?")), "".join(voice.say_full([], "How many beds?"))
    assert full == Engine(place.model).chat("How many beds?", place.corpus.text, max_new_tokens=12)
    assert "".join(voice.say([], "How many beds?")) == adapted
    assert Talk(voice).turns == []


def test_it_is_measured_beside_cartridges(run, place, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(EvaluateConfig, "resolve", lambda *_: EvaluateConfig(max_new_tokens=6))
    write_items(tmp_path / "q.jsonl", [Item("How many beds has the ward?", "nine", ("nine",), document="ward.txt")])
    given = ("--questions", tmp_path / "q.jsonl", "--docs", place.docs, "--json", tmp_path / "results.json")
    code, stdout, _ = run("eval", place.cartridge, "--adapter", adapter, *given)
    assert code == 0 and "adapter ward" in stdout
    row = Results.load(tmp_path / "results.json").row("adapter-ward")
    assert (row.kv_bytes, row.prompt_tokens, row.num_slots) == (0, 0, 0)
    assert row.build_s > 0 and row.question_s > 0
    engine = Engine(place.model)
    with applied(place.model, ThoughtAdapter.load(adapter)):
        wanted = engine.chat("How many beds has the ward?", max_new_tokens=6)
    (reply,) = Results.load(tmp_path / "results.json").replies
    assert reply.replies["adapter-ward"] == wanted != reply.replies["no_context"]
    assert run("eval", "--adapter", adapter, *given)[0] == 0
    code, _, stderr = run("eval", "--adapter", adapter, "--adapter", adapter, *given)
    assert code == 2 and "given the adapter" in stderr and "twice, expected different ones" in stderr
    assert "Missing argument 'CARTRIDGES...'" in run("eval", *given)[2]


def test_it_becomes_a_lora(run, place, adapter, tmp_path):
    code, stdout, _ = run("lora", adapter, "-o", tmp_path / "lora")
    assert code == 0 and stdout.splitlines()[-1].startswith("rank 48, ")  # of 48 tokens
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    assert "norm is cut off" in run("lora", adapter, "-o", tmp_path / "lora", "--rank", 4)[1]
    for wrong, part in (
        (("--rank", 4, "--energy", 0.5), "given --rank 4 and --energy 0.5, expected one of them"),
        (("--energy", 0), "expected a rank of at least 1, energy in (0, 1]"),
    ):
        code, _, stderr = run("lora", adapter, "-o", tmp_path / "lora", *wrong)
        assert code == 2 and part in stderr and stderr.count("\n") == 1
    code, _, stderr = run("lora", adapter, adapter, "-o", tmp_path / "lora")
    assert code == 2 and "given the adapter ward twice" in stderr
    code, _, stderr = run("lora", tmp_path, "-o", tmp_path / "lora")
    assert code == 2 and "no adapter in" in stderr and stderr.count("\n") == 1


def test_it_is_served_under_its_name(run, place, adapter, tmp_path, monkeypatch):
    seen = {}

    def serve(app, config, ready):
        seen["base"], engine = app.state.desk.base, app.state.desk.engine
        seen["reply"] = engine.chat("How many beds?", max_new_tokens=12)
        ready("http://127.0.0.1:1")

    monkeypatch.setattr("cartridges.serving.server.serve", serve)
    code, stdout, _ = run("serve", "--adapter", adapter)
    assert code == 0 and "serving ward at http://127.0.0.1:1/v1" in stdout
    with applied(place.model, ThoughtAdapter.load(adapter), merged=True):
        assert seen == {"base": "ward", "reply": Engine(place.model).chat("How many beds?", max_new_tokens=12)}
    code, _, stderr = run("serve", place.cartridge, "--adapter", adapter)
    assert code == 2 and "and cartridges, which fit the model alone; serve them apart" in stderr


def test_vllm_is_given_a_lora(run, place, adapter, tmp_path, monkeypatch):
    given = []

    def serve_vllm(model, folders, host, port, extra, **more):
        lora = extra[extra.index("--lora-modules") + 1].partition("=")
        given.append((model, folders, lora[0], (Path(lora[2]) / "adapter_config.json").is_file(), extra[-3:]))
        return 0

    monkeypatch.setattr("cartridges.serving.launch.serve_vllm", serve_vllm)
    code, _, _ = run("serve", "--adapter", adapter, "--engine", "vllm", "--", "--max-model-len")
    assert code == 0
    assert given == [(str(place.paths[0]), [], "ward", True, ["--max-lora-rank", "64", "--max-model-len"])]
    monkeypatch.setattr("cartridges.serving.launch.LORA_RANKS", (8, 16))
    code, _, stderr = run("serve", "--adapter", adapter, "--engine", "vllm")
    assert code == 0 and given[-1][-1][1:] == ["--max-lora-rank", "16"]
    assert "note: vLLM takes LoRAs up to rank 16; this cuts off up to" in stderr
    whole = ThoughtAdapter.load(adapter)
    patch = whole.patches[0]
    biased = type(patch)(0, patch.module, patch.num_outputs, patch.num_inputs, bias=patch.delta[:, 0])
    combined([whole, ThoughtAdapter([biased], whole.manifest).sealed()]).save(tmp_path / "biased")
    code, _, stderr = run("serve", "--adapter", tmp_path / "biased", "--engine", "vllm")
    assert code == 2 and "has output biases, which vLLM's LoRA does not know" in stderr


@pytest.mark.parametrize("name", ["transmute", "lora"])
def test_help_imports_no_torch(name):
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        f"try: main(['{name}', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: cartridges {name}" in done.stdout
