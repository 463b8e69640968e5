# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""Cartridges in stock vLLM, as a KV connector that vLLM loads by its name:

    --kv-transfer-config '{"kv_connector": "CartridgeConnector", "kv_role": "kv_consumer",
                           "kv_connector_module_path": "cartridges.serving.vllm_connector",
                           "kv_connector_extra_config": {...}}'

vLLM makes one for its scheduler and one for each worker. The scheduler's puts a placeholder token for every slot in
front of a request that names cartridges, salts the request's block hashes with their digest and a secret, so that
vLLM's prefix cache keeps cartridges apart, and claims the placeholders as computed elsewhere. A worker's reads the
files in another thread, writes the slots into the blocks that the scheduler took for them, and reports; until then the
request waits, and the others go on. What cannot be done fails that one request, never the server.

Shapes: P slots, G key/value heads, H head size.
"""

import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)

from cartridges.cartridge import Cartridge
from cartridges.errors import InputError
from cartridges.serving.catalogue import KEY, Catalogue, Selection

logger = logging.getLogger("vllm.cartridges")

PLACEHOLDER = 0  # never computed: its keys and values are the cartridge's
NULL_BLOCK = 0  # stands for blocks that a sliding window no longer sees
HELD_BYTES = "held_bytes"  # of the configuration: cartridges that a worker keeps in memory
DEFAULT_HELD_BYTES = 4 << 30


@dataclass(frozen=True)
class Load:
    """Slots `start` and on are to be written for a request; `selection` is None for a request that must fail.

    `block_ids` are the request's blocks in each group of layers.
    """

    request_id: str
    selection: Selection | None
    start: int
    block_ids: tuple[list[int], ...]


@dataclass
class Loads(KVConnectorMetadata):
    """What a step's workers are told."""

    loads: list[Load] = field(default_factory=list)


class CartridgeConnector(KVConnectorBase_V1, SupportsHMA):
    """Either half, by its role."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        catalogue = Catalogue.from_config(extra)
        if vllm_config.speculative_config is not None:
            raise InputError("cartridges do not go with speculative decoding: a draft model has no slots; leave it out")
        self.scheduling = Scheduling(catalogue, vllm_config.model_config.max_model_len)
        if role == KVConnectorRole.WORKER:
            held_bytes = int(extra.get(HELD_BYTES, DEFAULT_HELD_BYTES))
            self.loading = Loading(catalogue, vllm_config, kv_cache_config, held_bytes)

    # What the scheduler calls.

    def on_new_request(self, request: Any) -> None:
        """Put the placeholders in front of a request that names cartridges."""
        self.scheduling.begin(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens behind those computed come from a cartridge, and that they come later."""
        num_claimed = max(0, self.scheduling.num_slots(request) - num_computed_tokens)
        return num_claimed, num_claimed > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note which blocks are to be written."""
        if num_external_tokens > 0:
            self.scheduling.note_load(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        """What the workers are told at this step."""
        return Loads(self.scheduling.take_loads())

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget the request; its reply tells which cartridges it had."""
        return False, self.scheduling.end(request)

    # What a worker calls.

    def start_load_kv(self, forward_context: Any, **options: Any) -> None:
        """Begin to load what this step brings."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        self.loading.begin(metadata.loads)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """The requests whose slots have been written by now, and those for which that failed."""
        done, failed = self.loading.write_ready()
        return KVConnectorTransferResults(finished_recving=done, failed_recving=failed)

    def shutdown(self) -> None:
        """End the thread that reads."""
        if self.role == KVConnectorRole.WORKER:
            self.loading.close()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request runs when all its slots are there."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **options: Any) -> None:
        """Nothing: keys and values are only read."""

    def wait_for_save(self) -> None:
        """Nothing: keys and values are only read."""


class Scheduling:
    """The scheduler's side: which requests have which slots in front. Nothing here may raise: the engine would end."""

    def __init__(self, catalogue: Catalogue, window: int) -> None:
        self.catalogue, self.window = catalogue, window
        self._selections: dict[str, Selection | None] = {}  # by request; None for one that must fail
        self._pending: list[Load] = []
        self._secret = secrets.token_hex(16)  # lest a client's own salt can be that of a cartridge

    def begin(self, request: Any) -> None:
        """Look up what a request names and change the request accordingly."""
        params = request.kv_transfer_params
        if not isinstance(params, Mapping) or KEY not in params:
            return
        try:
            selection = self._selection(request, params[KEY])
        except Exception as error:  # whatever it is, it is this request's, and the engine goes on
            logger.warning("request %s fails: %s: %s", request.request_id, type(error).__name__, error)
            selection = None
        self._selections[request.request_id] = selection
        if selection is None:
            prompt_ids, salt = [PLACEHOLDER, PLACEHOLDER], f"failed:{request.request_id}"
        else:
            prompt_ids = [PLACEHOLDER] * selection.num_slots + list(request.prompt_token_ids)
            salt = f"cartridge:{self._secret}:{selection.digest}:{request.cache_salt or ''}"
        request.prompt_token_ids = prompt_ids
        request.prompt_embeds = request.prompt_is_token_ids = None
        request._all_token_ids[:] = prompt_ids
        request.num_prompt_tokens = len(prompt_ids)
        request.cache_salt = salt
        request.block_hashes = []
        request.update_block_hashes()

    def _selection(self, request: Any, names: Any) -> Selection:
        """Raises CartridgesError for what must not run."""
        if (
            not isinstance(names, Sequence)
            or isinstance(names, str)
            or not all(isinstance(name, str) for name in names)
        ):
            raise InputError(f"given the cartridges {str(names)[:140]}, expected a list of names")
        sampling, prompt_ids = request.sampling_params, request.prompt_token_ids
        if sampling is None or request.lora_request or request.mm_features or request.prompt_embeds is not None:
            raise InputError("cartridges stand before text that the base model goes on with, and nothing else")
        if sampling.prompt_logprobs is not None or sampling.repetition_penalty != 1:
            raise InputError("prompt_logprobs and repetition_penalty would be computed without the cartridges")
        selection = self.catalogue.find(names, whole=False)
        if selection.num_slots + len(prompt_ids) >= self.window:
            raise InputError(
                f"{selection.num_slots} slots and {len(prompt_ids)} prompt tokens, expected fewer than {self.window}"
            )
        return selection

    def num_slots(self, request: Any) -> int:
        """How many of the request's first tokens come from a cartridge; 1 for a request that must fail."""
        if request.request_id not in self._selections:
            return 0
        selection = self._selections[request.request_id]
        return selection.num_slots if selection else 1

    def note_load(self, request: Any, block_ids: tuple[list[int], ...], num_tokens: int) -> None:
        """Have the last `num_tokens` slots written into the request's blocks."""
        selection = self._selections.get(request.request_id)
        self._pending.append(Load(request.request_id, selection, self.num_slots(request) - num_tokens, block_ids))

    def take_loads(self) -> list[Load]:
        """What was noted since the last call."""
        taken, self._pending = self._pending, []
        return taken

    def end(self, request: Any) -> dict[str, Any] | None:
        """Forget a request; what its reply tells of it."""
        selection = self._selections.pop(request.request_id, None)
        return {KEY: list(selection.names), "digest": selection.digest} if selection else None


class Loading:
    """A worker's side: files to blocks."""

    def __init__(self, catalogue: Catalogue, vllm_config: Any, kv_cache_config: Any, held_bytes: int) -> None:
        self.catalogue, self.max_held_bytes = catalogue, held_bytes
        self.dtype = vllm_config.model_config.dtype
        self.num_ranks = vllm_config.parallel_config.tensor_parallel_size
        self.layers = vllm_config.compilation_config.static_forward_context
        self.groups = kv_cache_config.kv_cache_groups
        self._reader = ThreadPoolExecutor(1, "cartridges")
        self._reading: list[tuple[Load, Future[Cartridge]]] = []
        self._held: OrderedDict[str, Cartridge] = OrderedDict()
        self._failed: set[str] = set()

    def begin(self, loads: Sequence[Load]) -> None:
        """Begin to read what the loads need; those that must fail have failed."""
        for load in loads:
            if load.selection is None:
                self._failed.add(load.request_id)
            else:
                self._reading.append((load, self._reader.submit(self._cartridge, load.selection)))

    def _cartridge(self, selection: Selection) -> Cartridge:
        """The slots, read where they are not held. Runs in the reading thread alone."""
        held = self._held.pop(selection.digest, None)
        cartridge = held or self.catalogue.load(selection).to("cpu", self.dtype)
        self._held[selection.digest] = cartridge
        while len(self._held) > 1 and sum(one.num_bytes for one in self._held.values()) > self.max_held_bytes:
            self._held.popitem(last=False)
        return cartridge

    def write_ready(self) -> tuple[set[str], set[str]]:
        """Write what has been read. The requests that are done with, and those of them that failed."""
        failed, self._failed = self._failed, set()
        done = set(failed)
        ready = [(load, reading) for load, reading in self._reading if reading.done()]
        self._reading = [(load, reading) for load, reading in self._reading if not reading.done()]
        for load, reading in ready:
            try:
                self._write(reading.result(), load)
            except Exception as error:  # whatever it is, it is this request's, and the others go on
                logger.warning("request %s fails: %s: %s", load.request_id, type(error).__name__, error)
                failed.add(load.request_id)
            done.add(load.request_id)
        return done, failed

    def _write(self, cartridge: Cartridge, load: Load) -> None:
        for group, block_ids in zip(self.groups, load.block_ids, strict=True):
            places, slots = places_of(load.start, cartridge.num_slots, block_ids, group.kv_cache_spec.block_size)
            for name in group.layer_names:
                layer, index = self.layers[name], layer_index(name)
                k_PGH, v_PGH = (
                    self._mine(all_GPH, layer.num_kv_heads)[:, slots]
                    .transpose(0, 1)
                    .contiguous()
                    .to(layer.kv_cache.device)
                    for all_GPH in (cartridge.keys[index], cartridge.values[index])
                )
                layer.impl.do_kv_cache_update(layer, k_PGH, v_PGH, layer.kv_cache, places.to(layer.kv_cache.device))

    def _mine(self, all_GPH: torch.Tensor, num_heads: int) -> torch.Tensor:
        """The heads of this rank: a share of them, or, where ranks outnumber heads, the one that it has a copy of."""
        if self.num_ranks == 1:
            return all_GPH
        first = first_head(get_tensor_model_parallel_rank(), self.num_ranks, len(all_GPH), num_heads)
        return all_GPH[first : first + num_heads]

    def close(self) -> None:
        """End the reading thread; what has not begun is not read."""
        self._reader.shutdown(wait=False, cancel_futures=True)


def places_of(start: int, stop: int, block_ids: Sequence[int], block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where slots `start` to `stop` go in the cache, and which of them: not those whose block is the null block."""
    slots = torch.arange(start, stop)
    blocks = torch.tensor(block_ids)[slots // block_size]
    kept = blocks != NULL_BLOCK
    return (blocks * block_size + slots % block_size)[kept], slots[kept]


def first_head(rank: int, num_ranks: int, num_heads: int, num_mine: int) -> int:
    """The first of all key/value heads that this rank has."""
    return rank * num_mine if num_heads >= num_ranks else rank // (num_ranks // num_heads)


def layer_index(name: str) -> int:
    """Of a layer named such as `model.layers.3.self_attn.attn`."""
    found = re.search(r"\.layers?\.(\d+)\.", f".{name}")
    if found is None:
        raise InputError(f"the layer {name} has no number; cartridges do not go with this model")
    return int(found[1])
