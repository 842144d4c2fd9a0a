"""``train`` under torchrun: equality with one process, and killed, failed and stalled ranks."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adaftr_fast.cli import main
from tests.forks import COMMAND, Script, wait_for
from tests.logs import shop_log

SETTINGS = {
    "training.batch_size": 64, "training.max_epochs": 2, "training.progress": "false", "optimizer.lr": 0.005,
    "model.expert_hidden": "[16]", "model.tower_hidden": "[16,8]", "model.relatedness_hidden": "[4]",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(shop_log(4000, users=90, conversion="buy"), folder / "log.parquet")
    names = "--labels click buy --group user --time time"
    command = f"prepare --files {folder}/log.parquet {names} --out {folder}/data"
    assert main(command.split()) == 0
    return folder / "data"


def arguments(data: Path, out: Path, **settings) -> list[str]:
    options = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["-m", "adaftr_fast.cli", "train", "--data.folder", str(data), "--out", str(out), *given]


TORCHRUN = "from torch.distributed.run import main; main()"
FORKS = """
import os, sys
from torch.distributed import run
from adaftr_fast import _startup
from adaftr_fast.cli import main

_startup.PARENT = os.getpid()  # as a rank that imports the package finds it

def command(*arguments):
    sys.exit(main(arguments))

def forking(arguments):
    config, _, (_, _, _, *given) = found(arguments)  # python -u -m adaftr_fast.cli
    config.start_method = "fork"
    return config, command, given

found, run.config_from_args = run.config_from_args, forking
run.main()
"""
"""``torchrun -m adaftr_fast.cli``, whose ranks are forks of the agent, which has the
imports done.
"""


def agent(*arguments: str, source: str = TORCHRUN, **variables) -> Script:
    """Starts torchrun, whose ranks are processes of their own."""
    return Script(source, *arguments, OMP_NUM_THREADS=1, **variables)


def torchrun(ranks: int, command: list[str], *options: str, source: str = TORCHRUN) -> Script:
    return agent("--standalone", f"--nproc-per-node={ranks}", *options, *command, source=source)


RESTARTS = ("--max-restarts=2", "--monitor-interval=0.1")


def metrics(out: Path) -> dict[str, float]:
    test = json.loads((out / "test.json").read_text())
    return {f"{task} {name}": value for task, each in test.items() for name, value in each.items()}


@pytest.fixture(scope="module")
def by_two(data, tmp_path_factory) -> Path:
    """An uninterrupted run of two ranks."""
    out = tmp_path_factory.mktemp("two")
    codes, shown, errors = command_by_hand(*arguments(data, out)[2:])
    assert codes == [0, 0], errors
    assert [text.count("best epoch") for text in shown] == [1, 0]  # one rank prints
    files = ["best", "doubts.json", "metrics.jsonl", "report.md", "report.png", "test.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    return out


def children(process: Script, ranks: int = 2) -> list[int]:
    """Returns the processes of torchrun's ranks, which are all that it has started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [int(number) for number in path.read_text().split()]
    assert len(found) == ranks
    return found


def check_a_killed_rank(data, by_two, out, *more, source: str = TORCHRUN, **settings) -> None:
    """Kills a rank after two snapshots: torchrun starts both again, which end with the metrics of
    ``by_two``.
    """
    command = [*arguments(data, out, training__checkpoint_seconds=0, **settings), *more]
    run = torchrun(2, command, *RESTARTS, source=source)
    wait_for(lambda: len(list((out / "last").glob("*-*.safetensors"))) == 2)
    os.kill(children(run)[1], signal.SIGKILL)
    _, err = run.end()
    assert "resuming in epoch" in err
    assert metrics(out) == metrics(by_two)


def test_killed_rank(data, by_two, tmp_path):
    """The ranks are started as a user does; ``--restart`` applies to the first start only."""
    check_a_killed_rank(data, by_two, tmp_path, "--restart")
    epochs, uninterrupted = (
        (out / "metrics.jsonl").read_text().splitlines() for out in (tmp_path, by_two)
    )
    for line, other in zip(epochs, uninterrupted, strict=True):
        assert json.loads(line)["train"] == json.loads(other)["train"]


def test_killed_rank_on_one_of_two_machines(data, by_two, tmp_path, rendezvous):
    """Two torchrun agents, one per machine."""
    command = arguments(data, tmp_path, training__checkpoint_seconds=0)
    place = f"--rdzv-endpoint={rendezvous['MASTER_ADDR']}:{rendezvous['MASTER_PORT']}"
    options = ["--nnodes=2", "--nproc-per-node=1", *RESTARTS, "--rdzv-id=run"]
    options += ["--rdzv-backend=c10d", place]
    agents = [
        agent(*options, *command, source=FORKS, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)
        for _ in range(2)
    ]
    wait_for(lambda: len(list((tmp_path / "last").glob("*-*"))) == 2)
    os.kill(children(agents[1], 1)[0], signal.SIGKILL)
    err = "".join(each.end()[1] for each in agents)
    assert "resuming in epoch" in err
    assert metrics(tmp_path) == metrics(by_two)


def test_a_missing_variable_is_named(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    _, _, *command = arguments(data, tmp_path)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the ranks cannot connect: " in line
    assert "RANK expected" in line


def test_other_commands_refuse_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["info"]) == 2
    assert (
        "info: only train, daily, stream, demo support several processes" in capsys.readouterr().err
    )


def test_restarts_on_several_machines_need_a_new_store(data, tmp_path, monkeypatch, capsys):
    variables = {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "RANK": 0}
    variables |= {"TORCHELASTIC_MAX_RESTARTS": 3, "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert main(arguments(data, tmp_path)[2:]) == 2
    assert "start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err


def new_rendezvous() -> dict[str, str | int]:
    """Returns the variables of a rendezvous of two ranks without torchrun."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.getsockname()[1], "WORLD_SIZE": 2}


rendezvous = pytest.fixture(new_rendezvous)


def by_hand(source: str, *arguments, **variables) -> list[Script]:
    """Starts a script as two ranks, without torchrun."""
    each = [{"RANK": rank, "LOCAL_RANK": rank} | variables for rank in range(2)]
    return [
        Script("import torch; torch.set_num_threads(1)\n" + source, *arguments, **rank)
        for rank in each
    ]


def command_by_hand(*arguments: str, before: str = "") -> tuple[list[int], list[str], list[str]]:
    """Returns the status, stdout and stderr of each of two ranks that run a command, after the
    script ``before``.
    """
    ranks = by_hand(f"{before}\n{COMMAND}", *arguments, **new_rendezvous(), LOCAL_WORLD_SIZE=2)
    printed = [rank.communicate(timeout=240) for rank in ranks]
    return [rank.returncode for rank in ranks], *map(list, zip(*printed, strict=True))


WITHOUT_PICKLES = """
import os, pickle, signal, sys
from torch.distributed import distributed_c10d
from adaftr_fast.cli.app import main  # imports packages that define subclasses of Pickler
from adaftr_fast.training.stepper import Stepper

def refuse(*arguments, **options):
    raise AssertionError("something is pickled")

for name in ("_object_to_tensor", "_tensor_to_object"):
    setattr(distributed_c10d, name, refuse)
pickle.dump = pickle.dumps = pickle.load = pickle.loads = pickle.Pickler = pickle.Unpickler = refuse

step = Stepper.step

def interrupted(stepper, batch, number, epochs):
    if number == 60:  # in the second epoch
        os.kill(os.getpid(), signal.SIGTERM)
    return step(stepper, batch, number, epochs)

if os.environ.get("STOPS"):
    Stepper.step = interrupted
sys.exit(main(sys.argv[1:]))
"""


def check_that_nothing_is_pickled(data, out, rendezvous, **settings) -> None:
    """Trains by two ranks that refuse to pickle, stops them in the second epoch, and resumes."""
    for stops, code in (("1", 143), ("", 0)):
        variables = rendezvous | {"LOCAL_WORLD_SIZE": 2, "STOPS": stops}
        ranks = by_hand(WITHOUT_PICKLES, *arguments(data, out, **settings)[2:], **variables)
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [code, code], errors
    assert "resuming in epoch 2" in errors[0]


def test_ranks_pickle_nothing(data, by_two, tmp_path, rendezvous):
    check_that_nothing_is_pickled(data, tmp_path, rendezvous)
    assert metrics(tmp_path) == metrics(by_two)


FAILING = """
import torch
from adaftr_fast.distributed.ranks import joined
with joined("cpu", 3600) as ranks:
    if not ranks.is_rank_zero:
        raise OSError("the disk is full")
    ranks.mean(torch.ones(1))
"""


def test_failed_rank_is_named_by_the_others(rendezvous):
    rank_zero, other = by_hand(FAILING, **rendezvous)
    assert "OSError: the disk is full" in other.communicate(timeout=120)[1]
    # instead of the 3,600 s for a rank that does not respond
    _, err = rank_zero.communicate(timeout=120)
    assert "RankError: rank 0 stopped: rank 1 failed: OSError: the disk is full" in err


def test_stalled_rank_is_named(data, tmp_path, rendezvous):
    endless = {"training__max_epochs": 500, "training__patience": 500}
    saved = endless | {"training__checkpoint_seconds": 0}
    command = arguments(data, tmp_path, training__rank_timeout=3, **saved)[2:]
    ranks = by_hand(COMMAND, *command, **rendezvous)
    try:
        wait_for(lambda: (tmp_path / "last").exists())
        ranks[1].send_signal(signal.SIGSTOP)
        _, err = ranks[0].communicate(timeout=120)
        assert ranks[0].returncode == 2
        assert (
            "adaftr-fast train: rank 0 timed out waiting for rank 1; the same command resumes"
            in err
        )
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert list((tmp_path / "last").glob("*-*"))  # to resume from


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


ENDLESS = """
import os, sys, time
from pathlib import Path
from adaftr_fast.distributed.ranks import joined
with joined("cpu", 60) as ranks:
    Path(sys.argv[1], f"started-{ranks.rank}").touch()
    time.sleep(3600)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="Linux alone tells a process that its parent has ended"
)
def test_ranks_end_with_a_killed_torchrun(tmp_path):
    (tmp_path / "work.py").write_text(ENDLESS)
    run = torchrun(2, [str(tmp_path / "work.py"), str(tmp_path)])
    wait_for(lambda: len(list(tmp_path.glob("started-*"))) == 2)
    ranks = children(run)
    try:
        run.kill()
        wait_for(lambda: all(map(has_ended, ranks)), seconds=30)
    finally:
        for rank in ranks:
            if not has_ended(rank):
                os.kill(rank, signal.SIGKILL)
        run.communicate()


ORPHAN = """
import os, time
read, write = os.pipe()
if os.fork():
    os.read(read, 1)
    os._exit(0)
from adaftr_fast.distributed.ranks import end_with_launcher
parent = os.getppid()
os.write(write, b"1")
while os.getppid() == parent:
    time.sleep(0.01)
end_with_launcher()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_a_rank_whose_torchrun_has_ended_does_not_start():
    command = [sys.executable, "-c", ORPHAN]
    variables = os.environ | {"TORCHELASTIC_RUN_ID": "run"}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as orphan:
        _, err = orphan.communicate(timeout=120)
    assert "RankError: torchrun, which started this rank, has ended" in err
