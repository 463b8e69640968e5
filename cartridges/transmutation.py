"""The verb `transmute`: conversations to an adapter, in closed form (arXiv 2510.08734; PatchKV for gated MLPs).

Each answer is read twice, behind its chunk and alone, and a layer's MLP is changed so that the block gives alone what
it gave behind the chunk. Layers are done in order, those below patched already. Only sums over tokens are kept.

With `z` the residual beside the MLP, `n` its input and `h` the hidden that its last matrix reads, primes for the pass
alone: method "down" fits that matrix to add `T = (z + W h) - (z' + W h')` for `h'`. "ridge" and "mean" fit the matrices
that read `n` to add `W (n - n')` for `n'`, and put the mean of `z - z'` into the output's bias. "bias" is T's mean.

Shapes: T tokens of a row, M answer tokens, D model dim, I inputs of the last matrix.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import nn

from cartridges.adapter import AdapterManifest, Patch, ThoughtAdapter
from cartridges.adapting import attached
from cartridges.attention import PackedPrefix, attend, packed_hidden
from cartridges.config import Config
from cartridges.errors import ConfigError, InputError
from cartridges.log import Bar, progress
from cartridges.mlp import Mlp, Reached, block_output, check_residual, mlp_of
from cartridges.model import Model, prefix_kv
from cartridges.moments import Moments, Solution, factors
from cartridges.pairs import Batch, Pair, Source, Views, batches


class TransmuteConfig(Config):
    """How conversations become an adapter."""

    model_config = ConfigDict(allow_inf_nan=False)
    method: Literal["bias", "mean", "ridge", "down"] = Field(
        default="down", description="what is solved for, of an MLP"
    )
    layers: list[int] | None = Field(default=None, description="which to patch; all of them if not given")
    ridge: float = Field(default=0.03, ge=0, description="in units of an input's mean square")
    rank: int | None = Field(default=None, gt=0, description="of each delta; full if not given")
    output_bias: bool = Field(
        default=False, description="with method down, a bias beside the matrix; no LoRA in vLLM has one"
    )
    tokens: Literal["answer", "conversation"] = Field(
        default="answer", description="fit where the answer is predicted, or at every token that both sides read"
    )
    general_weight: float = Field(
        default=1.0, ge=0, description="of tokens off the corpus, where nothing should change"
    )
    row_len: int = Field(default=4096, gt=0, description="tokens that are read at once, beside the chunk")
    max_conversations: int | None = Field(default=None, gt=0, description="of each dataset")
    save_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the deltas")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "pocket": {}}

    @property
    def reads_inputs(self) -> bool:
        """Whether the matrices that read the MLP's input are changed, and not its last one."""
        return self.method in ("mean", "ridge")


@dataclass
class Seen:
    """What one layer did in one pass, at the chosen tokens: the MLP's input, its hidden, its output and the block's."""

    inputs_MD: torch.Tensor
    hidden_MI: torch.Tensor
    added_MD: torch.Tensor
    output_MD: torch.Tensor


@dataclass
class Sums:
    """What is kept of a layer: `main` for the matrix, `beside` for the mean of what a bias adds."""

    main: Moments
    beside: Moments


def nothing_before(model: Model, lengths: Sequence[int]) -> PackedPrefix:
    """Keys and values of no tokens, before conversations of these lengths."""
    empty = [
        torch.zeros(layer.num_kv_heads, 0, layer.head_size, device=model.device, dtype=model.dtype)
        for layer in model.identity.layers
    ]
    return PackedPrefix(empty, empty, lengths)


@torch.no_grad()
def look(
    model: Model, mlp: Mlp, rows: Sequence[list[int]], positions: Sequence[list[int]], prefix: PackedPrefix
) -> Seen:
    """What the layer of `mlp` does at the positions of each row behind `prefix`; within `attend` only."""
    seen: dict[str, torch.Tensor] = {}
    starts = [sum(map(len, rows[:number])) for number in range(len(rows))]
    flat = [start + place for start, places in zip(starts, positions, strict=True) for place in places]
    chosen_M = torch.tensor(flat, device=model.device)

    def before(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[name] = args[0][0][chosen_M]

        return keep

    def after(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        seen["added"] = output[0][chosen_M]

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        seen["output"] = block_output(output)[0][chosen_M]
        raise Reached

    first_input = next(iter(mlp.inputs.values()))
    handles = [
        first_input.register_forward_pre_hook(before("inputs")),
        mlp.output.register_forward_pre_hook(before("hidden")),
        mlp.output.register_forward_hook(after),
        mlp.block.register_forward_hook(ended),
    ]
    ids_T = torch.tensor([token for row in rows for token in row], device=model.device)
    try:
        packed_hidden(model, ids_T, prefix)
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Seen(seen["inputs"], seen["hidden"], seen["added"], seen["output"])


@dataclass
class Transmutation:
    """One run: the patches so far, and what is told of them."""

    model: Model
    views: list[Views]
    config: TransmuteConfig
    patches: list[Patch] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    num_pairs: int = 0
    statistics_bytes: int = 0
    last_prefix: tuple[tuple[int, ...], list[torch.Tensor], list[torch.Tensor]] = ((), [], [])

    def prefix(self, ids: Sequence[int], lengths: Sequence[int]) -> PackedPrefix:
        """The chunk before conversations of these lengths; neighbours about one chunk share its keys and values."""
        if ids and self.last_prefix[0] != tuple(ids):
            self.last_prefix = tuple(ids), *prefix_kv(self.model, list(ids))
        _, keys, values = self.last_prefix
        return PackedPrefix(keys, values, lengths) if ids else nothing_before(self.model, lengths)

    def read(self, mlp: Mlp, batch: Batch) -> tuple[Seen, Seen]:
        """The layer with the chunk, as the model is, and without it, patched below."""
        pairs, model = batch.pairs, self.model
        teacher = self.prefix(batch.prefix_ids, [len(pair.teacher_ids) for pair in pairs])
        student = nothing_before(model, [len(pair.student_ids) for pair in pairs])
        with attend(model):
            with_chunk = look(
                model, mlp, [pair.teacher_ids for pair in pairs], [pair.teacher_positions for pair in pairs], teacher
            )
            with attached(model, self.patches):
                alone = look(
                    model, mlp, [pair.student_ids for pair in pairs], [p.student_positions for p in pairs], student
                )
        return with_chunk, alone

    def sums(self, mlp: Mlp, reads_inputs: bool, bar: Bar) -> Sums:
        """One pass over all conversations for one layer: for the matrices that read its input, or for the last one."""
        num_model, device = mlp.output.out_features, self.model.device
        num_inputs = num_model if reads_inputs else mlp.output.in_features
        needs_matrix = self.config.method != "bias"
        found = Sums(Moments(num_inputs if needs_matrix else 1, num_model, device), Moments(1, num_model, device))
        self.num_pairs = 0
        for batch in batches(self.views, self.config.row_len, self.config.max_conversations):
            with_chunk, alone = self.read(mlp, batch)
            weight_M = weights_of(batch.pairs, device)
            difference_MD = with_chunk.output_MD.double() - alone.output_MD.double()
            beside_MD, terms = difference_MD, (alone.hidden_MI, difference_MD)
            if reads_inputs:
                beside_MD = difference_MD - (with_chunk.added_MD.double() - alone.added_MD.double())
                terms = (alone.inputs_MD, with_chunk.inputs_MD.double() - alone.inputs_MD.double())
            found.beside.add(torch.ones(len(weight_M), 1, device=device), beside_MD, weight_M)
            if needs_matrix:
                found.main.add(*terms, weight_M)
            self.num_pairs += len(batch.pairs)
            bar.advance(len(batch.pairs), f"layer {mlp.index}")
        if not self.num_pairs:
            raise InputError(
                "none of the conversations has answer tokens that are read behind a chunk and alone alike, expected "
                f"some; give conversations in the chat format of {self.model.identity.model_id}"
            )
        self.statistics_bytes = max(self.statistics_bytes, found.main.num_bytes + found.beside.num_bytes)
        for part in (found.beside, found.main) if needs_matrix else (found.beside,):
            part.check(f"layer {mlp.index}")
        return found

    def patch(self, mlp: Mlp, bar: Bar) -> None:
        """Fit one layer, with all below patched."""
        config, label = self.config, f"layer {mlp.index}"
        found = self.sums(mlp, config.reads_inputs, bar)
        if config.method == "bias":
            solved = found.beside.mean_bias()
        elif config.method == "mean":
            solved = found.main.rank_one(label)
        else:
            is_down = config.method == "down"
            solved = found.main.ridge(config.ridge, config.output_bias and is_down, label, config.rank)
        if config.reads_inputs and solved.delta is not None:
            for name, linear in mlp.inputs.items():
                self.add(mlp, name, linear.weight.double() @ solved.delta, None)
            self.add(mlp, mlp.output_name, None, found.beside.mean_bias().bias)
        else:
            self.add(mlp, mlp.output_name, solved.delta, solved.bias)
        self.tell(mlp, found, solved)

    def tell(self, mlp: Mlp, found: Sums, solved: Solution) -> None:
        """Remember how well a fit did: the share of squares that it misses, and what that is made of."""
        line: dict[str, Any] = {"layer": mlp.index, "weight": round(found.beside.num, 3)}
        line |= {"unexplained": round(solved.unexplained_ratio, 6), "residual": solved.residual}
        self.told.append({**line, "total": solved.total, "ridge_term": solved.ridge_term})

    def add(self, mlp: Mlp, module: str, delta: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        """Remember a patch, with its delta in factors where they are of lower rank."""
        linear, parts = mlp.linear(module), {}
        dtype = getattr(torch, self.config.save_dtype)
        if delta is not None:
            rank = 1 if self.config.method == "mean" else self.config.rank
            if rank is not None and rank < min(delta.shape):
                parts["left"], parts["right"] = (part.to(dtype) for part in factors(delta, rank))
            else:
                parts["delta"] = delta.to(dtype)
        if bias is not None:
            parts["bias"] = bias.to(dtype)
        self.patches.append(Patch(mlp.index, module, linear.out_features, linear.in_features, **parts))


def weights_of(pairs: Sequence[Pair], device: torch.device) -> torch.Tensor:
    """The weight of each chosen token, [M]."""
    weights = [pair.weight for pair in pairs for _ in pair.student_positions]
    return torch.tensor(weights, dtype=torch.float64, device=device)


def chosen_layers(model: Model, config: TransmuteConfig) -> list[Mlp]:
    """The layers to patch, in order. Raises InputError for one that does not exist or whose MLP is of another kind."""
    asked = list(range(model.num_layers)) if config.layers is None else config.layers
    if not asked or len(set(asked)) < len(asked):
        raise InputError(f"given layers={asked}, expected different numbers, at least one")
    found = [mlp_of(model, index) for index in sorted(asked)]
    for mlp in found:
        check_residual(model, mlp)
    return found


def transmute(
    sources: Sequence[Source],
    model: Model,
    config: TransmuteConfig | None = None,
    name: str = "",
    **values: Any,
) -> ThoughtAdapter:
    """The adapter that makes `model` answer as if it had read what the conversations are about.

    `values` are fields of the configuration, over the preset that fits the model, where no `config` is given. Raises
    InputError for no conversations, documents that are missing, a layer that does not exist, singular statistics.
    """
    if config is not None and values:
        raise ConfigError(f"given a config and {', '.join(sorted(values))}; give one or the other")
    config = config or TransmuteConfig.resolve(model.profile, values=values)
    if not sources:
        raise InputError("given no datasets, expected at least one")
    started, layers = time.monotonic(), chosen_layers(model, config)
    views = [Views(source, model, config.tokens, config.general_weight) for source in sources]
    run = Transmutation(model, views, config)
    sizes = [len(source.dataset.conversations) for source in sources]
    given = sum(min(size, config.max_conversations or size) for size in sizes)
    with progress("transmuting", given * len(layers)) as bar:
        for mlp in layers:
            run.patch(mlp, bar)
    metrics = {
        "layers": run.told,
        "num_conversations": given,
        "num_skipped": given - run.num_pairs,
        "statistics_bytes": run.statistics_bytes,
        "seconds": round(time.monotonic() - started, 2),
    }
    manifest = AdapterManifest(
        name=name,
        model=model.identity,
        patches=[patch.shape for patch in run.patches],
        dataset_digests=[str(source.dataset.manifest.get("dataset_digest", "")) for source in sources],
        corpus_digests=[source.corpus.digest if source.corpus else "" for source in sources],
        transmutation={**config.model_dump(mode="json"), "weights": [source.weight for source in sources]},
        metrics=metrics,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    return ThoughtAdapter(run.patches, manifest).to("cpu").sealed()
