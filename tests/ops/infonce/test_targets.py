"""The options positive_group, label_smoothing and margin of adaptive_infonce."""

import pytest
import torch
import torch.nn.functional as F

import adaftr_fast as af
from adaftr_fast.ops.infonce.targets import scan_by
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, winning
from tests.ops.infonce.losses import EVERY, labels, literal, literal_rows
from tests.ops.marks import needs_extension, on_kernels

CASES = [name for name in EVERY if name.startswith(("positives", "smoothing", "margin"))]
BACKENDS = ["reference", pytest.param("cpu", marks=needs_extension)]


@needs_extension
@on_kernels("infonce", torch.float32, torch.bfloat16, torch.float16)
def test_many_positives(dtype, instruction_set):
    a, b, _ = inputs(600, 600, 64)
    for positives in (1, 24, 600):
        label = torch.arange(600) % (600 // positives)
        tensors = (a, b, torch.ones(600, dtype=torch.float64))
        assert_matches(tensors, dtype, positive_group=(label, label), what=f"{positives} positives")


@pytest.mark.parametrize("rows", [0, 1, 7, 64, 300])
def test_sums_by_scans(rows):
    """What CUDA tensors take."""
    x = inputs(1, rows, 5)[1]
    for size in (1, 2, 5, 400):
        number = torch.randint(0, size, (rows,), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(scan_by(number, x, size), x.new_zeros(size, 5).index_add(0, number, x))
        if rows > 1 and size > 1:
            spoiled = x.clone()
            spoiled[number == number[0]] = torch.nan
            found = scan_by(number, spoiled, size)
            assert found[number[0]].isnan().all()
            assert found.isnan().any(1).sum() == 1


@needs_extension
def test_a_wrong_weight_is_named():
    arguments = (A, B, torch.ones(4), None, None, None, torch.ones(4), True, True, True, False, None, 0.0)
    with pytest.raises(RuntimeError, match=r"positive_weight must be \[4\], got \[6\]"):
        torch.ops.adaftr_fast.infonce_sweep(*arguments, torch.ones(6))


@needs_extension
@pytest.mark.parametrize("case", CASES)
def test_frozen_inputs(case):
    tensors, options = EVERY[case].drawn(90, 100, 20)
    whole = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64, **options)
    for frozen in ((0,), (1,), (2,), (0, 1), (1, 2)):
        partial = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64, frozen=frozen, **options)
        for i, (x, y) in enumerate(zip(partial, whole, strict=True), -1):
            assert (x is None) == (i in frozen)
            torch.testing.assert_close(x, None if x is None else y, rtol=1e-10, atol=1e-12)


@needs_extension
@pytest.mark.parametrize("case", CASES)
def test_extreme_temperatures(case):
    (a, b, _), options = EVERY[case].drawn(130, 150, 32)
    for tau in (1e-3, 1e-2, 1.0, 1e3):
        tensors = (a, b, torch.full((130,), tau, dtype=torch.float64))
        assert_matches(tensors, torch.float32, what=f"tau {tau}", **options)


@needs_extension
def test_a_margin_against_a_probability_near_one():
    """exp(-gap) underflows in float32, but the margin brings the negatives back."""
    for gap in (3, 30, 120, 300):
        for margin in (gap - 2, gap, gap + 20):
            assert_matches(winning(48, gap), torch.float32, margin=margin, what=f"gap {gap}, margin {margin}")


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_positive_per_group_is_as_accurate_as_positive_index(dtype):
    """The row's own candidate, of its label and its group, is subtracted from the sum of its label."""
    z = F.normalize(inputs(32, 32, 16)[0], dim=1).repeat(2, 1).to(dtype)
    row = torch.arange(64)
    found = []
    for options in ({"positive_index": row.roll(32)}, {"positive_group": row % 32}):
        leaf = z.clone().requires_grad_()
        loss = af.adaptive_infonce(leaf, leaf, 0.02, row_group=row, reduction="none", **options)
        loss.sum().backward()
        found.append((loss.detach(), leaf.grad))
    assert (found[0][0] < 1e-3).any(), "no loss is near 0"
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-12)


@needs_extension
@pytest.mark.parametrize(("symmetric", "backend"), [(False, "reference"), (True, "cpu"), (False, "cpu")])
@pytest.mark.parametrize("option", ["positive_group", "label_smoothing", "margin"])
def test_no_rows_and_no_candidates(option, symmetric, backend):
    b = torch.randn(3, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    value = {"positive_group": (none, torch.zeros(3, dtype=torch.int64))}.get(option, 0.1)
    options = {"symmetric": symmetric, "backend": backend}
    loss = af.adaptive_infonce(b[:0], b, 0.1, **{option: value}, **options)
    (gradient,) = torch.autograd.grad(loss, b)
    assert loss == 0
    assert not gradient.any()
    ignored = torch.full((3,), -100)
    if option == "positive_group":
        if symmetric:
            return  # needs a candidate per row
        options[option] = (ignored, none)
    else:
        options |= {option: 0.1, "positive_index": ignored}
    loss = af.adaptive_infonce(b, b[:0], 0.1, **options)
    (gradient,) = torch.autograd.grad(loss, b)
    assert loss == 0
    assert not gradient.any()


@needs_extension
@pytest.mark.parametrize("case", ["positives, ignored rows", "smoothing, groups", "margin, smoothing"])
def test_rows_without_loss_may_be_nan(case):
    (a, b, tau), options = EVERY[case].drawn(40, 50, 10)
    ignored = options["positive_index"] if "positive_index" in options else options["positive_group"][0]
    weight = torch.where(torch.arange(40) == 5, 0.0, torch.ones(40, dtype=torch.float64))
    a[(ignored == -100) | (weight == 0)] = torch.nan
    leaves = [x.requires_grad_() for x in (a, b)]
    loss = af.adaptive_infonce(*leaves, tau, reduction="none", **options)
    loss[weight > 0].sum().backward()
    assert b.grad.isfinite().all()
    assert not a.grad[ignored == -100].any()


@pytest.mark.parametrize("name", ["infonce_targets", "infonce_targets_reference"])
def test_opcheck(name):
    a, b, tau = (t.requires_grad_() for t in inputs(9, 11, 4))
    label, column = labels(9, 11, 3)
    scale = torch.full((9,), 0.5, dtype=torch.float64)
    arguments = (a, b, tau, label, None, None, scale, True, True, True, False, None, 0.0, 0.1, label, column)
    torch.library.opcheck(getattr(torch.ops.adaftr_fast, name).default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_symmetric_is_the_mean_of_two_directions(case, backend):
    (a, b, tau), options = EVERY[case].drawn(40, 50, 10)
    group = {k: options[k] for k in ("row_group", "column_group") if k in options}
    rows = torch.arange(40)
    back = {k: v for k, v in options.items() if k in ("margin", "label_smoothing")}
    index = options.get("positive_index", rows)
    anchor = index.clamp(min=0)
    if group:
        back |= {"row_group": group["column_group"][anchor], "column_group": group["row_group"]}
    if "positive_group" in options:
        row, column = options["positive_group"]
        column[:40] = row  # so that every anchor has a positive
        if group:
            back["row_group"] = group["column_group"][:40] = torch.arange(40) + 100
        back["positive_group"] = (row, row)
    else:
        back["positive_index"] = torch.where(index == -100, -100, rows)
    tau_b = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    expected = (literal_rows(a, b, tau, **options) + literal_rows(b[anchor], a, tau_b[anchor], **back)) / 2
    found = af.adaptive_infonce(a, b, (tau, tau_b), symmetric=True, reduction="none", backend=backend, **options)
    torch.testing.assert_close(found, expected)


def test_candidates_beyond_the_batch_with_a_bias():
    """Sampled negatives with a correction each, weights exp(bias), of which no row has its positive."""
    a, b, tau = inputs(20, 60, 8)
    index = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    for options in ({}, {"label_smoothing": 0.2}, {"margin": 0.3}):
        found = af.adaptive_infonce(a, b, tau, positive_index=index, column_bias=weight.log(), **options)
        biased = [torch.cat(x, 1) for x in ((a, tau[:, None]), (b, weight.log()[:, None]))]
        torch.testing.assert_close(found, literal(*biased, tau, positive_index=index, **options))
    logits = a @ b.T / tau[:, None]
    expected = (weight * logits.exp()).sum(1).log() - (logits + weight.log())[torch.arange(20), index]
    plain = af.adaptive_infonce(a, b, tau, positive_index=index, column_bias=weight.log(), reduction="none")
    torch.testing.assert_close(plain, expected)


A, B = torch.randn(4, 3), torch.randn(6, 3)
ZEROS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a number, got bool"),
        ({"label_smoothing": 0.1, "ignore_above": 0.0}, ValueError, "label_smoothing requires ignore_above=None"),
        ({"margin": -0.1}, ValueError, r"margin must be in \[0, inf\), got -0.1"),
        ({"margin": float("nan")}, ValueError, "margin must be in"),
        ({"positive_group": ZEROS[:4]}, ValueError, r"positive_group must have shape \(6,\), got \(4,\)"),
        ({"positive_group": (ZEROS[:4],)}, ValueError, "positive_group must be a tensor or a pair .*, got 1 tensors"),
        ({"positive_group": (ZEROS[:4], ZEROS.int())}, TypeError, "positive_group must be int64, got torch.int32"),
        ({"positive_group": (ZEROS[:4], ZEROS), "margin": 0.1}, ValueError, "positive_group does not support margin"),
        ({"positive_group": (ZEROS[:4], ZEROS), "return_stats": True}, ValueError, "does not support return_stats"),
        ({"positive_group": (ZEROS[:4], ZEROS), "positive_index": ZEROS[:4]}, ValueError, "support positive_index"),
        ({"positive_group": (ZEROS[:4], ZEROS), "ignore_above": 1.0}, ValueError, "does not support ignore_above"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        af.adaptive_infonce(A, B, 0.1, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_positive_is_named(backend):
    row = torch.tensor([0, 1, 7, 2])
    with pytest.raises(RuntimeError, match=r"positive_group must give every row a positive, .* candidate of row 2 is"):
        af.adaptive_infonce(A, B, 0.1, positive_group=(row, torch.arange(6)), backend=backend)
    group = {"row_group": row, "column_group": torch.arange(6)}
    with pytest.raises(RuntimeError, match="no candidate of row 0 is"):
        af.adaptive_infonce(A, B, 0.1, positive_group=(row % 4, torch.arange(6)), backend=backend, **group)
