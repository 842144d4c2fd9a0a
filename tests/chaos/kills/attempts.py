"""One case: a command that is killed several times and then completed, among readers and other
writers.
"""

import atexit
import functools
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import adaftr_fast.api.prepare  # imported once for all forks, as all the others here
import adaftr_fast.api.run
import adaftr_fast.api.serve
import adaftr_fast.runs.daily
import adaftr_fast.serving.export  # noqa: F401
from adaftr_fast.cli import main
from tests.chaos.kills import services, stores
from tests.chaos.kills.commands import SERVED, commands, write_inputs
from tests.chaos.kills.processes import (
    all_ended,
    descendants,
    end,
    end_all,
    fork,
    is_locked,
    kill,
    ranks,
    readers,
    spawn,
)
from tests.chaos.kills.trees import Tree, differences, state, tree

SECONDS = 300.0  # for a command that is not killed


@dataclass(frozen=True)
class Whole:
    """The result of an uninterrupted run, and its duration in seconds."""

    result: Tree
    seconds: float


@functools.cache
def place():
    """Returns a temporary folder with the inputs of all commands."""
    folder = Path(tempfile.mkdtemp(prefix="adaftr-chaos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(end_all)
    (folder / "inputs").mkdir()
    log = folder / "inputs.log"
    code = end(fork(lambda: write_inputs(folder / "inputs") or 0, folder / "inputs", log))
    assert code == 0, log.read_text()
    return folder


def command_of(name):
    """Returns a command, whose servers run."""
    if name in SERVED:
        services.start(place() / "inputs")
    return commands()[name]


@functools.cache
def whole(name):
    """Runs a command without interruption."""
    command = command_of(name)
    folder = new_folder(command)
    start = time.monotonic()
    finish(start_command(command, command.arguments, folder), folder)
    seconds = time.monotonic() - start
    fetch(command, folder)
    return Whole(tree(folder), seconds)


@functools.cache
def earlier(name):
    """Returns a working directory with the result that ``Command.before`` leaves."""
    command = command_of(name)
    folder = new_folder(command)
    finish(fork(lambda: main(command.before), folder, log_of(folder)), folder)
    return folder


def new_folder(command):
    """Returns a new working directory, and makes the store empty for a command that
    writes there.
    """
    if command.is_stored:
        services.empty_store()
    return Path(tempfile.mkdtemp(dir=place()))


def log_of(folder, what=""):
    return folder.with_name(f"{folder.name}{what}.log")


def start_command(command, arguments, folder):
    """Starts a command, by torchrun if it has ranks; returns its process."""
    if command.is_stored:
        return fork(lambda: stores.run(folder, lambda: main(arguments)), folder, log_of(folder))
    if not command.ranks:
        return fork(lambda: main(arguments), folder, log_of(folder))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={command.ranks}"]
    return spawn(
        [*torchrun, "--monitor-interval=0.1", "-m", "adaftr_fast.cli", *arguments],
        folder,
        log_of(folder),
    )


def finish(process, folder):
    """Waits for a command, which must succeed and leave no process."""
    code = end(process, SECONDS)
    log = log_of(folder).read_text()
    assert code is not None, f"not finished within {SECONDS:g} s: {log}"
    assert code == 0, f"exit status {code}: {log}"


def killed_and_completed(case):
    """Runs a case; returns the number of kills."""
    command = command_of(case["command"])
    expected = whole(case["command"])
    is_over = case["over"] and command.before is not None
    folder = new_folder(command)
    former = {}
    if is_over:
        write_earlier(command, case["command"], folder)
        former = tree(folder)
    try:
        reader = (
            start_reader(command, folder)
            if case["reader"] and is_over and not command.is_stored
            else None
        )
        if case["rival"] is not None and not command.is_stored:
            meet_rival(command, folder, case["rival"] * expected.seconds)
        kills = 0
        for moment in case["moments"]:
            if not interrupted(command, folder, moment * expected.seconds, case["victim"]):
                break
            kills += 1
            fetch(command, folder)
            check_whole(command, folder, former, expected.result)
        finish(start_command(command, command.arguments, folder), folder)
        if reader is not None:
            end_reader(reader, folder)
        assert all_ended(), "the command left a process"
        fetch(command, folder, is_last=True)
        assert not (wrong := differences(tree(folder), expected.result)), wrong
        return kills
    finally:
        end_all()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(stores.cache_of(folder), ignore_errors=True)


def write_earlier(command, name, folder):
    """Writes the result that ``Command.before`` leaves."""
    if command.is_stored:
        finish(start_command(command, command.before, folder), folder)
        fetch(command, folder)
    else:
        shutil.copytree(earlier(name), folder, dirs_exist_ok=True)


def fetch(command, folder, *, is_last=False):
    """Copies the result from the store to ``out``; in the end, nothing else may be left there and
    in the cache.
    """
    if not command.is_stored:
        return
    log = log_of(folder, ".fetch")
    code = end(
        fork(lambda: stores.run(folder, lambda: stores.fetch(is_last)), folder, log), SECONDS
    )
    assert code == 0, f"the store: {log.read_text()}"


def interrupted(command, folder, seconds, victim):
    """Starts the command and kills it after ``seconds``; returns False if it has ended before."""
    process = start_command(command, command.arguments, folder)
    code = end(process, seconds)
    if code is not None:
        assert code == 0, f"exit status {code}: {log_of(folder).read_text()}"
        return False
    if not command.ranks:
        kill(process)
        end(process)
        return True
    started = ranks(process)
    everything = [process, *descendants(process)]
    chosen = {"torchrun": [process], "ranks": started, "all": everything}.get(victim)
    if chosen is None:
        chosen = started[int(victim.split()[1]) :][:1]
    if not chosen:  # no rank has started
        chosen = everything
    kill(*chosen)
    assert end(process, SECONDS) is not None, f"torchrun remains after {victim} was killed"
    # A rank that still imports torch when torchrun is killed ends once it would start.
    assert all_ended(SECONDS), f"a rank remains after {victim} was killed"
    return True


def check_whole(command, folder, former, result):
    """Asserts that what a killed command has left can be read."""
    log = log_of(folder, ".check")
    code = end(fork(lambda: 0 if not Path("out").exists() else read(command), folder, log), SECONDS)
    assert code == 0, f"not readable after a kill: {log.read_text()}"
    if command.lock == ".out.lock":  # the result is replaced as a whole
        found = {
            path: digest for path, digest in tree(folder).items() if path.split("/")[0] == "out"
        }
        assert found in ({}, former, result), (
            f"neither the former nor the new result: {sorted(found)}"
        )
        assert found or not former, "the former result is gone"


def read(command):
    command.read()
    return 0


def start_reader(command, folder):
    """Starts a process that reads the result again and again, and fails once it is not whole."""

    def loop():
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        while not stop:
            command.read()
            time.sleep(random.random() * 0.01)
        return 0

    process = fork(loop, folder, log_of(folder, ".reader"))
    readers.add(process)
    return process


def end_reader(reader, folder):
    readers.remove(reader)
    os.kill(reader, signal.SIGTERM)
    code = end(reader, SECONDS)
    assert code in (0, -signal.SIGTERM), (
        f"a reader met a result that is not whole: {log_of(folder, '.reader').read_text()}"
    )


def meet_rival(command, folder, seconds):
    """Stops the command after ``seconds`` and, if it holds the lock, starts a second writer, which
    must be refused.
    """
    process = start_command(command, command.arguments, folder)
    if end(process, seconds) is not None:
        return
    stopped = [process, *descendants(process)]
    for each in stopped:
        os.kill(each, signal.SIGSTOP)
    if is_locked(folder / command.lock):
        before = state(folder)
        log = log_of(folder, ".rival")
        rival = fork(lambda: main(command.arguments), folder, log)
        code = end(rival, SECONDS)
        lines = log.read_text().splitlines()
        assert code == 2, f"a second writer is not refused: exit status {code}: {lines}"
        assert len(lines) == 1, f"a second writer is not refused in one line: {lines}"
        assert "is writing it; wait, or name another place" in lines[0], lines[0]
        assert state(folder) == before, f"a second writer has changed {folder}"
    kill(*stopped)
    end(process)
    assert all_ended(), "processes remain after all were killed"
