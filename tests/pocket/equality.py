"""When two batches are the same."""

import numpy as np

from cartridges.pocket.batches import Batch


def same(a: Batch, b: Batch) -> bool:
    arrays = ("inputs_BT", "positions_M", "targets_M", "weights_M", "turns_M")
    return a.kinds == b.kinds and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
