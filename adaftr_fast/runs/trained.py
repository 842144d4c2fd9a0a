"""The model that a run has left, and the prepared data whose ids it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adaftr_fast._json import from_json
from adaftr_fast.config.training import TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import CheckpointError, DataError
from adaftr_fast.models import ModelConfig, MultiTaskModel, build_model
from adaftr_fast.training.checkpoint.weights import FILE, Description, load_checkpoint, load_weights
from adaftr_fast.training.trainer import BEST

Section = TypeVar("Section")


@dataclass(frozen=True)
class Trained:
    """A model with its best weights, on the CPU, not in training.

    Attributes:
        folder: its checkpoint.
        about: what the checkpoint says of it.
        training: the settings it was trained by.
    """

    folder: Path
    model: MultiTaskModel
    about: Description
    training: TrainingConfig

    def check_data(self, data: PreparedData) -> None:
        """Raises CheckpointError if ids or tasks of ``data`` mean something else."""
        if self.about.fingerprint != data.manifest.fingerprint:
            raise CheckpointError(
                f"{self.folder}: trained on other data than {data.folder}: ids or tasks do not mean the same"
            )

    def data(self, folder: Path | None = None) -> PreparedData:
        """The prepared folder it was trained on.

        Args:
            folder: where it is now; None = where it was.

        Raises:
            CheckpointError: it is no longer there, or holds another preparation.
        """
        try:
            data = PreparedData(folder or self.about.config.get("data", {}).get("folder", ""))
        except DataError as error:
            raise CheckpointError(f"{self.folder}: the data it was trained on are needed: {error}") from error
        self.check_data(data)
        return data


def load_trained(run: Path) -> Trained:
    """Reads the best weights of the run in ``run``.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    folder = run / BEST
    weights, about = load_checkpoint(folder)
    config = _section(folder, about.config, "model", ModelConfig)
    training = _section(folder, about.config, "training", TrainingConfig)
    model = build_model(config, about.num_embeddings, about.tasks)
    load_weights(model, weights, str(folder))
    return Trained(folder, model.eval(), about, training)


def _section(folder: Path, config: dict[str, Any], name: str, section: type[Section]) -> Section:
    if name not in config:
        raise CheckpointError(f"{folder / FILE}: missing key 'config.{name}'")
    try:
        return from_json(section, config[name], f"config.{name}")
    except ValueError as error:
        raise CheckpointError(f"{folder / FILE}: {error}") from error
