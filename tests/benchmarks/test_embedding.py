"""The contestants of the embedding's benchmarks train as their optimizers are defined."""

import pytest

from benchmarks import bench_embedding, embedding, render
from benchmarks.embedding import AGREES, BAGS, OURS, STATES, Work, contestants, disagreement

SHAPE = {"fields": 3, "rows": 40, "batch": 30}


@pytest.mark.parametrize("optimizer", STATES)
def test_tables_train_as_their_optimizers_are_defined(optimizer):
    for name, make in contestants(optimizer, "cpu").items():
        for ids in ("uniform", "zipf"):
            assert disagreement(make, Work(**SHAPE, ids=ids), optimizer) < AGREES, name


@pytest.mark.parametrize(
    ("taken", "asked"), [("LazyAdam", "Adam"), ("RowwiseAdagrad", "Adagrad"), ("SGD", "Adagrad")]
)
def test_another_optimizer_is_noticed(taken, asked):
    def make(work, _):
        return embedding.ours(work, taken)

    assert disagreement(make, Work(**SHAPE), asked) > AGREES


def test_ids_are_those_of_the_distribution():
    uniform, zipf, spread = (
        Work(3, 4000, 1000, **more).batches()[0]
        for more in ({"ids": "uniform"}, {}, {"spread": 10})
    )
    assert uniform.shape == zipf.shape == (4000, 3)
    most = [ids[:, 0].bincount(minlength=1000).max() / 4000 for ids in (uniform, zipf)]
    assert most[0] < 0.01
    assert 0.1 < most[1] < 0.3  # 1 / sum of k^-1.05
    assert 0 <= zipf.min() <= zipf.max() < 1000
    assert len(spread.unique()) <= 100
    assert (spread % 10 == 0).all()


def test_the_cases_make_tables(monkeypatch):
    works = Work(3, 30, 40), Work(3, 30, 80, spread=2)
    for name, value in {"MAIN": works[0], "LARGE": [], "GROWTH": works, "SMALL": works[0]}.items():
        monkeypatch.setattr(bench_embedding, name, value)
    monkeypatch.setattr(bench_embedding, "BAG_ROWS", 4)
    monkeypatch.setattr(bench_embedding, "copy_rate", lambda size: 1e9)
    monkeypatch.setattr(embedding, "STEADY", 1)
    cases = [
        bench_embedding.measure(case, work, runs, seconds=0.0)
        for case, work, runs in bench_embedding.cases()
    ]
    assert [case["case"] for case in cases] == ["forward", *STATES, "bags", "widths", "growth"]
    assert list(cases[-3]["ms"]) == list(BAGS)
    assert list(cases[-2]["ms"]) == [*(f"E={width}" for width in bench_embedding.WIDTHS), "mixed"]
    assert all(OURS in case["ms"] for case in cases[:-2])
    assert len(render.embedding(cases).splitlines()) == 2 + len(cases) - 2
    assert render.embedding_growth(cases).splitlines()[3].startswith("| dense fused Adam |")
