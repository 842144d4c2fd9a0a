"""Runs commands one after the other and records the wall time, the peak of memory and the files of
each.

What has finished is kept in a journal, so the same call goes on after it was cut off. The time and
the peak of an attempt that was cut off count too: they are written twice a second.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from adaftr_fast.files.whole import replace_file
from benchmarks.gpu.processes import dies_with_parent

SAMPLE_SECONDS = 0.05
SAVE_SECONDS = 0.5
ADAFTR = (sys.executable, "-m", "adaftr_fast.cli")


class Stages:
    """The stages of a measurement that are done.

    Args:
        journal: a file that keeps them.
        program: runs each command.
    """

    def __init__(self, journal: Path, program: Sequence[str] = ADAFTR) -> None:
        self._journal = journal
        self._program = program
        kept = json.loads(journal.read_text()) if journal.exists() else {"commands": {}, "done": {}}
        self._commands = kept["commands"]
        self.done = kept["done"]

    def run(self, name: str, command: Sequence[object], out: Path) -> dict[str, float]:
        """Runs a command, unless it is done, and returns what was measured.

        A command that is interrupted must go on where it was when it runs again, as all of
        ``adaftr-fast`` do.

        Args:
            command: the arguments of the program, without ``--out``.
            out: the file or folder that it writes.

        Returns:
            seconds: the wall time of all attempts.
            attempts: their number.
            peak_mb: the peak of anonymous memory of the process and all processes below it, MB of
                10^6 bytes.
            disk_mb: the size of ``out``.

        Raises:
            SystemExit: the command fails, and the next run repeats it; or the journal has another
                one of this name.
        """
        words = [*self._program, *map(str, command), "--out", str(out)]
        kept = self._commands.setdefault(name, words)
        if kept != words:
            ran = (
                f"expected {shlex.join(kept)}, of which it holds the figures, got "
                f"{shlex.join(words)}"
            )
            raise SystemExit(f"{self._journal}: {name}: {ran}; name another folder")
        found = self.done.setdefault(name, {"seconds": 0.0, "attempts": 0, "peak_mb": 0})
        if found.get("finished"):
            return found
        found["attempts"] += 1
        print(f"{name}: {shlex.join(words)}", flush=True)
        before = found["seconds"]
        start = time.perf_counter()
        saved = 0.0
        process = subprocess.Popen(words, preexec_fn=dies_with_parent())
        while process.poll() is None:
            found["peak_mb"] = max(found["peak_mb"], round(anonymous(process.pid) / 1e6))
            found["seconds"] = round(before + time.perf_counter() - start, 2)
            if found["seconds"] > saved + SAVE_SECONDS:
                self._save()
                saved = found["seconds"]
            time.sleep(SAMPLE_SECONDS)
        found["seconds"] = round(before + time.perf_counter() - start, 2)
        if process.returncode:
            self._save()
            raise SystemExit(
                f"{name}: exit status {process.returncode}; run the same command again to go on"
            )
        found |= {"disk_mb": round(size(out) / 1e6, 1), "finished": True}
        self._save()
        return found

    def _save(self) -> None:
        kept = {"commands": self._commands, "done": self.done}
        replace_file(self._journal, json.dumps(kept, indent=1).encode())


def anonymous(process: int) -> int:
    """Returns the bytes of anonymous memory of a process and all processes below it."""
    below = {}
    for each in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        below.setdefault(int(parent), []).append(int(each))
    total = 0
    todo = [process]
    while todo:
        each = todo.pop()
        todo += below.get(each, [])
        total += _anonymous(each)
    return total


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def size(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())
