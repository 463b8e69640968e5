"""CUDA graphs of decoding: a step like those before it is replayed as a whole, not launched kernel by kernel.

Two steps are alike where the same work is done in the same places of memory, and only the numbers in the step's own
tensors differ: as many replies that get one token each, behind the same runs, in rows of the same sizes, on the same
weights. A graph knows places, not what lies there, so it is found by the places that a step reads now, and keeps none
of them alive. While hooks are on the model nothing is recorded or replayed, for they may be any Python. Modules that
are exchanged for others are not noticed: make an engine anew.

Shapes: T tokens of the call, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cartridges.engine.step import Ragged, Step, Together
from cartridges.log import logger

NUM_EAGER = 3  # like steps in a row, after which a graph is made: making one takes as long as a few steps
MAX_GRAPHS = 16
NUM_ROWS = 256  # that there is room for in the logits, at least

Forward = Callable[[Step], torch.Tensor]
Replay = Callable[[], None]


@dataclass
class Graph:
    """A recorded step: its tensors, which a like step is written into, and its logits [T, V]."""

    tensors: list[torch.Tensor]
    replay: Replay
    logits: torch.Tensor


class Graphs:
    """The graphs of one model's steps. What `run` gives is good until it is called again."""

    def __init__(self, hf: nn.Module, device: torch.device, forward: Forward) -> None:
        self.forward = forward
        self.device = device
        self._modules = list(hf.modules())
        self.is_broken = False  # after a model that cannot be recorded
        self.num_replayed = 0
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._before: Hashable = None
        self._num_alike = 0
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._logits: torch.Tensor | None = None

    def run(self, step: Step) -> torch.Tensor:
        """The logits [T, V] of all tokens of a step, or those that are wanted where it is no step of decoding."""
        key = None if self.is_broken else likeness(step)
        weights = key and self._weights()
        key = weights and (key, weights)
        if key is None:
            self._before = None
            return self.forward(step)
        graph = self._graphs.get(key)
        if graph is None and key == self._before and self._num_alike >= NUM_EAGER:
            graph = self._make(key, step)
        if graph is None:
            logits = self.forward(step)
            if self._logits is None or len(self._logits) < len(logits):  # a place that all graphs write to
                self._logits = logits.new_empty(max(len(logits), NUM_ROWS), logits.shape[1])
            self._num_alike = self._num_alike + 1 if key == self._before else 1
            self._before = None if step.depends_on_positions else key
            return logits
        self._graphs.move_to_end(key)
        torch._foreach_copy_(graph.tensors, tensors_of(step))  # pyright: ignore[reportPrivateImportUsage]
        graph.replay()
        self.num_replayed += 1
        return graph.logits

    def _weights(self) -> Hashable:
        """Where they lie; None while a hook is on the model."""
        places: list[int | None] = []
        for part in self._modules:
            if part._forward_hooks or part._forward_pre_hooks:
                return None
            for held in (*part._parameters.values(), *part._buffers.values()):
                places.append(None if held is None else held.data_ptr())
        return tuple(places)

    def _make(self, key: Hashable, step: Step) -> Graph | None:
        try:
            replay, logits = self._record(step)
        except torch.OutOfMemoryError:  # while recording, no memory that is merely kept for later is given back
            torch.cuda.empty_cache()
            self._num_alike = 0
            return None
        except RuntimeError as error:
            self.is_broken = True
            logger.warning("decoding goes on without CUDA graphs, into which this model cannot be made: %s", error)
            return None
        self._graphs[key] = graph = Graph(tensors_of(step), replay, logits)
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    def written(self, logits_TV: torch.Tensor) -> torch.Tensor:
        """The logits, in the place that all graphs write to."""
        assert self._logits is not None
        return self._logits[: len(logits_TV)].copy_(logits_TV)

    def _record(self, step: Step) -> tuple[Replay, torch.Tensor]:
        """What `torch.cuda.graph` does, save that it gives all memory back that is free, which the next steps need."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self._stream = self._stream or torch.cuda.Stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # others may bring their cartridges to the device meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = self.written(self.forward(step))
            except Exception:
                with suppress(RuntimeError):  # which says only that recording failed
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        self._pool = graph.pool()
        return graph.replay, logits


def tensors_of(step: Step) -> list[torch.Tensor]:
    """The tensors of a step of decoding; what it computes is a function of them and of what its likeness tells."""
    tensors = [step.ids_T, step.positions_T, step.wanted]
    together = [group.ragged for groups in step.depths for group in groups if isinstance(group, Together)]
    for ragged in (*step.bundles, *together):
        assert isinstance(ragged, Ragged)
        tensors += [ragged.numbers, *([ragged.tokens] if isinstance(ragged.tokens, torch.Tensor) else [])]
    for write in step.writes:
        tensors += [write.rows, write.columns, *([] if write.tokens is None else [write.tokens])]
    return tensors if step.places_T is None else [*tensors, step.places_T]


def likeness(step: Step) -> Hashable:
    """What two steps of decoding have in common that a graph serves both; None for other steps."""
    own: list[Hashable] = []
    for bundle in step.bundles:
        if not isinstance(bundle, Ragged) or bundle.longest > 1:
            return None
        layers = bundle.held.layers.values()
        if not layers or any(len(keys) < bundle.held.num_rows for keys, _ in layers):  # to be made, or to grow
            return None
        own.append(_reads(bundle))
    behind: list[Hashable] = []
    for groups in step.depths:
        for group in groups:
            if isinstance(group, Together):
                behind.append(_reads(group.ragged))
            elif group.kv is not None:
                held = [part for layer in group.kv for part in layer]
                behind.append((group.start, group.stop, group.length, _places(held)))
        behind.append(None)
    return tuple(own), tuple(behind), tuple(tensor.shape for tensor in tensors_of(step))


def _reads(ragged: Ragged) -> Hashable:
    """Which tokens see rows, and where these lie."""
    tokens = ragged.tokens
    span = (tokens.start, tokens.stop) if isinstance(tokens, slice) else None
    return span, ragged.longest, _places([held for layer in ragged.held.layers.values() for held in layer])


def _places(tensors: list[torch.Tensor]) -> Hashable:
    """Where they lie; all of them have the form of the first ones."""
    return tuple(tensors[0].stride()), tuple(tensor.data_ptr() for tensor in tensors)
