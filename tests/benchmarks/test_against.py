"""Training in turns with the code of another checkout."""

from benchmarks.render import against
from benchmarks.training.bench_against import HERE, compare
from benchmarks.training.epochs import CONTESTANTS


def test_a_checkout_against_itself():
    case = compare(HERE, fields=3, ids=10, steps=1, starts=1, turns=1, threads=1)
    assert [*case["steps"]][: len(CONTESTANTS)] == [*CONTESTANTS]
    assert all(step["ratio"] > 0 for step in case["steps"].values())
    assert len(against([case]).splitlines()) == 2 + len(case["steps"])
