"""Training with sharded tables equals one process, also when other ranks or the other back end
resume it.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.data.dataset.rows import TensorRows
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.checkpoint.weights import load_checkpoint, remove_checkpoint
from tests.distributed.ranks import joined_ranks, on_ranks
from tests.distributed.test_training import FIELDS, assert_same_run, results_of, trainer
from tests.tolerances import assert_same_bits

pytest.importorskip("torchrec", reason="make test-torchrec installs it")


def bags(rows: int, seed: int, chunk_rows: int) -> Split:
    """Returns rows whose fields hold 0 to 3 ids."""
    numbers = np.random.default_rng(seed)
    counts = numbers.integers(0, 4, (rows, len(FIELDS)))
    field = np.tile(np.arange(len(FIELDS)), rows).repeat(counts.ravel())
    ids = (numbers.random(len(field)) * np.array(FIELDS)[field]).astype(np.int32)
    offsets = np.concatenate([[0], counts.ravel().cumsum()])
    some = numbers.random(rows) < counts[:, 0] / 4
    labels = np.stack([some, some & (counts[:, 1] > 1)], axis=1).astype(np.float32)
    content = Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(counts[:, 2]),
        None,
        torch.from_numpy(offsets),
    )
    return Split(TensorRows(content, chunk_rows))


RATES = {"lr": 0.01, "tables_lr": 0.1, "warmup_steps": 5, "schedule": "cosine", "decay_steps": 60}


def settings_of(form: str, optimizer: str, settings: dict) -> dict:
    """Returns the settings of a trainer of tests/distributed/test_training.py."""
    clip = {"clip_norm": settings.get("clip_norm", 0.0)}
    given = {name: value for name, value in settings.items() if name != "clip_norm"}
    given |= {"make": bags} if form == "bags" else {"weighted": form == "weighted"}
    given |= {"optimizer": OptimizerConfig(tables=optimizer, **RATES | clip)}
    return {"eval_batch_size": 128} | given


def diverged(rank: int, folder: str) -> str:
    """Returns rank 0's error when its weights have diverged and an op fails; the other ranks only
    look up once.
    """
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    run = trainer(Path(folder), joined_ranks(), **settings_of("ids", "sgd", BY_TABLE))
    batch = next(run.train.shuffled(64, seed=0, epoch=1, share=run.share))
    if rank > 0:
        with run.stepper.tables.begin(batch.ids, batch.offsets):
            return ""

    def refuse(batch, process_group):
        raise RuntimeError("an op refuses its input")

    run.stepper.loss = refuse
    try:
        with torch.no_grad():
            torch._foreach_mul_(list(run.model.backbone.towers[0].parameters()), 1e30)
        run.stepper.step(batch, 1)
    except TrainingError as error:
        return str(error)
    return "nothing"


def killed_before_the_best_was_saved(rank: int, folder: str) -> dict:
    """Returns the best weights as saved, and as restored when the run resumes from its last
    snapshot.
    """
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    settings = settings_of("ids", "adagrad", BY_ROW)
    run = trainer(Path(folder), joined_ranks(), **settings)
    run.config = replace(run.config, max_epochs=1)
    run.fit()
    saved = load_checkpoint(Path(folder, "best"))[0]
    dist.barrier()
    if rank == 0:
        remove_checkpoint(Path(folder, "best"))
    again = trainer(Path(folder), joined_ranks(), **settings)
    again.config = run.config
    assert again.resume()
    again.fit()  # has no epoch left to train
    dist.barrier()
    return {"saved": saved, "again": load_checkpoint(Path(folder, "best"))[0]}


CLIPPED = {"accumulate": 2, "clip_norm": 0.05}  # less than the norms of most steps
BY_RANK = {"precision": "bfloat16", "contrast_over": "rank"}
BY_TABLE, BY_ROW = (
    {"tables": "torchrec", "sharding": sharding} for sharding in ("table_wise", "row_wise")
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, list[dict]]:
    """Every run's results on its ranks."""
    folder = tmp_path_factory.mktemp("runs")

    def job(
        name: str, form: str, optimizer: str, settings: dict, stop_after: int | None = None
    ) -> tuple:
        return str(folder / name), stop_after, settings_of(form, optimizer, settings)

    starts = {
        "1": (1, {
            "ids adagrad": job("a", "ids", "adagrad", {}),
            "bags rowwise_adagrad": job("b", "bags", "rowwise_adagrad", {}),
            "weighted sgd": job("c", "weighted", "sgd", {}),
            "stopped": job("one", "ids", "adagrad", {}, 5),
            "clipped sgd": job("m", "weighted", "sgd", CLIPPED),
            "clipped bags adagrad": job("n", "bags", "adagrad", CLIPPED),
        }),
        "2": (2, {
            "table-wise ids adagrad": job("d", "ids", "adagrad", BY_TABLE),
            "table-wise bags rowwise_adagrad": job("e", "bags", "rowwise_adagrad", BY_TABLE),
            "replicated by rank": job("i", "ids", "adagrad", BY_RANK),
            "row-wise by rank": job("k", "ids", "adagrad", BY_ROW | BY_RANK),
            "compiled": job("l", "ids", "adagrad", BY_ROW | {"compile": True}),
            "clipped sgd": job("o", "weighted", "sgd", BY_TABLE | CLIPPED),
            "after 1": job("one", "ids", "adagrad", BY_ROW, 18),
        }),
        "4": (4, {
            "clipped bags adagrad": job("p", "bags", "adagrad", BY_ROW | CLIPPED),
            "after 2 after 1": job("one", "ids", "adagrad", BY_TABLE, 27),
        }),
        "1 again": (1, {"after 4": job("one", "ids", "adagrad", {})}),
    }  # fmt: skip
    return results_of(starts)


SAME = {
    "2: table-wise ids adagrad": "1: ids adagrad",
    "2: table-wise bags rowwise_adagrad": "1: bags rowwise_adagrad",
    "2: row-wise by rank": "2: replicated by rank",
    "2: compiled": "1: ids adagrad",
    "2: clipped sgd": "1: clipped sgd",
    "4: clipped bags adagrad": "1: clipped bags adagrad",
    "1 again: after 4": "1: ids adagrad",
}


@pytest.mark.parametrize(("name", "expected"), SAME.items())
def test_run_equals_one_process(name, expected, runs):
    assert_same_run(runs[name][0], runs[expected][0])
    assert runs[name][0]["resumed"] == ("after" in name)


def test_clipping_changes_a_run(runs):
    assert runs["1: clipped sgd"][0]["epochs"] != runs["1: weighted sgd"][0]["epochs"]


def test_no_rank_holds_a_table(runs):
    assert runs["1: ids adagrad"][0]["tables"] > 0
    assert [each["tables"] for each in runs["2: table-wise ids adagrad"]] == [0, 0]


@pytest.mark.parametrize("name", ["2: after 1", "4: after 2 after 1"])
def test_signal_to_one_rank_stops_all(name, runs):
    assert {each["interrupted"] for each in runs[name]} == {signal.SIGTERM}


def test_divergence_is_reported_without_communication(tmp_path):
    assert on_ranks(diverged, 2, str(tmp_path))[0] == "a logit is not finite; lower optimizer.lr"


def test_unsaved_best_weights_are_saved_on_resuming(tmp_path):
    for found in on_ranks(killed_before_the_best_was_saved, 2, str(tmp_path)):
        assert_same_bits(found["again"], found["saved"])


def test_sharded_tables_need_a_folder(tmp_path):
    two = SimpleNamespace(rank=0, size=2, is_rank_zero=True)
    with pytest.raises(TrainingError, match="trainer: sharded tables need a folder"):
        trainer(None, two, **settings_of("ids", "sgd", BY_TABLE))
