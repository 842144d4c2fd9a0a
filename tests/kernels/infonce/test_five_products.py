"""Five products under the interpreter: half types beyond 256, up to 512, as on sm_90, against the reference."""

import pytest
import torch

from tests.kernels.infonce.agreement import assert_matches
from tests.ops.infonce.inputs import assert_matches as shared_matches
from tests.ops.infonce.inputs import inputs, masks
from tests.ops.infonce.losses import draw_apart

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
def test_matches_reference(dtype, plans):
    for size in ((1, 1, 260), (64, 64, 512), (63, 65, 300), (130, 200, 400)):
        assert_matches(inputs(*size), dtype, what=str(size))
    assert all(each.anchors is not None for each in plans)


@pytest.mark.parametrize("dtype", HALF)
def test_positives_and_groups(dtype):
    for rows, columns in ((70, 90), (140, 300)):
        assert_matches(inputs(rows, columns, 264), dtype, **masks(rows, columns))
    options = masks(90, 140)
    groups = {name: options.pop(name) for name in ("row_group", "column_group")}
    for alone in (options, groups):
        assert_matches(inputs(90, 140, 264), dtype, **alone)


@pytest.mark.parametrize("masked", [False, True])
def test_ignore_above(masked):
    options = masks(70, 100) if masked else {}
    tensors = draw_apart(70, 100, 264, positive_index=options.get("positive_index"))
    assert_matches(tensors, torch.float16, ignore_above=0.25, **options)


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
    shared_matches(inputs(70, 100, 264), torch.bfloat16, backend="triton")
    assert not any(each.need_sum_pz for each in plans)


def test_frozen_inputs(plans):
    for frozen in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        plans.clear()
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
