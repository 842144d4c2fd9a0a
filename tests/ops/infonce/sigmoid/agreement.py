"""Inputs, the sigmoid loss written out, and the check of a backend against float64 by the tolerance rule."""

import torch
import torch.nn.functional as F

import adaftr_fast as af
from tests.tolerances import assert_as_accurate

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ("loss", "d h_ctr", "d h_cvr", "d logit_scale", "d logit_bias")


def inputs(rows, columns, d, scale=3.0, bias=-2.0, seed=0):
    """Returns representations with similarities of about 1, the scale and the bias; float64."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d, generator=g, dtype=torch.float64) * d**-0.25 for n in (rows, columns))
    return a, b, torch.tensor(scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)


def positives(rows, columns, seed=1):
    positive = torch.randint(0, columns, (rows,), generator=torch.Generator().manual_seed(seed))
    positive[::4] = -100
    return positive


def literal(a, b, scale, bias, positive_index=None, reduction="mean"):
    """Zhai et al., 2023, Algorithm 1, with the logits stored."""
    positive = torch.arange(len(a)) if positive_index is None else positive_index
    labels = -torch.ones(len(a), len(b), dtype=a.dtype)
    has = positive >= 0
    labels[has.nonzero()[:, 0], positive[has]] = 1
    loss = -F.logsigmoid(labels * (scale.to(a.dtype) * (a @ b.T) + bias.to(a.dtype))).to(scale.dtype).sum()
    return loss / len(a) if reduction == "mean" else loss


def loss_and_gradients(function, tensors, dtype, device="cpu", **options):
    """Returns the loss and its gradients in the four tensors, on the CPU."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    leaves = [t.to(device, dtype if i < 2 else wide).detach().requires_grad_() for i, t in enumerate(tensors)]
    loss = function(*leaves, **options)
    return [x.cpu() for x in (loss.detach(), *torch.autograd.grad(loss, leaves))]


def assert_matches(tensors, dtype, backend="cpu", device="cpu", **options):
    rounded = [t.to(dtype).double() if i < 2 else t for i, t in enumerate(tensors)]
    truth = loss_and_gradients(literal, rounded, torch.float64, **options)
    own = loss_and_gradients(af.sigmoid_contrast, rounded, dtype, device, backend=backend, **options)
    theirs = loss_and_gradients(literal, rounded, dtype, **options)
    for name, x, t, p in zip(NAMES, own, truth, theirs):
        assert_as_accurate(x, t, p, dtype, name)
