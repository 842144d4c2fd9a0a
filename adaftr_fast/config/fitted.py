"""The options of a run that follow from its log where the user leaves them open.

benchmarks/defaults/protocol.md says how the rule was found, and docs/tuning.md what it reaches.
"""

from __future__ import annotations

import math
from typing import Any

from adaftr_fast.config.model import PRESETS

CONTRAST = {f"model.{name}": value for name, value in PRESETS["recommended"].items()}
OTHER_CONTRASTS = {  # options that the blocks would contradict, or leave without effect
    "model.contrast",
    "model.tau_min",
    "model.tau_max",
    "model.alpha",
    "model.relatedness_hidden",
    "model.relatedness_updates",
    "model.temperature_updates",
}
OF_ADAFTR = {  # options that no other model reads
    *CONTRAST,
    *OTHER_CONTRASTS,
    "model.backbone",
    "model.beta",
    "model.pairs",
    "model.contrast_layer",
    "model.contrast_precision",
    "model.contrast_updates",
}
FITTED = (
    "model.name",
    *CONTRAST,
    "model.wide",
    "model.start_at_rates",
    "optimizer.lr",
    "optimizer.schedule",
    "optimizer.decay_steps",
    "optimizer.lr_end",
    "training.batch_size",
    "training.max_epochs",
    "training.patience",
    "training.monitor",
    "training.gauc_weights",
)
"""The options that ``fitted`` decides, as ``section.option``."""

LR = 0.003
LR_END = 0.01  # of LR, in the last step
EPOCHS = ((100_000, 20), (300_000, 10), (1_000_000, 5), (math.inf, 3))  # below so many rows
LARGE = 1_000_000  # rows from which ids are seen often enough for the towers alone


def fitted(rows: int, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of ``FITTED`` for a log.

    A small log needs small batches, or its epochs have too few steps to leave the start. The
    learning rate falls to nothing over a fixed number of epochs, after which the weights of the best
    epoch are taken: no epoch is the last one because a few before it were noisy. The model is MMoE,
    by the rule of benchmarks/evidence/protocol.md, or AdaFTR if an option is given that no other
    model reads. AdaFTR contrasts within blocks of rows, as in the preset "recommended" of the
    model, unless an option is given that decides on its contrast otherwise.

    Args:
        rows: the number of training rows.
        given: options that the user has set, which the others follow.
    """
    batch_size = given.get("training.batch_size", _batch_size(rows))
    epochs = given.get("training.max_epochs", _epochs(rows))
    steps = epochs * max(1, rows // batch_size)
    name = given.get("model.name", "adaftr" if given.keys() & OF_ADAFTR else "mmoe")
    in_blocks = name == "adaftr" and not given.keys() & {*CONTRAST, *OTHER_CONTRASTS}
    return (CONTRAST if in_blocks else {}) | {
        "model.name": name,
        # TorchRec shards one module of tables
        "model.wide": rows < LARGE and given.get("training.tables") != "torchrec",
        "model.start_at_rates": True,
        "optimizer.lr": LR,
        "optimizer.schedule": "cosine",
        "optimizer.decay_steps": max(steps, given.get("optimizer.warmup_steps", 0) + 1),
        "optimizer.lr_end": LR_END,
        "training.batch_size": batch_size,
        "training.max_epochs": epochs,
        "training.patience": epochs,
        "training.monitor": "logloss",
        "training.gauc_weights": "impressions",
    }


def _batch_size(rows: int) -> int:
    """Returns a power of two of at most one in 64 rows, from 32 to 1,024 where the rows suffice."""
    wanted = min(max(rows // 64, 32), 512 if rows < LARGE else 1024)
    return 1 << (min(wanted, rows).bit_length() - 1)


def _epochs(rows: int) -> int:
    """Returns how often a log is read: a small one often, a large one a few times."""
    return next(epochs for most, epochs in EPOCHS if rows < most)
