"""The contrast between two tasks: relatedness -> temperature (Eq. 12) -> InfoNCE (Eq. 13), and what the paper puts in
its place (Table 5). B rows, d width of a representation.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from adaftr_fast.nn.relatedness import temperature
from adaftr_fast.ops.infonce.api import Backend, InfoNCEStats, Reduction, adaptive_infonce


class AdaptiveInfoNCE(nn.Module):
    """:func:`adaftr_fast.adaptive_infonce` with its temperature made here.

    Args:
        tau_min, tau_max: the range of the temperature, 0 < tau_min <= tau_max (tau^L and tau^U of Eq. 12).
        tau: "adaptive" sets each row's temperature from the relatedness given to ``forward`` (Eq. 12); "scalar" learns
            one number for all rows, kept within the range by a sigmoid (the paper's "w/o adaptive tau"); a float
            fixes it (the paper's "w/o learnable tau").
        normalize: contrast cosines instead of dot products.
        symmetric, reduction, backend, process_group: as in ``adaptive_infonce``.
    """

    def __init__(
        self,
        tau_min: float = 0.05,
        tau_max: float = 1.0,
        *,
        tau: Literal["adaptive", "scalar"] | float = "adaptive",
        normalize: bool = False,
        symmetric: bool = False,
        reduction: Reduction = "mean",
        backend: Backend = "auto",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not 0 < tau_min <= tau_max:
            raise ValueError(f"AdaptiveInfoNCE: expected 0 < tau_min <= tau_max, got {tau_min} and {tau_max}")
        if not (tau in ("adaptive", "scalar") or (isinstance(tau, float) and tau > 0)):
            raise ValueError(f"AdaptiveInfoNCE: tau must be 'adaptive', 'scalar' or a float > 0, got {tau!r}")
        self.tau_min, self.tau_max, self.tau, self.normalize = tau_min, tau_max, tau, normalize
        self.options: dict[str, Any] = {"symmetric": symmetric, "reduction": reduction, "backend": backend}
        self.process_group = process_group
        self.logit = nn.Parameter(torch.zeros(())) if tau == "scalar" else None  # the middle of the range

    def forward(
        self, h_ctr: Tensor, h_cvr: Tensor, relatedness: Tensor | None = None, **options: Any
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        """The loss between h_ctr [B, d] and h_cvr [N, d].

        Args:
            relatedness: [B] in [0, 1], y_rel of Eq. 9; needed exactly when tau is "adaptive".
            options: further keyword arguments of ``adaptive_infonce``, such as ``row_weight`` or ``return_stats``.
        """
        if (relatedness is not None) != (self.tau == "adaptive"):
            raise ValueError(
                f"AdaptiveInfoNCE: relatedness must be given exactly when tau is 'adaptive' ({self.tau!r})"
            )
        if self.normalize:
            h_ctr, h_cvr = F.normalize(h_ctr, dim=1), F.normalize(h_cvr, dim=1)
        tau = self.temperature(relatedness)
        return adaptive_infonce(h_ctr, h_cvr, tau, process_group=self.process_group, **self.options, **options)

    def temperature(self, relatedness: Tensor | None = None) -> Tensor | float:
        """What ``forward`` divides by: [B], 0-dim, or a float."""
        if self.logit is not None:
            return temperature(torch.sigmoid(self.logit), self.tau_min, self.tau_max)
        return self.tau if relatedness is None else temperature(relatedness, self.tau_min, self.tau_max)


def simplified_contrast(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Eq. 7 per row, [B]: -log sigmoid(h_1 . h_2 - h_1 . h_2'), h_2' the next row's (after the last, the first's).

    Eq. 7 as printed takes the logarithm of a difference that may be negative; BPR, which it follows, has the sigmoid.
    The next row of a shuffled batch is a random one.
    """
    return F.softplus((h_1 * (h_2.roll(-1, 0) - h_2)).sum(1))


def positive_alignment(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Eq. 7 without its negative, per row, [B]: -log sigmoid(h_1 . h_2)."""
    return F.softplus(-(h_1 * h_2).sum(1))


def mean_squared_error(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Eq. 5 with l = MSE per row, [B]: the mean over d of (h_1 - h_2)^2."""
    return (h_1 - h_2).square().mean(1)


def mean_absolute_error(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Eq. 5 with l = MAE per row, [B]: the mean over d of |h_1 - h_2|."""
    return (h_1 - h_2).abs().mean(1)


ALIGNMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "positive": simplified_contrast,
    "alignment": positive_alignment,
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
}
"""Losses between two tasks' representations [B, d] that know no temperature, per row."""
