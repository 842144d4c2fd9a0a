"""The loss on several threads: the same bits every time, and rows that threads sweep apart against float64."""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.marks import needs_extension, on_threads

APART = 256  # rows of a thread from which on it may sweep them by itself (csrc/cpu/infonce/driver.inl)
DTYPES = [torch.float32, torch.bfloat16]


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(700, 900, 48), (2, 129, 8), (3, 129, 33)])
def test_bitwise_equal_across_runs(shape, dtype, instruction_set):
    tensors, results = inputs(*shape), []
    for count in (1, 2, 3):
        with on_threads(count):
            first, again = (loss_and_gradients(af.adaptive_infonce, tensors, dtype) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        results.append(first)
    for count, other in zip((2, 3), results[1:]):
        for name, x, y in zip(("loss", "d h_ctr", "d h_cvr", "d tau"), results[0], other, strict=True):
            sums_apart = name == "d h_cvr" and shape[0] >= APART * count  # of each thread, added up at the end
            assert sums_apart or torch.equal(x, y), (count, name)


@needs_extension
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(801, 801, 33), (777, 1500, 64), (1024, 1030, 130)])
@pytest.mark.parametrize("options", [{}, {"margin": 0.2, "label_smoothing": 0.1, "reduction": "sum"}], ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_apart_match_reference(dtype, options, shape, threads, instruction_set):
    with on_threads(threads):
        assert_matches(inputs(*shape), dtype, **options)


@needs_extension
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_rows_apart_with_masks_and_far_values(dtype, threads, instruction_set):
    a, b, tau = inputs(800, 900, 40)
    options = masks(800, 900)
    with on_threads(threads):
        assert_matches((a, b, tau), dtype, **options)
        assert_matches((1e-4 * a, 1e12 * b, tau.fill_(1e8)), dtype, **options)  # scales an operand by a power of 2


@needs_extension
@pytest.mark.parametrize("frozen", [(0,), (0, 2), (2,), (1,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_inputs_of_rows_apart(dtype, frozen, instruction_set):
    def gradients(count):
        leaves = [t.to(dtype) if i < 2 else t.float() for i, t in enumerate(inputs(800, 900, 40))]
        leaves = [leaf.requires_grad_(i not in frozen) for i, leaf in enumerate(leaves)]
        with on_threads(count):
            af.adaptive_infonce(*leaves).backward()
        return [leaf.grad for leaf in leaves]

    for one, two in zip(gradients(1), gradients(2), strict=True):
        assert (one is None) == (two is None)
        if one is not None:  # h_cvr's in another order of sums
            torch.testing.assert_close(
                two, one, atol=1e-2 * one.abs().max().item() if dtype.itemsize < 4 else 1e-8, rtol=1e-4
            )


@needs_extension
def test_statistics_of_rows_apart_are_those_of_one_thread(instruction_set):
    def statistics(count):
        a, b, tau = (t.float().requires_grad_() for t in inputs(800, 900, 40))
        with on_threads(count):
            loss, stats = af.adaptive_infonce(a, b, tau, reduction="none", return_stats=True)
            loss.sum().backward()
        return [loss, *stats, a.grad, tau.grad]

    for count in (2, 3):
        assert all(torch.equal(x, y) for x, y in zip(statistics(1), statistics(count), strict=True))


@needs_extension
def test_nan_of_rows_apart_propagates(instruction_set):
    a, b, tau = (t.float() for t in inputs(800, 800, 8))
    a[799, 3] = float("nan")
    with on_threads(3):
        loss, d_a, d_b, d_tau = loss_and_gradients(af.adaptive_infonce, (a, b, tau), torch.float32)
    assert all(x.isnan().all() for x in (loss, d_a[799], d_b, d_tau[799]))
    assert all(x[:799].isfinite().all() for x in (d_a, d_tau))
