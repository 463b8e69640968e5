"""The tensors of requests' own keys and values: a row each, among rows of one size, so that decoding copies nothing.

Shapes: R rows, C columns, G key/value heads, H head size, T new tokens.
"""

import torch

from cartridges.errors import CartridgesError

# keys and values [G, T, H] of each layer, and for slots that have one their bias [G, T]
KV = list[tuple[torch.Tensor, torch.Tensor]] | list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

MAX_DOUBLED = 65536  # tokens in rows of one size, up to which their number doubles as it grows
LONG = 4096  # rows from which on none is made before it is needed: what they hold takes longer than copying


class Rows:
    """Rows of one size. The tensors of a layer are made when it first writes, and grow with the number of rows.

    Few rows double; `doubles` says otherwise.
    """

    def __init__(self, size: int, doubles: bool = True) -> None:
        self.size = size
        self.doubles = doubles
        self.num_rows = 0
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, rows_T: torch.Tensor, columns_T: torch.Tensor, k_TGH: torch.Tensor, v_TGH: torch.Tensor
    ) -> None:
        """Put new keys and values where they belong."""
        for into, given in zip(self.held(layer, k_TGH, v_TGH), (k_TGH, v_TGH), strict=True):
            into[rows_T, :, columns_T] = given.to(into.dtype)

    def fill(self, layer: int, row: int, k_GPH: torch.Tensor, v_GPH: torch.Tensor) -> None:
        """Put keys and values of its first columns into a row."""
        whole = self.held(layer, k_GPH.transpose(0, 1), v_GPH.transpose(0, 1))
        for into, given in zip(whole, (k_GPH, v_GPH), strict=True):
            into[row, :, : given.shape[1]] = given

    def held(self, layer: int, k_TGH: torch.Tensor, v_TGH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors of a layer, with room for all rows; made like these keys and values if there are none."""
        held = self.layers.get(layer)
        if held is None or held[0].shape[0] < self.num_rows:
            held = self.layers[layer] = self._grown(held, k_TGH, v_TGH)
        return held

    def _grown(
        self, held: tuple[torch.Tensor, torch.Tensor] | None, *new_TGH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        capacity = self.num_rows
        if self.doubles and capacity * self.size <= MAX_DOUBLED:
            capacity = 1 << (capacity - 1).bit_length()
        elif self.size < LONG:
            capacity += capacity // 8
        grown = []
        for place, tensor in enumerate(new_TGH):
            num_heads, head_size = tensor.shape[1:]
            # zeros, for what no token sees must still be a number
            if tensor.is_cuda:  # the heads of a token beside each other, as its kernels want rows behind one another
                rows_RGCH = tensor.new_zeros(capacity, self.size, num_heads, head_size).transpose(1, 2)
            else:
                rows_RGCH = tensor.new_zeros(capacity, num_heads, self.size, head_size)
            if held is not None:
                rows_RGCH[: held[place].shape[0]] = held[place]
            grown.append(rows_RGCH)
        return grown[0], grown[1]


class Store:
    """The rows of every size."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.sizes: dict[int, Rows] = {}

    def set_num_rows(self, size: int, num_rows: int) -> None:
        """So many rows of this size are in use; where there are none, the memory is given back."""
        if num_rows:
            self.sizes.setdefault(size, Rows(size)).num_rows = num_rows
        else:
            self.sizes.pop(size, None)

    def copy(self, source: tuple[int, int], target: tuple[int, int], length: int) -> None:
        """Copy the first `length` columns of a row, each told by size and row, to another one."""
        self.copy_rows(source[0], [source[1]], target, length)

    def copy_rows(self, size: int, rows: list[int], target: tuple[int, int], length: int) -> None:
        """Copy the first `length` columns of rows of a size to as many behind one another, the first of them told."""
        if not length:
            return
        from_rows, to_rows = self.sizes[size], self.sizes[target[0]]
        first, stop, are_consecutive = rows[0], rows[-1] + 1, rows == list(range(rows[0], rows[-1] + 1))
        index = None
        for layer, held in from_rows.layers.items():
            keys, values = (tensor[0].transpose(0, 1) for tensor in held)
            into = to_rows.held(layer, keys, values)
            for old, new in zip(held, into, strict=True):
                index = torch.tensor(rows, device=old.device) if index is None else index
                given = old[first:stop] if are_consecutive else old[index]
                new[target[1] : target[1] + len(rows), :, :length] = given[:, :, :length]

    def take(self, size: int, row: int, length: int) -> KV:
        """A copy of the first `length` columns of a row."""
        layers = self.sizes[size].layers
        if len(layers) != self.num_layers:
            raise CartridgesError("a row of which some layers were never written")
        return [
            tuple(held[row, :, :length].clone() for held in layers[layer])  # type: ignore[misc]
            for layer in range(self.num_layers)
        ]

    def clear(self, size: int, row: int) -> None:
        """Make a row zeros: what is no number must not stay."""
        for held in self.sizes[size].layers.values():
            for tensor in held:
                if row < tensor.shape[0]:
                    tensor[row] = 0
