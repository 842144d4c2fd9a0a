"""adaptive_infonce under the transforms of torch.func."""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import inputs
from tests.ops.marks import needs_extension


def test_grad_with_weights_groups_and_symmetric():
    a, b, tau = inputs(7, 7, 5)
    options = {"row_group": torch.arange(7) // 2, "row_weight": torch.linspace(0.5, 2, 7).double(), "symmetric": True}
    found = torch.func.grad(lambda *x: af.adaptive_infonce(*x, **options), argnums=(0, 1, 2))(a, b, tau)
    leaves = [x.clone().requires_grad_() for x in (a, b, tau)]
    af.adaptive_infonce(*leaves, **options).backward()
    torch.testing.assert_close(found, tuple(x.grad for x in leaves))


@needs_extension
def test_grad_calls_the_kernel_and_not_the_reference(monkeypatch):
    """The reference would store the similarities; only a second derivative calls it."""

    def refuse(*_):
        raise AssertionError("the reference is called")

    monkeypatch.setattr("adaftr_fast.ops.infonce.reference._similarities", refuse)
    a, b, tau = inputs(7, 7, 5)
    torch.func.grad(af.adaptive_infonce)(a, b, tau)
    a.requires_grad_()
    torch.autograd.grad(af.adaptive_infonce(a, b, tau), a, create_graph=True)


def test_jvp_is_refused():
    a, b, tau = inputs(7, 7, 5)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"no forward-mode derivative|jvp"):
        torch.func.jvp(lambda a: af.adaptive_infonce(a, b, tau), (a,), (a,))


@pytest.mark.parametrize("option", ["row_weight", "column_bias"])
def test_tangents_of_options_are_refused(option):
    a, b, tau = inputs(7, 7, 5)
    ones = torch.ones(7, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: af.adaptive_infonce(a, b, tau, **{option: x}), (ones,), (ones,))


@needs_extension
def test_batched_upstream_gradients():
    leaves = [t.float().requires_grad_() for t in inputs(6, 8, 4)]
    loss = af.adaptive_infonce(*leaves)
    several = torch.autograd.grad(loss, leaves, torch.tensor([1.0, -2.0]), retain_graph=True, is_grads_batched=True)
    one = torch.autograd.grad(loss, leaves)
    for batched, plain in zip(several, one, strict=True):
        torch.testing.assert_close(batched, torch.stack([plain, -2 * plain]))
