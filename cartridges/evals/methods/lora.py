"""LoRA by peft at equal bytes: the same conversations, loss and steps; low-rank changes of weights instead of slots.

The rank is the largest whose weights take no more bytes (two a number) than the budget's keys and values. Trained on a
copy of the model, so memory holds it twice; merged for answering.
"""

import copy
import dataclasses
import json
import time
from typing import Any

import torch

from cartridges.attention import PackedPrefix, attend, packed_hidden
from cartridges.engine.engine import Engine
from cartridges.errors import CartridgesError, InputError
from cartridges.evals.method import Answerer, Workshop
from cartridges.log import progress
from cartridges.losses import distillation_loss
from cartridges.model import Model
from cartridges.packing import PackedRow, to_tensors
from cartridges.recipe import TrainConfig
from cartridges.rows import RowPlan
from cartridges.run_folder import write_json
from cartridges.synthesis import study_seconds

LR = 5e-3
BETAS = (0.9, 0.95)
DONE = "done.json"


def rank_for(model: Model, num_bytes: int) -> int:
    """The largest rank whose factors, for all linear layers, fit. Raises InputError where not even rank 1 does."""
    decoder: Any = model.hf.get_decoder()
    each = sum(
        layer.in_features + layer.out_features for layer in decoder.modules() if isinstance(layer, torch.nn.Linear)
    )
    rank = num_bytes // (2 * each)
    if rank < 1:
        raise InputError(
            f"given {num_bytes} bytes for LoRA, expected at least {2 * each}, those of rank 1; give a larger budget"
        )
    return rank


def lora(workshop: Workshop) -> Answerer:
    """Train, or take up what was trained, and answer with the merged model. Raises InputError."""
    import peft

    model = workshop.engine.model
    rank = rank_for(model, model.kv_bytes(workshop.num_slots))
    folder = workshop.folder / f"lora-{rank}"
    dataset = workshop.study()
    config = TrainConfig.resolve(values={**workshop.train.model_dump(), "slots": 2, "frozen_slots": 0, "lr": LR})
    told = {"config": config.model_dump(mode="json"), "dataset": dataset.digest, "rank": rank}
    done = folder / DONE
    if done.exists() and (known := json.loads(done.read_text())).items() >= told.items():
        seconds = known["seconds"]
        changed: Any = peft.PeftModel.from_pretrained(copy.deepcopy(model.hf), str(folder))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            form: Any = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0)
            changed = peft.get_peft_model(copy.deepcopy(model.hf), form)  # pyright: ignore[reportArgumentType]
        seconds = fit(dataclasses.replace(model, hf=changed.get_base_model()), changed, dataset, config)
        changed.save_pretrained(str(folder))
        write_json(done, {**told, "seconds": seconds})
    num_numbers = sum(part.numel() for name, part in changed.named_parameters() if "lora_" in name)
    merged = dataclasses.replace(model, hf=changed.merge_and_unload().eval())
    return Answerer(engine=Engine(merged), kept_bytes=2 * num_numbers, build_s=seconds + study_seconds(dataset))


def fit(model: Model, changed: Any, dataset: Any, config: TrainConfig) -> float:
    """Train the factors; gives the seconds. The best ones by held-out loss are kept. Raises CartridgesError."""
    started = time.monotonic()
    plan = RowPlan.of(dataset, model, None, config)
    parameters = [part for part in changed.parameters() if part.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.lr, betas=BETAS)
    best, kept = float("inf"), [part.detach().clone() for part in parameters]
    with attend(model), progress("training LoRA", plan.num_steps) as bar:
        for step in range(plan.num_steps):
            rows = plan.step_rows(step)
            for row in rows:
                (loss_of(model, row) / sum(r.num_targets for r in rows)).backward()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * config.lr_ratio(step, plan.num_steps)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.advance()
            if plan.heldout_rows and ((step + 1) % config.eval_every == 0 or step + 1 == plan.num_steps):
                with torch.no_grad():
                    loss = sum(float(loss_of(model, row)) for row in plan.heldout_rows)
                if loss != loss:
                    raise CartridgesError(f"the loss of LoRA is no number at step {step}; give a lower lr than {LR}")
                if loss < best:
                    best, kept = loss, [part.detach().clone() for part in parameters]
    if plan.heldout_rows:
        with torch.no_grad():
            for part, value in zip(parameters, kept, strict=True):
                part.copy_(value)
    return time.monotonic() - started


def loss_of(model: Model, row: PackedRow) -> torch.Tensor:
    """The sum of the distillation loss over the row's targets, in nats, behind no slots."""
    tensors, head = to_tensors(row, model.device), model.head
    empty = [
        torch.empty(shape.num_kv_heads, 0, shape.head_size, device=model.device) for shape in model.identity.layers
    ]
    hidden_TD = packed_hidden(model, tensors.ids_T, PackedPrefix(empty, empty, row.lengths))
    return distillation_loss(
        hidden_TD[tensors.target_positions_M],
        head.weight_VD,
        tensors.teacher_ids_MK,
        tensors.teacher_logprobs_MK,
        softcap=head.softcap,
        scale=head.scale,
    )
