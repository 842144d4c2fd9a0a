"""The sweeps in Gluon: their schedule in NumPy against the float64 reference, their choice, the
kernels on a GPU.
"""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import inputs, loss_and_gradients, types_of, winning
from tests.tolerances import assert_as_accurate, assert_same_bits

pytest.importorskip("triton")
config = pytest.importorskip("adaftr_fast.kernels.infonce.config")
KERNELS = "adaftr_fast.kernels.infonce"
HALF = (torch.bfloat16, torch.float16)
# Around the edges of tiles of 64 and blocks of 128: ragged blocks, one and several splits, more
# blocks than stages, columns that are no row's positive.
SIZES = [
    (1, 1, 64), (2, 130, 64), (63, 63, 128), (64, 128, 64), (65, 129, 100), (129, 129, 128), (128, 256, 64),
    (130, 1300, 64), (257, 700, 48), (300, 300, 112),
]  # fmt: skip
on_a_gpu = pytest.mark.skipif(
    config.INTERPRETED
    or not torch.cuda.is_available()
    or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)


class Asked:
    """The calls of both sweeps.

    Attributes:
        rows: for each row sweep, whether it forms d_anchors.
        columns: for each column sweep, whether every row's weight fits the exponent.
    """

    def __init__(self):
        self.rows = []
        self.columns = []

    def watch(self, row_sweep, column_sweep):
        """Returns both sweeps as functions that note their calls."""

        def rows(operands, chosen, tau, need_d_anchors):
            self.rows.append(need_d_anchors)
            return row_sweep(operands, chosen, tau, need_d_anchors)

        def columns(operands, chosen, row_terms, scales):
            self.columns.append(scales[1].item() == 0)
            return column_sweep(operands, chosen, row_terms, scales)

        return rows, columns


@pytest.fixture
def in_numpy(monkeypatch):
    """Replaces the kernels by their schedule in NumPy; returns what was asked of them."""
    if not config.INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1 for the kernels around them")
    from tests.kernels.infonce.gluon import column_schedule, row_schedule, schedule

    asked = Asked()
    rows, columns = asked.watch(row_schedule.gluon_row_sweep, column_schedule.gluon_column_sweep)
    monkeypatch.setattr(
        importlib.import_module(f"{KERNELS}.launch"), "choose_gluon", schedule.choose
    )
    monkeypatch.setitem(sys.modules, f"{KERNELS}.gluon_row", SimpleNamespace(gluon_row_sweep=rows))
    monkeypatch.setitem(
        sys.modules, f"{KERNELS}.gluon_column", SimpleNamespace(gluon_column_sweep=columns)
    )
    return asked


@pytest.fixture
def compiled(monkeypatch):
    """Chooses the kernels; returns what was asked of them."""
    gluon_row, gluon_column = (
        importlib.import_module(f"{KERNELS}.{name}") for name in ("gluon_row", "gluon_column")
    )
    asked = Asked()
    rows, columns = asked.watch(gluon_row.gluon_row_sweep, gluon_column.gluon_column_sweep)
    monkeypatch.setenv(config.SWEEPS_VARIABLE, "gluon")
    monkeypatch.setattr(gluon_row, "gluon_row_sweep", rows)
    monkeypatch.setattr(gluon_column, "gluon_column_sweep", columns)
    return asked


def assert_matches(asked, tensors, dtype, device="cpu", smallest=0.125):
    """Checks by the tolerance rule, on rounded inputs, that the sweeps err no more than the
    reference at ``dtype``.

    The rows weigh from ``smallest`` to 1. Returns whether the weights fit the exponent of the
    column sweep.
    """
    rounded = [t.to(kind).double() for t, kind in zip(tensors, types_of(tensors, dtype))]
    upstream = torch.linspace(smallest, 1, len(tensors[0]))
    for frozen in ((0, 1, 2), ()):
        asked.rows.clear()
        asked.columns.clear()
        own, truth, theirs = (
            loss_and_gradients(
                af.adaptive_infonce,
                rounded,
                kind,
                upstream,
                reduction="none",
                frozen=frozen,
                **options,
            )
            for kind, options in (
                (dtype, {"backend": "triton", "device": device}),
                (torch.float64, {"backend": "reference"}),
                (dtype, {"backend": "reference"}),
            )
        )
        assert (not frozen) in asked.rows  # without a reduction, the backward sweeps anew
        assert len(asked.columns) == (not frozen)
        for name, x, t, p in zip(
            ("loss", "d h_ctr", "d h_cvr", "d tau"), own, truth, theirs, strict=True
        ):
            assert (x is None) == (t is None)
            if x is not None:
                assert_as_accurate(x, t, p, dtype, name)
    return asked.columns[0]


def extremes(tau):
    a, b, _ = inputs(130, 400, 64, scale=2.0)
    return a, b, torch.as_tensor(tau, dtype=torch.float64).expand(130)


def rising():
    """Scores that grow from block to block, so that each block rescales what came before."""
    b = torch.linspace(0.1, 8, 900, dtype=torch.float64)[:, None].expand(900, 64) / 8
    return (
        torch.ones(200, 64, dtype=torch.float64) / 8,
        b,
        torch.full((200,), 0.05, dtype=torch.float64),
    )


EXTREMES = {
    "cold": extremes(1e-4),
    "hot": extremes(1e3),
    "winning": winning(96, 20),
    "rising": rising(),
    "a tau for each row": extremes(torch.logspace(-4, 3, 130)),
}


@pytest.mark.parametrize("dtype", HALF)
def test_the_schedule_matches_the_reference(in_numpy, dtype):
    more_blocks_than_stages = [(700, 700, 64)] if dtype == torch.bfloat16 else []
    for size in (*SIZES[HALF.index(dtype) :: 2], *more_blocks_than_stages):
        assert assert_matches(in_numpy, inputs(*size), dtype)
    assert not assert_matches(in_numpy, inputs(130, 400, 64), dtype, smallest=-1)
    for case in ("winning", "rising", "a tau for each row"):
        assert_matches(in_numpy, EXTREMES[case], dtype)


def test_the_schedule_where_tau_is_bad_gives_nan_in_its_row(in_numpy):
    a, b, _ = (t.bfloat16() for t in inputs(70, 140, 64))
    tau = torch.full((70,), 0.5)
    tau[3], tau[66] = 0.0, torch.inf
    loss = af.adaptive_infonce(a, b, tau, reduction="none", backend="triton")
    assert in_numpy.rows
    assert loss.isnan().nonzero().flatten().tolist() == [3, 66]


@pytest.mark.parametrize(
    "option", ["return_stats", "positive_index", "groups", "ignore_above", "expanded", "float32"]
)
def test_what_it_does_not_do_falls_to_triton(in_numpy, option):
    dtype = torch.float32 if option == "float32" else torch.bfloat16
    a, b, tau = (t.to(dtype) for t in inputs(20, 30, 64))
    if option == "expanded":
        a = a[:1].expand(20, 64)
    options = {
        "return_stats": {"return_stats": True},
        "positive_index": {"positive_index": torch.arange(20).flip(0)},
        "groups": {"row_group": torch.arange(20) % 3, "column_group": torch.arange(30) % 3},
        "ignore_above": {"ignore_above": 0.5},
    }
    af.adaptive_infonce(a, b, tau.float(), backend="triton", **options.get(option, {}))
    assert in_numpy.rows == in_numpy.columns == []


@pytest.mark.parametrize(
    ("value", "dtype", "width", "capability", "block_d"),
    [
        (None, torch.bfloat16, 128, 90, None),
        ("triton", torch.bfloat16, 128, 90, None),
        ("gluon", torch.bfloat16, 128, 90, 128),
        ("gluon", torch.float16, 80, 90, 128),
        ("gluon", torch.bfloat16, 48, 90, 64),
        ("gluon", torch.bfloat16, 32, 90, None),
        ("gluon", torch.bfloat16, 144, 90, None),
        ("gluon", torch.float32, 128, 90, None),
        ("gluon", torch.bfloat16, 128, 89, None),
        ("gluon", torch.bfloat16, 128, 100, None),
    ],
)
def test_chosen_for_half_types_on_hopper_alone(
    monkeypatch, value, dtype, width, capability, block_d
):
    monkeypatch.setattr(config, "INTERPRETED", False)
    monkeypatch.delenv(config.SWEEPS_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(config.SWEEPS_VARIABLE, value)
    chosen = config.choose_gluon(dtype, width, capability)
    assert (chosen and chosen.block_d) == block_d


def test_unknown_sweeps_are_refused(monkeypatch):
    monkeypatch.setenv(config.SWEEPS_VARIABLE, "cuda")
    with pytest.raises(
        ValueError, match=r"ADAFTR_FAST_INFONCE_SWEEPS must be one of .*gluon.*, got 'cuda'"
    ):
        config.choose_gluon(torch.bfloat16, 64, 90)


@on_a_gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("smallest", [0.125, -1])
def test_matches_the_reference_on_a_gpu(compiled, dtype, smallest):
    for size in (*SIZES, (1024, 1024, 128), (5000, 9000, 64)):
        assert_matches(compiled, inputs(*size), dtype, "cuda", smallest)


@on_a_gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", ["cold", "hot", "winning", "rising"])
def test_extremes_on_a_gpu(compiled, case, dtype):
    assert_matches(compiled, EXTREMES[case], dtype, "cuda")


@on_a_gpu
@pytest.mark.parametrize("rows", [1000, 20_000])
def test_same_bits_every_time_on_a_gpu(compiled, rows):
    first, second = (
        loss_and_gradients(
            af.adaptive_infonce, inputs(rows, rows, 128), torch.bfloat16, device="cuda"
        )
        for _ in range(2)
    )
    assert_same_bits(first, second)
    assert len(compiled.columns) == 2
