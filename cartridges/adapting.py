"""An adapter on a model: as hooks for a while, or merged into the weights until it is undone.

Both act on the Hugging Face module, so whatever runs it, the engine or a plain forward pass, needs to know nothing of
adapters. What was read before stays as it was: give requests that share no text with earlier ones, or a fresh engine.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from cartridges.adapter import Patch, ThoughtAdapter, combined
from cartridges.cartridge import ModelIdentity
from cartridges.errors import InputError
from cartridges.mlp import decoder_blocks
from cartridges.model import Model, weights_digest

ON = "_cartridges_adapter"  # what a Hugging Face module has on: a Merged, or the name of an adapter in hooks


def linear_of(model: Model, blocks: Sequence[nn.Module], patch: Patch) -> nn.Linear:
    """The Linear that a patch is for. Raises InputError where the model has none of that name and shape."""
    name = f"{patch.module} of layer {patch.layer}"
    if not 0 <= patch.layer < len(blocks):
        raise InputError(
            f"given a patch for {name}, expected layers 0 to {len(blocks) - 1}, those of {model.identity.model_id}"
        )
    found = dict(blocks[patch.layer].named_modules()).get(patch.module)
    if not isinstance(found, nn.Linear):
        raise InputError(f"given a patch for {name}, expected a Linear of {model.identity.model_id}; it has none there")
    if (found.out_features, found.in_features) != (patch.num_outputs, patch.num_inputs):
        shape = (patch.num_outputs, patch.num_inputs)
        raise InputError(f"given a patch of {shape} for {name}, expected {(found.out_features, found.in_features)}")
    return found


def attach(model: Model, patches: Sequence[Patch]) -> "list[torch.utils.hooks.RemovableHandle]":
    """Hooks that add the patches to what their Linears give, in the model's dtype, until they are removed."""
    blocks = decoder_blocks(model)
    pairs = [(linear_of(model, blocks, patch), patch.to(model.device, model.dtype)) for patch in patches]

    def hook(patch: Patch) -> object:
        def add(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            added = patch.added(args[0])
            return output if added is None else output + added

        return add

    return [linear.register_forward_hook(hook(patch)) for linear, patch in pairs]  # pyright: ignore[reportArgumentType]


@contextmanager
def attached(model: Model, patches: Sequence[Patch]) -> Iterator[None]:
    """Meanwhile the model is patched by hooks."""
    handles = attach(model, patches)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def applied(model: Model, *adapters: ThoughtAdapter, merged: bool = False) -> Iterator[None]:
    """Meanwhile the model acts as adapted, by hooks or merged.

    Raises FormatError for an adapter of another model, InputError as `merge` does.
    """
    if merged:
        done = merge(model, *adapters)
        try:
            yield
        finally:
            done.undo()
        return
    adapter = combined(adapters)
    _check(model, adapter)
    with attached(model, adapter.patches):
        setattr(model.hf, ON, adapter.name)
        try:
            yield
        finally:
            delattr(model.hf, ON)


class Merged:
    """An adapter in the weights of a model. `undo` brings back the very weights and identity that were there."""

    def __init__(self, model: Model, adapter: ThoughtAdapter) -> None:
        self.model, self.adapter = model, adapter
        self.identity: ModelIdentity = model.identity
        self.before: list[tuple[nn.Linear, torch.Tensor, nn.Parameter | None]] = []

    def undo(self) -> None:
        """Raises InputError where it was undone before."""
        if getattr(self.model.hf, ON, None) is not self:
            raise InputError(f"the adapter {self.adapter.name} is not merged any more; merge it again first")
        with torch.no_grad():
            for linear, weight, bias in self.before:
                linear.weight.copy_(weight)
                linear.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
        self.model.identity = self.identity
        delattr(self.model.hf, ON)


@torch.no_grad()
def merge(model: Model, *adapters: ThoughtAdapter) -> Merged:
    """Add the adapters to the weights. The model's identity is then another one, so cartridges no longer fit it.

    Keeps a copy of every matrix that is changed. Raises InputError where an adapter is on already or one is given
    twice, FormatError for an adapter of another model.
    """
    adapter = combined(adapters)
    _check(model, adapter)
    blocks = decoder_blocks(model)
    linears = [linear_of(model, blocks, patch) for patch in adapter.patches]
    done = Merged(model, adapter)
    for linear, patch in zip(linears, adapter.patches, strict=True):
        done.before.append((linear, linear.weight.detach().clone(), linear.bias))
        if (delta := patch.whole()) is not None:
            linear.weight += delta.to(linear.weight)
        if patch.bias is not None:
            bias = patch.bias.to(linear.weight)
            whole = bias.clone() if linear.bias is None else linear.bias + bias
            linear.bias = nn.Parameter(whole, requires_grad=False)
    told = {"model_id": f"{model.identity.model_id}:{adapter.name}", "weights_digest": weights_digest(model.hf)}
    setattr(model.hf, ON, done)
    model.identity = model.identity.model_copy(update=told)
    return done


def _check(model: Model, adapter: ThoughtAdapter) -> None:
    if on := getattr(model.hf, ON, None):
        name, how = (on.adapter.name, "merged into") if isinstance(on, Merged) else (on, "hooked onto")
        raise InputError(
            f"the adapter {name} is {how} {model.identity.model_id} already; undo it, or give several at once"
        )
    adapter.check_fits(model.identity)
    places = [(patch.layer, patch.module) for patch in adapter.patches]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise InputError(f"the adapter {adapter.name} has two patches for {twice[1]} of layer {twice[0]}, expected one")
