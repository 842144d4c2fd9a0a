"""The formula of a step on several ranks has the collectives that a step has, and the plan's ranges follow."""

from dataclasses import replace

import pytest
import torch.distributed as dist

from adaftr_fast.distributed import gather
from adaftr_fast.distributed.ranks import Ranks
from benchmarks.render import scaling
from benchmarks.scaling import measuring, plan
from benchmarks.scaling.formula import CALLS, Collective, Rates, Work, step_seconds

RATES = Rates(
    rows=1e5,
    contrast_flops=1e9,
    merge=1e6,
    waiting=0.1,
    collectives={
        "gather": Collective(1e-3, 1e8),
        "reduce_scatter": Collective(2e-3, 2e8),
        "all_reduce": Collective(3e-3, 4e8),
    },
)
WORK = Work(2, 100, fields=5, width=8, distinct=0.5, dense=1000, contrasted=16)


@pytest.fixture
def alone(tmp_path):
    """A process group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Ranks(dist.HashStore(), 60)
    dist.destroy_process_group()


def test_a_step_calls_the_collectives_of_the_formula(alone, monkeypatch):
    found = dict.fromkeys(CALLS, 0)

    def count(kind, owner, name):
        original = getattr(owner, name)

        def counting(*arguments, **options):
            found[kind] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    count("gather", gather, "_all_gather")
    count("reduce_scatter", gather, "_reduce_scatter")
    count("all_reduce", dist, "all_reduce")
    measuring.steps(32, alone)(0)
    assert found == CALLS


@pytest.mark.parametrize("kind", CALLS)
def test_messages_have_the_size_that_is_reported(kind, alone):
    alone.size = 4  # as if there were others
    _, received = measuring.message(kind, 1e6, alone)
    assert received == pytest.approx(1e6, rel=1e-3)
    assert 0 < measuring.message(kind, 0, alone)[1] < 200


def test_seconds_of_a_step():
    parts = step_seconds(WORK, RATES)
    computing = [100 / 1e5, 3 * 2 * 100 * 200 * 16 / 1e9, 250 / 1e6]
    candidates = 100 * 4 * 16
    assert parts == pytest.approx(
        {
            "rows": computing[0],
            "contrast": computing[1],
            "merging": computing[2],
            "waiting": 0.1 * sum(computing),
            "latency": 5e-3 + 2e-3 + 3e-3,
            "table rows": 250 * (8 + 32) / 1e8,
            "dense": 4000 / 4e8,
            "candidates": candidates / 1e8 + candidates / 2e8,
        }
    )
    one = step_seconds(replace(WORK, ranks=1), RATES)
    assert one == pytest.approx({"rows": computing[0], "contrast": computing[1] / 2, "merging": 0})


def test_deviations_add_in_quadrature():
    found = plan.spread(
        lambda values: values["a"] - values["b"], {"a": plan.Range(7, 10, 13), "b": plan.Range(0, 4, 8)}
    )
    assert (found.low, found.expected, found.high) == (1, 6, 11)
    assert str(plan.Range(0.0, 1.26, 1234)) == "1.3 (0 to 1,200)"


def test_the_error_of_the_formula_widens_the_plan():
    cases = [
        {"ranks": 1, "measured ms": 5.0, "calculated ms": 1.0},  # the rates come from it
        {"ranks": 2, "measured ms": 12.0, "calculated ms": 10.0},
        {"ranks": 4, "measured ms": 20.0, "calculated ms": 40.0},
    ]
    assert plan.own_error(cases) == (0.5, 1.2)
    assert plan.own_error(cases[:1]) == (1.0, 1.0)
    exact, wide = (plan.steps(each).splitlines()[2:] for each in (cases[:1], cases))
    assert exact[0] == wide[0]
    assert all(a != b for a, b in zip(exact[1:], wide[1:], strict=True))
    assert "(5.5 to 13)" in exact[1]


def test_rows_of_the_table_of_steps():
    case = measuring.described(WORK, RATES, measured=0.05)
    assert scaling([case]).splitlines()[-1] == "| 2 | 50.0 | 13.7 | -73 % | 1.0 / 1.9 / 0.3 / 10.5 |"
    del case["of it"]["waiting"]  # a file of before
    assert scaling([case]).endswith("1.0 / 1.9 / 0.0 / 10.5 |")


def test_two_processes_are_measured(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    case = measuring.measured(2, 1)
    assert case["ranks"] == 2
    assert case["calculated ms"] == pytest.approx(sum(case["of it"].values()), abs=0.2)
    assert {f"{kind}, latency" for kind in CALLS} <= set(case["rates"])
