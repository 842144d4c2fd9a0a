"""Dense numeric fields: numbers that a model reads as numbers, beside the embeddings.

Shapes: B rows, D dense fields, C components.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.nn.encoding import SMALLEST, NumericEncoding

LARGEST = torch.finfo(torch.float32).max


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
