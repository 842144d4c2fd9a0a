"""Trains a small AdaFTR twice, once without interruption and once with many kills; run by test_run_snapshots.py.

Each attempt is a fork, so that it starts in milliseconds; this process itself computes nothing, so forking is safe.
Prints how many attempts were killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.checkpoint.weights import Description
from adaftr_fast.training.files import RunFiles
from adaftr_fast.training.trainer import Trainer

FIELDS, TASKS = [60, 20, 7], ["click", "conversion"]


def split(rows: int, seed: int) -> Split:
    numbers = np.random.default_rng(seed)
    ids = np.stack([numbers.integers(0, size, rows) for size in FIELDS], axis=1).astype(np.int32)
    click = numbers.random(rows) < ids[:, 0] / 60
    labels = np.stack([click, click & (ids[:, 1] > 9)], axis=1).astype(np.float32)
    return Split.of(
        Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(ids[:, 2].astype(np.int64)))
    )


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"expert_hidden": [8], "tower_hidden": [8, 4], "relatedness_hidden": [4]}
    model = build_model(ModelConfig(**sizes, contrast_epochs=1.5), FIELDS, TASKS)
    config = TrainingConfig(
        batch_size=64, max_epochs=4, patience=2, checkpoint_seconds=0, validate_every=0.5, progress=False
    )
    about = Description(config=RunConfig(), fingerprint="", num_embeddings=FIELDS, tasks=TASKS, metrics={})
    trainer = Trainer(
        model, split(1500, 1), split(500, 2),
        optimizer=OptimizerConfig(lr=0.01), config=config, files=RunFiles(model, config, folder, about, rows=1500),
    )  # fmt: skip
    trainer.resume()
    trainer.fit()


def attempt(folder: Path, seconds: float | None) -> bool:
    """Returns whether the run ended within ``seconds``."""
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def main(folder: Path) -> None:
    start = time.perf_counter()
    if not attempt(folder / "whole", None):
        raise SystemExit("the undisturbed run failed")
    duration = time.perf_counter() - start
    chance, killed = random.Random(1), 0
    while not attempt(folder / "killed", duration * chance.uniform(0.1, 0.3) if killed < 12 else None):
        killed += 1
    print(killed)


main(Path(sys.argv[1]))
