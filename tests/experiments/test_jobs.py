import json
import signal
import threading
from dataclasses import replace

import pytest

from adaftr_fast._locks import LOCK
from adaftr_fast.engines import Local
from adaftr_fast.experiments import jobs
from adaftr_fast.experiments.catalog import Variant, experiment
from adaftr_fast.experiments.jobs import RESULT, execute, finished, plan
from adaftr_fast.experiments.study import Study
from adaftr_fast.training.trainer import Trainer
from tests.files.holder import holder

MMOE = Variant("MMoE", {"name": "mmoe"})


@pytest.fixture
def job(data, budget, tmp_path):
    return plan(data, MMOE, budget, 0, tmp_path)


def test_a_finished_job_is_found(data, budget, tmp_path, monkeypatch):
    train = jobs.train_one

    def dead(*arguments):
        run = train(*arguments)
        run.epochs[run.best_epoch - 1]["validation"]["view"]["auc"] = 0.501
        return run

    monkeypatch.setattr(jobs, "train_one", dead)
    job = plan(
        data, Variant("AdaFTR", {"name": "adaftr", "pairs": ["click-view"]}), budget, 0, tmp_path
    )
    assert finished(job) is None
    outcome = execute(job)
    assert finished(job) == outcome
    assert finished(replace(job, key="0" * 64)) is None  # of another configuration
    assert outcome.error is None
    assert outcome.epochs >= outcome.best_epoch >= 1
    for metrics in (outcome.validation, outcome.test):
        assert set(metrics) == {"click", "view", "conversion"}
        assert 0.5 < metrics["click"]["auc"] < 1
    assert outcome.test == json.loads((job.folder / "test.json").read_text())
    assert set(outcome.learned) == {"tau/click-view"}
    assert 0.05 <= outcome.learned["tau/click-view"]["p5"] <= 1
    assert outcome.dead_tasks == ["view"]


def test_the_key_changes_with_everything_that_changes_the_result(data, budget, tmp_path, job):
    manifest = data.manifest
    changes = (
        {"training": {"patience": 7}},
        {"optimizer": {"lr": 0.02}},
        {"model": {"embedding_dims": {"item": 2}}},
    )
    others = [plan(data, MMOE, budget.with_options(**each), 0, tmp_path) for each in changes]
    others.append(plan(data, MMOE, budget, 1, tmp_path))
    wide = Variant("MMoE", {"name": "mmoe", "num_experts": 2})
    others.append(plan(data, wide, budget, 0, tmp_path))
    for change in ({"inputs": "other rows"}, {"fingerprint": "other ids"}):
        data.manifest = replace(manifest, **change)
        others.append(plan(data, MMOE, budget, 0, tmp_path))
    assert len({each.key for each in [job, *others]}) == len(others) + 1
    assert len({each.folder for each in [job, *others]}) == len(others) + 1


def test_all_rows_of_a_seed_come_before_the_next(data, budget, tmp_path):
    wanted = experiment("table6", budget.model, data.manifest.tasks)
    study = Study(data, budget.with_options(training={"seed": 5}), 2, Local(), tmp_path)
    assert [seed for seed, *_ in study.plan(wanted)] == 6 * [5] + 6 * [6]


def test_the_key_ignores_everything_else(data, budget, tmp_path, job):
    shown = budget.with_options(training={"progress": True, "seed": 9, "checkpoint_seconds": 1})
    # nor were they in keys before there were any
    assert "embedding_dims" not in job.config.identity()["model"]
    assert plan(data, Variant("another title", {"name": "mmoe"}), shown, 0, tmp_path).key == job.key


@pytest.mark.parametrize("content", ["{", "[]", '{"key": 3}', "\xff"])
def test_a_damaged_result_is_none(job, content):
    job.folder.mkdir()
    (job.folder / RESULT).write_text(content, encoding="latin-1")
    assert finished(job) is None


def test_a_second_attempt_waits_for_the_first_and_takes_its_result(job, monkeypatch):
    outcome = execute(job)
    monkeypatch.setattr(jobs, "train_one", None)  # is not called
    with holder(job.folder / LOCK) as other:
        threading.Timer(0.6, other.kill).start()
        assert execute(job) == outcome
        assert other.wait() != 0


def test_an_unfinished_job_restarts_if_its_data_have_moved(job, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, *_: signal.raise_signal(signal.SIGINT) or {}
    )
    with pytest.raises(KeyboardInterrupt):
        execute(job)
    monkeypatch.undo()
    (tmp_path / "moved").symlink_to(data.folder)
    moved = replace(job, config=job.config.with_options(data={"folder": str(tmp_path / "moved")}))
    assert execute(moved).error is None


def test_divergence_is_an_outcome(data, budget, tmp_path):
    budget = budget.with_options(optimizer={"lr": 1e30})
    job = plan(data, Variant("AdaFTR", {"name": "adaftr"}), budget, 0, tmp_path)
    outcome = execute(job)
    assert "finite" in outcome.error
    assert outcome.test == {}
    assert finished(job) == outcome
