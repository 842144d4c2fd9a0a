"""Five products under the interpreter: half types beyond 256, up to 512, as on sm_90, against the reference."""

import pytest
import torch

import adaftr_fast as af
from tests.kernels.infonce.agreement import assert_matches, evaluate, inputs, masks
from tests.tolerances import assert_as_accurate

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def plans(monkeypatch):
    """The plans that were made, for sm_90; each leaves d_anchors to kernels of its own."""
    from adaftr_fast.kernels.infonce import launch, operands, plan

    made = []
    monkeypatch.setattr(operands, "ASSUMED_CAPABILITY", 90)
    monkeypatch.setattr(launch, "make_plan", lambda *key: made.append(plan.make_plan(*key)) or made[-1])
    yield made
    assert made
    assert all(each.columns.options["BRANCHES"] for each in made)
    assert not any(each.rows.options["NEED_D_ANCHORS"] for each in made)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("rows", "columns", "d"), [(1, 1, 260), (64, 64, 512), (63, 65, 300), (130, 200, 400)])
def test_matches_reference(rows, columns, d, dtype, plans):
    assert_matches(inputs(rows, columns, d), dtype)
    assert all(each.anchors is not None for each in plans)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("rows", "columns"), [(70, 90), (140, 300)])
def test_positives_and_groups(rows, columns, dtype):
    assert_matches(inputs(rows, columns, 264), dtype, **masks(rows, columns))


@pytest.mark.parametrize("explicit", ["positive_index", "groups"])
def test_positives_or_groups_alone(explicit):
    options = {k: v for k, v in masks(90, 140).items() if (k == "positive_index") == (explicit == "positive_index")}
    assert_matches(inputs(90, 140, 264), torch.bfloat16, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_ignore_above(masked):
    a, b, tau = inputs(70, 100, 264)
    options = masks(70, 100) if masked else {}
    positive = options.get("positive_index", torch.arange(70)).clamp(min=0)
    a, b = (x.to(torch.float16).double() for x in (a, b))
    gap = a @ b.T - (a * b[positive]).sum(1, keepdim=True) - 0.25
    near = (gap.abs() < 1e-4).any(1)
    assert near.sum() < 10
    a[near] = 0  # all similarities are 0: rounding must not decide which candidates are left out
    assert_matches((a, b, tau), torch.float16, ignore_above=0.25, **options)


@pytest.mark.parametrize("dtype", HALF)
def test_margin_and_weights(dtype):
    weight = torch.linspace(0, 2, 70)
    assert_matches(inputs(70, 70, 264), dtype, margin=0.3, row_weight=weight, reduction="sum")


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("rows", "columns", "masked"), [(130, 140, False), (130, 140, True), (300, 100, True)])
def test_splits(rows, columns, masked, dtype, plans, monkeypatch):
    from adaftr_fast.kernels.infonce import operands

    monkeypatch.setattr(operands, "ASSUMED_PROCESSORS", 8)
    assert_matches(inputs(rows, columns, 264), dtype, **(masks(rows, columns) if masked else {}))
    assert all(each.columns.grid[1] > 1 for each in plans)
    assert all((each.anchors.grid[1] > 1) == (rows < columns) for each in plans)


def test_without_statistics(plans):
    tensors = [t.to(torch.bfloat16).double() for t in inputs(70, 100, 264)[:2]] + [inputs(70, 100, 264)[2]]
    truth, _ = evaluate(tensors, torch.float64, backend="reference")
    leaves = [t.to(kind).requires_grad_() for t, kind in zip(tensors, (torch.bfloat16, torch.bfloat16, torch.float32))]
    loss = af.adaptive_infonce(*leaves, backend="triton")
    loss.backward()
    for x, expected in zip((loss.detach(), *(leaf.grad for leaf in leaves)), truth):
        assert_as_accurate(x, expected, expected, torch.bfloat16)
    assert not any(each.need_sum_pz for each in plans)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_frozen_inputs(frozen, plans):
    assert_matches(inputs(70, 100, 264), torch.bfloat16, frozen=frozen)
    assert all((each.anchors is None) == (0 in frozen) for each in plans)


@pytest.mark.parametrize("dtype", HALF)
def test_negatives_far_above_the_positive(dtype):
    """The maximum grows from block to block; the anchor sweep takes the last one."""
    a, b, tau = inputs(70, 200, 264)
    a *= 0.01
    a[:, 0], b[:, 0] = 70 * tau, torch.linspace(0.5, 1, 200, dtype=torch.float64)
    b[:, 1:] *= 0.1
    b[:70, 0] = 0
    assert_matches((a, b, tau), dtype)


def test_a_small_call(monkeypatch, plans):
    from adaftr_fast.kernels.infonce import launch

    monkeypatch.setattr(launch, "SMALL_PART", 2**17)
    assert_matches(inputs(70, 200, 264), torch.bfloat16)
    assert_matches(inputs(70, 200, 264), torch.bfloat16, **masks(70, 200))
    assert not any(each.reduces for each in plans)
