"""What the tests of the loss share: inputs, options, and how a loss and its gradients are taken."""

import pytest
import torch

import adaftr_fast as af

needs_extension = pytest.mark.skipif(af.cpu_capability() == "none", reason="the C++ extension is not built")


def inputs(rows, columns, d, scale=1.0, seed=0):
    """Representations with logits of about unit size times ``scale``, and tau in [0.05, 1.05]; float64."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, d, generator=g, dtype=torch.float64) * scale * d**-0.25
    b = torch.randn(columns, d, generator=g, dtype=torch.float64) * d**-0.25
    return a, b, torch.rand(rows, generator=g, dtype=torch.float64) + 0.05


def loss_and_gradients(function, tensors, dtype, upstream=None, **options):
    tensors = [t.to(dtype if i < 2 or dtype == torch.float64 else torch.float32) for i, t in enumerate(tensors)]
    tensors = [t.detach().requires_grad_() for t in tensors]
    loss = function(*tensors, **options)
    loss.backward(upstream)
    return [loss.detach(), *(t.grad for t in tensors)]


def masks(rows, columns, seed=1):
    g = torch.Generator().manual_seed(seed)
    positive = torch.randint(0, columns, (rows,), generator=g)
    positive[::7] = -100
    return {
        "positive_index": positive,
        "row_group": torch.randint(0, 5, (rows,), generator=g),
        "column_group": torch.randint(0, 5, (columns,), generator=g),
        "row_weight": torch.rand(rows, generator=g, dtype=torch.float64) * (torch.arange(rows) % 3 > 0),
    }
