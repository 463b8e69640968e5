"""What one training step is made of: the model, its two optimisers, the loss, and what of a batch was right.

Shapes: B rows, T tokens, D model dim, M targets, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cartridges.pocket.batches import Batch
from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.tokenizer import END, PAD
from cartridges.precision import autocast_bf16, has_fast_bf16

LossFunction = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]


def build_model(config: PocketConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 of the configured shape, in float32."""
    token_id = tokenizer.backend_tokenizer.token_to_id
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_size,
            max_position_embeddings=config.window,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=token_id(END),
            pad_token_id=token_id(PAD),
        )
    )
    return model


@contextmanager
def orthogonalized_in_float32(wanted: bool) -> Iterator[None]:
    """Meanwhile torch's Muon iterates in float32. It asks for bfloat16 whatever the device, and has no switch."""
    module: Any = import_module("torch.optim._muon")
    before = module._zeropower_via_newtonschulz

    class Widened(torch.Tensor):
        """A gradient that stays as it is where bfloat16 is asked for."""

        def bfloat16(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.as_subclass(torch.Tensor).clone()

    def iterate(grad: torch.Tensor, *args: Any) -> torch.Tensor:
        return before(grad.float().as_subclass(Widened), *args)

    module._zeropower_via_newtonschulz = iterate if wanted else before
    try:
        yield
    finally:
        module._zeropower_via_newtonschulz = before


class Optimizers:
    """Muon for the matrices, AdamW for embeddings and norms, one learning-rate schedule.

    `in_bf16` is whether Muon iterates in bfloat16; None where the device is fast at it.
    """

    def __init__(self, model: torch.nn.Module, config: PocketConfig, in_bf16: bool | None = None):
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.tops = (config.muon_lr, config.adam_lr)
        self.in_bf16 = has_fast_bf16(matrices[0].device) if in_bf16 is None else in_bf16
        self.parts = (
            torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, weight_decay=0.0),
            torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def step(self, lr_ratio: float) -> None:
        for optimizer, top in zip(self.parts, self.tops, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = top * lr_ratio
            with orthogonalized_in_float32(not self.in_bf16):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take over states; ValueError where their tensors have other shapes than the parameters."""
        for optimizer, state in zip(self.parts, states, strict=True):
            optimizer.load_state_dict(state)
            for parameter, kept in optimizer.state.items():
                shapes = {value.shape for value in kept.values() if isinstance(value, torch.Tensor) and value.ndim}
                if shapes - {parameter.shape}:
                    raise ValueError(f"optimiser state of shape {shapes} for a parameter of {parameter.shape}")


def make_loss(
    model: Qwen3ForCausalLM, config: PocketConfig, device: torch.device, in_bf16: bool | None = None
) -> LossFunction:
    """The function of a batch's tensors that gives (weighted mean loss, loss of each target, whether it is right).

    Products are in bfloat16 with `in_bf16`; None is where the device is fast at it.
    """
    wants_bf16 = has_fast_bf16(device) if in_bf16 is None else in_bf16

    def loss_of(
        inputs_BT: torch.Tensor, positions_M: torch.Tensor, targets_M: torch.Tensor, weights_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with autocast_bf16(device, wants_bf16):
            hidden_BTD = model.model(input_ids=inputs_BT, use_cache=False).last_hidden_state
            logits_MV = model.lm_head(hidden_BTD.flatten(0, 1)[positions_M])
        loss_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
        right_M = logits_MV.detach().argmax(-1) == targets_M
        return (loss_M * weights_M).sum() / weights_M.sum(), loss_M.detach(), right_M

    return torch.compile(loss_of, dynamic=False) if config.compile else loss_of


def accuracy_by_kind(batch: Batch, right_M: torch.Tensor) -> dict[str, tuple[int, int]]:
    """For each kind of turn, how many are wholly right given their own beginning, and how many there are."""
    wrong = set(np.unique(batch.turns_M[~right_M.cpu().numpy()]).tolist())
    tally: dict[str, tuple[int, int]] = {}
    for turn in set(np.unique(batch.turns_M).tolist()) - {0}:
        num_right, num_all = tally.get(batch.kinds[turn], (0, 0))
        tally[batch.kinds[turn]] = (num_right + (turn not in wrong), num_all + 1)
    return tally
