"""A stream that is killed at any point continues by the same command and ends with the same
weights.
"""

import json
import signal
import time

import pytest

from adaftr_fast.extras.streaming.loop import EXPORTED, RECORDS
from adaftr_fast.serving.scorer import load_scorer
from adaftr_fast.training.trained import load_trained
from tests.extras.streaming.conftest import arrive, stream
from tests.forks import COMMAND, Script, wait_for
from tests.logs import read_records
from tests.tolerances import assert_same_bits

TIMED = ("arrived", "lag", "seconds", "rows_per_s")

KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from tests.extras.streaming.conftest import stream
module, owner, name, number, out, *given = sys.argv[1:]
found = importlib.import_module(module)
found = getattr(found, owner) if owner else found
original, calls = getattr(found, name), []

def killing(*arguments, **options):
    calls.append(1)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(found, name, killing)
if len(given) == 1:
    stream(Path(given[0]), Path(out))
else:
    from tests.extras.streaming.test_kafka import source_of
    stream(source_of(*given), Path(out), idle=2)
"""
"""Kills itself at a call of a function of a module, in a stream from a folder, or from a topic of
an address.
"""

LOOP = "adaftr_fast.extras.streaming.loop"
POINTS = {
    "while measuring": ("adaftr_fast.runs.daily", "", "evaluate", 1),
    "in an epoch": ("adaftr_fast.training.stepper", "Stepper", "step", 15),  # 11 a chunk
    "after training": (LOOP, "Journal", "append", 2),
    # the first one replaces no folder
    "as an export is published": ("adaftr_fast.files.whole", "", "_exchange", 1),
    "after an export": (LOOP, "Journal", "note_export", 2),
    "while old chunks are removed": (LOOP, "_Stream", "_remove_old", 3),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a stream that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "in").mkdir()
    for day in range(3):
        arrive(folder / "in", day)
    stream(folder / "in", folder / "out")
    return folder / "out"


def result(out):
    records = read_records(out / RECORDS)
    named = [
        {key: value for key, value in each.items() if key not in (*TIMED, "file")}
        for each in records
    ]
    weights = load_trained(out / "chunk-000003/run").model.state_dict()
    served = {
        path.name: path.read_bytes()
        for path in (out / "serving").iterdir()
        if path.suffix != ".pt2"
    }
    del served["serving.json"]  # holds the sha256 of the program
    return named, weights, served, sorted(path.name for path in out.glob("*") if path.is_dir())


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_killed_streams_end_with_the_same_weights(chunks, tmp_path, whole, point):
    out = tmp_path / "out"
    Script(KILLED, *point, out, chunks).end(-signal.SIGKILL)
    if (out / "serving").exists():
        load_scorer(out / "serving")  # whole
    stream(chunks, out)
    found = result(out)
    expected = result(whole)
    assert found[0] == expected[0]
    assert_same_bits(found[1], expected[1])
    assert found[2:] == expected[2:]


SCHEMA = """
name = "shop"
group = "user"
split = {train = {hash = {stop = 0.9}}, validation = {hash = {start = 0.9}}, test = {}}
labels = {click = "click", conversion = "buy"}
fields = {item = "categorical", user = "categorical"}
"""


def exported(out):
    """The number of the chunk of the last export."""
    return json.loads((out / EXPORTED).read_text())["chunk"] if (out / EXPORTED).exists() else 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_waits_for_files_until_a_signal(tmp_path, signum, code):
    folder = tmp_path / "in"
    out = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "shop.toml").write_text(SCHEMA)
    command = f"stream --dataset {tmp_path}/shop.toml --folder {folder} --out {out} --settle 0"
    command = f"{command} --training.batch_size 64 --training.progress false".split()
    script = Script(COMMAND, *command)
    for day in range(2):
        arrive(folder, day)
        wait_for(lambda: exported(out) == day + 1)  # noqa: B023
    time.sleep(0.5)  # waits again
    script.send_signal(signum)
    shown, errors = script.end(code)
    assert f"adaftr-fast stream: interrupted; run the same command to continue from {out}" in errors
    # the lines between them say why a model of so few rows may not be worth using
    first, second = (line for line in shown.splitlines() if line.startswith("chunk"))
    assert first.startswith("chunk 1 (000.parquet): 800 rows, ")
    assert "before training: the first chunk" in first
    assert "before training: click AUC" in second
    assert "chunk" not in Script(COMMAND, *command, "--idle", "0.1").end()[0]
