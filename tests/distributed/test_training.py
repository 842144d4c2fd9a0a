"""Training by several ranks equals training by one process, also across interruptions."""

import copy
import functools
import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.data.dataset.rows import TensorRows
from adaftr_fast.distributed.ranks import ALONE, JoinedRanks, Ranks
from adaftr_fast.errors import TrainingError
from adaftr_fast.extras.torchrec.tables import TorchRecTables
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.nn.embedding_table import tables_elsewhere
from adaftr_fast.training.checkpoint.weights import Description, load_checkpoint, weights_of
from adaftr_fast.training.files import RunFiles
from adaftr_fast.training.trainer import Trainer
from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_same_bits

FIELDS = [200, 20, 7]
TASKS = ["click", "conversion"]
ABOUT = Description(
    config=RunConfig(), fingerprint="", num_embeddings=FIELDS, tasks=TASKS, metrics={}
)


def split(rows: int, seed: int, chunk_rows: int, weighted: bool = False) -> Split:
    numbers = np.random.default_rng(seed)
    ids = np.stack([numbers.integers(0, size, rows) for size in FIELDS], axis=1).astype(np.int32)
    click = numbers.random(rows) < ids[:, 0] / 200
    labels = torch.from_numpy(np.stack([click, click & (ids[:, 1] > 9)], axis=1).astype(np.float32))
    weight = torch.from_numpy(numbers.random(rows).astype(np.float32)) if weighted else None
    content = Batch(
        torch.from_numpy(ids), labels, torch.from_numpy(ids[:, 2].astype(np.int64)), weight
    )
    return Split(TensorRows(content, chunk_rows))


def trainer(folder: Path | None, ranks: Ranks, *, make=None, optimizer=None, **settings) -> Trainer:
    """Returns a trainer whose rows ``make(rows, seed, chunk_rows)`` returns; "tables" of
    ``settings`` shards them.
    """
    torch.manual_seed(0 if ranks.is_rank_zero else 1)  # all ranks start from rank 0's weights
    weighted = settings.pop("weighted", False)
    contrast_rows = settings.pop("contrast_rows", 0)
    widths = {"expert_hidden": [8], "tower_hidden": [8, 4], "relatedness_hidden": [4]}
    with tables_elsewhere() if "tables" in settings else nullcontext():
        model = build_model(ModelConfig(contrast_rows=contrast_rows, **widths), FIELDS, TASKS)
    plain = {"batch_size": 64, "max_epochs": 2, "checkpoint_seconds": 1e9, "sync_steps": 10}
    make = make or functools.partial(split, weighted=weighted)
    config = TrainingConfig(**plain | {"progress": False} | settings)
    return Trainer(
        model,
        make(900, seed=1, chunk_rows=400),
        # two chunks: some ranks have more batches than others, or none
        make(500, seed=2, chunk_rows=300),
        optimizer=optimizer or OptimizerConfig(lr=0.01, clip_norm=1.0),
        config=config,
        files=RunFiles(model, config, folder, folder and ABOUT, rows=900, ranks=ranks),
        ranks=ranks,
    )


def train(rank: int, size: int, folder: str | None, stop_after: int | None, settings: dict) -> dict:
    """Trains 15 steps an epoch, or resumes in ``folder``; in step ``stop_after`` the last rank
    receives a signal.
    """
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    if settings.get("compile"):
        # inductor takes minutes
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    ranks = JoinedRanks(dist.HashStore(), 60, TorchRecTables) if size > 1 else ALONE
    run = trainer(None if folder is None else Path(folder), ranks, **settings)
    resumed = run.resume()
    step = run.stepper.step

    def interrupted_step(batch, number, epochs):
        if number == stop_after and rank == size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch, number, epochs)

    run.stepper.step = interrupted_step
    result = run.fit()
    sizes = [each.numel() for each in run.model.parameters() if len(each) >= sum(FIELDS)]
    if "tables" not in settings:
        state = dict(weights_of(copy.deepcopy(run.model)))
    else:
        state = load_checkpoint(Path(folder, "best"))[0] if result.best_epoch else {}
    found = {"resumed": resumed, "interrupted": result.interrupted}
    return found | {"epochs": json.dumps(result.epochs), "state": state, "tables": sum(sizes)}


def on_a_rank(rank: int, size: int, jobs: dict[str, tuple]) -> dict[str, dict]:
    return {name: train(rank, size, *job) for name, job in jobs.items()}


def results_of(starts: dict[str, tuple[int, dict[str, tuple]]]) -> dict[str, list[dict]]:
    """Runs all jobs of a start on its number of ranks, one start after the other; returns their
    results by rank.
    """
    results = {}
    for name, (size, jobs) in starts.items():
        ranks = on_ranks(on_a_rank, size, size, jobs)
        results |= {f"{name}: {job}": [rank[job] for rank in ranks] for job in jobs}
    return results


PLAIN = {}
WEIGHTED = {"weighted": True, "accumulate": 2}
BY_RANK = {"contrast_over": "rank"}
TWO_PARTS = {"accumulate": 2}
BLOCKS = {"contrast_rows": 8}
SHORT_BLOCKS = {"contrast_rows": 5}  # the last block of 32 rows has 2
PCGRAD = {"balance": "pcgrad", "weighted": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, list[dict]]:
    """Every run's results on its ranks; the processes are started four times."""
    folder = tmp_path_factory.mktemp("runs")
    one, two, four = (str(folder / name) for name in ("one", "two", "four"))
    starts = {
        "1": (1, {
            "plain": (None, None, PLAIN),
            "weighted": (None, None, WEIGHTED),
            "two parts": (None, None, TWO_PARTS),
            "blocks": (None, None, BLOCKS),
            "short blocks": (None, None, SHORT_BLOCKS | TWO_PARTS),
            "pcgrad": (None, None, PCGRAD),
            "stopped": (one, 20, PLAIN),
        }),
        "4": (4, {"plain": (None, None, PLAIN), "stopped": (four, 7, PLAIN)}),
        "2": (2, {
            "plain": (None, None, PLAIN),
            "weighted": (None, None, WEIGHTED),
            "by rank": (None, None, BY_RANK),
            "blocks in parts": (None, None, BLOCKS | TWO_PARTS),
            "short blocks": (None, None, SHORT_BLOCKS),
            "pcgrad": (None, None, PCGRAD),
            "stopped": (two, 22, PLAIN),
            "after 1": (one, None, PLAIN),
            "after 4": (four, None, PLAIN),
        }),
        "1 again": (1, {"after 2": (two, None, PLAIN)}),
    }  # fmt: skip
    return results_of(starts) | {"folders": {"one": one, "two": two, "four": four}}


def measured(result: dict) -> dict[str, float]:
    """Returns the losses, metrics and diagnostics of all epochs by path."""
    flat = {}

    def walk(value, *path):
        if isinstance(value, dict):
            for key, each in value.items():
                walk(each, *path, key)
        elif path[-1] not in ("seconds", "samples_per_s"):
            flat["/".join(path)] = value

    for number, record in enumerate(json.loads(result["epochs"])):
        walk(record, str(number))
    return flat


def assert_same_run(got: dict, expected: dict) -> None:
    found = measured(got)
    truth = measured(expected)
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    for name, value in expected["state"].items():
        torch.testing.assert_close(got["state"][name], value, rtol=1e-3, atol=1e-4)


SAME = {
    "4: plain": "1: plain",
    "2: plain": "1: plain",
    "2: weighted": "1: weighted",
    "2: pcgrad": "1: pcgrad",
    "2: blocks in parts": "1: blocks",
    "2: short blocks": "1: short blocks",
    "2: by rank": "1: two parts",  # an accumulated part contrasts its own rows only, as a rank does
    "2: after 1": "1: plain",
    "2: after 4": "1: plain",
    "1 again: after 2": "1: plain",
}


@pytest.mark.parametrize(("name", "expected"), SAME.items())
def test_run_equals_one_process(name, expected, runs):
    assert_same_run(runs[name][0], runs[expected][0])
    assert runs[name][0]["resumed"] == ("after" in name)


@pytest.mark.parametrize("name", [name for name in SAME if name[0] != "1"])
def test_replicas_are_bitwise_equal(name, runs):
    first, *others = runs[name]
    for other in others:
        assert_same_bits(other["state"], first["state"])


def test_contrast_over_rank_differs_from_all(runs):
    assert (
        measured(runs["2: by rank"][0])["0/train/contrast"]
        < 0.9 * measured(runs["2: plain"][0])["0/train/contrast"]
    )


@pytest.mark.parametrize("start", ["1", "2", "4"])
def test_signal_to_one_rank_stops_all(start, runs):
    assert [each["interrupted"] for each in runs[f"{start}: stopped"]] == [signal.SIGTERM] * int(
        start
    )


def test_each_epoch_is_written_once(runs):
    for folder in runs["folders"].values():
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        weights, _ = load_checkpoint(Path(folder, "best"))
        assert weights.keys() == runs["1: plain"][0]["state"].keys()


def test_batch_size_must_be_divisible_by_ranks():
    three = SimpleNamespace(rank=0, size=3, is_rank_zero=True, group=None)
    with pytest.raises(
        TrainingError, match=r"batch_size: expected a multiple of 3 ranks .* = 1, got 64"
    ):
        trainer(None, three)
