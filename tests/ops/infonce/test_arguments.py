"""Arguments that the losses refuse, and the errors that name them."""

import math

import pytest
import torch

import adaftr_fast as af

A = torch.randn(4, 3)
B = torch.randn(6, 3)
INDEX = torch.zeros(4, dtype=torch.int64)
ZEROS = torch.zeros(6, dtype=torch.int64)
GROUPS = {"positive_group": (INDEX, ZEROS)}
MASK = torch.ones(4, 6, dtype=torch.bool)
RAGGED = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
SMOOTH = {"label_smoothing": 0.1}
BACKENDS = pytest.mark.parametrize("backend", ["auto", "reference"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((A[0], B, 0.1), ValueError, "h_ctr must be a 2-dim tensor"),
        ((A, B[:, :2], 0.1), ValueError, "same width"),
        ((A.long(), B, 0.1), TypeError, "h_ctr must be float32"),
        ((A, B[:2], 0.1), ValueError, r"at least one row per row of h_ctr \(4\)"),
        ((A, B.to("meta"), 0.1), ValueError, "on one device, got cpu and meta"),
        ((A, B, True), ValueError, "positive finite number"),
        ((A, B, torch.ones(5)), ValueError, r"shape \(1,\), \(4,\) or \(4, 1\), got \(5,\)"),
        ((A, B, INDEX > 0), TypeError, "tau must be of real numbers, got torch.bool"),
        ((A, B, (0.1, 0.1)), ValueError, "requires symmetric=True, got 2 elements"),
    ],
)
def test_tensors(arguments, error, message):
    with pytest.raises(error, match=f"adaptive_infonce: .*{message}"):
        af.adaptive_infonce(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tau": (0.1, 0.1, 0.1), "symmetric": True}, ValueError, "must be a pair"),
        ({"reduction": "max"}, ValueError, "reduction must be"),
        ({"backend": "cuda"}, ValueError, "backend must be"),
        (
            {"precision": torch.float32},
            ValueError,
            "precision must be auto, float32 or bfloat16, got ",
        ),
        ({"row_weight": [1.0] * 4}, TypeError, "row_weight must be a tensor, got list"),
        ({"positive_index": INDEX[:3]}, ValueError, "positive_index must have shape"),
        ({"row_group": INDEX}, ValueError, "requires N = B"),
        ({"column_group": ZEROS}, ValueError, "requires row_group"),
        ({"column_bias": ZEROS}, TypeError, "column_bias must be floating point, got torch.int64"),
        (
            {"column_bias": torch.zeros(6), "symmetric": True},
            ValueError,
            "requires symmetric=False",
        ),
        ({"ignore_above": -math.inf}, ValueError, "ignore_above must be a finite number or None"),
        ({"ignore_above": True}, TypeError, "ignore_above must be a finite number or None, got "),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": True}, TypeError, "label_smoothing must be a number, got bool"),
        (SMOOTH | {"ignore_above": 0.0}, ValueError, "label_smoothing requires ignore_above=None"),
        ({"margin": -0.1}, ValueError, r"margin must be in \[0, inf\), got -0.1"),
        (
            {"positive_group": INDEX},
            ValueError,
            r"positive_group must have shape \(6,\), got \(4,\)",
        ),
        ({"positive_group": (INDEX,)}, ValueError, "a tensor or a pair .*, got 1 tensors"),
        ({"positive_group": (INDEX, ZEROS.int())}, TypeError, "must be int64, got torch.int32"),
        (GROUPS | {"return_stats": True}, ValueError, "does not support return_stats"),
        ({"candidate_mask": [True]}, TypeError, "candidate_mask must be a tensor, got list"),
        ({"candidate_mask": ZEROS}, TypeError, "candidate_mask must be bool, got torch.int64"),
        ({"candidate_mask": ZEROS > 0}, ValueError, r"shape \(4, 6\), got \(6,\)"),
        (
            {"candidate_mask": MASK, "symmetric": True, "positive_index": INDEX},
            ValueError,
            "candidate_mask with symmetric does not support positive_index",
        ),
        (GROUPS | {"candidate_mask": MASK}, ValueError, "does not support candidate_mask"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int, got float"),
        ({"h_ctr": A.to_sparse()}, TypeError, "h_ctr must be a dense tensor, got a torch.sparse"),
        ({"h_cvr": RAGGED}, TypeError, "h_cvr must be a dense tensor, got a nested tensor"),
        (
            {"row_weight": torch.ones(4).to_sparse()},
            TypeError,
            "row_weight must be a dense tensor, got a torch.sparse_coo",
        ),
        ({"block": True}, TypeError, "block must be"),
        ({"block": 2}, ValueError, "block requires N = B, got N = 6, B = 4"),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=f"adaptive_infonce: .*{message}"):
        af.adaptive_infonce(**{"h_ctr": A, "h_cvr": B, "tau": 0.1} | options)


OTHERS = {
    "positive_index": INDEX,
    "ignore_above": 0.0,
    "margin": 0.1,
    "label_smoothing": 0.1,
    "row_group": INDEX,
    "column_bias": torch.zeros(4),
    "positive_group": INDEX,
    "candidate_mask": MASK,
}


@pytest.mark.parametrize("name", OTHERS)
def test_options_that_exclude_each_other(name):
    given = {name: OTHERS[name]}
    with pytest.raises(ValueError, match=f"adaptive_infonce: block does not support {name}"):
        af.adaptive_infonce(A, A, 0.1, block=4, **given)
    if name in ("positive_index", "ignore_above", "margin"):
        with pytest.raises(ValueError, match=f"positive_group does not support {name}"):
            af.adaptive_infonce(A, B, 0.1, **GROUPS, **given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"h_ctr": A[0]}, ValueError, "h_ctr must be a 2-dim tensor"),
        (
            {"logit_scale": "1"},
            TypeError,
            "logit_scale must be a number or a 0-dim tensor, got str",
        ),
        ({"logit_bias": torch.ones(2)}, ValueError, r"logit_bias must hold one number, got shape"),
        ({"logit_bias": INDEX[0] > 0}, TypeError, "logit_bias must be a real number, got torch.bo"),
        ({"positive_index": torch.zeros(4)}, TypeError, "positive_index must be int64"),
        ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"backend": "cuda"}, ValueError, "backend must be auto, reference, cpu or triton, got 'c"),
    ],
)
def test_sigmoid_contrast(options, error, message):
    good = {"h_ctr": A, "h_cvr": B, "logit_scale": 1, "logit_bias": 0}
    with pytest.raises(error, match=f"sigmoid_contrast: .*{message}"):
        af.sigmoid_contrast(**good | options)


@BACKENDS
@pytest.mark.parametrize("options", [{}, {"block": 2}, {"symmetric": True}], ids=str)
def test_a_bad_temperature_is_named_with_its_row(options, backend):
    for value in (0.0, -1.0, math.nan, math.inf):
        tau = torch.ones(4)
        tau[2] = value
        with pytest.raises(RuntimeError, match=r"tau must be positive and finite, got tau\[2\]"):
            af.adaptive_infonce(A, A, tau, backend=backend, **options)
        if options == {"symmetric": True}:
            with pytest.raises(
                RuntimeError, match=r"tau \(per column\) must be positive and finite, got tau\[2\]"
            ):
                af.adaptive_infonce(A, A, (torch.ones(4), tau), backend=backend, **options)
        if not options:
            ignored = torch.tensor([0, 1, -100, 3])
            assert torch.isfinite(
                af.adaptive_infonce(A, B, tau, positive_index=ignored, backend=backend)
            )


@BACKENDS
def test_a_positive_out_of_range_or_missing_is_named_with_its_row(backend):
    with pytest.raises(RuntimeError, match=r"got positive_index\[1\] = 6"):
        af.adaptive_infonce(A, B, 0.1, positive_index=torch.tensor([0, 6, 1, 2]), backend=backend)
    row = torch.tensor([0, 1, 7, 2])
    column = torch.arange(6)
    with pytest.raises(
        RuntimeError,
        match=r"positive_group must give every row a positive, .* candidate of row 2 is",
    ):
        af.adaptive_infonce(A, B, 0.1, positive_group=(row, column), backend=backend)
    groups = {"row_group": row, "column_group": column, "backend": backend}
    with pytest.raises(RuntimeError, match="no candidate of row 0 is"):
        af.adaptive_infonce(A, B, 0.1, positive_group=(row % 4, column), **groups)


@BACKENDS
@pytest.mark.parametrize(
    ("scale", "bias", "index", "message"),
    [
        (0.0, 0.0, 0, "logit_scale must be positive and finite, got 0"),
        (math.nan, 0.0, 0, "logit_scale must be positive and finite, got nan"),
        (1.0, math.inf, 0, "logit_bias must be finite, got inf"),
        (1.0, 0.0, 6, r"positive_index must be in \[0, 6\) or -100, got positive_index\[1\] = 6"),
    ],
)
def test_bad_values_of_the_sigmoid_loss(scale, bias, index, message, backend):
    with pytest.raises(RuntimeError, match=f"sigmoid_contrast: {message}"):
        af.sigmoid_contrast(
            A, B, scale, bias, positive_index=torch.tensor([0, index, 1, 2]), backend=backend
        )


def biased(bias):
    return af.adaptive_infonce(A.double(), B.double(), 0.3, column_bias=bias)


@pytest.mark.parametrize(
    "transform", [lambda f: f, torch.func.grad, lambda f: lambda x: torch.vmap(f)(x[None])]
)
def test_a_bias_that_is_not_finite_is_named(transform):
    bias = torch.linspace(-1, 1, 6, dtype=torch.float64)
    transform(biased)(bias)
    bias[[2, 4]] = torch.tensor([-math.inf, math.nan], dtype=torch.float64)
    with pytest.raises(
        RuntimeError,
        match=r"column_bias must be finite \(row_group .* got column_bias\[2\] = -?[ni]",
    ):
        transform(biased)(bias)


def test_a_bias_that_is_not_finite_is_refused_within_a_graph():
    bias = torch.linspace(-1, 1, 6, dtype=torch.float64)
    compiled = torch.compile(biased, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(bias), biased(bias))
    with pytest.raises(RuntimeError, match="column_bias must be finite"):
        compiled(bias.log())


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: af.adaptive_infonce(A, B, x.exp()[:, 0]),
        lambda x: af.adaptive_infonce(A, A, 0.5, column_bias=x[:, 0]),
        lambda x: af.sigmoid_contrast(x, B, 1.0, 0.0),
    ],
)
def test_forward_mode_is_refused(loss):
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(loss, (A,), (torch.ones_like(A),))
