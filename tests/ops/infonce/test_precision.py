"""The precision of the products, as an argument of adaptive_infonce."""

from concurrent.futures import ThreadPoolExecutor

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


def computed(dtype=torch.float32, setting="highest", tensors=None, **options):
    """Returns the loss and the gradients under a setting of torch, in backward too."""
    torch.set_float32_matmul_precision(setting)
    tensors = inputs(ROWS, ROWS, 40) if tensors is None else tensors
    upstream = torch.linspace(-1, 2, ROWS) if options.get("reduction") == "none" else None
    try:
        return loss_and_gradients(af.adaptive_infonce, tensors, dtype, upstream, **options)
    finally:
        torch.set_float32_matmul_precision("highest")


def second_derivatives(setting="highest", dtype=torch.float32, **options):
    """Returns the derivatives of the squared gradients' sum."""
    leaves = [x.float().to(dtype).requires_grad_() for x in inputs(ROWS, ROWS, 40)]
    torch.set_float32_matmul_precision(setting)
    try:
        loss = af.adaptive_infonce(*leaves, **options).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
    finally:
        torch.set_float32_matmul_precision("highest")


def equal(found, expected):
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def chosen(setting):
    """Whether this machine has other products under the setting than under "highest"."""
    return setting in {"amx": ("high", "medium"), "avx512_bf16": ("medium",)}.get(af.cpu_capability(), ())


@needs_extension
@pytest.mark.parametrize("instruction_set", ["generic", "avx512_bf16", "amx"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_float32_is_ieee_under_every_setting(form, instruction_set):
    expected = computed(**FORMS[form])
    assert equal(computed(precision="float32", **FORMS[form]), expected)
    for setting in ("high", "medium"):
        assert equal(computed(setting=setting, precision="float32", **FORMS[form]), expected)
        if chosen(setting) and form != "small blocks":
            assert not equal(computed(setting=setting, **FORMS[form]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_converts_half_types(dtype):
    rounded = [x.to(dtype).double() if i < 2 else x for i, x in enumerate(inputs(ROWS, ROWS, 40))]
    expected = [x.to(kind) for x, kind in zip(computed(tensors=rounded), (torch.float32, dtype, dtype, torch.float32))]
    assert equal(computed(dtype, tensors=rounded, setting="medium", precision="float32"), expected)


def test_float32_leaves_float64():
    for form, options in FORMS.items():
        assert equal(computed(torch.float64, precision="float32", **options), computed(torch.float64, **options)), form


@needs_extension
@pytest.mark.parametrize("instruction_set", ["generic", "avx512_bf16", "amx"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_rounds_the_representations(form, instruction_set):
    """The bits are those of bfloat16 inputs; the gradients too, which that type rounds."""
    expected = computed(torch.bfloat16, **FORMS[form])
    for setting in ("highest", "medium"):
        found = computed(setting=setting, precision="bfloat16", **FORMS[form])
        assert found[1].dtype == torch.float32
        assert equal(found, [x.float() for x in expected])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_bfloat16_rounds_every_type(dtype):
    exact = [x.bfloat16().double() if i < 2 else x.float().double() for i, x in enumerate(inputs(ROWS, ROWS, 40))]
    expected = computed(torch.bfloat16, tensors=exact)
    found = computed(dtype, tensors=exact, precision="bfloat16")
    assert found[0].dtype == torch.float32
    assert equal(found, [x.to(y.dtype) for x, y in zip(expected, found)])


def test_the_reference_is_exact_in_float32():
    """Its products follow the settings of torch, which AMX shows, so it computes in float64."""
    tensors = [x.float().double() for x in inputs(ROWS, ROWS, 40)]
    for options in FORMS.values():
        truth = computed(torch.float64, tensors=tensors, **options)
        found = computed(setting="medium", backend="reference", precision="float32", **options)
        for x, t in zip(found, truth):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x.double(), t, rtol=1e-6, atol=1e-6 * t.abs().max().item())


def test_second_derivatives_are_exact_in_float32():
    for options in FORMS.values():
        found = second_derivatives(setting="medium", precision="float32", **options)
        truth = second_derivatives(dtype=torch.float64, **options)
        for x, t in zip(found, truth):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x.double(), t, rtol=1e-5, atol=1e-5 * t.abs().max().item())


@pytest.mark.parametrize("form", ["one direction", "both directions, row losses", "targets", "large blocks"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_in_one_graph(form, precision):
    options = FORMS[form] | {"precision": precision}
    compiled = torch.compile(
        lambda *x: af.adaptive_infonce(*x, **options), fullgraph=True, backend="aot_eager", dynamic=False
    )
    upstream = torch.linspace(-1, 2, ROWS) if "reduction" in options else None
    torch.set_float32_matmul_precision("medium")
    try:
        found = loss_and_gradients(compiled, inputs(ROWS, ROWS, 40), torch.float32, upstream)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert equal(found, computed(**options))


@pytest.mark.parametrize("form", ["one direction", "both directions", "targets", "large blocks"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_under_torch_func(form, precision):
    options = FORMS[form] | {"precision": precision}
    tensors = [x.float() for x in inputs(ROWS, ROWS, 40)]
    torch.set_float32_matmul_precision("medium")
    try:
        found = torch.func.grad(lambda *x: af.adaptive_infonce(*x, **options), argnums=(0, 1, 2))(*tensors)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert equal(found, computed(**options)[1:])


@needs_extension
def test_threads_choose_for_themselves():
    """One thread's precision does not change another's."""
    tensors = [x.float() for x in inputs(ROWS, ROWS, 40)]
    precisions = ["float32", "bfloat16", "auto"] * 20
    expected = {each: af.adaptive_infonce(*tensors, precision=each) for each in precisions}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda each: af.adaptive_infonce(*tensors, precision=each), precisions))
    assert all(torch.equal(x, expected[each]) for each, x in zip(precisions, found))


@pytest.mark.parametrize("precision", ["high", "float16", None, torch.float32])
def test_other_precisions_are_refused(precision):
    message = r"adaptive_infonce: precision must be auto, float32 or bfloat16, got "
    with pytest.raises(ValueError, match=message):
        af.adaptive_infonce(torch.randn(4, 3), torch.randn(4, 3), 0.1, precision=precision)
