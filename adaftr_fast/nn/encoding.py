"""How numbers of dense fields become components: what prepared data say, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

EncodingKind = Literal["standard", "log", "piecewise"]
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class NumericEncoding:
    """How the number x of a dense field becomes components, with the statistics of the training
    split.

        standard     (x - mean) / std
        log          (u - mean) / std,  u = sign(x) log(1 + |x|)
        piecewise    (x - b_{t-1}) / (b_t - b_{t-1}), within [0, 1], of each bin t

    The third is the piecewise linear encoding of Gorishniy et al. (NeurIPS'22, "On Embeddings for
    Numerical Features in Tabular Deep Learning", Eq. 1) for x within the edges b. Numbers outside
    the range of the training split count as its ends, and missing and infinite ones as its mean.

    Attributes:
        name: name of the field.
        kind: the encoding.
        mean: mean of x, or of u.
        std: standard deviation of x, or of u; 1 if all values are equal.
        low: smallest x, or u.
        high: largest x, or u.
        edges: b of ``piecewise``, ascending; without bins, all values are equal and the number has
            no component.
        missing: whether there is a component that is 1 for a missing or infinite number and 0 for
            others, as there is for fields with such numbers in the training split.

    Raises:
        ValueError: a number is not finite, ``std`` is not above 0, ``mean`` is not within ``low``
            and ``high``, or ``edges`` do not rise.
    """

    name: str
    kind: EncodingKind
    mean: float
    std: float
    low: float
    high: float
    edges: list[float] = field(default_factory=list)
    missing: bool = False

    def __post_init__(self) -> None:
        numbers = [self.mean, self.std, self.low, self.high, *self.edges]
        if (
            not all(map(math.isfinite, numbers))
            or self.std <= 0
            or not self.low <= self.mean <= self.high
        ):
            raise ValueError(
                f"dense field {self.name}: expected finite numbers, low <= mean <= high and std > "
                "0, got mean "
                f"{self.mean}, std {self.std}, low {self.low}, high {self.high} and edges "
                f"{self.edges}"
            )
        if any(left >= right for left, right in pairwise(self.edges)):
            raise ValueError(f"dense field {self.name}: expected edges that rise, got {self.edges}")

    @property
    def components(self) -> list[tuple[float, float, float, float]]:
        """Each component but ``missing``: (shift, scale, low, high) of ``((u - shift) /
        scale).clamp(low, high)``.
        """
        if self.kind == "piecewise":
            return [(left, right - left, 0.0, 1.0) for left, right in pairwise(self.edges)]
        return [
            (
                self.mean,
                self.std,
                (self.low - self.mean) / self.std,
                (self.high - self.mean) / self.std,
            )
        ]
