"""What one call launches: at small sizes the three kernels alone, which join the splits of the
sweeps themselves.
"""

from functools import partial
from itertools import product
from unittest.mock import Mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adaftr_fast import adaptive_infonce, sigmoid_contrast
from adaftr_fast.ops.infonce.op import INFONCE, SYMMETRIC
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, masks
from tests.ops.marks import needs_cpp_gradients
from tests.tolerances import assert_same_bits

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
pytestmark = pytest.mark.skipif(not config.INTERPRETED, reason="needs TRITON_INTERPRET=1")
BOUNDED = ("bounded_sweep", "unbounded_row_sweep", "unbounded_anchor_sweep")
HOST_ONLY = (
    "empty",
    "new_empty",
    "view",
    "detach",
    "select",
    "slice",
    "alias",
    "unsqueeze",
    "expand",
    "as_strided",
)


class Launches(TorchDispatchMode):
    """Records the ops that launch something on a device."""

    def __init__(self):
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and func.overloadpacket.__name__ not in HOST_ONLY:
            self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def like_an_h100(monkeypatch, assume):
    """The sizes at which a call is small are those of 132 multiprocessors."""
    monkeypatch.undo()  # conftest makes every call large
    assume(processors=132, capability=90)


def launches(monkeypatch, rows, dtype, d=64, **changed):
    """Returns what the op launches: names of ops, and of kernels, which do not run."""
    from adaftr_fast.kernels.infonce import launch

    a, b = torch.zeros(rows, d, dtype=dtype), torch.zeros(rows, d, dtype=dtype)
    acc_dtype = torch.promote_types(dtype, torch.float32)
    tau, scale = torch.ones(rows, dtype=acc_dtype), torch.ones((), dtype=acc_dtype).expand(rows)
    found = Launches()

    def run(self, arguments):
        found.ops.append(self.kernel.__name__.removeprefix("infonce_").removesuffix("_kernel"))

    monkeypatch.setattr(launch.Launch, "run", run)
    needs = {
        "need_d_anchors": True,
        "need_d_candidates": True,
        "need_d_tau": True,
        "need_stats": False,
    } | changed
    with found:
        launch.infonce(a, b, tau, None, None, None, scale, **needs)
    # conftest of the tests fills what is empty
    return [each for each in found.ops if "fill_" not in each]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_small_call_launches_its_three_kernels(monkeypatch, dtype):
    padding = ["aten.new_zeros.default", "aten.copy_.default"] * 2
    for rows, d in product((256, 1024), (20, 64, 128)):
        expected = [*(padding if d % 16 else ()), "row_sweep", "combine", "column_sweep"]
        if (dtype, rows) == (torch.float64, 1024) and d < 128:
            expected.append("aten.sum.dim_IntList")
        assert launches(monkeypatch, rows, dtype, d) == expected


@pytest.mark.parametrize("d", [24, 140])
def test_the_column_sweep_joins_its_splits(monkeypatch, assume, plans, d):
    """As a large call does by a sum of its own, in each slice of the width."""
    from adaftr_fast.kernels.infonce import launch

    assume(processors=64)
    monkeypatch.setattr(launch, "FEW_BLOCKS", 2)
    a, b, tau = (x.float() for x in inputs(70, 40, d))
    positive = masks(70, 40)["positive_index"]
    arguments = (a, b, tau, positive, None, None, torch.ones_like(tau), True, True, True, False)
    joined = launch.infonce(*arguments)
    monkeypatch.setattr(launch, "SMALL_PART", 0)
    summed = launch.infonce(*arguments)
    assert [each.arrivals > 0 for each in plans] == [True, False]
    assert all(each.columns.grid[1] > 1 for each in plans)
    torch.testing.assert_close(joined, summed, rtol=1e-6, atol=1e-7)


# of what combine leaves for each block of rows
REDUCTIONS = ["aten.sum.default", "aten.amax.default"]
LARGEST_NORM = ["aten.linalg_vector_norm.default", "aten.amax.default"]


@pytest.mark.parametrize(
    ("rows", "d", "changed", "expected"),
    [
        (1024, 64, {"need_d_candidates": False}, ["row_sweep", "combine", "aten.sum.default"]),
        (1024, 512, {}, ["row_sweep", "anchor_sweep", "combine", *REDUCTIONS, "column_sweep"]),
        (
            1024,
            512,
            {"need_d_anchors": False},
            ["row_sweep", "combine", *REDUCTIONS, "column_sweep"],
        ),
        (
            8448,
            272,
            {"need_d_candidates": False},
            [*LARGEST_NORM, *BOUNDED, "combine", "aten.sum.default"],
        ),
        (
            8448,
            272,
            {"need_d_candidates": False, "need_stats": True},
            ["row_sweep", "anchor_sweep", "combine", "aten.sum.default"],
        ),
        (
            8192,
            64,
            {},
            [
                *LARGEST_NORM,
                "row_sweep",
                "combine",
                *REDUCTIONS,
                "column_sweep",
                "aten.sum.dim_IntList",
            ],
        ),
    ],
)
def test_other_calls_launch(monkeypatch, rows, d, changed, expected):
    """Without the column sweep the loss is added up; wide blocks have a sweep for d_anchors, and
    bounded rows one.
    """
    for dtype in (torch.bfloat16,) if rows == 8192 else (torch.bfloat16, torch.float16):
        assert launches(monkeypatch, rows, dtype, d, **changed) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_call_is_right(dtype):
    for options in ({}, {"reduction": "sum", "frozen": (0,)}, masks(100, 130)):
        assert_matches(inputs(100, 130, 24), dtype, backend="triton", return_stats=True, **options)


@needs_cpp_gradients
@pytest.mark.parametrize(
    "options", [{}, {"symmetric": True}, {"return_stats": True}, {"reduction": "none"}], ids=str
)
def test_a_call_in_eager_mode_goes_around_the_dispatcher(monkeypatch, options):
    """With the bits of the op, which is called where something traces or counts ops."""
    op = SYMMETRIC if "symmetric" in options else INFONCE
    name = f"{op.name}_triton"
    watched = Mock(wraps=op.ops[name])
    monkeypatch.setitem(op.ops, name, watched)
    upstream = torch.ones(20) if "reduction" in options else None
    given = options | {"backend": "triton"}
    call = partial(
        loss_and_gradients, adaptive_infonce, inputs(20, 20, 8), torch.bfloat16, upstream
    )
    expected = call(**given)
    assert not watched.called
    with Launches():
        found = call(**given)
    assert watched.call_count == 1
    assert_same_bits(found, expected)


def odd(x):
    """Returns x in memory that begins 8 bytes after a boundary of 16."""
    if x is None or x.dim() == 0:
        return x
    step = 8 // x.element_size()
    memory = torch.empty(x.numel() + step, dtype=x.dtype)
    return memory[step:].view(x.shape).copy_(x)


CALLS = [
    {},
    {"row_weight": torch.rand(40)},
    {"return_stats": True, "margin": 0.1},
    {"positive_index": torch.arange(40).roll(1), "ignore_above": 0.5},
    {"row_group": torch.arange(40) // 2},
    {"row_group": torch.arange(40) // 2, "symmetric": True},
    {"symmetric": True},
    {"label_smoothing": 0.1},
    {"block": 4},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_launches_can_share_what_is_compiled(monkeypatch, dtype):
    """Triton compiles for what a pointer and a stride are divisible by, for types, and for what is
    None.
    """
    from adaftr_fast.kernels.infonce import launch

    found = {}

    def run(self, arguments):
        given = {**arguments, **self.options}
        taken = {name: given[name] for name in self.kernel.arg_names}
        for name, x in taken.items():
            if isinstance(x, torch.Tensor):
                assert x.data_ptr() % 16 == 0, name
            elif name.endswith("_stride") and name != "scale_stride":
                assert x % 16 == 0, name
        types = {
            name: x.dtype if isinstance(x, torch.Tensor) else x is None for name, x in taken.items()
        }
        key = self.kernel, self.grid, frozenset(self.options.items()), dtype
        assert found.setdefault(key, types) == types

    monkeypatch.setattr(launch.Launch, "run", run)
    tensors = [x.to(dtype if x.dim() == 2 else torch.float32) for x in inputs(40, 40, 32)]
    for options in CALLS:
        for changed in (lambda x: x, odd, lambda x: odd(x.repeat_interleave(2, 0))[::2]):
            a, b, tau = (changed(x).requires_grad_() for x in tensors)
            given = {
                name: changed(x) if isinstance(x, torch.Tensor) else x
                for name, x in options.items()
            }
            adaptive_infonce(a, b, tau, backend="triton", **given)
    a, b, _ = map(odd, tensors)
    sigmoid_contrast(
        a,
        b,
        odd(torch.rand(3))[2],
        torch.rand(3)[1],
        positive_index=odd(torch.arange(40)),
        backend="triton",
    )
    assert len(found) > 15
