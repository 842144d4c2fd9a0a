"""The option ignore_above of adaptive_infonce: candidates far more similar than the positive are not negatives."""

import math

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import DTYPES, assert_matches, inputs, loss_and_gradients, masks
from tests.ops.infonce.losses import both_directions, draw_apart, draw_both, literal
from tests.ops.marks import needs_extension, on_kernels


@needs_extension
@on_kernels("infonce", torch.bfloat16)
def test_gradient_of_tau_where_it_nearly_cancels(dtype, instruction_set):
    for seed in range(12):
        assert_matches(draw_apart(70, 70, 128, seed=seed), dtype, ignore_above=0.25, what=f"seed {seed}")


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_with_positives_groups_and_weights(dtype, instruction_set):
    options = masks(90, 130) | {"ignore_above": 0.1}
    tensors = draw_apart(90, 130, 24, bound=0.1, positive_index=options["positive_index"])
    assert_matches(tensors, dtype, **options)
    assert_matches(tensors, dtype, reduction="none", upstream=torch.linspace(-1, 2, 90), **options)


@needs_extension
@on_kernels("infonce", *DTYPES)
def test_a_tie_with_the_positive_is_a_negative(dtype, instruction_set):
    """The bound is exclusive, and equal candidates have equal similarities to the bit, wherever they stand."""
    for d in (1, 7, 100, 300):
        a, b, tau = (t.to(dtype) for t in inputs(70, 70, d))
        options = {"ignore_above": 0.0, "reduction": "none", "backend": "cpu"}
        loss = af.adaptive_infonce(a, torch.cat((b, b)), tau.float(), **options)
        assert (loss > math.log(2) - 1e-6).all(), "the copy of the positive has its logit"


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_rows_without_a_negative_left(dtype, instruction_set):
    loss, *gradients = loss_and_gradients(af.adaptive_infonce, inputs(40, 40, 8), dtype, ignore_above=-1e4)
    assert loss == 0
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.5])
def test_any_bound(margin):
    tensors = inputs(60, 80, 9)
    found, true = (
        loss_and_gradients(loss, tensors, torch.float64, ignore_above=margin) for loss in (af.adaptive_infonce, literal)
    )
    torch.testing.assert_close(found, true)


def test_symmetric_masks_each_direction_by_its_own_positives():
    tensors = draw_both(30, 30, 6)
    found, true = (
        loss_and_gradients(loss, tensors, torch.float64, ignore_above=0.1) for loss in (both_directions, literal)
    )
    torch.testing.assert_close(found, true)


def test_column_bias_counts_as_part_of_the_similarity():
    options = {"column_bias": torch.linspace(-1, 1, 30, dtype=torch.float64), "ignore_above": 0.1}
    tensors = inputs(30, 30, 6)
    torch.testing.assert_close(af.adaptive_infonce(*tensors, **options), literal(*tensors, **options))


def test_compiles_to_one_graph_for_each_margin():
    tensors = inputs(33, 33, 7)
    compiled = torch.compile(af.adaptive_infonce, fullgraph=True, backend="aot_eager")
    for margin in (0.1, 0.2, 0.3):
        leaves, true = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
        compiled(*leaves, ignore_above=margin).backward()
        literal(*true, ignore_above=margin).backward()
        for x, y in zip(leaves, true):
            torch.testing.assert_close(x.grad, y.grad)


def test_opcheck():
    a, b, tau = (t.requires_grad_() for t in inputs(9, 11, 4))
    arguments = (a, b, tau, None, None, None, torch.ones(9).double(), True, True, True, True, 0.2)
    for op in (torch.ops.adaftr_fast.infonce.default, torch.ops.adaftr_fast.infonce_reference.default):
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(
    ("margin", "error"),
    [(math.nan, ValueError), (math.inf, ValueError), (-math.inf, ValueError), ("0.1", TypeError), (True, TypeError)],
)
def test_bad_margins(margin, error):
    a, b, tau = inputs(4, 4, 3)
    with pytest.raises(error, match="adaptive_infonce: ignore_above must be a finite number or None, got "):
        af.adaptive_infonce(a, b, tau, ignore_above=margin)
