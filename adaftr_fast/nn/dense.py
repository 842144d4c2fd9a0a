"""Dense numeric fields: numbers that a model reads as numbers, beside the embeddings.

Shapes: B rows, D dense fields, C components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

EncodingKind = Literal["standard", "log", "piecewise"]
SMALLEST = torch.finfo(torch.float32).tiny
LARGEST = torch.finfo(torch.float32).max


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


class DenseFields(nn.Module):
    """Encodes dense fields. The result is finite for all numbers, NaN and infinite ones included.

    The module has no parameters, and its buffers are not part of the state dict, because
    ``encodings`` define them.

    Args:
        encodings: how each of the D fields is encoded.

    Attributes:
        out_features: C, the components of all fields and one for each field with ``missing``.

    Shape:
        - Input: float32 [B, D], NaN or infinite = missing
        - Output: [B, C], the components of all fields in order, then those for missing numbers

    Raises:
        ValueError: the input is not floating point or not [B, D].
    """

    is_log: Tensor
    mean: Tensor
    read: Tensor
    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    indicated: Tensor

    def __init__(self, encodings: Sequence[NumericEncoding]) -> None:
        super().__init__()
        self.encodings = list(encodings)
        components = [
            (d, *each) for d, encoding in enumerate(self.encodings) for each in encoding.components
        ]
        read, shift, scale, low, high = zip(*components) if components else [()] * 5
        indicated = [d for d, encoding in enumerate(self.encodings) if encoding.missing]
        self.out_features = len(components) + len(indicated)
        self._any_log = any(encoding.kind == "log" for encoding in self.encodings)
        self._any_missing = bool(indicated)
        buffers = {
            "is_log": torch.tensor([encoding.kind == "log" for encoding in self.encodings]),
            "mean": _float32([encoding.mean for encoding in self.encodings]),
            "read": torch.tensor(read, dtype=torch.int64),
            "shift": _float32(shift),
            # a difference of two numbers may be subnormal
            "scale": _float32(scale).clamp(min=SMALLEST),
            "low": _float32(low),
            "high": _float32(high),
            "indicated": torch.tensor(indicated, dtype=torch.int64),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def extra_repr(self) -> str:
        return f"{[each.name for each in self.encodings]}, out_features={self.out_features}"

    def forward(self, values: Tensor) -> Tensor:
        if (
            values.dim() != 2
            or values.shape[1] != len(self.encodings)
            or not values.is_floating_point()
        ):
            raise ValueError(
                f"DenseFields: values must be float32 [B, {len(self.encodings)}], got "
                f"{values.dtype} "
                f"{list(values.shape)}"
            )
        missing = ~values.isfinite()
        u = values
        if self._any_log:
            u = torch.where(self.is_log, values.sign() * values.abs().log1p(), values)
        u = torch.where(missing, self.mean, u)
        components = ((u[:, self.read] - self.shift) / self.scale).clamp(self.low, self.high)
        if not self._any_missing:
            return components
        return torch.cat([components, missing[:, self.indicated].to(components.dtype)], 1)


def _float32(values: Sequence[float]) -> Tensor:
    """Returns a tensor; a difference of two numbers may be beyond the range of float32."""
    return torch.tensor(values, dtype=torch.float64).clamp(-LARGEST, LARGEST).float()
