"""Inputs, options and comparisons shared by the loss tests."""

import torch
import torch.nn.functional as F

import adaftr_fast as af
from tests.tolerances import assert_as_accurate


def inputs(rows, columns, d, scale=1.0, seed=0):
    """Returns representations whose logits have standard deviation ``scale``, and tau in [0.05, 1.05]; float64."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, d, generator=g, dtype=torch.float64) * scale * d**-0.25
    b = torch.randn(columns, d, generator=g, dtype=torch.float64) * d**-0.25
    return a, b, torch.rand(rows, generator=g, dtype=torch.float64) + 0.05


def masks(rows, columns, seed=1):
    """Returns random positives, groups and weights, with ignored and zero-weight rows among them."""
    g = torch.Generator().manual_seed(seed)
    positive = torch.randint(0, columns, (rows,), generator=g)
    positive[::7] = -100
    return {
        "positive_index": positive,
        "row_group": torch.randint(0, 5, (rows,), generator=g),
        "column_group": torch.randint(0, 5, (columns,), generator=g),
        "row_weight": torch.rand(rows, generator=g, dtype=torch.float64) * (torch.arange(rows) % 3 > 0),
    }


def cross_entropy(a, b, tau, **_):
    """The loss in PyTorch, with the similarities stored."""
    return F.cross_entropy(a @ b.T / tau[:, None], torch.arange(len(a)))


def loss_and_gradients(function, tensors, dtype, upstream=None, **options):
    """Returns the loss and the gradients of h_ctr, h_cvr and tau."""
    tensors = [t.to(dtype if i < 2 or dtype == torch.float64 else torch.float32) for i, t in enumerate(tensors)]
    tensors = [t.detach().requires_grad_() for t in tensors]
    loss = function(*tensors, **options)
    loss.backward(upstream)
    return [loss.detach(), *(t.grad for t in tensors)]


def assert_matches(tensors, dtype, pytorch=None, **options):
    """Compares the CPU kernel's loss and gradients with the float64 reference, both at inputs rounded to ``dtype``."""
    rounded = [t.to(dtype).double() if i < 2 else t for i, t in enumerate(tensors)]
    truth = loss_and_gradients(af.adaptive_infonce, rounded, torch.float64, backend="reference", **options)
    own = loss_and_gradients(af.adaptive_infonce, rounded, dtype, backend="cpu", **options)
    theirs = loss_and_gradients(pytorch or af.adaptive_infonce, rounded, dtype, backend="reference", **options)
    for name, x, t, p in zip(("loss", "d h_ctr", "d h_cvr", "d tau"), own, truth, theirs):
        assert_as_accurate(x, t, p, dtype, name)
