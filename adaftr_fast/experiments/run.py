"""One run: the model of a configuration trained, and measured once on the test split."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast.data.loader import PreparedData
from adaftr_fast.models import ModelConfig, MultiTaskModel, build_model
from adaftr_fast.training.checkpoint import Description
from adaftr_fast.training.evaluation import diagnose, evaluate
from adaftr_fast.training.report import Run
from adaftr_fast.training.trainer import TEST, Trainer


def train_one(data: PreparedData, config: dict[str, Any], folder: Path, *, restart: bool = False) -> Run:
    """Trains the model of ``config`` (a dataclass per section), measures it on the test split, writes to ``folder``.

    An unfinished run of the same settings in ``folder`` is resumed, or thrown away with ``restart``.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM during training, which was saved where it stood; its arguments are the
            signal's number and what to tell the user.
        CheckpointError: ``folder`` holds an unfinished run of other settings or data, or cannot be written.
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
    if restart:
        trainer.finish()
    elif trainer.resume():
        progress = trainer.progress
        print(f"{folder}: resuming in epoch {progress.epoch} after step {progress.step:,}", file=sys.stderr)
    result = trainer.fit()
    if result.interrupted:
        raise KeyboardInterrupt(result.interrupted, f"interrupted; the same command goes on from {folder}")
    test, size = data.load("test"), config["training"].eval_batch_size
    metrics = evaluate(model, test, size)
    replace_file(folder / TEST, (dumps(metrics, indent=2) + "\n").encode())
    trainer.finish()
    learned = diagnose(model, test, size)
    return Run(config["model"].name, result.epochs, result.best_epoch, metrics, learned)


def build(config: ModelConfig, data: PreparedData) -> MultiTaskModel:
    """A new model of ``config`` over the fields and tasks of ``data``. Raises ValueError as ``build_model`` does."""
    return build_model(config, data.manifest.num_embeddings, data.manifest.tasks)
