"""Whole training by ``adaftr_fast.train`` on a synthetic log with Ali-CCP's 23 fields: samples per
second.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import adaftr_fast as af
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log
from benchmarks.gpu import WORK
from benchmarks.gpu.cells import Cell, Row, Setting

LIMIT = 60  # seconds of a cell
SECONDS = 15.0  # of training in a cell
LEAST_EPOCHS = 2  # the first compiles and warms up
ROWS = 1_000_000
DRY_ROWS = 4000
BATCHES = (1024, 16_384)
DRY_BATCH = 64
GRAPHS = ("auto", "off")  # values of training.graph
RATES = {"click": 0.4, "conversion": 0.2}  # so that a short log has both classes in each split


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields the log, then both models at each precision and batch size, with and without a
    captured step.
    """
    yield Cell({"step": "data"}, write_data, seconds=15)
    graphs, precisions = (
        (GRAPHS[:1], ("float32",)) if setting.dry else (GRAPHS, ("bfloat16", "float32"))
    )
    for batch in [DRY_BATCH] if setting.dry else BATCHES:
        for graph in graphs:
            for precision in precisions:
                for model in ("adaftr", "mmoe"):
                    key = {"model": model, "precision": precision, "batch": batch, "graph": graph}
                    planned = setting.dry or (batch, precision) == (BATCHES[0], "bfloat16")
                    yield Cell(key, train, SECONDS + 3, planned)


def is_current(setting: Setting, row: Row) -> bool:
    """Whether the log is on this machine; an earlier call may have written it on another."""
    return row["cell"].get("step") != "data" or prepared(log_config(setting)).exists()


def log_config(setting: Setting) -> LogConfig:
    return LogConfig(rows=DRY_ROWS, rates=RATES) if setting.dry else LogConfig(rows=ROWS)


def prepared(config: LogConfig) -> Path:
    """Returns the folder of a prepared log, one for each configuration."""
    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    return WORK / f"logs/{digest}/prepared"


def write_data(key: Row, setting: Setting) -> Row:
    return data(log_config(setting))


def data(config: LogConfig) -> Row:
    """Writes and prepares a log, where an earlier call has not."""
    folder = prepared(config).with_name("log")
    write_log(config, folder)
    ready = af.prepare([folder / LOG], prepared(config), dataset=folder / SCHEMA, progress=False)
    fields = ready.manifest.fields
    return {
        "rows": config.rows,
        "fields": len(fields),
        "ids": sum(field.num_embeddings for field in fields),
    }


def options(key: Row, setting: Setting) -> Row:
    """Returns the training options of a cell."""
    chosen = {name: key[name] for name in ("precision", "graph")}
    quiet = {"progress": False, "checkpoint_seconds": 1e6}
    return chosen | quiet | {"device": setting.device, "batch_size": key["batch"]}


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Gives a folder for a run, which is removed afterwards."""
    folder = WORK / f"runs/{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(key: Row, setting: Setting) -> Row:
    """Trains for some seconds and returns the median rate of the epochs after the first."""
    config = log_config(setting)
    data(config)
    endless = {"max_epochs": 100_000, "patience": 100_000}
    with run_folder() as out:
        with (
            interrupted_after(0 if setting.dry else SECONDS, out),
            contextlib.suppress(KeyboardInterrupt),
        ):
            af.train(
                prepared(config),
                out,
                model={"name": key["model"]},
                training=options(key, setting) | endless,
            )
        epochs = af.load_run(out).epochs
    rates = [epoch["samples_per_s"] for epoch in epochs]
    counted = rates[1:]
    return {
        "samples/s": statistics.median(counted),
        "slowest and fastest epoch": [min(counted), max(counted)],
        "epochs": len(rates),
        "first epoch, samples/s": rates[0],
    }


@contextlib.contextmanager
def interrupted_after(seconds: float, run: Path) -> Iterator[None]:
    """Sends this process a SIGINT after some seconds and epochs, at which the run ends after its
    step and saves itself.

    A run that ends by itself or by an error before gets none.
    """
    end = time.monotonic() + seconds
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            if time.monotonic() >= end and epochs_of(run) >= LEAST_EPOCHS:
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def epochs_of(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
