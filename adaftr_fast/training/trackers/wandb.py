"""Weights & Biases, which reads its own environment variables, such as WANDB_MODE=offline and WANDB_PROJECT."""

from __future__ import annotations

import os
import secrets

import wandb

from adaftr_fast.training.trackers.base import Numbers, Opening

PROJECT = "adaftr-fast"  # without WANDB_PROJECT


class WeightsAndBiases:
    """Logs to a run of Weights & Biases, with the number of the validation as its step.

    Its files are in ``wandb`` of the run folder. W&B writes them every 15 seconds, so a process that is killed loses
    what it logged since.
    """

    def __init__(self, opening: Opening) -> None:
        self.known = opening.known or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", opening.name),
            dir=str(opening.folder),
            id=self.known,
            resume="allow",
            reinit="create_new",  # by default, a run that is still open in the process is returned
            config=dict(opening.parameters),
            allow_val_change=True,  # of options that are free on resuming
        )

    def log(self, numbers: Numbers, step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def log_test(self, numbers: Numbers) -> None:
        self._run.summary.update(dict(numbers))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
