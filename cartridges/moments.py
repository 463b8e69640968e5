"""Least squares from sums alone: what one Linear should add, as its inputs stream by.

For inputs `a` and wanted additions `t` of many tokens, only sums over tokens are kept (`A^T A`, `T^T A` and first
moments), in float64. Their size is that of the matrix and does not depend on the number of tokens. With ridge `lambda`
the patch is `D = T^T A (A^T A + lambda I)^-1` (arXiv 2510.08734 as rebuilt, and PatchKV for down projections).

Shapes: M tokens, I inputs, O outputs, R rank.
"""

from dataclasses import dataclass

import torch

from cartridges.errors import InputError

SMALLEST_PIVOT = 1e-11  # of the largest, squared: below that, float64 sums tell nothing of a direction


@dataclass
class Solution:
    """A patch and how well it does: `residual` and `total` are sums of squares over the fitted tokens."""

    delta: torch.Tensor | None  # [O, I]
    bias: torch.Tensor | None  # [O]
    residual: float
    total: float
    ridge_term: float = 0.0  # lambda |D|^2, by which the residual differs from what `T^T A D` explains

    @property
    def unexplained_ratio(self) -> float:
        """The part of the wanted additions that is missed, 0 where nothing was wanted."""
        return self.residual / self.total if self.total else 0.0


class Moments:
    """Sums over weighted tokens."""

    def __init__(self, num_inputs: int, num_outputs: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.num, self.aa_II, self.ta_OI = 0.0, zeros(num_inputs, num_inputs), zeros(num_outputs, num_inputs)
        self.a_I, self.t_O, self.tt = zeros(num_inputs), zeros(num_outputs), zeros(1)

    def add(self, a_MI: torch.Tensor, t_MO: torch.Tensor, weight_M: torch.Tensor) -> None:
        """Count tokens in."""
        a_MI, t_MO, weight_M = a_MI.double(), t_MO.double(), weight_M.double()
        weighted_MI = a_MI * weight_M[:, None]
        self.num += float(weight_M.sum())
        self.aa_II += weighted_MI.T @ a_MI
        self.ta_OI += t_MO.T @ weighted_MI
        self.a_I += weighted_MI.sum(0)
        self.t_O += weight_M @ t_MO
        self.tt += (weight_M @ t_MO.square().sum(1))[None]

    @property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        return (self.aa_II, self.ta_OI, self.a_I, self.t_O, self.tt)

    @property
    def num_bytes(self) -> int:
        """Bytes of the sums."""
        return sum(part.numel() * part.element_size() for part in self._parts)

    def check(self, label: str) -> None:
        """Raises InputError where nothing was counted, or sums are no finite numbers."""
        if not self.num:
            raise InputError(f"{label} saw no answer tokens, expected some; give conversations with answers")
        if not all(torch.isfinite(part).all() for part in (self.aa_II, self.ta_OI, self.tt)):
            raise InputError(f"the statistics of {label} are no finite numbers; load the model in another dtype")

    def residual(self, delta_OI: torch.Tensor | None, bias_O: torch.Tensor | None) -> float:
        """The sum of squares of `t - D a - b` over all tokens, from the sums alone."""
        left = self.tt.clone()
        if delta_OI is not None:
            left += ((delta_OI @ self.aa_II) * delta_OI).sum() - 2 * (delta_OI * self.ta_OI).sum()
        if bias_O is not None:
            left += self.num * bias_O @ bias_O - 2 * bias_O @ self.t_O
            if delta_OI is not None:
                left += 2 * bias_O @ (delta_OI @ self.a_I)
        return max(0.0, float(left))

    def mean_bias(self) -> Solution:
        """The best bias with no matrix: the mean of what is wanted."""
        bias_O = self.t_O / self.num
        return Solution(None, bias_O, self.residual(None, bias_O), float(self.tt))

    def rank_one(self, label: str) -> Solution:
        """The patch of the mean token: `mean(t) mean(a)^T / |mean(a)|^2`. Raises InputError where inputs cancel out."""
        norm = self.a_I @ self.a_I
        if norm <= 1e-18 * self.num * self.aa_II.diagonal().sum():
            raise InputError(f"the statistics of {label} are singular: its mean input is 0; take another method")
        delta_OI = torch.outer(self.t_O, self.a_I) / norm
        return Solution(delta_OI, None, self.residual(delta_OI, None), float(self.tt))

    def _factor(self, ridge: float, with_bias: bool, label: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The Cholesky factor of `A^T A + lambda I`, centred where a bias is fitted beside; `T^T A`; lambda."""
        aa_II, ta_OI = self.aa_II, self.ta_OI
        if with_bias:
            aa_II = aa_II - torch.outer(self.a_I, self.a_I) / self.num
            ta_OI = ta_OI - torch.outer(self.t_O, self.a_I) / self.num
        size = len(aa_II)
        lam = ridge * float(self.aa_II.diagonal().sum()) / size
        factor_II, info = torch.linalg.cholesky_ex(aa_II + lam * torch.eye(size, dtype=aa_II.dtype).to(aa_II.device))
        pivots = factor_II.diagonal()
        if int(info) or float(pivots.min()) ** 2 <= SMALLEST_PIVOT * float(pivots.max()) ** 2:
            raise InputError(
                f"the statistics of {label} are singular: {self.num:g} tokens for {size} inputs, with ridge={ridge:g}; "
                "give a higher ridge, or more conversations"
            )
        return factor_II, ta_OI, lam

    def ridge(self, ridge: float, with_bias: bool, label: str, rank: int | None = None) -> Solution:
        """The ridge solution; `ridge` is in units of the mean square of an input. A bias is not penalised.

        With a `rank`, the best patch of that rank for these very tokens. Raises InputError for singular sums.
        """
        factor_II, ta_OI, lam = self._factor(ridge, with_bias, label)
        delta_OI = torch.cholesky_solve(ta_OI.T, factor_II).T
        if rank is not None and rank < min(delta_OI.shape):
            # by the outputs' main directions over the tokens, and not those of the matrix
            main_OR = torch.linalg.svd(delta_OI @ factor_II, full_matrices=False).U[:, :rank]
            delta_OI = main_OR @ (main_OR.T @ delta_OI)
        bias_O = (self.t_O - delta_OI @ self.a_I) / self.num if with_bias else None
        term = lam * float(delta_OI.square().sum())
        return Solution(delta_OI, bias_O, self.residual(delta_OI, bias_O), float(self.tt), term)


def factors(delta_OI: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`left` [O, R] and `right` [R, I] whose product is the nearest matrix of that rank, evenly scaled."""
    u_OR, s_R, v_RI = torch.linalg.svd(delta_OI.double(), full_matrices=False)
    root_R = s_R[:rank].sqrt()
    return u_OR[:, :rank] * root_R, root_R[:, None] * v_RI[:rank]
