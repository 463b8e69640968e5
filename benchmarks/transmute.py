"""Adapters beside a cartridge, a trained LoRA and reading everything: recall, skill, harm, speed, memory.

    python benchmarks/transmute.py                 # pocket, about ten minutes; writes docs/results/transmute.json
    python benchmarks/transmute.py --only ward     # one part (ridge, ward, tongue, memory); the others stay as they are
    python benchmarks/transmute.py --quick --out F # a minute, to see that it works

Each family is one document of pocket's test split with questions of several kinds; recall is the ward's, skill the
translation into the invented language of "tongue". All methods learn from the same conversations. "At cartridge bytes"
is a rank with as many numbers as the cartridge has. The LoRA is trained as the cartridge is, on the same rows and loss.
The part "ridge" is where the default of that field comes from: documents of the validation split, no other one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cartridges.adapter import AdapterManifest, Patch, ThoughtAdapter
from cartridges.adapting import applied, attached
from cartridges.attention import PackedPrefix, attend, packed_hidden
from cartridges.building import general_items
from cartridges.cartridge import Cartridge
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.evals.methods.lora import BETAS
from cartridges.evaluation import EvaluateConfig, evaluate
from cartridges.log import progress
from cartridges.losses import distillation_loss
from cartridges.mlp import mlp_of
from cartridges.model import Model, load_model
from cartridges.packing import to_tensors
from cartridges.pairs import Source
from cartridges.pocket.families import make_context
from cartridges.pocket.items import item_of
from cartridges.pocket.questions import Question, draw
from cartridges.pocket.scoring import score
from cartridges.precision import autocast_bf16, precision_of
from cartridges.provenance import provenance
from cartridges.questions import Item
from cartridges.recipe import TrainConfig
from cartridges.results import NONE, MethodResult, Results
from cartridges.rng import rng_of
from cartridges.rows import RowPlan
from cartridges.synthesis import synthesize
from cartridges.training import train
from cartridges.transmutation import TransmuteConfig, transmute

RESULT = Path(__file__).parent.parent / "docs" / "results" / "transmute.json"
PARTS = ["ridge", "ward", "tongue", "memory"]
KINDS = {"ward": ("lookup", "multiple_choice"), "tongue": ("lookup", "translation")}
SEED, SIZE, SLOTS, LORA_LR = 11, 3, 64, 0.01
NUM_SPEED, SPEED_TOKENS = 16, 64  # replies at once, and tokens of each
RIDGES, RIDGE_SEEDS, MAX_HARM = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0), (21, 22), 0.05


def questions_of(family: str, num_each: int, split: str = "test", seed: int = SEED) -> tuple[str, list[Question]]:
    """The document's text, and different questions of its kinds."""
    context = make_context(family, split, seed, 1, SIZE)
    asked: list[Question] = []
    for kind in KINDS[family]:
        rng, found = rng_of("transmute", family, kind), dict[str, Question]()
        for _ in range(40 * num_each):
            if len(found) < num_each and (question := draw(rng, context, kind)):
                found.setdefault(question.text, question)
        asked += found.values()
    return context.text, asked


def trained_lora(dataset: Dataset, model: Model, config: TrainConfig, rank: int) -> ThoughtAdapter:
    """A LoRA of the last matrix of every MLP, trained on the rows and with the loss of a cartridge."""
    started, plan = time.monotonic(), RowPlan.of(dataset, model, None, config)
    generator, patches = torch.Generator().manual_seed(config.seed), []
    for index in range(model.num_layers):
        mlp = mlp_of(model, index)
        outputs, inputs = mlp.output.out_features, mlp.output.in_features
        right = torch.nn.Parameter(torch.randn(rank, inputs, generator=generator) * inputs**-0.5)
        left = torch.nn.Parameter(torch.zeros(outputs, rank))
        patches.append(Patch(index, mlp.output_name, outputs, inputs, left=left, right=right))
    parameters = [part for patch in patches for part in patch.tensors.values()]
    optimizer = torch.optim.Adam(parameters, lr=LORA_LR, betas=BETAS)
    none = [torch.zeros(shape.num_kv_heads, 0, shape.head_size) for shape in model.identity.layers]
    width = model.head.weight_VD.shape[1]
    is_bf16 = precision_of(config.precision, model.dtype, model.device, width) == "bf16"
    with attend(model), attached(model, patches), progress("training a LoRA", plan.num_steps) as bar:
        for step in range(plan.num_steps):
            (row,) = plan.step_rows(step)
            tensors = to_tensors(row, model.device)
            with autocast_bf16(model.device, is_bf16):
                hidden_TD = packed_hidden(model, tensors.ids_T, PackedPrefix(none, none, row.lengths))
                teacher = (tensors.teacher_ids_MK, tensors.teacher_logprobs_MK)
                loss = distillation_loss(hidden_TD[tensors.target_positions_M], model.head.weight_VD, *teacher)
            (loss / row.num_targets).backward()
            for group in optimizer.param_groups:
                group["lr"] = LORA_LR * config.lr_ratio(step, plan.num_steps)
            optimizer.step()
            optimizer.zero_grad()
            bar.advance(1, f"{float(loss.detach()) / row.num_targets:.3f}")
    done = [replace(patch, left=patch.left.detach(), right=patch.right.detach()) for patch in patches]
    manifest = AdapterManifest(
        name="lora",
        model=model.identity,
        patches=[patch.shape for patch in done],
        metrics={"seconds": round(time.monotonic() - started, 2)},
    )
    return ThoughtAdapter(done, manifest).sealed()


def adapters_of(source: Source, model: Model, rank: int) -> dict[str, ThoughtAdapter]:
    """Every method, free and at the cartridge's bytes."""
    settings: dict[str, dict[str, Any]] = {
        "bias": {"method": "bias"},
        "mean": {"method": "mean"},
        "ridge": {"method": "ridge"},
        "down": {"method": "down"},
        "down, at cartridge bytes": {"method": "down", "rank": rank},
        "down, low ridge": {"method": "down", "ridge": 0.001},
        "down, all tokens": {"method": "down", "tokens": "conversation"},
    }
    return {
        name: transmute([source], model, TransmuteConfig.resolve(model.profile, values=values), name)
        for name, values in settings.items()
    }


def speed(model: Model, items: Sequence[Item], system: str, cartridge: Cartridge | None) -> float:
    """Tokens a second of replies to many questions at once, reading included."""
    engine, requests = Engine(model), []
    for item in (list(items) * NUM_SPEED)[:NUM_SPEED]:
        messages = [*([{"role": "system", "content": system}] if system else [])]
        ids = model.chat.prompt([*messages, {"role": "user", "content": item.question}])
        requests.append(Request(tuple(ids), SPEED_TOKENS, cartridge=cartridge, stop_ids=frozenset()))
    started = time.perf_counter()
    engine.generate(requests)
    return NUM_SPEED * SPEED_TOKENS / (time.perf_counter() - started)


def line_of(
    row: MethodResult, results: Results, asked: Sequence[Question], rates: Mapping[str, float]
) -> dict[str, Any]:
    """What the table tells of one method: scores by kind, closeness, harm, cost."""
    scores: dict[str, list[float]] = {}
    by_text = {question.text: question for question in asked}
    for reply in results.replies:
        question = by_text[reply.question]
        scores.setdefault(question.kind, []).append(score(question, reply.replies[row.method]))
    harm = next((other.accuracy for other in results.off_corpus if other.method == row.method), None)
    return {
        "method": row.method,
        "label": row.label,
        "scores": {kind: sum(found) / len(found) for kind, found in scores.items()},
        "num": {kind: len(found) for kind, found in scores.items()},
        "kl_per_token": row.kl_per_token,
        "top1_agreement": row.top1_agreement,
        "general": harm,
        "kv_bytes": row.kv_bytes,
        "build_s": row.build_s,
        "tokens_per_s": rates.get(row.method),
    }


def family_part(family: str, quick: bool, num_conversations: int) -> dict[str, Any]:
    """Everything about one document."""
    text, asked = questions_of(family, 4 if quick else 40)
    model, corpus = load_model("pocket", "cpu"), Corpus.from_texts({"document-1.md": text})
    items = [replace(item_of(question), document="document-1.md") for question in asked]
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        dataset = synthesize(corpus, Engine(model), None, top / "data", num_conversations=num_conversations)
        config = TrainConfig.resolve("pocket", values={"slots": SLOTS, **({"max_steps": 2} if quick else {})})
        cartridge = train(dataset, model, corpus, config, top / "run")
        rank = round(2 * model.kv_bytes(SLOTS) / 4 / sum(_numbers(model)))
        source = Source(dataset, corpus, None, label=family)
        adapters = {**adapters_of(source, model, rank), "lora": trained_lora(dataset, model, config, rank)}
        general = general_items(model, dataset, 4 if quick else 40)
        evaluated = EvaluateConfig.resolve(values={"untrained": False, "max_new_tokens": 112})
        results = evaluate(Engine(model), corpus, items, {str(SLOTS): cartridge}, evaluated, general, adapters)
    rates = {
        results.reference: speed(model, items, corpus.text, None),
        NONE: speed(model, items, "", None),
        f"cartridge-{SLOTS}": speed(model, items, "", cartridge),
    }
    for name, adapter in adapters.items():
        with applied(model, adapter, merged=True):
            rates[f"adapter-{name}"] = speed(model, items, "", None)
    rows = [line_of(row, results, asked, rates) for row in results.methods]
    for row in rows:
        if adapter := adapters.get(row["method"].removeprefix("adapter-")):
            row["weight_bytes"] = 2 * adapter.num_numbers
            row["unexplained"] = [line["unexplained"] for line in adapter.manifest.metrics.get("layers", [])]
    about = {"num_tokens": len(model.ids(text)), "num_conversations": len(dataset.conversations), "rank": rank}
    return {"about": {**about, "slots": SLOTS, "seed": SEED}, "rows": rows}


def _numbers(model: Model) -> list[int]:
    """Numbers of a rank-one delta of every layer's last matrix."""
    outputs = [mlp_of(model, index).output for index in range(model.num_layers)]
    return [linear.out_features + linear.in_features for linear in outputs]


def ridge_part(quick: bool, num_conversations: int) -> dict[str, Any]:
    """Method "down" by its ridge, on validation documents. The rule: the lowest KL of those that do little harm."""
    model, found = load_model("pocket", "cpu"), dict[float, list[dict[str, Any]]]()
    for seed in RIDGE_SEEDS[: 1 if quick else None]:
        text, asked = questions_of("ward", 4 if quick else 40, "validation", seed)
        corpus = Corpus.from_texts({"document-1.md": text})
        items = [replace(item_of(question), document="document-1.md") for question in asked]
        with tempfile.TemporaryDirectory() as folder:
            dataset = synthesize(corpus, Engine(model), None, Path(folder), num_conversations=num_conversations)
            source, adapters = Source(dataset, corpus), dict[str, ThoughtAdapter]()
            for ridge in RIDGES:
                config = TransmuteConfig.resolve(model.profile, values={"ridge": ridge})
                adapters[str(ridge)] = transmute([source], model, config, str(ridge))
            general = general_items(model, dataset, 4 if quick else 40)
            evaluated = EvaluateConfig.resolve(values={"untrained": False, "max_new_tokens": 112})
            results = evaluate(Engine(model), corpus, items, {}, evaluated, general, adapters)
        for row in results.methods:
            if row.method.startswith("adapter-"):
                ridge = float(row.method.removeprefix("adapter-"))
                found.setdefault(ridge, []).append(line_of(row, results, asked, {}))
    rows = []
    for ridge, lines in found.items():
        row: dict[str, Any] = {"ridge": ridge}
        for kind in lines[0]["scores"]:
            row[kind] = sum(line["scores"][kind] for line in lines) / len(lines)
        for name in ("kl_per_token", "general"):
            row[name] = sum(line[name] for line in lines) / len(lines)
        rows.append(row)
    harmless = [row for row in rows if row["general"] >= 1 - MAX_HARM] or rows
    chosen = min(harmless, key=lambda row: row["kl_per_token"])["ridge"]
    return {"rows": rows, "chosen": chosen, "seeds": list(RIDGE_SEEDS), "num_conversations": num_conversations}


def memory_part(quick: bool) -> dict[str, Any]:
    """Peak memory of a process that transmutes so many conversations, one layer."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model, corpus = load_model("pocket", "cpu"), Corpus.from_texts({"document-1.md": questions_of("ward", 1)[0]})
        made = synthesize(corpus, Engine(model), None, Path(folder) / "data", num_conversations=64)
        talks = list(made.conversations)
        for num in (64, 128) if quick else (1000, 10000):
            data = [replace(talks[index % len(talks)], index=index) for index in range(num)]
            Dataset.from_conversations(data, made.manifest | {"num_kept": num}).save(Path(folder) / str(num))
            (Path(folder) / "document-1.md").write_text(corpus.text, encoding="utf-8")
            command = [sys.executable, __file__, "--memory-of", str(Path(folder) / str(num))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"num_conversations": num, **json.loads(done.stdout.splitlines()[-1])})
    return {"rows": rows}


def memory_of(data: Path) -> dict[str, Any]:
    """What `memory_part` asks of a process of its own."""
    model, corpus = load_model("pocket", "cpu"), Corpus.from_path(data.parent / "document-1.md")
    source = Source(Dataset.load(data), corpus)
    adapter = transmute([source], model, TransmuteConfig.resolve(values={"layers": [0]}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    metrics = adapter.manifest.metrics
    return {"peak_bytes": peak, "statistics_bytes": metrics["statistics_bytes"], "seconds": metrics["seconds"]}


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--conversations", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps(memory_of(given.memory_of)))
        return 0
    known = json.loads(given.out.read_text(encoding="utf-8")) if given.only and given.out.is_file() else {}
    for part in [given.only] if given.only else PARTS:
        started = time.monotonic()
        num = 64 if given.quick else given.conversations
        if part == "memory":
            found = memory_part(given.quick)
        else:
            found = ridge_part(given.quick, num) if part == "ridge" else family_part(part, given.quick, num)
        known[part] = {**found, "seconds": round(time.monotonic() - started), **provenance()}
        given.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {known[part]['seconds']} s, written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
