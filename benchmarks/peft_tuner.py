"""PEFT's CARTRIDGE tuner as a training loop would use it, for the comparison in `training_step.py`.

Written as PEFT's own example `cartridge_self_study` has it: right-padded batches with their attention mask, logits at
all positions, the log-softmax over the vocabulary, a gather of the teacher's top-k. The example stores no teacher: it
reads the context before every conversation anew, in each step. Both ways can be had here.

Shapes: B conversations of a batch, T tokens of its longest, M targets, K teacher top-k, V vocabulary, C context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from peft import CartridgeConfig, get_peft_model
from peft.tuners.cartridge.utils import (
    initialize_kv_prefix_from_past_key_values,
    prompt_embeddings_from_past_key_values,
)

from cartridges.conversation import Conversation
from cartridges.training import Run


@dataclass
class Batch:
    """Right-padded conversations; row t of the teacher is the distribution of token t + 1, where that is a target."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    is_target_BT: torch.Tensor
    teacher_ids_BTK: torch.Tensor
    teacher_probs_BTK: torch.Tensor  # 0 where there is no entry
    num_targets: int


def padded(conversations: Sequence[Conversation], device: torch.device) -> Batch:
    """The conversations as one batch."""
    shape_BT = (len(conversations), max(conversation.num_tokens for conversation in conversations))
    shape_BTK = (*shape_BT, max(conversation.teacher.num_top for conversation in conversations))
    ids_BT, mask_BT = np.zeros(shape_BT, np.int64), np.zeros(shape_BT, np.int64)
    is_target_BT = np.zeros(shape_BT, bool)
    teacher_ids_BTK, teacher_probs_BTK = np.zeros(shape_BTK, np.int64), np.zeros(shape_BTK, np.float32)
    for row, conversation in enumerate(conversations):
        ids_BT[row, : conversation.num_tokens] = conversation.token_ids
        mask_BT[row, : conversation.num_tokens] = 1
        before_M, teacher = conversation.target_positions - 1, conversation.teacher
        is_target_BT[row, before_M] = True
        teacher_ids_BTK[row, before_M, : teacher.num_top] = teacher.ids
        teacher_probs_BTK[row, before_M, : teacher.num_top] = np.exp(teacher.logprobs)
    arrays = (ids_BT, mask_BT, is_target_BT, teacher_ids_BTK, teacher_probs_BTK)
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays), num_targets=int(is_target_BT.sum()))


def dense_loss(logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The loss of `cartridges.losses`, the rest of the teacher's mass included, the way of PEFT's example."""
    log_q_BTK = logits_BTV.log_softmax(-1, dtype=torch.float32).gather(-1, batch.teacher_ids_BTK)
    p_BTK = batch.teacher_probs_BTK
    rest_BT = (1 - p_BTK.sum(-1)).clamp(min=0)
    rest_q_BT = (1 - (log_q_BTK.exp() * (p_BTK > 0)).sum(-1)).clamp(min=1e-30)
    loss_BT = (torch.xlogy(p_BTK, p_BTK) - p_BTK * log_q_BTK).sum(-1)
    loss_BT = loss_BT + torch.xlogy(rest_BT, rest_BT) - rest_BT * rest_q_BT.log()
    return loss_BT.masked_fill(~batch.is_target_BT, 0.0).sum()


class PeftTuner:
    """PEFT's tuner with slots that start as those of `run`, and one Adam."""

    def __init__(self, run: Run) -> None:
        self.run, config = run, run.config
        about = CartridgeConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=config.slots, num_frozen_tokens=config.frozen_slots
        )
        self.model = get_peft_model(run.model.hf, about).eval()
        slots = [(key[None], value[None]) for key, value in zip(*run.slots.whole()[:2], strict=True)]
        initialize_kv_prefix_from_past_key_values(self.model, past_key_values=slots)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=config.lr, betas=(config.beta1, config.beta2))

    @staticmethod
    def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Keys [G, P, H] of all layers, then values, in the layout of the tuner's one parameter."""
        half = len(tensors) // 2
        pairs = [(key[None], value[None]) for key, value in zip(tensors[:half], tensors[half:], strict=True)]
        return prompt_embeddings_from_past_key_values(pairs, num_virtual_tokens=tensors[0].shape[1])

    def loss_of(self, batch: Batch, context_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The sum of the loss over the batch's targets, in nats; with a context, the teacher reads it now."""
        with self.run.autocast:
            if context_ids is not None:
                batch = self.taught(batch, context_ids)
            found = self.model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)
            return dense_loss(found.logits, batch)

    @torch.no_grad()
    def taught(self, batch: Batch, context_ids: torch.Tensor) -> Batch:
        """The batch with the plain model's top-k behind `context_ids` [C], at all positions as the example has it."""
        rows = len(batch.ids_BT)
        ids = torch.cat([context_ids.expand(rows, -1), batch.ids_BT], 1)
        mask = torch.cat([torch.ones_like(ids[:, : len(context_ids)]), batch.mask_BT], 1)
        found = self.run.model.hf(input_ids=ids, attention_mask=mask, use_cache=False)
        logprobs_BTV = found.logits[:, len(context_ids) :].log_softmax(-1, dtype=torch.float32)
        logprobs_BTK, ids_BTK = logprobs_BTV.topk(batch.teacher_ids_BTK.shape[-1])
        return replace(batch, teacher_ids_BTK=ids_BTK, teacher_probs_BTK=logprobs_BTK.exp())

    def step(self, batches: Sequence[Batch], context_ids: torch.Tensor | None = None) -> float:
        """One optimiser step, over which the gradients of the batches are accumulated; gives the loss a target."""
        num_targets = sum(batch.num_targets for batch in batches)
        total = torch.zeros((), device=self.run.model.device)
        for batch in batches:
            loss = self.loss_of(batch, context_ids) / num_targets
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.trained, self.run.config.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return float(total)
