"""Waiting for work of rank 0 that takes longer than the ranks' timeout."""

import os
import signal
import time

from tests.distributed.ranks import joined_ranks, on_ranks
from tests.distributed.test_torchrun import children, has_ended, rendezvous, torchrun, wait_for
from tests.forks import Script

__all__ = ["rendezvous"]  # the fixture

WORK = """
import os, sys, time
from pathlib import Path
from adaftr_fast.distributed import ranks as module
from adaftr_fast.distributed.ranks import joined
module.SIGN_SECONDS = 0.2
started, job = Path(sys.argv[1]), sys.argv[2]

def work():
    started.write_text(str(os.getpid()))
    time.sleep(60)

with joined("cpu", 3) as ranks:
    if job == "other fails" and ranks.rank == 2:
        while not started.exists():
            time.sleep(0.01)
        raise OSError("the disk is full")
    ranks.after_rank_zero(work)
"""


def waited(rank: int) -> list[str]:
    """Returns what two waits of a rank give: a result after more than the timeout, and an error."""
    ranks = joined_ranks(1.0)

    def late() -> dict:
        time.sleep(2.5)
        return {"rows": [1, 2]}

    def fails() -> None:
        raise OSError("no such file: day.csv")

    found = [str(ranks.after_rank_zero(late))]
    try:
        ranks.after_rank_zero(fails)
    except OSError as error:
        found.append(str(error))
    return found


def test_ranks_wait_longer_than_the_timeout_and_share_the_result():
    assert on_ranks(waited, 2) == [["{'rows': [1, 2]}", "no such file: day.csv"]] * 2


def started_by_hand(size: int, rendezvous: dict, *arguments: str) -> list[Script]:
    variables = rendezvous | {"WORLD_SIZE": size}
    return [
        Script(WORK, *arguments, RANK=rank, LOCAL_RANK=rank, **variables) for rank in range(size)
    ]


def test_a_rank_zero_that_has_ended_is_named(tmp_path, rendezvous):
    first, other = started_by_hand(2, rendezvous, str(tmp_path / "started"), "")
    wait_for((tmp_path / "started").exists)
    first.send_signal(signal.SIGKILL)
    _, err = other.communicate(timeout=60)
    assert "RankError: rank 1 timed out waiting for rank 0" in err
    first.communicate()


def test_a_rank_zero_that_stalls_is_named(tmp_path):
    """The store is that of torchrun."""
    (tmp_path / "work.py").write_text(WORK)
    run = torchrun(2, [str(tmp_path / "work.py"), str(tmp_path / "started"), ""])
    started = tmp_path / "started"
    wait_for(lambda: started.exists() and started.read_text())
    first = int(started.read_text())
    (other,) = set(children(run)) - {first}
    os.kill(first, signal.SIGSTOP)
    wait_for(lambda: has_ended(other))
    os.kill(first, signal.SIGKILL)  # torchrun gives a stopped rank 30 seconds to end
    _, err = run.communicate(timeout=120)
    assert "RankError: rank 1 timed out waiting for rank 0" in err


def test_a_rank_that_fails_meanwhile_is_named_by_those_that_wait(tmp_path, rendezvous):
    first, other, failing = started_by_hand(3, rendezvous, str(tmp_path / "started"), "other fails")
    assert "OSError: the disk is full" in failing.communicate(timeout=60)[1]
    assert (
        "RankError: rank 1 stopped: rank 2 failed: OSError: the disk is full"
        in other.communicate(timeout=60)[1]
    )
    first.send_signal(signal.SIGKILL)
    first.communicate()
