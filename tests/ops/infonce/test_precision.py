"""The precision of the products: the argument of adaptive_infonce, and the settings of torch."""

from contextlib import contextmanager

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import inputs, loss_and_gradients, masks
from tests.ops.marks import needs_extension

ROWS = 96
LABELS = torch.arange(ROWS) // 3
FORMS = {
    "one direction": {},
    "masks": {name: x for name, x in masks(ROWS, ROWS).items() if name != "row_weight"},
    "row losses": {"reduction": "none"},
    "both directions": {"symmetric": True},
    "both directions, row losses": {"symmetric": True, "reduction": "none"},
    "targets": {"positive_group": LABELS, "label_smoothing": 0.1},
    "targets, row losses": {"margin": 0.1, "reduction": "none"},
    "small blocks": {"block": 16},
    "large blocks": {"block": 70},
    "large blocks, row losses": {"block": 70, "reduction": "none"},
    "bias": {"column_bias": torch.linspace(-1, 1, ROWS)},
}
SOME = ["one direction", "both directions, row losses", "targets", "large blocks"]


@contextmanager
def under(setting):
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def computed(
    dtype=torch.float32, setting="highest", tensors=None, loss=af.adaptive_infonce, **options
):
    """Returns the loss and the gradients under a setting of torch, in backward too."""
    tensors = inputs(ROWS, ROWS, 40) if tensors is None else tensors
    upstream = torch.linspace(-1, 2, ROWS) if options.get("reduction") == "none" else None
    with under(setting):
        return loss_and_gradients(loss, tensors, dtype, upstream, **options)


def second_derivatives(setting="highest", dtype=torch.float32, **options):
    """Returns the derivatives of the squared gradients' sum."""
    leaves = [x.float().to(dtype).requires_grad_() for x in inputs(ROWS, ROWS, 40)]
    with under(setting):
        loss = af.adaptive_infonce(*leaves, **options).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)


def equal(found, expected):
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def chosen(setting):
    """Whether this machine has other products under the setting than under "highest"."""
    others = {"amx": ("high", "medium"), "avx512_bf16": ("medium",), "neon_bf16": ("medium",)}
    return setting in others.get(af.cpu_capability(), ())


@needs_extension
@pytest.mark.parametrize(
    ("setting", "bound"), [("highest", 2e-6), ("high", 1e-4), ("medium", 2e-2)]
)
def test_settings_choose_the_products(setting, bound):
    tensors = inputs(300, 400, 96)
    truth = computed(torch.float64, tensors=tensors)
    own = computed(setting=setting, tensors=tensors)
    errors = [((x - t).abs().max() / t.abs().max()).item() for x, t in zip(own, truth)]
    assert max(errors) < bound
    assert not chosen(setting) or max(errors) > bound / 100, "the faster products were not used"


@pytest.fixture
def unset_precision():
    """No precision is set; those of before come back afterwards."""
    settings = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends]
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "none"
    yield
    # what torch.get_float32_matmul_precision returns is kept apart
    torch.set_float32_matmul_precision("highest")
    for each, value in zip(settings, before):
        each.fp32_precision = value


@needs_extension
@pytest.mark.parametrize(
    ("setting", "older"), [("ieee", "highest"), ("tf32", "high"), ("bf16", "medium")]
)
@pytest.mark.parametrize(
    "where", [torch.backends, torch.backends.mkldnn.matmul], ids=["backends", "matmul"]
)
def test_newer_settings(where, setting, older, unset_precision):
    where.fp32_precision = setting
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # which does not affect the CPU
    own = loss_and_gradients(af.adaptive_infonce, inputs(ROWS, ROWS, 40), torch.float32)
    where.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"
    assert equal(own, computed(setting=older))


@needs_extension
@pytest.mark.parametrize(
    "instruction_set", ["generic", "avx512_bf16", "amx", "neon_bf16"], indirect=True
)
def test_float32_is_ieee_and_bfloat16_rounds_the_representations_under_every_setting(
    instruction_set,
):
    """With "bfloat16" the bits are those of bfloat16 inputs; the gradients too, which that type
    rounds.
    """
    for form, options in FORMS.items():
        expected = computed(**options)
        assert equal(computed(precision="float32", **options), expected), form
        for setting in ("high", "medium"):
            assert equal(computed(setting=setting, precision="float32", **options), expected), form
            if chosen(setting) and form != "small blocks":
                assert not equal(computed(setting=setting, **options), expected), form
        expected = computed(torch.bfloat16, **options)
        for setting in ("highest", "medium"):
            found = computed(setting=setting, precision="bfloat16", **options)
            assert found[1].dtype == torch.float32
            assert equal(found, [x.float() for x in expected]), form


@pytest.mark.parametrize(
    ("dtype", "precision", "products"),
    [
        (torch.bfloat16, "float32", torch.float32),
        (torch.float16, "float32", torch.float32),
        (torch.float64, "bfloat16", torch.bfloat16),
        (torch.float16, "bfloat16", torch.bfloat16),
    ],
)
def test_precision_converts_other_types(dtype, precision, products):
    """Gradients are of the type of the inputs."""
    a, b, tau = inputs(ROWS, ROWS, 40)
    for kind in (dtype, products):
        a = a.to(kind).double()
        b = b.to(kind).double()
        tau = tau.float().double()
    found = computed(dtype, setting="medium", tensors=(a, b, tau), precision=precision)
    assert found[0].dtype == torch.float32
    expected = computed(products, tensors=(a, b, tau))
    expected = [x.to(y.dtype) for x, y in zip(expected, found, strict=True)]
    if af.cpu_capability() == "none":  # under "medium" the reference computes in float64
        torch.testing.assert_close(found, expected)
    else:
        assert equal(found, expected)


def test_float32_is_exact_in_the_reference_and_in_second_derivatives_and_leaves_float64():
    """Their products follow the settings of torch, which AMX shows, so they compute in float64."""
    tensors = [x.float().double() for x in inputs(ROWS, ROWS, 40)]
    for form, options in FORMS.items():
        exact = computed(torch.float64, **options)
        assert equal(computed(torch.float64, precision="float32", **options), exact), form
        assert equal(computed(torch.float64, setting="medium", **options), exact), form
        truth = computed(torch.float64, tensors=tensors, **options)
        found = computed(setting="medium", backend="reference", precision="float32", **options)
        second = second_derivatives(setting="medium", precision="float32", **options)
        true_second = second_derivatives(dtype=torch.float64, **options)
        for x, t in zip([*found, *second], [*truth, *true_second], strict=True):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x.double(), t, rtol=1e-5, atol=1e-5 * t.abs().max().item())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", SOME)
def test_precision_in_one_graph_and_under_torch_func(form, precision):
    options = FORMS[form] | {"precision": precision}

    def loss(*x):
        return af.adaptive_infonce(*x, **options)

    upstream = {"reduction": "none"} if "reduction" in options else {}
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    expected = computed(**options)
    assert equal(
        computed(setting="medium", loss=lambda *x, **_: compiled(*x), **upstream), expected
    )
    if not upstream:
        tensors = [x.float() for x in inputs(ROWS, ROWS, 40)]
        with under("medium"):
            assert equal(torch.func.grad(loss, argnums=(0, 1, 2))(*tensors), expected[1:])
