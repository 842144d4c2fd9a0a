"""One run: the model of a configuration trained, and measured once on the test split."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adaftr_fast._json import dumps
from adaftr_fast.data.loader import PreparedData
from adaftr_fast.models import ModelConfig, MultiTaskModel, build_model
from adaftr_fast.training.checkpoint import Description
from adaftr_fast.training.evaluation import diagnose, evaluate
from adaftr_fast.training.report import Run
from adaftr_fast.training.trainer import TEST, Trainer


def train_one(data: PreparedData, config: dict[str, Any], folder: Path) -> Run:
    """Trains the model of ``config`` (a dataclass per section), measures it on the test split, writes to ``folder``.

    Ctrl-C leaves the best weights so far; within the first epoch it leaves ``folder`` as it was.

    Raises:
        KeyboardInterrupt: Ctrl-C within the first epoch.
        TrainingError: training that cannot go on.
    """
    torch.manual_seed(config["training"].seed)  # the initial weights; the trainer seeds what follows
    model = build(config["model"], data)
    about = Description(
        config={name: asdict(section) for name, section in config.items()},
        fingerprint=data.manifest.fingerprint,
        num_embeddings=data.manifest.num_embeddings,
        tasks=data.manifest.tasks,
        metrics={},
    )
    trainer = Trainer(
        model,
        data.load("train"),
        data.load("validation"),
        optimizer=config["optimizer"],
        config=config["training"],
        folder=folder,
        about=about,
    )
    result = trainer.fit()
    if not result.epochs:
        raise KeyboardInterrupt
    if result.interrupted:
        print(f"interrupted: keeping the weights of epoch {result.best_epoch}", file=sys.stderr)
    test, size = data.load("test"), config["training"].eval_batch_size
    metrics = evaluate(model, test, size)
    (folder / TEST).write_text(dumps(metrics, indent=2) + "\n")
    learned = diagnose(model, test, size)
    return Run(config["model"].name, result.epochs, result.best_epoch, metrics, learned, result.interrupted)


def build(config: ModelConfig, data: PreparedData) -> MultiTaskModel:
    """A new model of ``config`` over the fields and tasks of ``data``. Raises ValueError as ``build_model`` does."""
    return build_model(config, data.manifest.num_embeddings, data.manifest.tasks)
