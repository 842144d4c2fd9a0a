"""adaptive_infonce on CPU against the float64 reference, over sizes, temperatures, options and instruction sets."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import adaftr_fast as af
from adaftr_fast.ops.infonce.reference import infonce_rows
from tests.ops.infonce.inputs import inputs, loss_and_gradients, masks, needs_extension
from tests.tolerances import assert_as_accurate

CAPABILITIES = ("generic", "avx2", "avx512", "avx512_bf16", "amx")
SIZES = [
    (1, 1, 1),
    (1, 5, 8),
    (2, 2, 31),
    (63, 63, 64),
    (100, 129, 8),
    (257, 300, 100),
    (1024, 1024, 64),
    (300, 1024, 256),
    (65, 2100, 33),
]


@pytest.fixture(params=CAPABILITIES)
def capability(request):
    try:
        af.set_cpu_capability(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    af.set_cpu_capability(None)


def eager(a, b, tau, **_):
    return F.cross_entropy(a @ b.T / tau[:, None], torch.arange(len(a)))


def assert_matches(tensors, dtype, pytorch=None, **options):
    """Loss and the three gradients of the CPU kernel against the float64 reference at the rounded inputs."""
    rounded = [t.to(dtype).double() if i < 2 else t for i, t in enumerate(tensors)]
    truth = loss_and_gradients(af.adaptive_infonce, rounded, torch.float64, backend="reference", **options)
    own = loss_and_gradients(af.adaptive_infonce, rounded, dtype, backend="cpu", **options)
    theirs = loss_and_gradients(pytorch or af.adaptive_infonce, rounded, dtype, backend="reference", **options)
    for name, x, t, p in zip(("loss", "d h_ctr", "d h_cvr", "d tau"), own, truth, theirs):
        assert_as_accurate(x, t, p, dtype, name)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns", "d"), SIZES)
def test_matches_reference(rows, columns, d, dtype, capability):
    assert_matches(inputs(rows, columns, d), dtype, eager)


@needs_extension
def test_agrees_with_cross_entropy_to_1e_5():
    tensors = inputs(1000, 1000, 64)
    truth = loss_and_gradients(eager, tensors, torch.float64)
    own = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32)
    for x, t in zip(own, truth):
        assert ((x - t).abs().max() / t.abs().max()).item() < 1e-5


@needs_extension
@pytest.mark.parametrize("tau", [1e-3, 1e-2, 1.0, 1e3])
def test_extreme_temperatures(tau, capability):
    a, b, _ = inputs(130, 150, 32)
    assert_matches((a, b, torch.full((130,), tau, dtype=torch.float64)), torch.float32)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sharp_rows_over_many_blocks_of_columns(dtype, capability):
    """Maxima hundreds apart from block to block, and positives far below them: as unit Gaussians give."""
    assert_matches(inputs(1100, 1300, 64, scale=4), dtype)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_statistics_and_tau_alone_where_maxima_move_far(dtype, capability):
    """What is summed beside l underflows with it."""
    a, b, tau = inputs(300, 1300, 64, scale=40)
    b[1250] = 60 * a.mean(0)
    rounded = [a.to(dtype), b.to(dtype), tau.to(dtype if dtype == torch.float64 else torch.float32)]
    tau_alone = rounded[2].requires_grad_()
    loss, stats = af.adaptive_infonce(*rounded[:2], tau_alone, return_stats=True, backend="cpu")
    loss.backward()
    exact = [x.detach().double() for x in rounded]
    exact[2].requires_grad_()
    truth, known = af.adaptive_infonce(*exact, return_stats=True, backend="reference")
    truth.backward()
    torch.testing.assert_close(stats.entropy.double(), known.entropy, rtol=1e-4, atol=1e-3)
    assert torch.equal(stats.top1, known.top1)
    torch.testing.assert_close(tau_alone.grad.double(), exact[2].grad, rtol=1e-3, atol=1e-5 * exact[2].grad.abs().max())


@needs_extension
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 3.4e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_row_looks_at_may_hold_anything(rows, bad, dtype, capability):
    a, b, tau = (x.float() for x in inputs(rows, 64, 8))
    b[40] = bad
    elsewhere = torch.zeros(rows, dtype=torch.int64)
    groups = {"row_group": torch.ones(rows, dtype=torch.int64), "column_group": (torch.arange(64) == 40).long()}
    for options in (
        {"positive_index": torch.full((rows,), -100)},
        {"positive_index": elsewhere, "row_weight": torch.zeros(rows)},
        {"positive_index": elsewhere, **groups},
    ):
        leaves = [x.to(dtype).requires_grad_() for x in (a, b)]
        af.adaptive_infonce(*leaves, tau, reduction="sum", backend="cpu", **options).backward()
        others = torch.arange(64) != 40
        assert leaves[1].grad[others].isfinite().all()
        if "row_group" not in options:
            assert not any(leaf.grad.any() for leaf in leaves)


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_late_column_that_takes_all(dtype, capability):
    """What earlier blocks held underflows to 0; the positives' entries there must not go with it."""
    a, b, _ = inputs(300, 1000, 16)
    a += 1
    b[900] = 400
    assert_matches((a, b, torch.full((300,), 0.5, dtype=torch.float64)), dtype)


@needs_extension
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand(sign, capability):
    a, b, _ = inputs(64, 64, 16)
    b[:64] += sign * a * 10  # the positive far above, or far below, all others
    assert_matches((a * 100, b, torch.full((64,), 0.1, dtype=torch.float64)), torch.float32)


@needs_extension
@pytest.mark.parametrize("gap", [3, 10, 20, 30])
def test_keeps_digits_as_the_positive_wins(gap, capability):
    """p of the positive up to 1 - 1e-7 and beyond: relative accuracy of a loss and a gradient that vanish."""
    rows = 96
    a = torch.eye(rows, dtype=torch.float64) * gap
    b = torch.eye(rows, dtype=torch.float64)
    a += inputs(rows, rows, rows, scale=0.1)[0]
    assert_matches((a, b, torch.ones(rows, dtype=torch.float64)), torch.float32)


@needs_extension
def test_identical_rows_and_columns(capability):
    a = torch.ones(70, 9, dtype=torch.float64)
    tensors = (a, a.clone(), torch.full((70,), 0.3, dtype=torch.float64))
    loss, d_a, d_b, d_tau = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32, backend="cpu")
    torch.testing.assert_close(loss.item(), math.log(70), rtol=1e-6, atol=0)
    summand = 1 / (70 * 0.3)  # the gradients are sums of such terms that cancel: 0 but for rounding
    assert max(d.abs().max() for d in (d_a, d_b, d_tau / 30)) < 1e-6 * summand
    stats = af.adaptive_infonce(a.float(), a.float(), 0.3, return_stats=True)[1]
    assert not stats.top1.any(), "a tie is no hit"
    torch.testing.assert_close(stats.entropy, torch.full((70,), 70.0).log())


@needs_extension
@pytest.mark.parametrize("logit", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_logits_are_equal_however_large(logit, dtype, capability):
    a = torch.full((64, 4), logit**0.5 / 2, dtype=torch.float64).to(dtype).requires_grad_()
    b = a.detach().clone().requires_grad_()
    loss = af.adaptive_infonce(a, b, 1.0, reduction="sum", backend="cpu")
    loss.backward()
    assert loss.item() == pytest.approx(64 * math.log(64), rel=1e-6)
    assert max(a.grad.abs().max(), b.grad.abs().max()) <= 1e-2 * a[0, 0]


@needs_extension
def test_lse_keeps_its_digits_far_above_the_positive(capability):
    a, b, _ = (t.float() for t in inputs(64, 64, 16))
    b -= a * 1000
    stats = af.adaptive_infonce(a, b, 0.5, return_stats=True, backend="cpu")[1]
    truth = infonce_rows(a.double(), b.double(), torch.full((64,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(stats.lse.double(), truth.lse, rtol=1e-5, atol=1e-3)


@needs_extension
@pytest.mark.parametrize("weight", [0.0, 1e-24, 1e-30])
def test_tiny_and_zero_weights(weight, capability):
    a, b, tau = inputs(100, 100, 16, scale=5)
    weights = torch.full((100,), weight)
    results = [
        loss_and_gradients(
            af.adaptive_infonce, (a, b, tau), dtype, backend=backend, row_weight=weights.to(dtype), reduction="sum"
        )
        for dtype, backend in ((torch.float64, "reference"), (torch.float32, "cpu"))
    ]
    for truth, own in zip(*results):
        torch.testing.assert_close(own.double(), truth, rtol=1e-3, atol=1e-4 * truth.abs().max().item())


@needs_extension
def test_a_row_of_weight_zero_has_no_gradient_whatever_it_holds(capability):
    a, b, tau = (t.float() for t in inputs(20, 20, 4))
    a[3] = float("nan")
    weight = torch.ones(20)
    weight[3] = 0
    a.requires_grad_(), b.requires_grad_()
    af.adaptive_infonce(a, b, tau, row_weight=weight, backend="cpu").backward()
    assert (a.grad[3] == 0).all()
    assert torch.isfinite(b.grad).all()


@needs_extension
@pytest.mark.parametrize(("precision", "bound"), [("highest", 2e-6), ("high", 1e-4), ("medium", 2e-2)])
def test_matmul_precision_is_honoured(precision, bound):
    tensors = inputs(300, 400, 96)
    truth = loss_and_gradients(af.adaptive_infonce, tensors, torch.float64)
    torch.set_float32_matmul_precision(precision)
    try:
        own = loss_and_gradients(af.adaptive_infonce, tensors, torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    errors = [((x - t).abs().max() / t.abs().max()).item() for x, t in zip(own, truth)]
    assert max(errors) < bound
    if precision in {"amx": ("high", "medium"), "avx512_bf16": ("medium",)}.get(af.cpu_capability(), ()):
        assert max(errors) > bound / 100, "the faster products were not used"


@needs_extension
def test_a_gpu_matmul_setting_leaves_the_cpu_alone():
    tensors = [t.float() for t in inputs(50, 50, 8)]
    before, setting = af.adaptive_infonce(*tensors), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(af.adaptive_infonce(*tensors), before)
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting


@needs_extension
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_options(reduction, symmetric, dtype, capability):
    rows, columns = 61, 80
    options = masks(rows, columns)
    options["row_weight"] = options["row_weight"].to(dtype)
    upstream = torch.linspace(-1, 2, rows) if reduction == "none" else None
    a, b, tau = inputs(rows, columns, 24)
    options |= {"reduction": reduction, "symmetric": symmetric}
    function = af.adaptive_infonce
    if symmetric:
        tau_column = torch.linspace(0.1, 1, columns, dtype=torch.float64)
        function = lambda a, b, tau, **o: af.adaptive_infonce(a, b, (tau, tau_column.to(tau.dtype)), **o)  # noqa: E731
    results = {}
    for name, backend, kind in (
        ("truth", "reference", torch.float64),
        ("own", "cpu", dtype),
        ("torch", "reference", dtype),
    ):
        results[name] = loss_and_gradients(function, (a, b, tau), kind, upstream, backend=backend, **options)
    for own, truth, theirs in zip(results["own"], results["truth"], results["torch"]):
        assert_as_accurate(own, truth, theirs, dtype)


@needs_extension
def test_statistics(capability):
    a, b, tau = inputs(50, 70, 12, scale=3)
    options = masks(50, 70)
    truth = infonce_rows(a, b, tau, options["positive_index"], options["row_group"], options["column_group"])
    _, stats = af.adaptive_infonce(a, b, tau, return_stats=True, backend="cpu", **options)
    assert not any(s.requires_grad for s in stats)
    torch.testing.assert_close(stats.lse, truth.lse)
    torch.testing.assert_close(stats.positive_logit, truth.positive_logit)
    torch.testing.assert_close(stats.entropy, truth.entropy)
    assert torch.equal(stats.top1, truth.top1)


@needs_extension
@pytest.mark.parametrize("frozen", ["h_ctr", "h_cvr", "tau", "h_ctr h_cvr", "h_cvr tau", "h_ctr tau"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_inputs_leave_the_other_gradients_unchanged(frozen, reduction, capability):
    tensors = dict(zip(("h_ctr", "h_cvr", "tau"), inputs(90, 90, 20)))

    def gradients(frozen):
        leaves = {k: v.clone().requires_grad_(k not in frozen) for k, v in tensors.items()}
        af.adaptive_infonce(*leaves.values(), reduction=reduction, backend="cpu").sum().backward()
        return {k: v.grad for k, v in leaves.items()}

    whole, partial = gradients(()), gradients(frozen.split())
    for name, gradient in partial.items():
        if name in frozen.split():
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, whole[name], rtol=1e-12, atol=1e-14)


@needs_extension
def test_all_rows_ignored():
    a, b, tau = (t.requires_grad_() for t in inputs(10, 12, 4))
    loss = af.adaptive_infonce(a, b, tau, positive_index=torch.full((10,), -100), backend="cpu")
    loss.backward()
    assert loss.item() == 0
    assert all((t.grad == 0).all() for t in (a, b, tau))


@needs_extension
def test_groups_that_mask_every_negative():
    a, b, tau = (t.requires_grad_() for t in inputs(10, 10, 4))
    loss = af.adaptive_infonce(a, b, tau, row_group=torch.zeros(10, dtype=torch.int64), backend="cpu")
    loss.backward()
    assert loss.item() == 0
    assert all((t.grad == 0).all() for t in (a, b, tau))


@needs_extension
def test_an_ignored_row_does_not_leak_nan(capability):
    a, b, tau = (t.float() for t in inputs(20, 20, 4))
    a[3] = float("nan")
    positive = torch.arange(20)
    positive[3] = -100
    a.requires_grad_(), b.requires_grad_()
    loss = af.adaptive_infonce(a, b, tau, positive_index=positive, backend="cpu")
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


@needs_extension
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_shows_in_the_loss(value, capability):
    a, b, tau = (t.float() for t in inputs(40, 40, 4))
    b[17, 2] = value
    loss, stats = af.adaptive_infonce(a, b, tau, backend="cpu", return_stats=True)
    assert not torch.isfinite(loss)
    if value != value:
        assert not stats.top1.any()


@needs_extension
@pytest.mark.parametrize("tau", [1.3e38, 3e38])
def test_temperatures_whose_inverse_is_subnormal(tau, capability):
    a, b, _ = (t.float() for t in inputs(40, 70, 4))
    groups = {"row_group": torch.arange(40) % 4, "column_group": torch.arange(70) % 4}
    loss = af.adaptive_infonce(a, b, tau, backend="cpu", **groups)
    torch.testing.assert_close(loss, af.adaptive_infonce(a, b, tau, backend="reference", **groups))


@needs_extension
def test_strides_offsets_and_expanded_inputs(capability):
    a, b, tau = inputs(40, 40, 10)
    plain = af.adaptive_infonce(a, b, tau[:1].expand(40), backend="cpu")
    padded = torch.zeros(41, 23, dtype=torch.float64)
    padded[1:, 3:13] = a
    strided = af.adaptive_infonce(padded[1:, 3:13], b.T.contiguous().T, tau[:1].expand(40), backend="cpu")
    assert torch.equal(plain, strided)
    assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0], backend="cpu"))
    assert torch.equal(plain, af.adaptive_infonce(a, b, tau[0].item(), backend="cpu"))


@needs_extension
def test_mixed_types_and_autocast():
    a, b, tau = inputs(30, 30, 16)
    mixed = af.adaptive_infonce(a.bfloat16(), b.float(), tau.float())
    assert torch.equal(mixed, af.adaptive_infonce(a.bfloat16().float(), b.float(), tau.float()))
    layer = torch.nn.Linear(16, 16).double().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = af.adaptive_infonce(layer(a.float()), b.float().requires_grad_(), 0.5)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32


@needs_extension
def test_a_loss_scale_reaches_small_half_precision_gradients():
    a, b, tau = inputs(512, 512, 16)
    leaf = a.half().requires_grad_()
    (af.adaptive_infonce(leaf, b.half(), tau.float()) * 65536).backward()
    truth = loss_and_gradients(af.adaptive_infonce, (a.half().double(), b.half().double(), tau), torch.float64)[1]
    assert ((leaf.grad / 65536 - truth).abs().max() / truth.abs().max()).item() < 1e-3


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(700, 900, 48), (2, 129, 8), (3, 129, 33)])
def test_bits_do_not_depend_on_the_run_or_on_two_threads(shape, dtype, capability):
    tensors = inputs(*shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(loss_and_gradients(af.adaptive_infonce, tensors, dtype))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    extra=st.integers(0, 20),
    d=st.integers(1, 40),
    scale=st.floats(1e-3, 8),  # below about 1e-300 the kernel flushes denormals, as documented
    seed=st.integers(0, 2**16),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@needs_extension
def test_any_shape_matches_reference(rows, extra, d, scale, seed, masked, dtype):
    options = masks(rows, rows + extra, seed) if masked else {}
    if masked:
        options["row_weight"] = options["row_weight"].to(dtype)
    assert_matches(inputs(rows, rows + extra, d, scale, seed), dtype, **options)
