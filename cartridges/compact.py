"""The verb `compact`: the keys and values of a context that was read, made fewer without training.

Two methods. `kv_eviction` keeps the tokens that get most attention while the model repeats the context, as they are
(the idea of KVzip, arXiv 2505.23416). `attention_matching` keeps some keys, and fits for each a weight, which becomes
its slot's bias, and a value, so that the slots answer reference queries as the context does (arXiv 2602.16284).

The text behind a cartridge stands nearer than it stood behind the context, so kept keys are turned by as much: each
stays as far from the text as it was. In layers with a window, whose text sees no more than its last tokens, only those
can be kept. A corpus that the window cannot hold is compacted in chunks, which are then composed.

Shapes: T tokens of the context, P slots, N query heads, G key/value heads, H head size.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field

from cartridges.cartridge import Cartridge, Manifest
from cartridges.compose import compose, inverse_frequencies, turn
from cartridges.config import Config
from cartridges.corpus import Corpus
from cartridges.dataset import Dataset
from cartridges.errors import InputError
from cartridges.log import progress
from cartridges.matching import (
    Head,
    fit_values,
    fit_weights,
    mean_attention,
    peak_attention,
    pursued,
    strongest,
    whole_attention,
)
from cartridges.model import Model, prefix_kv
from cartridges.reference_queries import MIN_ROOM, References, record, repeating, studied

Method = Literal["attention_matching", "kv_eviction"]
EMPTY_BIAS = -1e4  # of a slot that holds nothing: no attention in any dtype, and no infinity to calculate with
MIN_BUDGET_RATIO = 0.125  # of the mean budget, which every head gets


class CompactConfig(Config):
    """How a context is compacted. `keys`, `bias` and `values` are those of attention matching."""

    queries: Literal["repeat", "self_study"] = Field(
        default="repeat", description="what asks: the model that repeats the context, or conversations about it"
    )
    keys: Literal["highest_attention", "omp"] = Field(default="omp", description="which keys are kept")
    bias: bool = Field(default=True, description="fit a weight for each slot; else all count once")
    values: Literal["least_squares", "kept"] = Field(
        default="least_squares", description="fit to the attention's output, or as they were"
    )
    budgets: Literal["uniform", "per_head"] = Field(
        default="uniform", description="how many slots of a head are in use"
    )
    used_ratio: float = Field(
        default=0.5, gt=0, le=1, description="of all slots, with budgets=per_head; the others are empty"
    )
    num_query_tokens: int = Field(default=4096, gt=0, description="tokens whose queries are matched")
    seed: int = Field(default=0, ge=0, description="of the queries that are matched")


def compact(
    model: Model,
    corpus: Corpus,
    num_slots: int,
    method: Method = "attention_matching",
    config: CompactConfig | None = None,
    num_frozen: int = 1,
    dataset: Dataset | None = None,
) -> Cartridge:
    """A cartridge of `num_slots`, in float32, that answers as the corpus in the context does, as near as can be.

    The first `num_frozen` slots are the context's first tokens as they were. `dataset` has the conversations for
    queries=self_study. Raises InputError where there are fewer tokens than slots, or no room behind them.
    """
    config = config or CompactConfig.resolve()
    spans = _contexts(model, corpus, num_frozen)
    total = sum(map(len, spans))
    if not num_frozen < num_slots <= total:
        raise InputError(
            f"given {num_slots} slots, {num_frozen} of them frozen, for a context of {total} tokens; give more than "
            "are frozen, and at most as many as there are tokens"
        )
    if len(spans) == 1:
        keys, values, bias = _compacted(model, spans[0], num_slots, method, config, num_frozen, dataset)
        return _cartridge(model, corpus, keys, values, bias, num_frozen, method, config)
    num_with_sinks = num_slots + num_frozen * (len(spans) - 1)  # all but one are dropped when composed
    ends = [round(num_with_sinks * sum(map(len, spans[:i])) / total) for i in range(len(spans) + 1)]
    sizes = [stop - start for start, stop in pairwise(ends)]
    if min(sizes) <= num_frozen:
        raise InputError(
            f"given {num_slots} slots for {len(spans)} chunks of the window; give at least {4 * len(spans)}"
        )
    parts = []
    for span, size in zip(spans, sizes, strict=True):
        keys, values, bias = _compacted(model, span, size, method, config, num_frozen, dataset)
        parts.append(_cartridge(model, corpus, keys, values, bias, num_frozen, method, config))
    whole = compose(parts, model)
    return _cartridge(model, corpus, whole.keys, whole.values, whole.bias, num_frozen, method, config)


def _cartridge(
    model: Model,
    corpus: Corpus,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    bias: list[torch.Tensor] | None,
    num_frozen: int,
    method: Method,
    config: CompactConfig,
) -> Cartridge:
    manifest = Manifest(
        model=model.identity,
        num_slots=keys[0].shape[1],
        num_frozen=num_frozen,
        initializer={"kind": method, **config.model_dump(mode="json")},
        corpus_digest=corpus.digest,
    )
    return Cartridge(keys, values, manifest, bias).sealed()


def _contexts(model: Model, corpus: Corpus, num_frozen: int) -> list[list[int]]:
    """The ids of the system message with the corpus, or of one for each chunk where the window cannot hold it all."""
    whole = _system_ids(model, corpus.text)
    if len(whole) + MIN_ROOM <= model.window:
        return [whole]
    if num_frozen > 1:
        raise InputError(
            f"given {num_frozen} frozen slots and a corpus of {len(whole)} tokens for a window of {model.window}, "
            "expected at most 1 where chunks of it are compacted"
        )
    ids = model.ids(corpus.text)
    num_chunks = -(-len(ids) // (model.window // 2))
    ends = [len(ids) * i // num_chunks for i in range(num_chunks + 1)]
    texts = (model.chat.decode(ids[start:stop]) for start, stop in pairwise(ends))
    return [_system_ids(model, text) for text in texts]


def _system_ids(model: Model, text: str) -> list[int]:
    return model.chat.system_prefix(text) or model.chat.context_head() + model.ids(text)


Slots = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None]


def _compacted(
    model: Model,
    ids: list[int],
    num_slots: int,
    method: Method,
    config: CompactConfig,
    num_frozen: int,
    dataset: Dataset | None,
) -> Slots:
    """Keys, values [G, P, H] and bias [G, P] of one context."""
    keys, values = prefix_kv(model, ids)
    room = model.window - len(ids)
    if config.queries == "repeat":
        conversations = repeating(model, ids, room)
    else:
        conversations = studied(dataset, room, config.num_query_tokens, config.seed)
    asked = record(model, keys, values, conversations, config.num_query_tokens, config.seed)
    made = Compaction(keys, values, asked, num_slots, method, config, num_frozen)
    budgets = made.budgets()
    layers = []
    with progress(f"compacting {len(ids)} tokens to {num_slots} slots", model.num_layers) as bar:
        for layer in range(model.num_layers):
            layers.append(made.layer(layer, budgets[layer]))
            bar.advance(1)
    found_keys, found_values, found_bias = ([layer[part] for layer in layers] for part in range(3))
    distance = num_slots - len(ids)
    if distance:
        shapes = model.identity.layers
        turned = [inverse_frequencies(model.identity, shape) for shape in shapes]
        found_keys = [turn(k, distance, i, model.identity) for k, i in zip(found_keys, turned, strict=True)]
    has_bias = (method == "attention_matching" and config.bias) or config.budgets == "per_head"
    return found_keys, found_values, found_bias if has_bias else None


class Compaction:
    """One context in the making: its keys and values, and what is asked of them."""

    def __init__(
        self,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        asked: References,
        num_slots: int,
        method: Method,
        config: CompactConfig,
        num_frozen: int,
    ) -> None:
        self.keys, self.values, self.asked = keys, values, asked
        self.num_slots, self.method, self.config, self.num_frozen = num_slots, method, config, num_frozen
        self.num_tokens = keys[0].shape[1]

    def first(self, layer: int) -> int:
        """The first token of the context that the text can see in this layer."""
        window = self.asked.layers[layer].window
        return 0 if window is None else max(0, self.num_tokens - window + 1)

    def is_given(self, layer: int) -> bool:
        """Whether the layer has slots for all that it can see, so that its last tokens are kept as they are."""
        return self.num_tokens - self.first(layer) <= self.num_slots

    def head(self, layer: int, number: int) -> Head:
        """One key/value head of a layer, with the queries of all heads that share it."""
        noted, first = self.asked.layers[layer], self.first(layer)
        shared = len(noted.q_NTH) // len(self.keys[layer])
        mine = slice(number * shared, (number + 1) * shared)
        q_RTH, lse_RT, offsets_T = noted.q_NTH[mine], noted.own_lse_NT[mine], self.asked.offsets_T
        hidden_nT = None
        if noted.window is not None:
            whole = offsets_T + self.num_slots < noted.window  # queries that will see every slot
            whole = whole if whole.any() else offsets_T == offsets_T.min()
            q_RTH, lse_RT, offsets_T = q_RTH[:, whole], lse_RT[:, whole], offsets_T[whole]
            seen = torch.arange(first, self.num_tokens, device=offsets_T.device)
            hidden_nT = (self.num_tokens + offsets_T[:, None] - seen >= noted.window).repeat(shared, 1)
        kv = (self.keys[layer][number, first:].float(), self.values[layer][number, first:].float())
        return Head(q_RTH.flatten(0, 1), *kv, lse_RT.flatten(), hidden_nT, noted.softcap)

    def budgets(self) -> list[list[int]]:
        """How many slots each head of each layer uses.

        With budgets=per_head the heads share a sum by how much attention their tokens get, over all layers alike, from
        a floor to the artifact's width, which is the same for all. Layers with a window use theirs in any case.
        """
        found = [[self.num_slots] * len(keys) for keys in self.keys]
        free = [layer for layer in range(len(self.keys)) if self.asked.layers[layer].window is None]
        if self.config.budgets == "uniform" or self.num_slots >= self.num_tokens or not free:
            return found
        score = peak_attention if self.method == "kv_eviction" else whole_attention
        places = [(layer, number) for layer in free for number in range(len(self.keys[layer]))]
        total = round(self.config.used_ratio * self.num_slots * len(places))
        floor = max(self.num_frozen + 1, int(MIN_BUDGET_RATIO * total / len(places)))
        if floor * len(places) > total:
            raise InputError(
                f"given {self.num_slots} slots and used_ratio={self.config.used_ratio}, expected at least {floor} in "
                "use for each head; give more slots or a higher ratio"
            )
        ranked = torch.stack([score(self.head(*place)).topk(self.num_slots).values for place in places])
        ranked[:, :floor] = torch.inf
        chosen = ranked.flatten().topk(total).indices // self.num_slots
        for place, num in zip(places, torch.bincount(chosen, minlength=len(places)).tolist(), strict=True):
            found[place[0]][place[1]] = num
        return found

    def layer(self, layer: int, budgets: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys, values [G, P, H] and bias [G, P] of one layer."""
        if self.is_given(layer):
            keys, values = (part[layer][:, -self.num_slots :].float() for part in (self.keys, self.values))
            return keys, values, keys.new_zeros(keys.shape[:2])
        heads = [self.one(layer, number, budget) for number, budget in enumerate(budgets)]
        keys, values, bias = (torch.stack([head[part] for head in heads]) for part in range(3))
        return keys, values, bias

    def one(self, layer: int, number: int, budget: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys, values [P, H] and bias [P] of one head, of which `budget` are in use."""
        head, config = self.head(layer, number), self.config
        num_kept = 0 if self.first(layer) else self.num_frozen
        kept = range(num_kept)
        weights_P = head.k_TH.new_ones(budget)
        if self.method == "kv_eviction":
            chosen = strongest(peak_attention(head), budget, kept)
            values_PH = head.v_TH[chosen]
        else:
            choose: dict[str, Callable[[], torch.Tensor]] = {
                "omp": lambda: pursued(head, budget, kept),
                "highest_attention": lambda: strongest(mean_attention(head), budget, kept),
            }
            chosen = choose[config.keys]()
            if config.bias:
                weights_P = fit_weights(head.weights_nT[:, chosen], num_kept)
            values_PH = head.v_TH[chosen]
            if config.values == "least_squares":
                values_PH = fit_values(head, chosen, weights_P, num_kept)
        num_empty = self.num_slots - budget
        pad: Any = torch.nn.functional.pad
        return (
            pad(head.k_TH[chosen], (0, 0, 0, num_empty)),
            pad(values_PH, (0, 0, 0, num_empty)),
            pad(weights_P.log(), (0, num_empty), value=EMPTY_BIAS),
        )
