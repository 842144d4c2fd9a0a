import json
import signal
from dataclasses import replace

import pytest

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.training.trainer import Trainer
from benchmarks import cells
from benchmarks.cells import RECORD, in_processes, plan, recorded, train, train_all
from benchmarks.paper.study import Study
from tests.benchmarks.paper.conftest import BUDGET
from tests.forks import Script, wait_for
from tests.ops.marks import on_threads

MMOE = {"name": "mmoe"}
ADAFTR = {"name": "adaftr", "pairs": ["click-view"]}


@pytest.fixture
def cell(data, budget, tmp_path):
    return plan(data, MMOE, budget, 0, tmp_path)


def test_a_trained_cell_has_a_record(data, budget, tmp_path, monkeypatch):
    trained = cells.train_one

    def dead(*arguments):
        run = trained(*arguments)
        run.epochs[run.best_epoch - 1]["validation"]["view"]["auc"] = 0.501
        return run

    monkeypatch.setattr(cells, "train_one", dead)
    cell = plan(data, ADAFTR, budget, 3, tmp_path)
    assert recorded(cell) is None
    record = train(cell)
    assert recorded(cell) == record
    assert recorded(replace(cell, key="0" * 64)) is None  # of other options
    assert record.error is None
    assert record.epochs >= record.best_epoch >= 1
    for metrics in (record.validation, record.test):
        assert set(metrics) == {"click", "view", "conversion"}
        assert 0.5 < metrics["click"]["auc"] < 1
    assert record.test == json.loads((cell.folder / "test.json").read_text())
    assert record.expected == {}
    assert set(record.learned) == {"tau/click-view"}
    assert 0.05 <= record.learned["tau/click-view"]["p5"] <= 1
    assert record.dead_tasks == ["view"]
    assert record.options["training"]["seed"] == 3
    assert record.fingerprint == data.manifest.fingerprint


def test_the_key_changes_with_everything_that_changes_the_result(data, budget, tmp_path, cell):
    manifest = data.manifest
    changes = (
        {"training": {"patience": 7}},
        {"optimizer": {"lr": 0.02}},
        {"model": {"embedding_dims": {"item": 2}}},
    )
    others = [plan(data, MMOE, budget.with_options(**each), 0, tmp_path) for each in changes]
    others.append(plan(data, MMOE, budget, 1, tmp_path))
    others.append(plan(data, MMOE | {"num_experts": 2}, budget, 0, tmp_path))
    for change in ({"inputs": "other rows"}, {"fingerprint": "other ids"}):
        data.manifest = replace(manifest, **change)
        others.append(plan(data, MMOE, budget, 0, tmp_path))
    assert len({each.key for each in [cell, *others]}) == len(others) + 1
    assert len({each.folder for each in [cell, *others]}) == len(others) + 1


def test_the_key_ignores_everything_else(data, budget, tmp_path, cell):
    shown = budget.with_options(training={"progress": True, "seed": 9, "checkpoint_seconds": 1})
    # nor were they in keys before there were any
    assert "embedding_dims" not in cell.config.identity()["model"]
    assert plan(data, MMOE, shown, 0, tmp_path).key == cell.key


@pytest.mark.parametrize("content", ["{", "[]", '{"key": 3}', "\xff"])
def test_a_damaged_record_is_none(cell, content):
    cell.folder.mkdir()
    (cell.folder / RECORD).write_text(content, encoding="latin-1")
    assert recorded(cell) is None


def test_an_unfinished_cell_restarts_if_its_data_have_moved(cell, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, *_: signal.raise_signal(signal.SIGINT) or {}
    )
    with pytest.raises(KeyboardInterrupt):
        train(cell)
    monkeypatch.undo()
    (tmp_path / "moved").symlink_to(data.folder)
    moved = replace(cell, config=cell.config.with_options(data={"folder": str(tmp_path / "moved")}))
    assert train(moved).error is None


def test_divergence_is_recorded(data, budget, tmp_path):
    budget = budget.with_options(optimizer={"lr": 1e30})
    cell = plan(data, {"name": "adaftr"}, budget, 0, tmp_path)
    record = train(cell)
    assert "finite" in record.error
    assert record.test == {}
    assert recorded(cell) == record


def test_true_probabilities_give_the_expected_auc(generated, budget, tmp_path):
    record = train(plan(PreparedData(generated), MMOE, budget, 0, tmp_path))
    assert set(record.expected) == {"click", "conversion"}
    # less noise than the labels' own
    assert abs(record.expected["click"] - record.test["click"]["auc"]) < 0.05
    assert record.expected["click"] > 0.5


def test_all_rows_of_a_seed_come_before_the_next(data, budget, tmp_path):
    budget = budget.with_options(training={"seed": 5})
    study = Study(data, budget, 2, 1, tmp_path, tmp_path / "results.json")
    assert [seed for seed, *_ in study.plan("table6")] == 6 * [5] + 6 * [6]


def test_calls_have_one_thread_and_raise_errors():
    """An item is taken when there is a place for it."""
    found = []

    def items():
        for number, each in enumerate([*["__import__('torch').get_num_threads()"] * 4, "1 / 0"]):
            assert len(found) >= number - 1  # two calls are in progress at most
            yield each

    with pytest.raises(ZeroDivisionError):
        list(map(found.append, in_processes(eval, items(), 2)))
    assert found[:3] == [1] * 3


SCRIPT = """
import sys
from pathlib import Path
from tests.benchmarks.paper.test_cells import some
from benchmarks.cells import train_all

train_all(some(Path(sys.argv[1]), Path(sys.argv[2])), 2)
"""


def some(data, out):
    """Returns four cells of a second or two each."""
    budget = BUDGET.with_options(training={"batch_size": 50, "max_epochs": 4})
    return [plan(PreparedData(data), MMOE, budget, seed, out) for seed in range(4)]


def test_killed_cells_resume_and_give_the_bits_of_this_process(folder, tmp_path):
    todo = some(folder, tmp_path)
    script = Script(SCRIPT, folder, tmp_path)
    wait_for(lambda: any(map(recorded, todo)))
    script.kill()
    script.communicate(600)
    known = {cell.key: record for cell in todo if (record := recorded(cell))}
    assert len(known) < len(todo)
    records = train_all(todo, 1)
    assert known.items() <= records.items()  # none was repeated
    assert len(records) == len(todo)
    with on_threads(1):
        here = train(replace(todo[-1], folder=tmp_path / "here"))
    assert replace(here, seconds=0) == replace(records[here.key], seconds=0)
