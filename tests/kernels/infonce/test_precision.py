"""Which products the settings of float32 precision choose, and how exact those of split operands are."""

import pytest
import torch

import adaftr_fast as af
from tests.kernels.infonce.agreement import evaluate
from tests.ops.infonce.inputs import inputs, masks

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
interpreted = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")
MATMUL, CPU_MATMUL = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def unset_precision():
    """No precision is set; those of before come back afterwards."""
    settings = [MATMUL, CPU_MATMUL, torch.backends]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "none"
    yield
    torch.set_float32_matmul_precision("highest")  # what torch.get_float32_matmul_precision returns is kept apart
    for each, value in zip(settings, before):
        each.fp32_precision = value


def test_float32_products_are_ieee_by_default():
    assert config.product_kind(torch.float32) == "ieee"
    CPU_MATMUL.fp32_precision = "tf32"
    assert config.product_kind(torch.float32) == "ieee", "the setting of the CPU is not CUDA's"


@pytest.mark.parametrize(("precision", "kind"), [("highest", "ieee"), ("high", "bf16x3"), ("medium", "tf32")])
def test_matmul_precision_chooses_the_products(precision, kind):
    torch.set_float32_matmul_precision(precision)
    assert config.product_kind(torch.float32) == kind
    assert config.product_kind(torch.float64) == "float64"
    assert config.product_kind(torch.bfloat16) == "half"


def test_tf32_is_taken_literally():
    for where in (torch.backends, MATMUL):
        where.fp32_precision = "tf32"
        assert config.product_kind(torch.float32) == "tf32"
        where.fp32_precision = "none"
        assert config.product_kind(torch.float32) == "ieee"
    MATMUL.allow_tf32 = True
    assert config.product_kind(torch.float32) == "tf32"


def test_the_setting_of_cuda_products_overrules_the_global_one():
    torch.backends.fp32_precision = "tf32"
    MATMUL.fp32_precision = "ieee"
    assert config.product_kind(torch.float32) == "ieee"
    torch.backends.fp32_precision = "ieee"
    MATMUL.fp32_precision = "none"
    assert config.product_kind(torch.float32) == "ieee"


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_ieee_overrules_the_settings(setting):
    torch.set_float32_matmul_precision(setting)
    assert config.product_kind(torch.float32, ieee=True) == "ieee"
    assert config.product_kind(torch.float64, ieee=True) == "float64"
    assert config.product_kind(torch.bfloat16, ieee=True) == "half"


def errors(found, truth) -> float:
    """The largest error of loss and gradients, in units of the largest value of each."""
    return max(((x.double() - t).abs().max() / t.abs().max()).item() for x, t in zip(found[:4], truth))


def worst(tensors, truth, **options) -> float:
    own = evaluate(tensors, torch.float32, backend="triton", **options)
    return errors(own, truth)


def rounded(x, bits: int):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


@pytest.fixture
def hopper(monkeypatch):
    from adaftr_fast.kernels.infonce import operands

    monkeypatch.setattr(operands, "ASSUMED_CAPABILITY", 90)


@pytest.fixture
def kinds(monkeypatch):
    """The kinds of the products of all launches."""
    from adaftr_fast.kernels.infonce import operands

    found = set()

    def record(*arguments):
        kind = config.product_kind(*arguments)
        found.add(kind)
        return kind

    monkeypatch.setattr(operands, "product_kind", record)
    return found


FORMS = {
    "one direction": {},
    "row losses": {"reduction": "none"},
    "both directions": {"symmetric": True, "row_group": torch.arange(20) // 2},
    "targets": {"positive_group": torch.arange(20) // 2, "label_smoothing": 0.1},
    "blocks": {"block": 4, "reduction": "none"},
}


@interpreted
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("precision", "kind"), [("auto", "tf32"), ("float32", "ieee"), ("bfloat16", "half")])
def test_precision_reaches_every_launch(form, precision, kind, kinds):
    torch.set_float32_matmul_precision("medium")
    leaves = [x.float().requires_grad_() for x in inputs(20, 20, 8)]
    loss = af.adaptive_infonce(*leaves, backend="triton", precision=precision, **FORMS[form])
    loss.sum().backward()
    assert kinds == {kind}


@interpreted
@pytest.mark.usefixtures("hopper")
def test_float32_overrules_high():
    tensors = inputs(70, 80, 24)
    expected = evaluate(tensors, torch.float32, backend="triton")
    torch.set_float32_matmul_precision("high")
    found = evaluate(tensors, torch.float32, backend="triton", precision="float32")
    assert all(torch.equal(x, y) for x, y in zip(found, expected))


@interpreted
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("rows", "columns", "d", "masked"), [(5, 7, 3, False), (130, 150, 96, False), (70, 80, 264, True)]
)
def test_high_keeps_sixteen_bits(rows, columns, d, masked):
    tensors = [t.float().double() for t in inputs(rows, columns, d)]
    options = masks(rows, columns) if masked else {}
    truth = evaluate(tensors, torch.float64, backend="reference", **options)
    operands = [rounded(t, 11) for t in tensors[:2]]
    tf32 = evaluate((*operands, tensors[2]), torch.float64, backend="reference", **options)
    assert worst(tensors, truth, **options) < 2e-6, "IEEE, the default"
    torch.set_float32_matmul_precision("high")
    found = worst(tensors, truth, **options)
    assert found < 1e-4
    assert found < errors(tf32, truth) / 10, "TF32 has 11 bits"


@interpreted
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_tf32_on_hopper(masked):
    """The interpreter rounds nothing to TF32, so the results are those of float32."""
    torch.set_float32_matmul_precision("medium")
    assert config.choose_tiling("tf32", 112, 90).row_sweep.block_m == 128
    tensors = [t.float().double() for t in inputs(150, 200, 100)]
    options = masks(150, 200) if masked else {}
    truth = evaluate(tensors, torch.float64, backend="reference", **options)
    assert worst(tensors, truth, **options) < 2e-6


@interpreted
@pytest.mark.usefixtures("hopper")
def test_high_is_exact_in_numbers_of_bfloat16():
    """The split of the softmax is then the only rounding: 16 bits of numbers up to 1."""
    tensors = inputs(70, 90, 32)
    torch.set_float32_matmul_precision("high")
    a, b = (t.bfloat16().double() for t in tensors[:2])
    truth = evaluate((a, b, tensors[2]), torch.float64, backend="reference")
    assert worst((a, b, tensors[2]), truth) < 2e-5


@interpreted
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("sign", [1, -1])
def test_high_at_logits_of_ten_thousand(sign):
    """Both sweeps add the products of the terms in one order, else their scores differ where logits are large."""
    a, b, _ = inputs(64, 64, 16)
    b += sign * a * 10
    tensors = [t.float().double() for t in (a * 100, b, torch.full((64,), 0.1))]
    truth = evaluate(tensors, torch.float64, backend="reference")
    torch.set_float32_matmul_precision("high")
    own = evaluate(tensors, torch.float32, backend="triton")
    assert all(x.isfinite().all() for x in own)
    assert worst(tensors, truth) < 1e-2
