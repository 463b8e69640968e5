"""The artifact: a folder with the slots of every layer, and with the identity of the model they belong to.

`cartridge.safetensors` holds `layers.{i}.keys` and `layers.{i}.values`, each [G, P, H], and for cartridges with a bias
`layers.{i}.bias` [G, P], float32, which is added to the attention scores of the slots; `cartridge.json` is the
manifest; `README.md`, where there is one, the report card. Keys are stored after RoPE at positions 0..P-1, and what
follows starts at P. Reading a manifest needs no torch, and nothing in a folder is ever run.

Shapes: L layers, P slots, G key/value heads, H head size.
"""

import hashlib
import json
import operator
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cartridges.errors import FormatError, InputError
from cartridges.run_folder import disk_errors_told, write_whole

if TYPE_CHECKING:
    import torch

TENSORS, MANIFEST = "cartridge.safetensors", "cartridge.json"
FORMAT_VERSION = 1
CONVENTION = "keys after RoPE at positions 0..P-1, text from P"
MAX_HEADER_BYTES = 100_000_000
# What a manifest calls the kinds of numbers that may be kept, and what the header of the tensors' file calls them.
DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BIAS_DTYPE = "float32"


class LayerShape(BaseModel):
    """What one layer keeps of a token; `window` is None where it sees everything."""

    num_kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    window: int | None = None


class ModelIdentity(BaseModel):
    """Which model a cartridge belongs to, closely enough that another one is noticed.

    `fingerprint` hashes the shapes and rotary parameters, `weights_digest` a sample of the values of every tensor,
    `tokenizer_digest` the vocabulary and the chat template.
    """

    model_id: str
    revision: str | None = None
    architecture: str
    fingerprint: str
    weights_digest: str
    tokenizer_digest: str
    rope: dict[str, Any]
    layers: list[LayerShape]
    vocab_size: int

    def kv_bytes(self, num_tokens: int) -> int:
        """Bytes of the keys and values of so many tokens, or slots, at two bytes a number.

        Layers with a window keep no more than it. Two bytes whatever this process holds, so that ratios count tokens.
        """
        kept = (min(num_tokens, layer.window or num_tokens) for layer in self.layers)
        sizes = (layer.num_kv_heads * layer.head_size for layer in self.layers)
        return sum(2 * 2 * num * size for num, size in zip(kept, sizes, strict=True))


class Manifest(BaseModel):
    """What is known of a cartridge besides its tensors."""

    model_config = ConfigDict(extra="ignore")
    format_version: int = FORMAT_VERSION
    name: str = ""
    model: ModelIdentity
    num_slots: int = Field(gt=0)
    num_frozen: int = Field(ge=0)
    dtype: str = "float32"
    convention: str = CONVENTION
    has_bias: bool = False
    initializer: dict[str, Any] = {}
    dataset_digest: str = ""
    corpus_digest: str = ""
    training: dict[str, Any] = {}
    parents: list[str] = []
    metrics: dict[str, Any] = {}
    created: str = ""
    digest: str = ""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of the cartridge in `folder`, without its tensors.

        Raises InputError where there is no cartridge and FormatError where it is damaged or too new.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise InputError(f"no cartridge in {folder}: expected a folder that holds {MANIFEST} and {TENSORS}")
        return read_manifest(cls, path, FORMAT_VERSION)

    def write(self, folder: Path) -> None:
        """Put the manifest into `folder`, in the place of an older one; the name as text, if it is that of a path."""
        told = self.model_copy(update={"name": self.name.encode(errors="replace").decode()})
        write_whole(Path(folder) / MANIFEST, (told.model_dump_json(indent=1) + "\n").encode())

    @property
    def identity(self) -> bytes:
        """What the digest covers besides the tensors."""
        parts = self.model_dump(mode="json", include={"model", "num_slots", "num_frozen", "dtype", "convention"})
        return json.dumps(parts, sort_keys=True).encode()


@dataclass
class Cartridge:
    """Slots of every layer: `keys[l]` and `values[l]` are [G, P, H]. Layers may differ in G and H, not in P.

    `bias[l]` [G, P], where there is one, is added to the scores that queries give to the slots, in nats: a slot with
    the bias log w takes attention for w slots.
    """

    keys: "list[torch.Tensor]"
    values: "list[torch.Tensor]"
    manifest: Manifest
    bias: "list[torch.Tensor] | None" = None

    @property
    def num_slots(self) -> int:
        return self.manifest.num_slots

    @property
    def num_frozen(self) -> int:
        return self.manifest.num_frozen

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they are held here."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values, *(self.bias or [])))

    @property
    def digest(self) -> str:
        """The sha256 of tensors and identity, in hex."""
        return self.manifest.digest

    def sealed(self) -> Self:
        """The same slots, with their dtype and digest in the manifest.

        Raises FormatError as `check_finite` does, and for tensors of a dtype that the file cannot have.
        """
        told = {"dtype": self._dtype(), "has_bias": self.bias is not None}
        self.check_finite()
        manifest = self.manifest.model_copy(update=told)
        parts = ((name, _raw(tensor)) for name, tensor in sorted(self._named_tensors().items()))
        digest = digest_of(manifest, parts)
        return type(self)(self.keys, self.values, manifest.model_copy(update={"digest": digest}), self.bias)

    def check_finite(self) -> None:
        """Raises FormatError for numbers with which there is no attention to calculate. Reads every tensor once."""
        for kind, tensors in (("keys", self.keys), ("values", self.values)):
            if (layer := first_not_finite(tensors)) is not None:
                raise FormatError(
                    f"{self._called} has {kind} in layer {layer} that are infinite or no number; make it anew"
                )
        self.check_bias()

    def check_bias(self) -> None:
        """Raises FormatError for a bias with which there is no attention to calculate."""
        if (layer := first_not_finite(self.bias or ())) is not None:
            raise FormatError(
                f"{self._called} has a bias in layer {layer} that is infinite or no number; make it anew, with -1e4 "
                "for a slot that is to get no attention"
            )

    def save(self, folder: Path) -> None:
        """Write the cartridge into `folder`; an older one there is replaced."""
        from safetensors.torch import save

        folder, whole = Path(folder), self.sealed()
        with disk_errors_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._named_tensors().items()}
            write_whole(folder / TENSORS, save(tensors))
            whole.manifest.write(folder)
        self.manifest = whole.manifest

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """The cartridge in `folder`. Raises InputError where there is none, FormatError where it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        manifest = Manifest.read(folder)
        raw = check_tensors(folder, manifest)
        try:
            tensors = load(raw)
        except SafetensorError as error:
            raise FormatError(f"{folder / TENSORS} is damaged ({error}); copy it again") from error
        count = len(manifest.model.layers)
        keys, values, bias = (
            [tensors[f"layers.{i}.{kind}"].to(device) for i in range(count) if kind != "bias" or manifest.has_bias]
            for kind in ("keys", "values", "bias")
        )
        loaded = cls(keys, values, manifest, bias or None)
        loaded.check_finite()
        return loaded

    def check_fits(self, identity: ModelIdentity) -> None:
        """Raises FormatError, with what differs, unless the cartridge was made for this very model."""
        check_fits(self.manifest, identity)

    def to(self, device: "torch.device | str", dtype: "torch.dtype | None" = None) -> Self:
        """A copy on another device, in another dtype; the manifest still tells of the original.

        The bias stays in float32, as scores and their softmax do.
        """
        keys, values = ([t.to(device=device, dtype=dtype) for t in part] for part in (self.keys, self.values))
        bias = [tensor.to(device=device) for tensor in self.bias] if self.bias is not None else None
        return type(self)(keys, values, self.manifest, bias)

    @property
    def _called(self) -> str:
        return f"the cartridge {self.manifest.name or '(unnamed)'}"

    def _dtype(self) -> str:
        """What the manifest calls the dtype of keys and values. Raises FormatError where it is not one for all."""
        given = {name: _dtype_name(tensor) for name, tensor in self._named_tensors().items()}
        shared = _dtype_name(self.keys[0])
        for name, dtype in given.items():
            if dtype not in DTYPES or dtype != (BIAS_DTYPE if name.endswith(".bias") else shared):
                raise FormatError(
                    f"{self._called} has {name} of {dtype}, expected keys and values of one of {', '.join(DTYPES)} and "
                    f"a bias of {BIAS_DTYPE}; convert them first"
                )
        return shared

    def _named_tensors(self) -> "dict[str, torch.Tensor]":
        return named_tensors(self.keys, self.values, self.bias)


def check_fits(manifest: Manifest, identity: ModelIdentity) -> None:
    """Raises FormatError, with what differs, unless the manifest is of a cartridge for this very model."""
    check_made_for(f"the cartridge {manifest.name or '(unnamed)'}", manifest.model, identity)


def check_made_for(artifact: str, made_for: ModelIdentity, identity: ModelIdentity) -> None:
    """Raises FormatError, with what differs, unless `artifact`, made for one model, is given this very model."""
    named = f"{artifact} was made for {made_for.model_id}, given {identity.model_id}"
    if made_for.layers != identity.layers or made_for.architecture != identity.architecture:
        shapes = f"{made_for.architecture}, {_shape(made_for)} against {identity.architecture}, {_shape(identity)}"
        raise FormatError(f"{named}: other layers ({shapes}); load it with its own model")
    if made_for.fingerprint != identity.fingerprint:
        raise FormatError(f"{named}: another configuration (such as its rotary parameters); load it with its own model")
    if made_for.tokenizer_digest != identity.tokenizer_digest:
        raise FormatError(f"{named}: another tokenizer or chat template; load it with its own model")
    if made_for.weights_digest != identity.weights_digest:
        raise FormatError(f"{named}: other weights of the same shape; load it with its own model")


def _shape(identity: ModelIdentity) -> str:
    kinds = sorted({f"{layer.num_kv_heads} x {layer.head_size}" for layer in identity.layers})
    return f"{len(identity.layers)} layers of {' and '.join(kinds)}"


def named_tensors(
    keys: "Sequence[torch.Tensor]", values: "Sequence[torch.Tensor]", bias: "Sequence[torch.Tensor] | None" = None
) -> "dict[str, torch.Tensor]":
    """The tensors under the names that the file gives them."""
    return {
        f"layers.{layer}.{kind}": tensor
        for kind, tensors in (("keys", keys), ("values", values), ("bias", bias or ()))
        for layer, tensor in enumerate(tensors)
    }


def _dtype_name(tensor: "torch.Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


ManifestT = TypeVar("ManifestT", bound=BaseModel)


def read_manifest(kind: type[ManifestT], path: Path, version: int) -> ManifestT:
    """The manifest of this kind in a file. Raises FormatError where it is damaged or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (found := content["format_version"]) != version:
            raise FormatError(f"{path} has format version {found!r}, expected {version}; install a newer cartridges")
        return kind.model_validate(content)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise FormatError(f"{path} cannot be read ({type(error).__name__}: {first_line}); copy it again") from error


def first_not_finite(tensors: "Sequence[torch.Tensor]") -> int | None:
    """Which of them is the first with an infinity or what is no number; least and greatest tell, with no copy."""
    ends = ((place, end) for place, tensor in enumerate(tensors) for end in tensor.detach().aminmax())
    return next((place for place, end in ends if not end.isfinite()), None)


def _raw(tensor: "torch.Tensor") -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def digest_of(manifest: Manifest, parts: Iterable[tuple[str, bytes]]) -> str:
    """The sha256 of the identity and of named tensors' bytes, sorted by name."""
    found = hashlib.sha256(manifest.identity)
    for name, raw in parts:
        found.update(f"\n{name} {len(raw)}\n".encode())
        found.update(raw)
    return found.hexdigest()


def check_tensors(folder: Path, manifest: Manifest) -> bytes:
    """The bytes of the tensors' file, after proof that they are those that the manifest tells of. Needs no torch."""
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise FormatError(f"{path} is missing; copy the whole folder again")
    raw = path.read_bytes()
    try:
        (header_len,) = struct.unpack("<Q", raw[:8])
        if header_len > min(MAX_HEADER_BYTES, len(raw)):
            raise ValueError("header too long")
        header = json.loads(raw[8 : 8 + header_len])
        header.pop("__metadata__", None)
        dtypes = {name: entry["dtype"] for name, entry in header.items()}
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        spans = {name: tuple(map(operator.index, entry["data_offsets"])) for name, entry in header.items()}
        if max(stop for _, stop in spans.values()) != len(raw) - 8 - header_len:
            raise ValueError("truncated")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise FormatError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again") from error
    wanted: dict[str, tuple[int, ...]] = {
        f"layers.{index}.{kind}": (layer.num_kv_heads, manifest.num_slots, layer.head_size)
        for index, layer in enumerate(manifest.model.layers)
        for kind in ("keys", "values")
    }
    if manifest.has_bias:
        wanted |= {
            f"layers.{index}.bias": (layer.num_kv_heads, manifest.num_slots)
            for index, layer in enumerate(manifest.model.layers)
        }
    if shapes != wanted:
        name = min(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
        raise FormatError(f"{path}: {name} is {shapes.get(name)}, expected {wanted.get(name)}; copy the folder again")
    for name, given in sorted(dtypes.items()):  # the digest is of the bytes alone, whatever numbers they are taken for
        dtype = BIAS_DTYPE if name.endswith(".bias") else manifest.dtype
        if given != DTYPES.get(dtype, dtype):
            raise FormatError(
                f"{path}: {name} is of {given!r:.60}, expected {DTYPES.get(dtype, dtype)!r}; copy the folder again"
            )
    body = 8 + header_len
    parts = ((name, raw[body + start : body + stop]) for name, (start, stop) in sorted(spans.items()))
    if manifest.num_frozen > manifest.num_slots or digest_of(manifest, parts) != manifest.digest:
        raise FormatError(f"{path} and {MANIFEST} do not belong together (another digest); copy the folder again")
    return raw
