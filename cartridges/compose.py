"""Several cartridges as one: each stands as far from the text as it did alone, behind one sink.

Slot i of a cartridge of P slots was trained to stand P - i positions before the text. With N slots in all the text
starts at N, so its keys, which were rotated by i, are turned by N - P more; what the text sees of a cartridge is then
what it saw of it alone, and the order of cartridges makes no difference but for whose sink is kept. The sinks of the
others are dropped: a second one would take attention twice.

Layers with a window count it in slots, here and on every server. So slots are laid down by their distance to the text,
the furthest first, and a layer that cannot see all of them sees the nearest of every cartridge, and not just the last
cartridge. As long as slots and text fit the window, sliding layers see what they saw alone, too.

Shapes: G key/value heads, P slots, H head size.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cartridges.cartridge import CONVENTION, Cartridge, LayerShape, Manifest, ModelIdentity
from cartridges.errors import InputError
from cartridges.model import Model

COMPOSED = "keys after RoPE, each part's as far from the text as alone, one sink, furthest slots first, text from P"
# Architectures all of whose layers rotate keys last, and which dimensions they pair: d with d + half, or neighbours.
PAIRED_BY_HALVES = frozenset(
    "apertus arcee bitnet flex_olmo gemma gemma2 gemma3_text gemma4_text glm4_moe gpt_neox granite "
    "granitemoe llama ministral mistral mixtral olmo olmo2 olmo3 olmoe phi phi3 qwen2 "
    "qwen2_moe qwen3 qwen3_moe seed_oss solar_open starcoder2 vaultgemma".split()
)
PAIRED_BY_NEIGHBOURS = frozenset("cohere ernie4_5 glm glm4 helium".split())
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "proportional")  # frequencies that do not depend on the text


def compose(cartridges: Sequence[Cartridge], model: Model | ModelIdentity) -> Cartridge:
    """One cartridge in which the model sees all of `cartridges`; one alone is returned as it is.

    The sink kept is that of the first that has one, as slot 0. The digest is `composed_digest` of the parts'. Raises
    InputError for none, for parts that are composed themselves and for models whose keys cannot be turned, FormatError
    for a cartridge of another model.
    """
    identity = model.identity if isinstance(model, Model) else model
    parts = [cartridge if cartridge.digest else cartridge.sealed() for cartridge in cartridges]
    if not parts:
        raise InputError("given no cartridges to compose, expected at least one")
    for part in parts:
        part.check_fits(identity)
    if len(parts) == 1:
        return cartridges[0]
    for part in parts:
        if part.manifest.convention != CONVENTION:
            raise InputError(
                f"the cartridge {part.manifest.name or '(unnamed)'} keeps {part.manifest.convention!r}, expected "
                f"{CONVENTION!r}; compose cartridges that are not composed themselves"
            )
    order, has_sink = _layout(parts)
    num_slots = len(order)
    places = [[place for place, (number, _) in enumerate(order) if number == mine] for mine in range(len(parts))]
    slots = [[slot for number, slot in order if number == mine] for mine in range(len(parts))]
    keys, values = [], []
    bias: list[torch.Tensor] | None = [] if any(part.bias is not None for part in parts) else None
    for layer, shape in enumerate(identity.layers):
        inverse = inverse_frequencies(identity, shape)
        first = parts[0].keys[layer]
        dtype = first.dtype if all(part.keys[layer].dtype == first.dtype for part in parts) else torch.float32
        k_GPH = first.new_empty(shape.num_kv_heads, num_slots, shape.head_size, dtype=dtype)
        v_GPH = torch.empty_like(k_GPH)
        for part, mine, taken in zip(parts, places, slots, strict=True):
            turned = turn(part.keys[layer].detach()[:, taken], num_slots - part.num_slots, inverse, identity)
            k_GPH[:, mine] = turned.to(k_GPH)
            v_GPH[:, mine] = part.values[layer].detach()[:, taken].to(v_GPH)
        keys.append(k_GPH)
        values.append(v_GPH)
        if bias is not None:
            b_GP = k_GPH.new_zeros(shape.num_kv_heads, num_slots, dtype=torch.float32)
            for part, mine, taken in zip(parts, places, slots, strict=True):
                if part.bias is not None:
                    b_GP[:, mine] = part.bias[layer].detach()[:, taken].to(b_GP)
            bias.append(b_GP)
    names = [part.manifest.name or part.digest[:12] for part in parts]
    manifest = Manifest(
        name="+".join(names),
        model=identity,
        num_slots=num_slots,
        num_frozen=int(has_sink),
        dtype=str(keys[0].dtype).removeprefix("torch."),
        convention=COMPOSED,
        has_bias=bias is not None,
        parents=[part.digest for part in parts],
        digest=composed_digest([part.digest for part in parts]),
    )
    return Cartridge(keys, values, manifest, bias)


def composed_digest(digests: Sequence[str]) -> str:
    """The digest of the composition of cartridges with these digests, in this order; of one, its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps([COMPOSED, *digests]).encode()).hexdigest()


def composed_len(manifests: Sequence[Manifest]) -> int:
    """How many slots the composition of cartridges with these manifests has."""
    num_sinks = sum(manifest.num_frozen >= 1 for manifest in manifests)
    return sum(manifest.num_slots for manifest in manifests) - max(0, num_sinks - 1)


def _layout(parts: Sequence[Cartridge]) -> tuple[list[tuple[int, int]], bool]:
    """Which slot of which part stands where, as (part, slot); and whether the first is a sink.

    Slots of one distance stand in the order of their parts' digests, so that it does not depend on that of the parts.
    """
    with_sink = [number for number, part in enumerate(parts) if part.num_frozen >= 1]
    rest = [
        (number, slot) for number, part in enumerate(parts) for slot in range(int(number in with_sink), part.num_slots)
    ]
    rest.sort(key=lambda place: (place[1] - parts[place[0]].num_slots, parts[place[0]].digest))
    return [*((number, 0) for number in with_sink[:1]), *rest], bool(with_sink)


def turn(keys_GPH: torch.Tensor, distance: int, inverse: torch.Tensor, identity: ModelIdentity) -> torch.Tensor:
    """The keys as they are `distance` positions later, in float32. `inverse` are the layer's frequencies [R / 2].

    The first R dimensions of a head are rotated, the others carry no position. Raises InputError for architectures of
    which it is not known how they rotate.
    """
    by_neighbours = identity.architecture in PAIRED_BY_NEIGHBOURS
    if not by_neighbours and identity.architecture not in PAIRED_BY_HALVES:
        raise InputError(
            f"it is not known how the architecture {identity.architecture} of {identity.model_id} rotates its keys, "
            "so its cartridges cannot be composed; give one cartridge at a time"
        )
    num_rotated = 2 * len(inverse)
    rotated, rest = keys_GPH[..., :num_rotated].double(), keys_GPH[..., num_rotated:]
    angle = distance * inverse.to(rotated)
    pairs = rotated.unflatten(-1, (-1, 2) if by_neighbours else (2, -1))
    a, b = pairs.unbind(-1 if by_neighbours else -2)
    turned = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
    rotated = torch.stack(turned, -1 if by_neighbours else -2).flatten(-2)
    return torch.cat([rotated.float(), rest.float()], -1)


def inverse_frequencies(identity: ModelIdentity, shape: LayerShape) -> torch.Tensor:
    """By how much a layer's pairs of dimensions rotate from one position to the next, [R / 2], float32.

    Raises InputError for frequencies that depend on the length of the text, and for those that are not known.
    """
    kind = "full_attention" if shape.window is None else "sliding_attention"
    rope: dict[str, Any] = identity.rope
    if any(isinstance(value, dict) for value in rope.values()):
        rope = rope.get(kind) or {}
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type not in ROPE_TYPES or not rope.get("rope_theta"):
        raise InputError(
            f"{identity.model_id} has rotary parameters of the type {rope_type!r} in its {kind} layers, expected one "
            f"of {', '.join(ROPE_TYPES)} with a rope_theta; its cartridges cannot be composed"
        )
    if rope_type == "default":
        size = int(shape.head_size * (rope.get("partial_rotary_factor") or 1.0))
        return 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    config: Any = PreTrainedConfig()
    config.head_dim = config.hidden_size = shape.head_size
    config.num_attention_heads = 1
    config.max_position_embeddings = int(rope.get("original_max_position_embeddings") or 1)  # read, but without effect
    config.rope_parameters = dict(rope)
    try:
        return ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))[0].float()
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"the rotary parameters of {identity.model_id} lack something ({type(error).__name__}: {error}); its "
            "cartridges cannot be composed"
        ) from error
