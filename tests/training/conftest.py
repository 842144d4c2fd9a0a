"""A small model and a data set that it learns in a fraction of a second."""

import signal

import numpy as np
import pytest
import torch
from torch import nn

from adaftr_fast.config import OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.training.checkpoint.weights import Description
from adaftr_fast.training.files import RunFiles
from adaftr_fast.training.trainer import Trainer

FIELDS = (50, 20, 3)


class Logistic(nn.Module):
    """Two logistic regressions over shared embeddings; its diagnostics are ids, which tests
    recognize.
    """

    task_names = ("click", "conversion")

    def __init__(self):
        super().__init__()
        self.embedding = FusedEmbedding(FIELDS, 4)
        self.out = nn.Linear(12, 2)

    def forward(self, ids):
        return self.out(self.embedding(ids))

    def loss(self, batch):
        each = nn.functional.binary_cross_entropy_with_logits(
            self(batch.ids), batch.labels, reduction="none"
        )
        return {"click": each[:, 0].mean(), "conversion": each[:, 1].mean()}

    def diagnostics(self, batch):
        return {"tau/click-conversion": batch.ids[:, 0].float()}


def make_split(rows: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    ids = np.stack([random.integers(0, size, rows) for size in FIELDS], axis=1).astype(np.int32)
    chance = 1 / (1 + np.exp(-(ids[:, 0] - 25) / 10))
    click = random.random(rows) < chance
    labels = np.stack([click, click & (ids[:, 2] > 0)], axis=1).astype(np.float32)
    return Split.of(
        Batch(
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            torch.from_numpy(ids[:, 1].astype(np.int64)),
        )
    )


ABOUT = Description(
    config=RunConfig(training=TrainingConfig(max_epochs=4), optimizer=OptimizerConfig(lr=0.01)),
    fingerprint="f", num_embeddings=list(FIELDS), tasks=["click", "conversion"], metrics={},
)  # fmt: skip


def trainer(model, splits, folder=None, about=ABOUT, lr=0.01, open_trackers=None, **config):
    """Returns the trainer of a run of four epochs of 40 steps."""
    config = TrainingConfig(**{"batch_size": 100, "max_epochs": 4, "progress": False} | config)
    files = RunFiles(model, config, folder, about, rows=len(splits[0]), open_trackers=open_trackers)
    return Trainer(model, *splits, optimizer=OptimizerConfig(lr=lr), config=config, files=files)


def before_step(run, number, act):
    """Calls ``act`` before a step of all epochs, counted from 1."""
    step = run.train_step

    def train_step(*arguments):
        if run.progress.total_steps + 1 == number:
            act()
        return step(*arguments)

    run.train_step = train_step


def interrupt(signum=signal.SIGINT):
    signal.raise_signal(signum)


@pytest.fixture
def splits():
    return make_split(4000, 1), make_split(1000, 2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Logistic()


def whole(split):
    return next(split.batches(len(split)))
