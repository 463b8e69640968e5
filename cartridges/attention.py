"""The one attention function: packed conversations, each behind the slots of one cartridge, on unmodified models.

It is registered with transformers and gets its row through the model's keyword arguments, so there is no global state
and gradient checkpointing works. Every token sees the P slots, at positions 0..P-1, and the earlier tokens of its own
conversation, which starts at position P; layers with a sliding window see what the window leaves of that. The whole of
it is differentiable in keys and values.

Shapes: T tokens of a packed row, S conversations in it, C tokens of the longest, P slots, N query heads, G key/value
heads, R = N / G, H head size, D model dim.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from cartridges.cpu_flash import attend_by_cpu_flash
from cartridges.errors import InputError
from cartridges.flash import Spans, attend_by_flash, has_flash, spans_of
from cartridges.model import Model
from cartridges.sharing import alone

NAME = "cartridge_prefix"
MAX_SCORES = 1 << 26  # numbers in the score tensors of one layer, above which they are not materialised
MIN_SCORES = {torch.float32: 0, torch.bfloat16: 1 << 22}  # above which the CPU's flash kernel is as fast as they are


@dataclass
class PackedPrefix:
    """What a packed row stands behind: per layer, keys and values [G, P, H]; and the row's conversation lengths.

    `bias` [G, P], where there is one, is added to the scores of the slots, behind any cap on them.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    lengths: Sequence[int]
    bias: Sequence[torch.Tensor] | None = None

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[1]

    @property
    def device(self) -> torch.device:
        return self.keys[0].device

    @cached_property
    def index_SC(self) -> torch.Tensor:
        """Where in the row the c-th token of conversation s stands; padding repeats its last token."""
        lengths = torch.tensor(self.lengths, device=self.device)
        starts = lengths.cumsum(0) - lengths
        return starts[:, None] + torch.arange(max(self.lengths), device=self.device).clamp(max=lengths[:, None] - 1)

    @cached_property
    def back_T(self) -> torch.Tensor:
        """Where in the padded layout, as flat index of [S, C], each token of the row stands."""
        longest = max(self.lengths)
        return torch.cat(
            [torch.arange(length, device=self.device) + row * longest for row, length in enumerate(self.lengths)]
        )

    @cached_property
    def place_T(self) -> torch.Tensor:
        """The how-manieth of its conversation each token of the row is, from 0."""
        return torch.cat([torch.arange(length, device=self.device) for length in self.lengths])

    @cached_property
    def spans(self) -> list[Spans]:
        """Which tokens see which, for the kernels of `flash`."""
        return spans_of(self.lengths, self.num_slots, self.device)

    @cached_property
    def positions_T(self) -> torch.Tensor:
        """Positions of the row's tokens; each conversation starts at P."""
        return self.place_T + self.num_slots

    def padded(self, packed_XTH: torch.Tensor) -> torch.Tensor:
        """The conversations side by side, [X, S, C, H]; for what `packed` undoes, so that nothing comes of padding."""
        return cast(torch.Tensor, _Padded.apply(packed_XTH, self.index_SC, self.back_T))

    def packed(self, padded_XSCH: torch.Tensor) -> torch.Tensor:
        """The tokens of the row, [X, T, H], out of conversations side by side."""
        return cast(torch.Tensor, _Packed.apply(padded_XSCH, self.back_T))

    def hidden_CK(self, window: int | None) -> torch.Tensor:
        """Which of the P slots and C own tokens the c-th token of a conversation does not see, [C, P + C]."""
        num_slots, longest = self.num_slots, max(self.lengths)
        positions_K = torch.arange(num_slots + longest, device=self.device)
        distance_CK = positions_K[num_slots:, None] - positions_K[None]
        return (distance_CK < 0) | (distance_CK >= window) if window else distance_CK < 0

    def mask_TK(self, window: int | None) -> torch.Tensor:
        """What is added to the scores [T, P + C] of the row's tokens: -inf where a token does not see."""
        if window not in self._masks:
            hidden_TK = self.hidden_CK(window)[self.place_T]
            self._masks[window] = torch.zeros(hidden_TK.shape, device=self.device).masked_fill_(hidden_TK, -torch.inf)
        return self._masks[window]

    @cached_property
    def _masks(self) -> dict[int | None, torch.Tensor]:
        return {}


class _Padded(torch.autograd.Function):
    """[X, T, H] to [X, S, C, H].

    Padding is taken to have no gradient, so that nothing has to be added up on the way back: no token of the row sees
    it, and what it sees itself is dropped by `_Packed`.
    """

    @staticmethod
    def forward(ctx: Any, packed_XTH: torch.Tensor, index_SC: torch.Tensor, back_T: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back_T)
        return packed_XTH.index_select(1, index_SC.flatten()).unflatten(1, index_SC.shape)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_XSCH: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (back_T,) = ctx.saved_tensors
        return grad_XSCH.flatten(1, 2).index_select(1, back_T), None, None


class _Packed(torch.autograd.Function):
    """[X, S, C, H] to [X, T, H]; on the way back padding gets zeros."""

    @staticmethod
    def forward(ctx: Any, padded_XSCH: torch.Tensor, back_T: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back_T)
        ctx.shape = padded_XSCH.shape
        return padded_XSCH.flatten(1, 2).index_select(1, back_T)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_XTH: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (back_T,) = ctx.saved_tensors
        num_x, num_rows, longest, size = ctx.shape
        grad = grad_XTH.new_zeros(num_x, num_rows * longest, size)
        return grad.index_copy_(1, back_T, grad_XTH).view(ctx.shape), None


def cartridge_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cartridge_row: PackedPrefix | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row: query [1, N, T, H], key and value [1, G, T, H]; gives [1, T, N, H]."""
    if cartridge_row is None:
        raise InputError("a forward pass within attend() needs a packed row; call packed_hidden")
    if s_aux is not None:
        raise InputError("models with learned attention sinks (s_aux) are not supported in training")
    layer: Any = module.layer_idx
    slot_keys, slot_values = cartridge_row.keys[layer], cartridge_row.values[layer]
    device_type = query.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q_NTH, k_GTH, v_GTH = (part[0].to(dtype) for part in (query, key, value))
    bias_GP = cartridge_row.bias[layer] if cartridge_row.bias is not None else None
    parts = (q_NTH, k_GTH, v_GTH, slot_keys.to(dtype), slot_values.to(dtype), cartridge_row)
    limits: dict[str, Any] = {"scale": scale, "window": sliding_window, "bias_GP": bias_GP}
    longest = max(cartridge_row.lengths)
    is_plain = bias_GP is None and softcap is None and (sliding_window or 1 << 31) >= len(slot_keys[0]) + longest
    if is_plain and has_flash(query.device, dtype, [query.shape[-1]]):
        out_NTH = attend_by_flash(*parts[:-1], cartridge_row.spans, scale)
        return out_NTH.transpose(0, 1)[None], None
    num_padded, num_packed = len(cartridge_row.lengths) * longest**2, len(query[0, 0]) * (longest + len(slot_keys[0]))
    num_scores = len(query[0]) * (num_padded + num_packed)
    if is_plain and device_type == "cpu" and num_scores > MIN_SCORES.get(dtype, math.inf):
        out_NTH = attend_by_cpu_flash(*parts[:-1], cartridge_row.index_SC, cartridge_row.back_T, scale)
    elif num_scores <= MAX_SCORES or softcap is not None:
        out_NTH = attend_once(*parts, **limits, softcap=softcap)
    else:
        out_NTH = attend_expanded(*parts, **limits)
    return out_NTH.transpose(0, 1)[None], None


def attend_once(
    q_NTH: torch.Tensor,
    k_GTH: torch.Tensor,
    v_GTH: torch.Tensor,
    slot_keys_GPH: torch.Tensor,
    slot_values_GPH: torch.Tensor,
    row: PackedPrefix,
    scale: float,
    window: int | None = None,
    bias_GP: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Slots are read once for all conversations together; scores are materialised, those of padding but for a while."""
    num_kv_heads, num_slots, _ = slot_keys_GPH.shape
    repeats, num_tokens = len(q_NTH) // num_kv_heads, q_NTH.shape[1]
    q_NTH = q_NTH * scale
    q_GRSCH = row.padded(q_NTH).unflatten(0, (num_kv_heads, repeats))
    to_slots = (q_NTH.reshape(num_kv_heads, repeats * num_tokens, -1) @ slot_keys_GPH.transpose(1, 2)).view(
        len(q_NTH), num_tokens, num_slots
    )
    to_text = row.packed((q_GRSCH @ row.padded(k_GTH).transpose(2, 3)[:, None]).flatten(0, 1))
    scores_NTK = torch.cat([to_slots, to_text], -1).float()
    if softcap is not None:
        scores_NTK = softcap * torch.tanh(scores_NTK / softcap)
    if bias_GP is not None:
        scores_NTK = scores_NTK + F.pad(bias_GP.float(), (0, to_text.shape[-1])).repeat_interleave(repeats, 0)[:, None]
    weights_NTK = scores_NTK.add_(row.mask_TK(window)).softmax(-1).to(q_NTH.dtype)
    of_slots = weights_NTK[..., :num_slots].reshape(num_kv_heads, repeats * num_tokens, num_slots)
    of_text = row.padded(weights_NTK[..., num_slots:]).unflatten(0, (num_kv_heads, repeats))
    from_text_NTH = row.packed((of_text @ row.padded(v_GTH)[:, None]).flatten(0, 1))
    return (of_slots @ slot_values_GPH).view_as(from_text_NTH) + from_text_NTH


def attend_expanded(
    q_NTH: torch.Tensor,
    k_GTH: torch.Tensor,
    v_GTH: torch.Tensor,
    slot_keys_GPH: torch.Tensor,
    slot_values_GPH: torch.Tensor,
    row: PackedPrefix,
    scale: float,
    window: int | None = None,
    bias_GP: torch.Tensor | None = None,
) -> torch.Tensor:
    """Slots are repeated for every conversation and head; torch's fused kernels never hold all scores at once."""
    q_NSCH, k_GSCH, v_GSCH = (row.padded(part) for part in (q_NTH, k_GTH, v_GTH))
    hidden_CK = row.hidden_CK(window)
    num_rows, repeats = q_NSCH.shape[1], q_NSCH.shape[0] // k_GSCH.shape[0]

    def whole(slots_GPH: torch.Tensor, text_GSCH: torch.Tensor) -> torch.Tensor:
        expanded = slots_GPH[:, None].expand(-1, num_rows, -1, -1)
        return torch.cat([expanded, text_GSCH], 2).repeat_interleave(repeats, 0).transpose(0, 1)

    mask = ~hidden_CK
    if bias_GP is not None:
        bias_GK = F.pad(bias_GP.to(q_NSCH.dtype), (0, k_GSCH.shape[2]))
        mask = bias_GK.repeat_interleave(repeats, 0)[:, None].masked_fill(hidden_CK, -torch.inf)
    out_SNCH = F.scaled_dot_product_attention(
        q_NSCH.transpose(0, 1),
        whole(slot_keys_GPH, k_GSCH),
        whole(slot_values_GPH, v_GSCH),
        attn_mask=mask,
        scale=scale,
    )
    return row.packed(out_SNCH.transpose(0, 1))


def _no_mask(*args: object, **kwargs: object) -> None:
    """The row says what each token sees; no mask is made."""


AttentionInterface.register(NAME, cartridge_attention)
AttentionMaskInterface.register(NAME, cast(Any, _no_mask))


@contextmanager
def attend(model: Model, checkpointing: bool = False, name: str = NAME) -> Iterator[None]:
    """Meanwhile the model's layers use `cartridge_attention`, and with `checkpointing` keep no activations.

    `name` is that under which another function of its form is registered, to be used instead.

    The backward pass of a checkpointed forward pass has to happen in here too. Engines on the model wait meanwhile.
    """
    layers = [module for module in model.hf.modules() if isinstance(module, GradientCheckpointingLayer)]
    if checkpointing and not layers:
        raise InputError(f"{model.identity.model_id} cannot checkpoint its layers; set checkpointing=false")
    with alone(model.hf.config):
        before: Any = model.hf.config._attn_implementation
        model.hf.set_attn_implementation(name)
        if checkpointing:
            model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for layer in layers:
            layer.training = checkpointing  # of the layer alone: dropout below stays off
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False
            if checkpointing:
                model.hf.gradient_checkpointing_disable()
            model.hf.set_attn_implementation(before)


def packed_hidden(model: Model, ids_T: torch.Tensor, prefix: PackedPrefix) -> torch.Tensor:
    """Final hidden states [T, D], before the output layer, of a packed row; within `attend` only."""
    if sum(prefix.lengths) != ids_T.shape[0] or min(prefix.lengths, default=0) < 1:
        raise InputError(
            f"given conversations of {sum(prefix.lengths)} tokens for a row of {ids_T.shape[0]}, expected as many"
        )
    decoder: Any = model.hf.get_decoder()
    found = decoder(input_ids=ids_T[None], position_ids=prefix.positions_T[None], use_cache=False, cartridge_row=prefix)
    return found.last_hidden_state[0]
