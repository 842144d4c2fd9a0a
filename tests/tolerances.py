"""The tolerance rule: a fast path may err, against float64 truth, as much as PyTorch itself does at
that type, plus a small constant.
"""

import torch
from torch import Tensor

# In units of the largest true value. float32's constant covers a different order of summation and
# one rounding of 1/tau; the half types' covers rounding the softmax to the input type for the
# matrix units.
SLACK = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def error(x: Tensor, truth: Tensor) -> float:
    """Largest absolute error in units of the truth's largest absolute value (or absolute, where
    that is 0).
    """
    if truth.numel() == 0:
        assert x.shape == truth.shape
        return 0.0
    assert torch.isfinite(x).all(), "not finite"
    scale = truth.abs().max().item() or 1.0
    return (x.double() - truth).abs().max().item() / scale


def assert_same_bits(x: object, expected: object) -> None:
    """``x`` equals ``expected``: tensors, or sequences and mappings of tensors."""
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


def assert_as_accurate(
    x: Tensor, truth: Tensor, pytorch: Tensor, dtype: torch.dtype, what: str = ""
) -> None:
    """``x`` errs no more than PyTorch's own result at ``dtype`` does, plus SLACK."""
    own = error(x, truth)
    bound = error(pytorch.nan_to_num(), truth) + SLACK[dtype]
    assert own <= bound, f"{what}: error {own:.3g} against float64, allowed {bound:.3g}"
