"""Inputs and checks shared by the tests of the interpreted and the compiled kernels.

The tolerance rule judges both against the float64 reference.
"""

import torch
from torch import Tensor

import adaftr_fast as af
from tests.tolerances import assert_as_accurate

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NAMES = ("loss", "d h_ctr", "d h_cvr", "d tau", "lse", "positive logit", "entropy")


def inputs(rows: int, columns: int, d: int, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors [rows, d] and candidates [columns, d] with products of about ``scale``; tau in [0.05, 1.05]; float64."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, d, generator=g, dtype=torch.float64) * scale * d**-0.25
    b = torch.randn(columns, d, generator=g, dtype=torch.float64) * d**-0.25
    return a, b, torch.rand(rows, generator=g, dtype=torch.float64) + 0.05


def masks(rows: int, columns: int, seed: int = 0) -> dict[str, Tensor]:
    """Random positives, every fifth row ignored, and groups whose ids occur on both sides."""
    g = torch.Generator().manual_seed(seed)
    positive = torch.randint(0, columns, (rows,), generator=g)
    positive[::5] = -100
    row_group, column_group = (torch.randint(0, 4, (n,), generator=g) + 2**40 for n in (rows, columns))
    return {"positive_index": positive, "row_group": row_group, "column_group": column_group}


def evaluate(tensors, dtype, device="cpu", upstream=None, frozen=(), **options):
    """Returns the loss, its gradients (None where frozen) and the statistics, and top1 apart; all on the CPU."""
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    types = [dtype, dtype, dtype if dtype == torch.float64 else torch.float32]
    leaves = [t.detach().to(device, kind, copy=True) for t, kind in zip(tensors, types)]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i not in frozen)
    loss, stats = af.adaptive_infonce(*leaves, return_stats=True, **options)
    if loss.requires_grad:
        loss.backward(None if upstream is None else upstream.to(device, loss.dtype))
    found = (loss.detach(), *(leaf.grad for leaf in leaves), stats.lse, stats.positive_logit, stats.entropy)
    return [x if x is None else x.cpu() for x in found], stats.top1.cpu()


def assert_matches(tensors, dtype, device="cpu", **options) -> None:
    """Checks that the Triton kernels err no more than the reference at ``dtype`` plus the slack, on rounded inputs."""
    kinds = (dtype, dtype, dtype if dtype == torch.float64 else torch.float32)
    rounded = [t.to(kind).double() for t, kind in zip(tensors, kinds)]
    truth, top1 = evaluate(rounded, torch.float64, backend="reference", **options)
    pytorch, _ = evaluate(rounded, dtype, backend="reference", **options)
    own, own_top1 = evaluate(rounded, dtype, device, backend="triton", **options)
    for name, x, t, p in zip(NAMES, own, truth, pytorch):
        assert (x is None) == (t is None), name
        if name == "entropy" and t.max() < 1e-6:  # rounding error only: the softmax is one-hot to within it
            assert x.abs().max() < 1e-6
        elif x is not None:
            assert_as_accurate(x, t, p, dtype, name)
    assert torch.equal(own_top1, top1)
