"""Losses that align two tasks' representations: adaptive InfoNCE (Eqs. 12, 13) and its replacements
in Table 5.

Shapes: B rows, N candidates, d width of a representation.
"""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from adaftr_fast.nn.relatedness import temperature
from adaftr_fast.ops.infonce.api import Backend, InfoNCEStats, Reduction, adaptive_infonce


class AdaptiveInfoNCE(nn.Module):
    """Computes :func:`adaftr_fast.adaptive_infonce` with a temperature from the tasks' relatedness.

    The temperature of row r is (paper, Eq. 12)

        tau_r = (tau_max - tau_min) (1 - y_rel_r) + tau_min

    where y_rel_r in [0, 1] is the relatedness of the two tasks for the row. The loss is Eq. 13.

    Args:
        tau_min: lower end of the temperature's range, tau^L; 0 < tau_min <= tau_max.
        tau_max: upper end of the temperature's range, tau^U.
        tau: "adaptive" computes each row's temperature from the relatedness passed to ``forward``
            (Eq. 12). "scalar" learns one temperature for all rows, kept within the range by a
            sigmoid (the paper's "w/o adaptive tau"). A float is a fixed temperature (the paper's
            "w/o learnable tau").
        normalize: if True, normalizes the representations, so that cosines replace dot products.
        symmetric: see :func:`adaftr_fast.adaptive_infonce`.
        reduction: see :func:`adaftr_fast.adaptive_infonce`.
        backend: see :func:`adaftr_fast.adaptive_infonce`.
        process_group: see :func:`adaftr_fast.adaptive_infonce`.

    Shape:
        - h_ctr: [B, d]
        - h_cvr: [N, d]
        - relatedness: [B]
        - Output: 0-dim, or [B] with reduction "none"

    Raises:
        ValueError: the range or ``tau`` is invalid, or ``relatedness`` is missing or superfluous.

    Example:
        >>> contrast = adaftr_fast.AdaptiveInfoNCE(tau_min=0.05, tau_max=1.0)
        >>> h_ctr, h_cvr, relatedness = torch.randn(1024, 64), torch.randn(1024, 64), torch.rand(1024)
        >>> loss = contrast(h_ctr, h_cvr, relatedness)
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
            raise ValueError(
                f"AdaptiveInfoNCE: expected 0 < tau_min <= tau_max, got {tau_min} and {tau_max}"
            )
        if not (tau in ("adaptive", "scalar") or (isinstance(tau, float) and tau > 0)):
            raise ValueError(
                f"AdaptiveInfoNCE: tau must be 'adaptive', 'scalar' or a float > 0, got {tau!r}"
            )
        self.tau_min = tau_min
        self.tau_max = tau_max
        self.tau = tau
        self.normalize = normalize
        self.options: dict[str, Any] = {
            "symmetric": symmetric,
            "reduction": reduction,
            "backend": backend,
        }
        self.process_group = process_group
        # the middle of the range
        self.logit = nn.Parameter(torch.zeros(())) if tau == "scalar" else None

    def extra_repr(self) -> str:
        own: dict[str, Any] = {"tau": self.tau}
        if not isinstance(self.tau, float):
            own |= {"tau_min": self.tau_min, "tau_max": self.tau_max}
        shown = own | {"normalize": self.normalize} | self.options
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def forward(
        self,
        h_ctr: Tensor,
        h_cvr: Tensor,
        relatedness: Tensor | None = None,
        *,
        process_group: ProcessGroup | None = None,
        **options: Any,
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        """Computes the loss between h_ctr [B, d] and h_cvr [N, d].

        Args:
            h_ctr: the anchors [B, d].
            h_cvr: the candidates [N, d].
            relatedness: [B] in [0, 1], y_rel of Eq. 9; required if and only if ``tau`` is
                "adaptive".
            process_group: the process group of this call; None uses the module's.
            options: further keyword arguments of ``adaptive_infonce``, such as ``row_weight`` or
                ``return_stats``, and others in place of the module's.
        """
        if (relatedness is not None) != (self.tau == "adaptive"):
            raise ValueError(
                "AdaptiveInfoNCE: relatedness must be given if and only if tau is 'adaptive', got "
                f"{'no' if relatedness is None else 'a'} relatedness with tau {self.tau!r}"
            )
        if self.normalize:
            h_ctr = F.normalize(h_ctr, dim=1)
            h_cvr = F.normalize(h_cvr, dim=1)
        tau = self.temperature(relatedness)
        group = self.process_group if process_group is None else process_group
        result: Tensor | tuple[Tensor, InfoNCEStats]
        options = self.options | options
        result = adaptive_infonce(h_ctr, h_cvr, tau, process_group=group, **options)
        return result

    @overload
    def temperature(self, relatedness: Tensor) -> Tensor: ...

    @overload
    def temperature(self, relatedness: Tensor | None = None) -> Tensor | float: ...

    def temperature(self, relatedness: Tensor | None = None) -> Tensor | float:
        """Returns the temperature of ``forward`` for a relatedness [B]: [B], 0-dim for "scalar", or
        the fixed float.
        """
        if self.logit is not None:
            return temperature(torch.sigmoid(self.logit), self.tau_min, self.tau_max)
        if relatedness is not None:
            return temperature(relatedness, self.tau_min, self.tau_max)
        if isinstance(self.tau, str):
            raise ValueError(
                f"AdaptiveInfoNCE: relatedness must be given with tau {self.tau!r}, got None"
            )
        return self.tau


def simplified_contrast(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Computes Eq. 7 per row: -log sigmoid(h_1 . h_2 - h_1 . h_2'), [B, d] and [B, d] -> [B].

    h_2' is the next row of h_2, and the first row for the last. In a shuffled batch it is a random
    row. Eq. 7 as printed takes the logarithm of a difference that may be negative; BPR, which it
    follows, applies a sigmoid.
    """
    return F.softplus((h_1 * (h_2.roll(-1, 0) - h_2)).sum(1))


def positive_alignment(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Computes Eq. 7 without its negative, per row: -log sigmoid(h_1 . h_2), [B]."""
    return F.softplus(-(h_1 * h_2).sum(1))


def mean_squared_error(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Computes Eq. 5 with l = MSE per row: the mean over d of (h_1 - h_2)^2, [B]."""
    return (h_1 - h_2).square().mean(1)


def mean_absolute_error(h_1: Tensor, h_2: Tensor) -> Tensor:
    """Computes Eq. 5 with l = MAE per row: the mean over d of |h_1 - h_2|, [B]."""
    return (h_1 - h_2).abs().mean(1)


ALIGNMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "positive": simplified_contrast,
    "alignment": positive_alignment,
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
}
"""Losses without a temperature between two tasks' representations [B, d], per row."""
