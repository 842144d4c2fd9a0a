"""The loss on several threads: the same bits every time, and rows that threads sweep apart against float64."""

import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.marks import needs_extension, on_kernels, on_threads

APART = 256  # rows of a thread from which on it may sweep them by itself (csrc/cpu/infonce/driver.inl)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_bitwise_equal_across_runs(dtype, instruction_set):
    for shape in ((700, 900, 48), (2, 129, 8), (3, 129, 33)):
        tensors, results = inputs(*shape), []
        for count in (1, 2, 3):
            with on_threads(count):
                first, again = (loss_and_gradients(af.adaptive_infonce, tensors, dtype) for _ in range(2))
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
            results.append(first)
        for count, other in zip((2, 3), results[1:]):
            for name, x, y in zip(("loss", "d h_ctr", "d h_cvr", "d tau"), results[0], other, strict=True):
                sums_apart = name == "d h_cvr" and shape[0] >= APART * count  # of each thread, added up at the end
                assert sums_apart or torch.equal(x, y), (shape, count, name)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_rows_apart_match_reference(dtype, instruction_set):
    """Of several blocks of rows and of columns."""
    with on_threads(2):
        assert_matches(inputs(1024, 1030, 130), dtype, margin=0.2, label_smoothing=0.1, reduction="sum")


@needs_extension
@on_kernels("infonce", torch.float64, torch.float32, torch.bfloat16)
def test_rows_apart_with_masks_and_far_values(dtype, instruction_set):
    a, b, tau = inputs(800, 900, 40)
    options = masks(800, 900)
    with on_threads(3):
        assert_matches((a, b, tau), dtype, **options)
        assert_matches((1e-4 * a, 1e12 * b, tau.fill_(1e8)), dtype, **options)  # scales an operand by a power of 2


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_frozen_inputs_of_rows_apart(dtype, instruction_set):
    for frozen in ((0,), (0, 2), (2,), (1,)):
        results = []
        for count in (1, 2):
            with on_threads(count):
                results.append(loss_and_gradients(af.adaptive_infonce, inputs(800, 900, 40), dtype, frozen=frozen))
        for one, two in zip(*results, strict=True):
            assert (one is None) == (two is None)
            if one is not None:  # h_cvr's in another order of sums
                atol = 1e-2 * one.abs().max().item() if dtype.itemsize < 4 else 1e-8
                torch.testing.assert_close(two, one, atol=atol, rtol=1e-4)


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16)
def test_statistics_of_rows_apart_are_those_of_one_thread(dtype, instruction_set):
    def statistics(count):
        options = {"reduction": "none", "return_stats": True}
        with on_threads(count):
            found = loss_and_gradients(af.adaptive_infonce, inputs(800, 900, 40), dtype, torch.ones(800), **options)
        return found[:2] + found[3:]  # without h_cvr's

    for count in (2, 3):
        assert all(torch.equal(x, y) for x, y in zip(statistics(1), statistics(count), strict=True))


@needs_extension
@on_kernels("infonce", torch.float32)
def test_nan_of_rows_apart_propagates(dtype, instruction_set):
    a, b, tau = inputs(800, 800, 8)
    a[799, 3] = float("nan")
    with on_threads(3):
        loss, d_a, d_b, d_tau = loss_and_gradients(af.adaptive_infonce, (a, b, tau), dtype)
    assert all(x.isnan().all() for x in (loss, d_a[799], d_b, d_tau[799]))
    assert all(x[:799].isfinite().all() for x in (d_a, d_tau))
