"""TensorBoard: one event file per process in the folder ``tensorboard`` of the run."""

from __future__ import annotations

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from adaftr_fast.training.trackers.base import Numbers, Opening

FOLDER = "tensorboard"  # in the run folder


class TensorBoard:
    """Writes scalars by the number of the validation, and the options and test metrics for the HParams page."""

    def __init__(self, opening: Opening) -> None:
        self.known = FOLDER
        self._parameters = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in opening.parameters.items()
        }
        # purge_step discards what a killed process had logged and not noted in trackers.json, and a run before
        self._writer = SummaryWriter(str(opening.folder / FOLDER), purge_step=opening.first_step)
        self._step = opening.first_step - 1

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._step = step

    def log_test(self, numbers: Numbers) -> None:
        """Writes to the event file of the run; ``SummaryWriter.add_hparams`` would add a file in another folder.

        The step is the last one, so that ``purge_step`` of a later run in the folder discards them.
        """
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, self._step)
        for summary in hparams(self._parameters, dict(numbers)):
            self._writer._get_file_writer().add_summary(summary)

    def close(self, failed: bool) -> None:
        self._writer.close()
