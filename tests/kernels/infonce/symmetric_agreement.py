"""Inputs of the symmetric loss, its reference as two directions, and the check by the tolerance rule."""

import torch
from adaftr_fast.kernels.infonce import infonce_symmetric, serves_symmetric  # noqa: F401  # tests take it from here

from adaftr_fast.ops.infonce.reference import infonce_gradients, infonce_rows
from tests.tolerances import assert_as_accurate

NAMES = ("loss", "row loss", "d anchors", "d candidates", "d tau of rows", "d tau of columns")
NEED_ALL = (True, True, True, True)


def inputs(rows, d, tau=None, seed=0):
    """Returns anchors, candidates, both temperatures and the scale; ``tau``: one temperature for all. float64."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, d, generator=g, dtype=torch.float64) * d**-0.25 for _ in range(2))
    taus = [torch.rand(rows, generator=g, dtype=torch.float64) + 0.05 for _ in range(2)]
    if tau is not None:
        taus = [torch.full((rows,), tau, dtype=torch.float64)] * 2
    return a, b, *taus, torch.rand(rows, generator=g, dtype=torch.float64) / rows


def groups(rows, seed=0):
    """Returns groups of both sides, whose ids occur on both."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 4, (rows,), generator=g) + 2**40 for _ in range(2))


def two_directions(a, b, tau_row, tau_column, scale, row_group=None, column_group=None):
    """The six outputs by the reference of one direction, called twice."""
    forth = (a, b, tau_row), (None, row_group, column_group)
    back = (b, a, tau_column), (None, column_group, row_group)
    row_loss = sum(infonce_rows(*tensors, *masks).loss for tensors, masks in (forth, back)) / 2
    d_a, d_b, d_tau_row = infonce_gradients(*forth[0], scale / 2, *forth[1])
    d_b2, d_a2, d_tau_column = infonce_gradients(*back[0], scale / 2, *back[1])
    return (scale * row_loss).sum(), row_loss, d_a + d_a2, d_b + d_b2, d_tau_row, d_tau_column


def evaluate(tensors, dtype, masks=(None, None), needs=NEED_ALL, device="cpu"):
    """Returns the kernels' six outputs on the CPU."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    a, b, *rest = (x.to(device, dtype if i < 2 else acc) for i, x in enumerate(tensors))
    *taus, scale = rest
    found = infonce_symmetric(a, b, *taus, *(x if x is None else x.to(device) for x in masks), scale, *needs)
    return [x.cpu() for x in found]


def assert_matches(tensors, dtype, masks=(None, None), needs=NEED_ALL, device="cpu"):
    """Checks that the kernels err no more than the reference at ``dtype`` plus the slack, on rounded inputs."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = [x.to(dtype if i < 2 else acc).double() for i, x in enumerate(tensors)]
    truth = two_directions(*rounded, *masks)
    pytorch = two_directions(*(x.to(acc) for x in rounded), *masks)
    own = evaluate(rounded, dtype, masks, needs, device)
    for name, needed, x, t, p in zip(NAMES, (True, True, *needs), own, truth, pytorch):
        assert x.dtype == acc, name
        if needed:
            assert_as_accurate(x, t, p, dtype, name)
        else:
            assert x.shape == (0,), name
