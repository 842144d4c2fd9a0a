"""The model that a run has left, and the prepared data whose ids it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import CheckpointError, DataError
from adaftr_fast.models import MultiTaskModel, build_model
from adaftr_fast.training.checkpoint.weights import Description, load_checkpoint, load_weights
from adaftr_fast.training.trainer import BEST


@dataclass(frozen=True)
class Trained:
    """A model with its best weights, on the CPU, not in training.

    Attributes:
        folder: its checkpoint.
        about: what the checkpoint says of it.
    """

    folder: Path
    model: MultiTaskModel
    about: Description

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
            data = PreparedData(folder or self.about.config.data.folder)
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
    model = build_model(about.config.model, about.num_embeddings, about.tasks, about.field_names or None)
    load_weights(model, weights, str(folder))
    return Trained(folder, model.eval(), about)
