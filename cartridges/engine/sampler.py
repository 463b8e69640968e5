"""Choosing tokens from logits. A draw is a function of the request's seed and the place of the token in its reply, so
it depends neither on the other requests in the batch nor on the device's random numbers.

Shapes: B rows, V vocabulary, M rows of logits, K top entries.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from cartridges.errors import CartridgesError

MAX_DRAWN = 1 << 24  # probabilities in float64 held at once: 128 MiB
NUM_LIKELY = 64  # of a row, among which as a rule all lie that top_p keeps
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
    num_together = max(1, MAX_DRAWN // logits_BV.shape[-1])
    for start in range(0, len(drawn), num_together):
        rows = drawn[start : start + num_together]
        index = torch.tensor(rows, device=logits_BV.device)
        options = {"dtype": torch.float64, "device": logits_BV.device}
        temperature_B1 = torch.tensor([[temperatures[row]] for row in rows], **options)
        uniform_B1 = torch.tensor([[uniform(seeds[row], places[row])] for row in rows], **options)
        centred_BV = (logits_BV[index] - best_B[index, None]).double()  # so that tiny temperatures do not overflow
        likely_BV = (centred_BV / temperature_B1).exp()
        keep_top_k(likely_BV, [top_ks[row] for row in rows] if top_ks else [])
        keep_top_p(likely_BV, [top_ps[row] for row in rows] if top_ps else [])
        sums_BV = likely_BV.cumsum(-1)
        found_B1 = torch.searchsorted(sums_BV, uniform_B1 * sums_BV[:, -1:], right=True)
        ids_B = ids_B.index_copy(0, index, found_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1))
    return ids_B.tolist()


def keep_top_k(likely_BV: torch.Tensor, top_ks: Sequence[int]) -> None:
    """Make what is not among a row's `top_k` likeliest impossible, in place; 0 and nothing for no limit."""
    for row, k in enumerate(top_ks):
        if 0 < k < likely_BV.shape[1]:
            likely_BV[row][likely_BV[row] < likely_BV[row].topk(k).values[-1]] = 0


def keep_top_p(likely_BV: torch.Tensor, top_ps: Sequence[float]) -> None:
    """Make what is not among the fewest that have `top_p` of a row's sum impossible, in place; nothing for no limit.

    They are looked for among the NUM_LIKELY likeliest of all rows at once; rows that spread over more are sorted.
    """
    rows = [row for row, p in enumerate(top_ps) if p < 1]
    if not rows:
        return
    index = torch.tensor(rows, device=likely_BV.device)
    limited_BV = likely_BV[index]
    wanted_B1 = limited_BV.sum(-1, keepdim=True) * limited_BV.new_tensor([[top_ps[row]] for row in rows])
    least_B1, is_found_B = _least(limited_BV.topk(min(NUM_LIKELY, likely_BV.shape[1])).values, wanted_B1)
    if not bool(is_found_B.all()):
        spread = ~is_found_B
        least_B1[spread], _ = _least(limited_BV[spread].sort(descending=True).values, wanted_B1[spread])
    likely_BV[index] = limited_BV.masked_fill(limited_BV < least_B1, 0)


def _least(best_BK: torch.Tensor, wanted_B1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last of the fewest entries, in falling order, that have so much together; and whether these have it."""
    num_before_B1 = (best_BK.cumsum(-1) < wanted_B1).sum(-1, keepdim=True)
    most = best_BK.shape[1] - 1
    return best_BK.gather(1, num_before_B1.clamp(max=most)), num_before_B1[:, 0] <= most


def top_k(logits_MV: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The K likeliest ids, int32, and their logprobs in the full softmax, float32; each [M, K], likeliest first."""
    logits_MV = logits_MV.float()
    best_MK, ids_MK = logits_MV.topk(k, sorted=True)
    logprobs_MK = best_MK - logits_MV.logsumexp(-1, keepdim=True)
    return ids_MK.to("cpu", torch.int32).numpy(), logprobs_MK.cpu().numpy()
