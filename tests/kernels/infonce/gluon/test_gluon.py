"""The sweeps in Gluon: their schedule in NumPy against the float64 reference, their choice, the
kernels on a GPU.
"""

import importlib
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import adaftr_fast as af
from tests.ops.infonce.inputs import assert_matches, inputs, loss_and_gradients, winning
from tests.tolerances import assert_same_bits

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


@pytest.fixture
def sweeps(request, monkeypatch):
    """Chooses both sweeps, by their schedule in NumPy, or on a GPU compiled; returns what is asked of them.

    Of each row sweep that is whether it forms d_anchors, and of each column sweep whether every row's weight fits the
    exponent.
    """
    if request.param == "compiled":
        monkeypatch.setenv(config.SWEEPS_VARIABLE, "gluon")
    elif not config.INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1 for the kernels around them")
    else:
        from tests.kernels.infonce.gluon import column_schedule, row_schedule, schedule

        monkeypatch.setattr(f"{KERNELS}.launch.choose_gluon", schedule.choose)
        for name, module in (("gluon_row", row_schedule), ("gluon_column", column_schedule)):
            monkeypatch.setitem(sys.modules, f"{KERNELS}.{name}", SimpleNamespace(**vars(module)))
    asked = SimpleNamespace(rows=[], columns=[])
    row, column = (importlib.import_module(f"{KERNELS}.gluon_{x}") for x in ("row", "column"))
    run_rows, run_columns = row.gluon_row_sweep, column.gluon_column_sweep

    def sweep_rows(operands, chosen, tau, need_d_anchors):
        asked.rows.append(need_d_anchors)
        return run_rows(operands, chosen, tau, need_d_anchors)

    def sweep_columns(operands, chosen, row_terms, scales):
        asked.columns.append(scales[1].item() == 0)
        return run_columns(operands, chosen, row_terms, scales)

    monkeypatch.setattr(row, "gluon_row_sweep", sweep_rows)
    monkeypatch.setattr(column, "gluon_column_sweep", sweep_columns)
    return asked


in_numpy = pytest.mark.parametrize("sweeps", ["numpy"], indirect=True)
compiled = pytest.mark.parametrize(
    "sweeps", [pytest.param("compiled", marks=on_a_gpu)], indirect=True
)


def check(asked, tensors, dtype, device="cpu", smallest=0.125):
    """Checks the sweeps by the tolerance rule.

    The rows weigh from ``smallest`` to 1. Returns whether the weights fit the exponent of the
    column sweep.
    """
    upstream = torch.linspace(smallest, 1, len(tensors[0]))
    given = {"backend": "triton", "device": device, "reduction": "none", "upstream": upstream}
    for frozen in ((0, 1, 2), ()):
        asked.rows.clear()
        asked.columns.clear()
        assert_matches(tensors, dtype, frozen=frozen, **given)
        assert (not frozen) in asked.rows  # without a reduction, the backward sweeps anew
        assert len(asked.columns) == (not frozen)
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


@in_numpy
@pytest.mark.parametrize("dtype", HALF)
def test_the_schedule_matches_the_reference(sweeps, dtype):
    more_blocks_than_stages = [(600, 600, 64)] if dtype == torch.bfloat16 else []
    for size in (*SIZES[HALF.index(dtype) :: 2], *more_blocks_than_stages):
        assert check(sweeps, inputs(*size), dtype)
    assert not check(sweeps, inputs(130, 400, 64), dtype, smallest=-1)
    for case in ("winning", "rising", "a tau for each row"):
        check(sweeps, EXTREMES[case], dtype)


@in_numpy
def test_the_schedule_where_tau_is_bad_gives_nan_in_its_row(sweeps):
    a, b, _ = (t.bfloat16() for t in inputs(70, 140, 64))
    tau = torch.full((70,), 0.5)
    tau[3], tau[66] = 0.0, torch.inf
    loss = af.adaptive_infonce(a, b, tau, reduction="none", backend="triton")
    assert sweeps.rows
    assert loss.isnan().nonzero().flatten().tolist() == [3, 66]


@in_numpy
@pytest.mark.parametrize(
    "option", ["return_stats", "positive_index", "groups", "ignore_above", "expanded", "float32"]
)
def test_what_it_does_not_do_falls_to_triton(sweeps, option):
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
    assert sweeps.rows == sweeps.columns == []


@pytest.mark.parametrize(
    ("value", "dtype", "width", "capability", "block_d"),
    [
        (None, torch.bfloat16, 128, 90, None),
        ("gluon", torch.bfloat16, 128, 90, 128),
        ("gluon", torch.float16, 80, 90, 128),
        ("gluon", torch.bfloat16, 48, 90, 64),
        ("gluon", torch.bfloat16, 32, 90, None),
        ("gluon", torch.bfloat16, 144, 90, None),
        ("gluon", torch.float32, 128, 90, None),
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


@compiled
@pytest.mark.parametrize("dtype", HALF)
def test_matches_the_reference_on_a_gpu(sweeps, dtype):
    for size in (*SIZES, (1024, 1024, 128), (5000, 9000, 64)):
        for smallest in (0.125, -1):
            check(sweeps, inputs(*size), dtype, "cuda", smallest)
    for case in ("cold", "hot", "winning", "rising"):
        check(sweeps, EXTREMES[case], dtype, "cuda")


@compiled
def test_same_bits_every_time_on_a_gpu(sweeps):
    for rows in (1000, 20_000):
        tensors = inputs(rows, rows, 128)
        call = partial(loss_and_gradients, af.adaptive_infonce, tensors, torch.bfloat16)
        assert_same_bits(call(device="cuda"), call(device="cuda"))
    assert len(sweeps.columns) == 4
