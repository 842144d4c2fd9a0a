"""Shard files that ranks write beside a snapshot or a checkpoint; needs no TorchRec."""

import json
import re
import shutil
from dataclasses import asdict, replace
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_leaves

from adaftr_fast.distributed.ranks import ALONE, JoinedRanks, Ranks
from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint import snapshots as snapshots_module
from adaftr_fast.training.checkpoint.files import check_shared_folder, read_local_rows
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.snapshots import (
    RunSnapshots,
    load_snapshot,
    remove_snapshots,
    save_shard,
    save_snapshot,
)
from adaftr_fast.training.checkpoint.weights import (
    load_checkpoint,
    open_on_all_ranks,
    save_checkpoint,
)
from tests.distributed.ranks import on_ranks
from tests.files.file_calls import killed_at
from tests.training.conftest import ABOUT

ROWS = 11
WIDTH = 3
LARGE = 100_000  # rows of a shard
MESSAGES = re.compile("i?send|i?recv|batch_isend|broadcast|all_|gather|reduce|scatter")
# shards, which the ranks own in turn; one is empty
BOUNDS = {"two": [0, 4, 11], "other": [0, 2, 2, 7, 11]}


def values(factor: float) -> torch.Tensor:
    return factor * torch.arange(1.0, ROWS * WIDTH + 1).view(ROWS, WIDTH)


def sharded(factor: float, bounds: str, rank: int, size: int) -> dict[str, ShardedRows]:
    """Returns a table and its state, whose rows are multiples of ``factor``."""
    mine = list(pairwise(BOUNDS[bounds]))[rank::size]
    return {
        name: ShardedRows(whole.shape, [(start, whole[start:stop].clone()) for start, stop in mine])
        for name, whole in (("table", values(factor)), ("sums", values(factor)[:, 0]))
    }


def snapshots(folder: Path, ranks: Ranks = ALONE) -> RunSnapshots:
    return RunSnapshots(folder, ABOUT, 10, 0, ranks)


def save(run: RunSnapshots, step: int, rank: int, save) -> None:
    """Saves the state of a step: its tensors hold multiples of the step."""
    tensors = {"dense": torch.full((2,), float(step))}
    save(Progress(total_steps=step), tensors, sharded(step, "two", rank, 2))


def loaded(run: RunSnapshots, bounds: str, rank: int, size: int) -> int:
    progress, saved = run.load()
    rows = sharded(0, bounds, rank, size)
    read_local_rows(saved, rows)
    expected = sharded(progress.total_steps, bounds, rank, size)
    for name, each in rows.items():
        assert all(
            torch.equal(a, b)
            for (_, a), (_, b) in zip(each.local, expected[name].local, strict=True)
        )
    assert saved["dense"].tolist() == [progress.total_steps] * 2
    return progress.total_steps


def in_background(run: RunSnapshots, rank: int) -> list[bool]:
    """Starts a snapshot and waits for its commit; returns whether there was none before that, and
    one after it.
    """
    save(run, 5, rank, run.start)
    run.close()
    dist.barrier()
    before = bool(list(run.folder.glob("*.safetensors")))
    while not run.due():
        pass
    return [before, bool(list(run.folder.glob("*.safetensors")))]


def dropped(run: RunSnapshots, rank: int) -> None:
    """Saves before a snapshot that was started is committed, as at the end of an epoch."""
    save(run, 6, rank, run.start)
    save(run, 7, rank, run.save)


def sent(folder: Path, ranks: Ranks, rank: int) -> dict[str, int]:
    """Returns the largest message of each collective while a snapshot and a checkpoint are saved,
    in bytes.
    """
    largest = {}

    def counting(name: str):
        function = getattr(dist, name)

        def counted(*arguments, **options):
            given = [each for each in tree_leaves(arguments) if isinstance(each, torch.Tensor)]
            largest[name] = max([largest.get(name, 0), *(each.nbytes for each in given)])
            return function(*arguments, **options)

        return counted

    shards = [(rank * LARGE, torch.ones(LARGE, WIDTH))]
    rows = {"table": ShardedRows([2 * LARGE, WIDTH], shards)}
    with pytest.MonkeyPatch.context() as patch:
        for name in (each for each in vars(dist) if MESSAGES.match(each)):
            patch.setattr(dist, name, counting(name))
        snapshots(folder, ranks).save(Progress(total_steps=1), {"dense": torch.ones(2)}, rows)
        save_checkpoint(folder / "best", nn.Linear(2, 2), ABOUT, rows, ranks)
    return largest


def error_of(function, *arguments) -> str:
    try:
        function(*arguments)
    except CheckpointError as error:
        return str(error)
    return ""


def on_a_rank(rank: int, folder: str) -> dict:
    """Writes the files of all tests, and returns what this rank finds in them."""
    folder = Path(folder)
    ranks = JoinedRanks(dist.HashStore(), 60)
    check_shared_folder(folder, ranks, "why")
    found = {"blind": error_of(check_shared_folder, folder / f"out{rank}", ranks, "all write")}
    found["sent"] = sent(folder / "sent", ranks, rank)
    run = snapshots(folder / "saved", ranks)
    for step in (1, 2, 3):
        save(run, step, rank, run.save)
    found |= {
        bounds: loaded(snapshots(folder / "saved", ranks), bounds, rank, 2) for bounds in BOUNDS
    }
    found["background"] = in_background(snapshots(folder / "background", ranks), rank)
    dropped(snapshots(folder / "dropped", ranks), rank)
    if rank == 0:  # the memory of one rank does not suffice
        snapshots_module.available_memory = lambda: 0
    run = snapshots(folder / "full", ranks)
    save(run, 8, rank, run.start)
    for factor in (1, 2):
        torch.manual_seed(factor)
        about = replace(ABOUT, metrics={"click": {"auc": factor / 4}})
        save_checkpoint(
            folder / "best", nn.Linear(2, 2), about, sharded(factor, "two", rank, 2), ranks
        )
    rows = sharded(0, "other", rank, 2)
    read_local_rows(open_on_all_ranks(folder / "best", ranks), rows)
    return found | {"best": [shard.clone() for _, shard in rows["table"].local]}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return folder, on_ranks(on_a_rank, 2, str(folder))


@pytest.fixture
def saved(by_two, tmp_path) -> Path:
    """A copy of a run folder with the snapshots of steps 2 and 3."""
    return Path(shutil.copytree(by_two[0] / "saved", tmp_path / "saved"))


def test_ranks_resume_from_their_own_and_another_sharding(by_two):
    for each in by_two[1]:
        assert each["two"] == each["other"] == 3


def test_no_rows_pass_between_ranks_when_they_are_saved(by_two):
    for each in by_two[1]:
        assert each["sent"].keys() == {"broadcast", "all_gather", "all_reduce"}
        assert max(each["sent"].values()) < 500  # names of files; a shard has 1.2 MB


def test_each_snapshot_has_a_shard_per_rank_and_stale_ones_are_removed(saved):
    names = sorted(path.name.rpartition("-")[0] for path in (saved / "last").iterdir())
    assert names == [f"{step + 1:012d}{rank}" for step in (2, 3) for rank in ("", "-0", "-1")]
    # the last two not committed
    for name in ("000000000001-0-0.shard", "000000000009-1-0.shard", ".x.shard.new-3-ab"):
        (saved / "last" / name).write_bytes(b"of a killed run")
    run = snapshots(saved)
    progress, tensors = run.load()
    assert progress.total_steps == 3
    assert {name for name in tensors if "/" not in name} == {"dense", "table", "sums"}
    assert torch.equal(tensors["table"], values(3))
    assert torch.equal(tensors["sums"], values(3)[:, 0])
    run.save(Progress(total_steps=4), {}, {})
    positions = {path.name.partition("-")[0] for path in (saved / "last").iterdir()}
    assert positions == {"000000000004", "000000000005"}
    assert len(list((saved / "last").iterdir())) == 4


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_without_one_intact_shard_the_former_snapshot_is_used(saved, damage):
    shard = max((saved / "last").glob("*-1-*.shard"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    if damage == "missing":
        shard.unlink()
    with pytest.warns(
        RuntimeWarning, match=r"000000000004-\w+\.safetensors: damaged \(.*-1-.*\.shard: "
    ):
        assert snapshots(saved).load()[0].total_steps == 2
    for shard in (saved / "last").glob("*.shard"):
        shard.unlink()
    with (
        pytest.raises(CheckpointError, match=r"all snapshots .* are damaged"),
        pytest.warns(RuntimeWarning),
    ):
        snapshots(saved).load()


def test_a_kill_at_any_point_leaves_a_whole_snapshot(saved):
    """One process writes both shards and the snapshot of step 4, and is killed before each call in
    turn.
    """

    def write() -> None:
        rows = [
            {f"table@{first}": values(4)[first:stop]} for first, stop in pairwise(BOUNDS["two"])
        ]
        shards = [save_shard(saved / "last", 5, rank, each) for rank, each in enumerate(rows)]
        run = {
            "identity": asdict(snapshots(saved).identity),
            "progress": asdict(Progress(total_steps=4)),
        }
        save_snapshot(saved / "last", 5, {}, run, shards)

    for number in count():
        if not killed_at(number, write):
            break
        found, tensors = snapshots(saved).load()
        assert found.total_steps in (3, 4)
        assert torch.equal(tensors["table"], values(found.total_steps))
    assert found.total_steps == 4
    assert number > 10
    assert len(list((saved / "last").iterdir())) == 6


def test_the_thread_writes_shards_and_a_later_step_commits_them(by_two):
    folder, ranks = by_two
    assert [each["background"] for each in ranks] == [[False, True]] * 2
    assert torch.equal(load_snapshot(folder / "background/last")[0]["table"], values(5))
    names = {path.name.partition("-")[0] for path in (folder / "dropped/last").iterdir()}
    assert names == {"000000000008"}  # the one of step 6 was not committed at the end of the epoch
    assert torch.equal(load_snapshot(folder / "dropped/last")[0]["table"], values(7))
    # written at once
    assert torch.equal(load_snapshot(folder / "full/last")[0]["table"], values(8))


def test_a_checkpoint_with_shards_reads_as_a_whole(by_two, tmp_path):
    folder, ranks = by_two
    weights, about = load_checkpoint(folder / "best")
    assert about.metrics == {"click": {"auc": 0.5}}
    torch.manual_seed(2)
    assert torch.equal(weights["weight"], nn.Linear(2, 2).weight)
    assert torch.equal(weights["table"], values(2))
    assert torch.equal(
        torch.cat([ranks[0]["best"][0], ranks[0]["best"][1], ranks[1]["best"][0]]), values(2)
    )
    names = [path.name for path in (folder / "best").iterdir()]
    # the description, the weights and two shards: those of the former one are removed
    assert len(names) == 4
    copy = Path(shutil.copytree(folder / "best", tmp_path / "best"))
    next(copy.glob("weights-1-*")).unlink()
    with pytest.raises(CheckpointError, match=r"weights-1-\w+\.safetensors: missing"):
        load_checkpoint(copy)
    description = json.loads((copy / "checkpoint.json").read_text())
    description["shards"][1]["name"] = "../weights"
    (copy / "checkpoint.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="expected the name of a file in the same folder"):
        load_checkpoint(copy)


def test_ranks_that_do_not_see_one_folder_end_with_one_error(by_two):
    first, second = (each["blind"] for each in by_two[1])
    assert first == second.replace("out1", "out0")
    assert (
        "out0: rank 1 does not see rank 0's folder at this path: all write, so it must be on"
        in first
    )
    assert "must be on a file system that all ranks share" in first
    assert not list(by_two[0].glob("out*/.ranks"))


def test_a_kill_while_snapshots_are_removed_leaves_none_without_its_shards(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    shard = save_shard(folder, 1, 0, {"table@0": torch.ones(2, 3)})
    save_snapshot(folder, 1, {"bias": torch.ones(3)}, {"progress": {}}, [shard])

    def killed(path):
        (folder / shard).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_snapshots(folder)
    assert load_snapshot(folder) is None
