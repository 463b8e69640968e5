"""An adapter on stock vLLM as a LoRA, judged by Hugging Face with the adapter merged in."""

from cartridges.adapting import applied
from cartridges.lora import export_lora
from cartridges.serving.launch import lora_arguments
from tests.adapters import random_adapter
from tests.vllm.serving import Server, agree, expected

PROMPT = [20, 21, 22, 23, 24]


def test_an_adapter_answers_under_its_name(model, tmp_path):
    adapter = random_adapter(model)
    for patch in adapter.patches:
        patch.delta.mul_(0.3)
    report = export_lora(adapter.sealed(), model, tmp_path / "lora")
    assert report.rank == 256, "pocket's hidden size: nothing is cut off"
    extra = ["--max-model-len", "512", *lora_arguments("ward", tmp_path / "lora", report)]
    wanted = {"pocket": expected(model, None, PROMPT * 10, 16)}
    with applied(model, adapter, merged=True):
        wanted["ward"] = expected(model, None, PROMPT * 10, 16)
    assert not agree(wanted["ward"], wanted["pocket"])
    with Server(tmp_path / "log", {}, extra=extra) as running:
        assert running.models() == ["pocket", "ward"]
        for name, judge in wanted.items():
            assert agree(running.complete(name, PROMPT * 10, 16), judge), name
