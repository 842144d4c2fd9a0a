"""Whole training by ``adaftr_fast.train`` on a synthetic log with Ali-CCP's 23 fields: samples per second."""

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adaftr_fast as af
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log
from benchmarks.gpu.cells import Cell, Setting

LIMIT = 240  # seconds of a cell; the first one writes the log
EPOCHS, DRY_EPOCHS = 6, 2  # of which the first compiles and warms up
ROWS = 1_000_000
BATCHES, PRECISIONS, GRAPHS = (1024, 16_384), ("bfloat16", "float32"), ("auto", "off")
RATES = {"click": 0.4, "conversion": 0.2}  # so that a short log has both classes in each split


def cells(setting: Setting) -> Iterator[Cell]:
    """Yields both models at each batch size and precision, with and without a captured step."""
    sizes = itertools.product(BATCHES, GRAPHS, PRECISIONS)
    for batch, graph, precision in [(64, "auto", "float32")] if setting.dry else sizes:
        for model in ("adaftr", "mmoe"):
            key = {"model": model, "precision": precision, "batch": batch, "graph": graph}
            yield Cell(key, lambda key=key: train(key, setting))


def data(setting: Setting) -> Path:
    """Writes and prepares the log, where an earlier cell has not; returns the prepared folder."""
    config = LogConfig(rows=4000, rates=RATES) if setting.dry else LogConfig(rows=ROWS)
    log, prepared = setting.out / "log", setting.out / "prepared"
    write_log(config, log)
    af.prepare([log / LOG], prepared, dataset=log / SCHEMA, progress=False)
    return prepared


def train(key: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Trains for some epochs and returns the median rate of those after the first."""
    epochs = DRY_EPOCHS if setting.dry else EPOCHS
    options = {"device": setting.device, "batch_size": key["batch"], "max_epochs": epochs, "patience": epochs}
    options |= {"precision": key["precision"], "graph": key["graph"], "progress": False, "checkpoint_seconds": 1e6}
    with tempfile.TemporaryDirectory() as out:
        run = af.train(data(setting), Path(out) / "run", model={"name": key["model"]}, training=options)
    first, *counted = (epoch["samples_per_s"] for epoch in run.epochs)
    return {
        "samples/s": statistics.median(counted),
        "slowest and fastest epoch": [min(counted), max(counted)],
        "first epoch, samples/s": first,
    }
