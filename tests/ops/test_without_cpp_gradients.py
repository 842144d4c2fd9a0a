"""Gradients by formulas in Python, for where the C++ autograd functions are built for another
version of torch.
"""

import subprocess
import sys

import torch

import adaftr_fast as af
from tests.models.inputs import batch, model
from tests.ops.marks import needs_cpp_gradients

WITHOUT = """
import sys, torch
sys.modules["adaftr_fast._autograd_" + "_".join(torch.__version__.split(".")[:2])] = None
from adaftr_fast import _extension
from tests.ops import test_without_cpp_gradients as this
assert _extension.is_built() and not _extension.has_cpp_gradients()
assert "formulas in Python" in _extension.build_info()["C++ gradients"]
torch.save(this.gradients(), sys.argv[1])
"""


def gradients():
    """Returns losses and gradients of every op that C++ differentiates, in float64, and a loss by
    rounded products of float32.
    """
    torch.manual_seed(0)
    a, b = (torch.randn(40, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tau = torch.rand(40, dtype=torch.float64).add(0.1).requires_grad_()
    found = []
    for options in ({}, {"block": 8}, {"reduction": "none"}, {"symmetric": True}, {"margin": 0.1}):
        loss = af.adaptive_infonce(a, b, tau, **options).sum()
        found += [loss, *torch.autograd.grad(loss, (a, b, tau))]
    trained = model()
    losses = trained.loss(batch())
    sum(losses.values()).backward()
    found += [
        *losses.values(),
        *(p.grad.to_dense() for p in trained.parameters() if p.grad is not None),
    ]
    torch.set_float32_matmul_precision("medium")
    found.append(af.adaptive_infonce(a.float(), b.float(), tau.float()))
    torch.set_float32_matmul_precision("highest")
    return [x.detach() for x in found]


@needs_cpp_gradients
def test_formulas_in_python_take_their_place(tmp_path):
    subprocess.run([sys.executable, "-c", WITHOUT, tmp_path / "found"], check=True)
    for in_python, in_cpp in zip(torch.load(tmp_path / "found"), gradients(), strict=True):
        torch.testing.assert_close(in_python, in_cpp)
