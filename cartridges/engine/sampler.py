"""Choosing tokens from logits. A draw is a function of the request's seed and the place of the token in its reply, so
it depends neither on the other requests in the batch nor on the device's random numbers.

Shapes: B rows, V vocabulary, M rows of logits, K top entries.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from cartridges.errors import CartridgesError

NO_NUMBERS = "the model gave logits that are no finite numbers; load it in float32 or mend its weights"


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) with 53 random bits, the same everywhere for the same two numbers."""
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def choose(
    logits_BV: torch.Tensor,
    temperatures: Sequence[float],
    seeds: Sequence[int],
    places: Sequence[int],
    top_ps: Sequence[float] = (),
    top_ks: Sequence[int] = (),
) -> list[int]:
    """The next token of each row: the likeliest at temperature 0, else drawn by inverting the distribution.

    Draws are among the `top_k` likeliest (0: all), and of those the fewest that have `top_p` of the probability,
    equally likely ones included. Raises CartridgesError where the model gave no numbers.
    """
    best_B, ids_B = logits_BV.max(-1)
    if not bool(best_B.isfinite().all()):
        raise CartridgesError(NO_NUMBERS)
    drawn = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if drawn:
        index = torch.tensor(drawn, device=logits_BV.device)
        options = {"dtype": torch.float64, "device": logits_BV.device}
        temperature_B1 = torch.tensor([[temperatures[row]] for row in drawn], **options)
        uniform_B1 = torch.tensor([[uniform(seeds[row], places[row])] for row in drawn], **options)
        centred_BV = (logits_BV[index] - best_B[index, None]).double()  # so that tiny temperatures do not overflow
        likely_BV = (centred_BV / temperature_B1).exp()
        for place, row in enumerate(drawn):
            keep_likeliest(likely_BV[place], top_ps[row] if top_ps else 1.0, top_ks[row] if top_ks else 0)
        sums_BV = likely_BV.cumsum(-1)
        found_B1 = torch.searchsorted(sums_BV, uniform_B1 * sums_BV[:, -1:], right=True)
        ids_B = ids_B.index_copy(0, index, found_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1))
    return ids_B.tolist()


def keep_likeliest(likely_V: torch.Tensor, top_p: float, top_k: int) -> None:
    """Make what is not among the likeliest impossible, in place."""
    if 0 < top_k < len(likely_V):
        least = likely_V.topk(top_k).values[-1]
        likely_V[likely_V < least] = 0
    if top_p < 1:
        ordered_V = likely_V.sort(descending=True).values
        sums_V = ordered_V.cumsum(0)
        num_kept = int((sums_V < top_p * sums_V[-1]).sum()) + 1
        likely_V[likely_V < ordered_V[min(num_kept, len(ordered_V)) - 1]] = 0


def top_k(logits_MV: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The K likeliest ids, int32, and their logprobs in the full softmax, float32; each [M, K], likeliest first."""
    logits_MV = logits_MV.float()
    best_MK, ids_MK = logits_MV.topk(k, sorted=True)
    logprobs_MK = best_MK - logits_MV.logsumexp(-1, keepdim=True)
    return ids_MK.to("cpu", torch.int32).numpy(), logprobs_MK.cpu().numpy()
