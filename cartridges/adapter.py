"""Weight deltas made from the same conversations as a cartridge, for places that cannot load a KV prefix.

A folder: `adapter.safetensors` holds, for each patched matrix, `layers.{i}.{module}.delta` [O, I] or its factors
`.left` [O, R] and `.right` [R, I], and `.bias` [O] where the module's output gets one; `adapter.json` is the manifest,
with the same identity of the model as a cartridge's. Nothing in a folder is ever run.

Shapes: O outputs and I inputs of a matrix, R rank.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from cartridges.cartridge import ModelIdentity, check_made_for, first_not_finite, read_manifest
from cartridges.errors import FormatError, InputError
from cartridges.run_folder import disk_errors_told, write_whole

if TYPE_CHECKING:
    import torch

TENSORS, MANIFEST = "adapter.safetensors", "adapter.json"
FORMAT_VERSION = 1


class PatchShape(BaseModel):
    """What one patch is of: `rank` is None for a full delta, 0 for a bias alone."""

    layer: int = Field(ge=0)
    module: str
    num_outputs: int = Field(gt=0)
    num_inputs: int = Field(gt=0)
    rank: int | None = Field(default=None, ge=0)
    has_bias: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each of its tensors in the file."""
        outputs, inputs, rank = self.num_outputs, self.num_inputs, self.rank
        shapes: dict[str, tuple[int, ...]] = {}
        if rank is None:
            shapes["delta"] = (outputs, inputs)
        elif rank:
            shapes |= {"left": (outputs, rank), "right": (rank, inputs)}
        if self.has_bias:
            shapes["bias"] = (outputs,)
        return {f"layers.{self.layer}.{self.module}.{kind}": shape for kind, shape in shapes.items()}


class AdapterManifest(BaseModel):
    """What is known of an adapter besides its tensors. `metrics` has a line a layer with what its patch explains."""

    model_config = ConfigDict(extra="ignore")
    format_version: int = FORMAT_VERSION
    name: str = ""
    model: ModelIdentity
    patches: list[PatchShape] = Field(min_length=1)
    dtype: str = "float32"
    dataset_digests: list[str] = []
    corpus_digests: list[str] = []
    transmutation: dict[str, Any] = {}
    parents: list[str] = []
    metrics: dict[str, Any] = {}
    created: str = ""
    digest: str = ""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of the adapter in `folder`. Raises InputError where there is none, FormatError if damaged."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise InputError(f"no adapter in {folder}: expected a folder that holds {MANIFEST} and {TENSORS}")
        return read_manifest(cls, path, FORMAT_VERSION)

    @property
    def identity(self) -> bytes:
        """What the digest covers besides the tensors."""
        parts = self.model_dump(mode="json", include={"model", "patches", "dtype"})
        return json.dumps(parts, sort_keys=True).encode()


@dataclass(frozen=True, eq=False)
class Patch:
    """What is added to one Linear of a layer: to its matrix a `delta`, or `left @ right`; to its output a `bias`.

    `module` is its name within the layer, such as "mlp.down_proj".
    """

    layer: int
    module: str
    num_outputs: int
    num_inputs: int
    delta: "torch.Tensor | None" = None
    left: "torch.Tensor | None" = None
    right: "torch.Tensor | None" = None
    bias: "torch.Tensor | None" = None

    @property
    def rank(self) -> int | None:
        """Of the factors; None for a full delta, 0 where the matrix stays as it is."""
        if self.delta is not None:
            return None
        return self.left.shape[1] if self.left is not None else 0

    @property
    def shape(self) -> PatchShape:
        """What the manifest tells of it."""
        return PatchShape(
            layer=self.layer,
            module=self.module,
            num_outputs=self.num_outputs,
            num_inputs=self.num_inputs,
            rank=self.rank,
            has_bias=self.bias is not None,
        )

    @property
    def tensors(self) -> "dict[str, torch.Tensor]":
        """Its tensors under the names that the file gives them."""
        found = {kind: getattr(self, kind) for kind in ("delta", "left", "right", "bias")}
        return {f"layers.{self.layer}.{self.module}.{kind}": t for kind, t in found.items() if t is not None}

    def whole(self) -> "torch.Tensor | None":
        """The delta [O, I]; None where the matrix stays as it is."""
        if self.delta is not None or self.left is None or self.right is None:
            return self.delta
        return self.left @ self.right

    def added(self, inputs: "torch.Tensor") -> "torch.Tensor | None":
        """What the module's output [..., O] gains for inputs [..., I]; the bias included."""
        import torch.nn.functional as F

        if self.delta is not None:
            return F.linear(inputs, self.delta, self.bias)
        if self.left is not None and self.right is not None:
            return F.linear(F.linear(inputs, self.right), self.left, self.bias)
        return self.bias

    def to(self, device: "torch.device | str", dtype: "torch.dtype | None" = None) -> "Patch":
        """A copy elsewhere."""
        moved = {
            kind: None if (part := getattr(self, kind)) is None else part.to(device=device, dtype=dtype)
            for kind in ("delta", "left", "right", "bias")
        }
        return Patch(self.layer, self.module, self.num_outputs, self.num_inputs, **moved)


@dataclass
class ThoughtAdapter:
    """Patches of several layers, at most one for each Linear."""

    patches: list[Patch]
    manifest: AdapterManifest

    @property
    def name(self) -> str:
        return self.manifest.name or "(unnamed)"

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they are held here."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def num_numbers(self) -> int:
        """How many numbers it consists of."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def tensors(self) -> "dict[str, torch.Tensor]":
        """All tensors under the names that the file gives them."""
        return {name: tensor for patch in self.patches for name, tensor in patch.tensors.items()}

    @property
    def digest(self) -> str:
        """The sha256 of tensors and identity, in hex."""
        return self.manifest.digest

    def check_fits(self, identity: ModelIdentity) -> None:
        """Raises FormatError, with what differs, unless the adapter was made for this very model."""
        check_made_for(f"the adapter {self.name}", self.manifest.model, identity)

    def to(self, device: "torch.device | str", dtype: "torch.dtype | None" = None) -> Self:
        """A copy on another device, in another dtype; the manifest still tells of the original."""
        return type(self)([patch.to(device, dtype) for patch in self.patches], self.manifest)

    def check_finite(self) -> None:
        """Raises FormatError for numbers that nothing can be multiplied with. Reads every tensor once."""
        names, tensors = zip(*sorted(self.tensors.items()), strict=True)
        if (place := first_not_finite(tensors)) is not None:
            raise FormatError(f"the adapter {self.name} has {names[place]} infinite or no number; make it anew")

    def sealed(self) -> Self:
        """The same patches, with their shapes, dtype and digest in the manifest.

        Raises FormatError as `check_finite` does.
        """
        self.check_finite()
        dtype = str(next(iter(self.tensors.values())).dtype).removeprefix("torch.")
        update = {"patches": [patch.shape for patch in self.patches], "dtype": dtype}
        manifest = self.manifest.model_copy(update=update)
        digest = _digest(manifest, self.tensors)
        return type(self)(self.patches, manifest.model_copy(update={"digest": digest}))

    def save(self, folder: Path) -> None:
        """Write the adapter into `folder`; an older one there is replaced."""
        from safetensors.torch import save

        folder, whole = Path(folder), self.sealed()
        with disk_errors_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / TENSORS, save({n: t.detach().cpu().contiguous() for n, t in self.tensors.items()}))
            write_whole(folder / MANIFEST, (whole.manifest.model_dump_json(indent=1) + "\n").encode())
        self.manifest = whole.manifest

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """The adapter in `folder`. Raises InputError where there is none, FormatError where it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        manifest, path = AdapterManifest.read(folder), Path(folder) / TENSORS
        if not path.is_file():
            raise FormatError(f"{path} is missing; copy the whole folder again")
        try:
            tensors = load(path.read_bytes())
        except (SafetensorError, ValueError, KeyError) as error:
            raise FormatError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again") from error
        wanted = {name: shape for patch in manifest.patches for name, shape in patch.tensors().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != wanted:
            name = min(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
            raise FormatError(f"{path}: {name} is {shapes.get(name)}, expected {wanted.get(name)}; copy it again")
        for name, tensor in sorted(tensors.items()):  # the digest is of the bytes, whatever numbers they are taken for
            if (given := str(tensor.dtype).removeprefix("torch.")) != manifest.dtype:
                raise FormatError(f"{path}: {name} is of {given}, expected {manifest.dtype}; copy the folder again")
        if _digest(manifest, tensors) != manifest.digest:
            raise FormatError(f"{path} and {MANIFEST} do not belong together (another digest); copy the folder again")
        patches = []
        for shape in manifest.patches:
            parts = {name.rpartition(".")[2]: tensors[name].to(device) for name in shape.tensors()}
            patches.append(Patch(shape.layer, shape.module, shape.num_outputs, shape.num_inputs, **parts))
        loaded = cls(patches, manifest)
        loaded.check_finite()
        return loaded


def combined(adapters: Sequence[ThoughtAdapter], weights: Sequence[float] | None = None) -> ThoughtAdapter:
    """The weighted sum of several adapters of one model; factors are put side by side.

    Raises InputError for none, for one given twice or for another number of weights, FormatError where they are of
    different models.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(weights) != len(adapters):
        raise InputError(f"given {len(adapters)} adapters and {len(weights)} weights, expected as many, at least one")
    if len(adapters) == 1 and weights[0] == 1.0:
        return adapters[0]
    for number, adapter in enumerate(adapters):
        adapter.check_fits(adapters[0].manifest.model)
        if adapter.digest and adapter.digest in [before.digest for before in adapters[:number]]:
            raise InputError(f"given the adapter {adapter.name} twice, expected different ones; weigh it instead")
    by_place: dict[tuple[int, str], list[tuple[float, Patch]]] = {}
    for weight, adapter in zip(weights, adapters, strict=True):
        for patch in adapter.patches:
            by_place.setdefault((patch.layer, patch.module), []).append((weight, patch))
    manifest = AdapterManifest(
        name="+".join(adapter.name for adapter in adapters),
        model=adapters[0].manifest.model,
        patches=adapters[0].manifest.patches,
        dataset_digests=[digest for adapter in adapters for digest in adapter.manifest.dataset_digests],
        corpus_digests=[digest for adapter in adapters for digest in adapter.manifest.corpus_digests],
        transmutation={"weights": weights},
        parents=[adapter.digest for adapter in adapters],
    )
    return ThoughtAdapter([_sum(parts) for _, parts in sorted(by_place.items(), key=_place)], manifest).sealed()


def _place(entry: tuple[tuple[int, str], object]) -> tuple[int, str]:
    return entry[0]


def _sum(parts: list[tuple[float, Patch]]) -> Patch:
    import torch

    first = parts[0][1]
    biases = [weight * patch.bias for weight, patch in parts if patch.bias is not None]
    summed: dict[str, Any] = {"bias": torch.stack(biases).sum(0) if biases else None}
    if any(patch.delta is not None for _, patch in parts):
        wholes = [(weight, patch.whole()) for weight, patch in parts]
        summed["delta"] = torch.stack([weight * delta for weight, delta in wholes if delta is not None]).sum(0)
    else:
        factors = [(weight, p.left, p.right) for weight, p in parts if p.left is not None and p.right is not None]
        if factors:
            summed["left"] = torch.cat([weight * left for weight, left, _ in factors], 1)
            summed["right"] = torch.cat([right for _, _, right in factors], 0)
    return Patch(first.layer, first.module, first.num_outputs, first.num_inputs, **summed)


def _digest(manifest: AdapterManifest, tensors: "dict[str, torch.Tensor]") -> str:
    found = hashlib.sha256(manifest.identity)
    for name, raw in _raw(tensors.items()):
        found.update(f"\n{name} {len(raw)}\n".encode())
        found.update(raw)
    return found.hexdigest()


def _raw(named: "Iterable[tuple[str, torch.Tensor]]") -> Iterable[tuple[str, bytes]]:
    import torch

    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        yield name, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
