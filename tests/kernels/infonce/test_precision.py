"""Which products the settings of float32 precision choose, and how exact those of split operands
are.
"""

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import inputs, loss_and_gradients, masks
from tests.ops.infonce.test_precision import unset_precision  # noqa: F401  # a fixture
from tests.tolerances import assert_same_bits

pytestmark = pytest.mark.usefixtures("unset_precision")
pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
interpreted = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")
MATMUL, CPU_MATMUL = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def float32_kind():
    return config.product_kind(torch.float32)


@pytest.mark.parametrize(
    ("setting", "kind"), [("highest", "ieee"), ("high", "bf16x3"), ("medium", "tf32")]
)
def test_matmul_precision_chooses_the_products(setting, kind):
    torch.set_float32_matmul_precision(setting)
    assert float32_kind() == kind
    assert config.product_kind(torch.float32, ieee=True) == "ieee"
    for ieee in (False, True):
        assert config.product_kind(torch.float64, ieee=ieee) == "float64"
        assert config.product_kind(torch.bfloat16, ieee=ieee) == "half"


def test_newer_settings_choose_the_products():
    assert float32_kind() == "ieee", "the default"
    CPU_MATMUL.fp32_precision = "tf32"
    assert float32_kind() == "ieee", "the setting of the CPU is not CUDA's"
    CPU_MATMUL.fp32_precision = "none"
    for where in (torch.backends, MATMUL):
        where.fp32_precision = "tf32"
        assert float32_kind() == "tf32"
        where.fp32_precision = "none"
        assert float32_kind() == "ieee"
    torch.backends.fp32_precision = "tf32"
    MATMUL.fp32_precision = "ieee"
    assert float32_kind() == "ieee", "the setting of CUDA's products overrules the global one"
    torch.backends.fp32_precision = "ieee"
    MATMUL.fp32_precision = "none"
    assert float32_kind() == "ieee"
    MATMUL.allow_tf32 = True
    assert float32_kind() == "tf32"


FORMS = {
    "one direction": {},
    "row losses": {"reduction": "none"},
    "both directions": {"symmetric": True, "row_group": torch.arange(20) // 2},
    "targets": {"positive_group": torch.arange(20) // 2, "label_smoothing": 0.1},
    "blocks": {"block": 4, "reduction": "none"},
}


@interpreted
@pytest.mark.parametrize("form", FORMS)
def test_precision_reaches_every_launch(form, monkeypatch):
    from adaftr_fast.kernels.infonce import launch

    found = set()
    chosen = config.product_kind
    monkeypatch.setattr(
        launch, "product_kind", lambda *given: found.add(chosen(*given)) or chosen(*given)
    )
    torch.set_float32_matmul_precision("medium")
    for precision, kind in (("auto", "tf32"), ("float32", "ieee"), ("bfloat16", "half")):
        found.clear()
        leaves = [x.float().requires_grad_() for x in inputs(20, 20, 8)]
        loss = af.adaptive_infonce(*leaves, backend="triton", precision=precision, **FORMS[form])
        loss.sum().backward()
        assert found == {kind}


def evaluate(tensors, dtype=torch.float32, backend="triton", **options):
    """Returns the loss and its gradients."""
    return loss_and_gradients(
        af.adaptive_infonce, tensors, dtype, backend=backend, return_stats=True, **options
    )[:4]


def worst(found, truth):
    """The largest error of loss and gradients, in units of the largest value of each."""
    return max(
        ((x.double() - t).abs().max() / t.abs().max()).item()
        for x, t in zip(found, truth, strict=True)
    )


def rounded(x, bits):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


@interpreted
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("size", "masked"), [((5, 7, 3), False), ((20, 40, 264), True)], ids=str)
def test_high_keeps_sixteen_bits(size, masked):
    tensors = [t.float().double() for t in inputs(*size)]
    options = masks(*size[:2]) if masked else {}
    truth = evaluate(tensors, torch.float64, "reference", **options)
    operands = [rounded(t, 11) for t in tensors[:2]]
    tf32 = evaluate((*operands, tensors[2]), torch.float64, "reference", **options)
    default = evaluate(tensors, **options)
    assert worst(default, truth) < 2e-6, "IEEE, the default"
    torch.set_float32_matmul_precision("high")
    found = worst(evaluate(tensors, **options), truth)
    assert found < 1e-4
    assert found < worst(tf32, truth) / 10, "TF32 has 11 bits"
    overruled = evaluate(tensors, precision="float32", **options)
    assert_same_bits(overruled, default)


@interpreted
@pytest.mark.usefixtures("hopper")
def test_blocks_of_tf32_on_hopper():
    """The interpreter rounds nothing to TF32, so the results are those of float32."""
    torch.set_float32_matmul_precision("medium")
    assert config.choose_tiling("tf32", 112, 90).row_sweep.block_m == 128
    tensors = [t.float().double() for t in inputs(130, 150, 100)]
    for options in ({}, masks(130, 150)):
        truth = evaluate(tensors, torch.float64, "reference", **options)
        assert worst(evaluate(tensors, **options), truth) < 2e-6


@interpreted
@pytest.mark.usefixtures("hopper")
def test_high_is_exact_in_numbers_of_bfloat16_and_at_logits_of_ten_thousand():
    """Both sweeps add the products of the terms in one order, else their scores differ where logits
    are large.
    """
    torch.set_float32_matmul_precision("high")
    a, b, tau = inputs(70, 90, 32)
    tensors = (a.bfloat16().double(), b.bfloat16().double(), tau)
    truth = evaluate(tensors, torch.float64, "reference")
    assert worst(evaluate(tensors), truth) < 2e-5, "the split of the softmax is the only rounding"
    for sign in (1, -1):
        a, b, _ = inputs(64, 64, 16)
        tensors = [t.float().double() for t in (a * 100, b + sign * a * 10, torch.full((64,), 0.1))]
        own = evaluate(tensors)
        assert all(x.isfinite().all() for x in own)
        assert worst(own, evaluate(tensors, torch.float64, "reference")) < 1e-2
