"""The options positive_group, label_smoothing and margin of adaptive_infonce."""

import pytest
import torch
import torch.nn.functional as F

import adaftr_fast as af
from adaftr_fast.ops.infonce.targets import scan_by
from tests.ops.infonce.inputs import inputs
from tests.ops.infonce.targets import CASES, assert_matches, ids, literal, options_of
from tests.ops.marks import needs_extension

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1), (1, 5, 8), (63, 63, 64), (100, 129, 8), (257, 700, 100)]
BACKENDS = ["reference", pytest.param("cpu", marks=needs_extension)]


@needs_extension
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "d"), SIZES)
def test_matches_pytorch(rows, columns, d, dtype, case):
    assert_matches(inputs(rows, columns, d), dtype, **options_of(case, rows, columns))


@pytest.mark.parametrize("case", CASES)
def test_the_reference_matches_pytorch(case):
    assert_matches(inputs(100, 129, 8), torch.float64, backend="reference", **options_of(case, 100, 129))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["margin", "margin, groups"])
@pytest.mark.parametrize("columns", [130, 33_000])
def test_the_margin_in_every_kernel(columns, case, dtype, instruction_set):
    assert_matches(inputs(65, columns, 33), dtype, **options_of(case, 65, columns))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positives", [1, 10, 100, 1000])
def test_many_positives_in_every_kernel(positives, dtype, instruction_set):
    a, b, _ = inputs(1000, 1000, 64)
    label = torch.arange(1000) % (1000 // positives)
    assert_matches((a, b, torch.ones(1000, dtype=torch.float64)), dtype, positive_group=(label, label))


@needs_extension
@pytest.mark.parametrize("case", ["positives, groups", "smoothing, groups", "margin, smoothing"])
@pytest.mark.parametrize("columns", [130, 33_000])
def test_several_targets_in_every_kernel(columns, case, instruction_set):
    assert_matches(inputs(65, columns, 33), torch.bfloat16, **options_of(case, 65, columns))


@pytest.mark.parametrize("size", [1, 2, 5, 400])
@pytest.mark.parametrize("rows", [0, 1, 7, 64, 300])
def test_sums_by_scans(rows, size):
    """What CUDA tensors take."""
    x = inputs(1, rows, 5)[1]
    number = torch.randint(0, size, (rows,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scan_by(number, x, size), x.new_zeros(size, 5).index_add(0, number, x))
    if rows > 1 and size > 1:
        x[number == number[0]] = torch.nan
        found = scan_by(number, x, size)
        assert found[number[0]].isnan().all()
        assert found.isnan().any(1).sum() == 1


@needs_extension
def test_a_wrong_weight_is_named():
    arguments = (A, B, torch.ones(4), None, None, None, torch.ones(4), True, True, True, False, None, 0.0)
    with pytest.raises(RuntimeError, match=r"positive_weight must be \[4\], got \[6\]"):
        torch.ops.adaftr_fast.infonce_sweep(*arguments, torch.ones(6))


@needs_extension
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("case", CASES)
def test_frozen_inputs(case, frozen):
    options, gradients = options_of(case, 90, 100), []
    for fixed in ((), frozen):
        leaves = [t.requires_grad_(i not in fixed) for i, t in enumerate(inputs(90, 100, 20))]
        af.adaptive_infonce(*leaves, **options).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for i, (whole, partial) in enumerate(zip(*gradients)):
        if i in frozen:
            assert partial is None
        else:
            torch.testing.assert_close(partial, whole, rtol=1e-10, atol=1e-12)


@needs_extension
@pytest.mark.parametrize("tau", [1e-3, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("case", CASES)
def test_extreme_temperatures(case, tau):
    a, b, _ = inputs(130, 150, 32)
    tensors = (a, b, torch.full((130,), tau, dtype=torch.float64))
    assert_matches(tensors, torch.float32, **options_of(case, 130, 150, labels=40))


@needs_extension
@pytest.mark.parametrize("gap", [3, 30, 120, 300])
def test_a_margin_against_a_probability_near_one(gap):
    """exp(-gap) underflows in float32, but the margin brings the negatives back."""
    a = torch.eye(48, dtype=torch.float64) * gap + inputs(48, 48, 48, scale=0.1)[0]
    tensors = (a, torch.eye(48, dtype=torch.float64), torch.ones(48, dtype=torch.float64))
    for margin in (gap - 2, gap, gap + 20):
        assert_matches(tensors, torch.float32, margin=margin)


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_strided_inputs(case, backend):
    a, b, tau = inputs(40, 50, 10)
    options = options_of(case, 40, 50)
    plain = af.adaptive_infonce(a, b, tau, backend=backend, **options)
    a, b = F.pad(a, (3, 4))[:, 3:13], b.T.contiguous().T
    tau = tau.repeat_interleave(2)[::2]
    torch.testing.assert_close(af.adaptive_infonce(a, b, tau, backend=backend, **options), plain, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True])
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
    a, b, tau = inputs(40, 50, 10)
    options = options_of(case, 40, 50)
    ignored = options["positive_index"] if "positive_index" in options else options["positive_group"][0]
    weight = torch.where(torch.arange(40) == 5, 0.0, torch.ones(40, dtype=torch.float64))
    a[(ignored == -100) | (weight == 0)] = torch.nan
    leaves = [x.requires_grad_() for x in (a, b)]
    loss = af.adaptive_infonce(*leaves, tau, reduction="none", **options)
    loss[weight > 0].sum().backward()
    assert b.grad.isfinite().all()
    assert not a.grad[ignored == -100].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(case, reduction, backend):
    tensors = [t.requires_grad_() for t in inputs(6, 7, 3)]
    options = options_of(case, 6, 7)

    def function(*x):
        return af.adaptive_infonce(*x, reduction=reduction, backend=backend, **options)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("case", ["positives", "smoothing", "margin, smoothing"])
def test_torch_func(case):
    tensors, options = inputs(6, 7, 3), options_of(case, 6, 7)
    options = options | {"positive_index": None} if "positive_group" in options else options
    mine = {k: v for k, v in options.items() if v is not None}

    def ours(*x):
        return af.adaptive_infonce(*x, reduction="sum", **mine)

    def theirs(*x):
        return literal(*x, **mine).sum()

    first = [torch.func.grad(f, argnums=(0, 1, 2)) for f in (ours, theirs)]
    torch.testing.assert_close(*(f(*tensors) for f in first))
    second = [torch.func.jacrev(lambda *x, f=f: f(*x)[1], argnums=(0, 1, 2)) for f in first]
    torch.testing.assert_close(*(f(*tensors) for f in second))


@pytest.mark.parametrize("case", ["positives, groups", "smoothing, groups", "margin, smoothing"])
def test_compiles_to_one_graph(case):
    options = options_of(case, 33, 40)

    def function(*x):
        return af.adaptive_infonce(*x, **options)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    tensors = [t.requires_grad_() for t in inputs(33, 40, 7)]
    found, true = ([loss, *torch.autograd.grad(loss, tensors)] for loss in (compiled(*tensors), function(*tensors)))
    torch.testing.assert_close(found, true)


@pytest.mark.parametrize("name", ["infonce_targets", "infonce_targets_reference"])
def test_opcheck(name):
    a, b, tau = (t.requires_grad_() for t in inputs(9, 11, 4))
    label, column = ids(9, 11, 3)
    scale = torch.full((9,), 0.5, dtype=torch.float64)
    arguments = (a, b, tau, label, None, None, scale, True, True, True, False, None, 0.0, 0.1, label, column)
    torch.library.opcheck(getattr(torch.ops.adaftr_fast, name).default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_symmetric_is_the_mean_of_two_directions(case, backend):
    a, b, tau = inputs(40, 50, 10)
    options = options_of(case, 40, 50)
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
    expected = (literal(a, b, tau, **options) + literal(b[anchor], a, tau_b[anchor], **back)) / 2
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
        torch.testing.assert_close(found, literal(*biased, tau, positive_index=index, **options).mean())
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
