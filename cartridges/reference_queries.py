"""Reference queries: what the heads ask of a context while the model repeats it, or talks about it.

Texts are read behind the whole context, packed, by the attention for training; on the way the queries of every layer
are noted, and how much attention each gives to its own text.

Shapes: T tokens of a packed row, N query heads, G key/value heads, H head size, C tokens of a conversation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from cartridges.attention import NAME, PackedPrefix, attend, cartridge_attention, packed_hidden
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.model import Model
from cartridges.rng import rng_of

RECORDING = "cartridge_reference"
ROW_LEN = 2048  # tokens that are read at once
PIECE_LEN = 512  # tokens of the context that are repeated at once
NUM_CUE = 12  # tokens before a piece that tell where to begin
MIN_ROOM = 192  # tokens behind the context, below which nothing sensible can be repeated
REPEAT = "Repeat the previous context exactly."
REPEAT_FROM = "Repeat the part of the previous context exactly that follows on: {cue}"


@dataclass
class LayerQueries:
    """What one layer asked: queries [N, T, H] after RoPE and scaling, log masses of their own texts [N, T]."""

    q_NTH: torch.Tensor
    own_lse_NT: torch.Tensor
    softcap: float | None
    window: int | None


@dataclass
class Recorder(PackedPrefix):
    """A prefix that notes what it is asked; `taken` are the places of the row that are wanted."""

    taken: torch.Tensor | None = None
    noted: dict[int, LayerQueries] = field(default_factory=dict)


@dataclass
class References:
    """The queries of all layers; `offsets_T` tells how far behind the context each stands."""

    layers: list[LayerQueries]
    offsets_T: torch.Tensor


def recording_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cartridge_row: Recorder | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`cartridge_attention`, with the queries noted."""
    assert cartridge_row is not None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    index_SC, taken = cartridge_row.index_SC, cartridge_row.taken
    q_NTH = query[0].float() * scale
    q_NSCH, k_GSCH = q_NTH[:, index_SC], key[0].float()[:, index_SC]
    scores_NSCC = q_NSCH @ k_GSCH.repeat_interleave(len(q_NSCH) // len(k_GSCH), 0).transpose(2, 3)
    if softcap is not None:
        scores_NSCC = softcap * torch.tanh(scores_NSCC / softcap)
    hidden_CC = cartridge_row.hidden_CK(sliding_window)[:, cartridge_row.num_slots :]
    own_lse_NT = scores_NSCC.masked_fill(hidden_CC, -torch.inf).logsumexp(-1).flatten(1)[:, cartridge_row.back_T]
    layer: Any = module.layer_idx
    cartridge_row.noted[layer] = LayerQueries(q_NTH[:, taken], own_lse_NT[:, taken], softcap, sliding_window)
    told: dict[str, Any] = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
    return cartridge_attention(module, query, key, value, attention_mask, cartridge_row=cartridge_row, **told, **kwargs)


AttentionInterface.register(RECORDING, recording_attention)
AttentionMaskInterface.register(RECORDING, AttentionMaskInterface()[NAME])


def repeating(model: Model, ids: list[int], room: int) -> list[list[int]]:
    """Conversations [C] in which the text `ids` is asked for piece by piece, and given.

    `room` is how many tokens one may have.
    """
    found, start = [], 0
    while start < len(ids):
        cue = model.chat.decode(ids[max(0, start - NUM_CUE) : start])
        message = REPEAT_FROM.format(cue=cue) if start else REPEAT
        asked = model.chat.prompt([{"role": "user", "content": message}])
        stop = start + min(PIECE_LEN, room - len(asked))
        if stop <= start:
            raise InputError(f"given {room} tokens of room behind the context, expected more than {len(asked)}")
        found.append(asked + ids[start:stop])
        start = stop
    return found


def studied(dataset: Dataset | None, room: int, num_tokens: int, seed: int) -> list[list[int]]:
    """Conversations [C] of the dataset that are about documents, drawn until there are `num_tokens`."""
    if dataset is None:
        raise InputError("given queries=self_study and no conversations, expected a dataset; synthesize first")
    order = list(range(len(dataset.conversations)))
    rng_of("reference queries", seed).shuffle(order)
    found: list[list[int]] = []
    total = 0
    for index in order:
        talk = dataset.conversations[index]
        if talk.document and len(talk.token_ids) <= room:
            found.append(talk.token_ids.tolist())
            total += len(found[-1])
        if total >= num_tokens:
            break
    if not found:
        raise InputError(
            f"given {len(order)} conversations, none of which is about a document and fits into the {room} tokens "
            "behind the context; give queries=repeat"
        )
    return found


def _rows(conversations: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    row: list[list[int]] = []
    for ids in sorted(conversations, key=len):
        if row and (len(row) + 1) * len(ids) > ROW_LEN:
            yield row
            row = []
        row.append(ids)
    if row:
        yield row


@torch.no_grad()
def record(
    model: Model,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    conversations: Sequence[list[int]],
    num_tokens: int,
    seed: int,
) -> References:
    """What the conversations ask of a context with these keys and values [G, T, H], at about `num_tokens` tokens."""
    total = sum(map(len, conversations))
    generator = torch.Generator().manual_seed(seed)
    noted: list[list[LayerQueries]] = []
    offsets: list[torch.Tensor] = []
    with attend(model, name=RECORDING):
        for row in _rows(conversations):
            ids = torch.tensor([token for one in row for token in one], device=model.device)
            num = max(1, round(len(ids) * min(1.0, num_tokens / total)))
            taken = torch.randperm(len(ids), generator=generator)[:num].sort().values.to(model.device)
            recorder = Recorder(keys, values, [len(one) for one in row], taken=taken)
            packed_hidden(model, ids, recorder)
            noted.append([recorder.noted[layer] for layer in range(model.num_layers)])
            offsets.append((recorder.positions_T - recorder.num_slots)[taken])
    layers = []
    for parts in zip(*noted, strict=True):
        queries = torch.cat([part.q_NTH for part in parts], 1)
        lse = torch.cat([part.own_lse_NT for part in parts], 1)
        layers.append(LayerQueries(queries, lse, parts[0].softcap, parts[0].window))
    return References(layers, torch.cat(offsets))
