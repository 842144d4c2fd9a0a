"""``adaftr_fast.train``, ``load_run`` and ``evaluate``: runs, their results and their models."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaftr_fast._tables import Table
from adaftr_fast.api.prepare import Prepared
from adaftr_fast.config import RunConfig, WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.distributed.ranks import joined
from adaftr_fast.errors import CheckpointError
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.runs.run import train_one
from adaftr_fast.runs.trained import TrainedModel, load_trained
from adaftr_fast.training import evaluation
from adaftr_fast.training.logger import METRICS
from adaftr_fast.training.result import TrainedRun, metric_cells, result_table
from adaftr_fast.training.trainer import TEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """A run on disk. It prints as its table of test metrics, in a notebook with its curves.

    Attributes:
        folder: holds metrics.jsonl, ``best/`` and test.json.
        result: epochs, best epoch, test metrics and learned values.
    """

    folder: Path
    result: TrainedRun

    @cached_property
    def trained(self) -> TrainedModel:
        """The model with its best weights, and its checkpoint's description. Raises CheckpointError."""
        return load_trained(self.folder)

    @property
    def model(self) -> MultiTaskModel:
        """The model with its best weights, on the CPU, in evaluation mode."""
        return self.trained.model

    @property
    def config(self) -> RunConfig:
        """The configuration the run was trained with."""
        return self.trained.about.config

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """A record an epoch: losses, validation metrics, seconds and speed, as in metrics.jsonl."""
        return self.result.epochs

    @property
    def test(self) -> evaluation.TaskMetrics:
        """Metrics on the test split by task: "auc", "gauc" (with groups) and "logloss", as fractions."""
        return self.result.test

    def curves(self) -> Figure:
        """Training loss and validation AUC by epoch, and histograms of learned values."""
        from adaftr_fast.training.report import draw  # imports matplotlib

        return draw([self.result])

    def __repr__(self) -> str:
        return f"{self.folder}\n{result_table([self.result]).markdown()}"

    def _repr_html_(self) -> str:
        picture = io.BytesIO()
        self.curves().savefig(picture, format="png", dpi=80)
        image = base64.b64encode(picture.getvalue()).decode()
        return f'<p>{self.folder}</p>{result_table([self.result]).html()}<img src="data:image/png;base64,{image}">'


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on one split. It prints as a table, AUC and GAUC in points of 100.

    Attributes:
        split: the name of the split.
        metrics: by task: "auc", "gauc" (with groups) and "logloss", as fractions.
    """

    split: str
    metrics: evaluation.TaskMetrics

    def table(self) -> Table:
        """A row a task."""
        return Table([f"{self.split}: task", "AUC", "GAUC", "log-loss"], metric_cells(self.metrics))

    def __repr__(self) -> str:
        return self.table().markdown()

    def _repr_html_(self) -> str:
        return self.table().html()


def train(
    data: PreparedData | str | Path | None = None,
    out: str | Path = "runs/train",
    *,
    config: RunConfig | str | Path | None = None,
    model: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    restart: bool = False,
    warm_start: str | Path | None = None,
) -> Run:
    """Trains one model and measures it on the test split.

    An unfinished run of the same settings in ``out`` is resumed; a finished one is replaced once an epoch is done.
    Under torchrun every rank calls this function, and each gets the result.

    Args:
        data: a prepared folder; None: ``config.data.folder``.
        out: the folder of the run.
        config: a configuration or a TOML file; the defaults are the paper's.
        model, optimizer, training: options that differ from ``config``, for example ``model={"name": "mmoe"}``.
        restart: discard an unfinished run in ``out``.
        warm_start: a run to start from: embedding rows by field and value, dense weights by name and shape.

    Raises:
        ConfigError: an option that is unknown or out of range.
        DataError: no prepared folder.
        CheckpointError: ``out`` holds an unfinished run of other settings or data, or cannot be written.
        TrainingError: training cannot go on, for example because the loss is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was trained is saved, and the same call continues.

    Example::

        run = adaftr_fast.train("data/mine", "runs/mine", model={"name": "adaftr"}, training={"max_epochs": 5})
    """
    settings = (
        config if isinstance(config, RunConfig) else RunConfig() if config is None else RunConfig.from_toml(config)
    )
    sections = {"model": model, "optimizer": optimizer, "training": training}
    settings = settings.with_options(**{name: options for name, options in sections.items() if options})
    if isinstance(data, str | Path):
        settings = settings.with_options(data={"folder": str(data)})
    prepared = data if isinstance(data, PreparedData) else Prepared(settings.data.folder)
    settings = settings.with_options(data={"folder": str(prepared.folder)})
    if warm_start is not None:
        settings = replace(settings, warm_start=WarmStartConfig(str(warm_start)))
    with joined(settings.training.device, settings.training.rank_timeout) as ranks:
        return Run(Path(out), train_one(prepared, settings, Path(out), restart=restart, ranks=ranks))


def _settings(config: RunConfig | str | Path | None) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    return RunConfig() if config is None else RunConfig.from_toml(config)


def load_run(folder: str | Path) -> Run:
    """Reads a run that ``train`` wrote.

    Raises:
        CheckpointError: the folder holds no run, or a damaged one.
    """
    folder = Path(folder)
    trained = load_trained(folder)
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        epochs = [json.loads(line) for line in lines]
        test = json.loads((folder / TEST).read_text(encoding="utf-8")) if (folder / TEST).exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the run cannot be read: {error}") from error
    best = [record["epoch"] for record in epochs if record["validation"] == trained.about.metrics]
    run = Run(folder, TrainedRun(trained.about.config.model.name, epochs, best[0] if best else 0, test))
    vars(run)["trained"] = trained  # what ``cached_property`` would read again
    return run


def evaluate(run: Run | str | Path, data: PreparedData | str | Path | None = None, split: str = "test") -> Evaluation:
    """Measures the best weights of a run on one split.

    Args:
        run: a run or its folder.
        data: a prepared folder with the ids and tasks of the run's; None: the folder it was trained on.
        split: "train", "validation" or "test".

    Raises:
        CheckpointError: the run has no whole checkpoint, or ids or tasks of ``data`` mean something else.
        DataError: no prepared folder, or no such split.
    """
    if data is not None and not isinstance(data, PreparedData):
        data = Prepared(data)
    trained = run.trained if isinstance(run, Run) else load_trained(Path(run))
    if data is None:
        data = trained.data()
    trained.check_data(data)
    size = trained.about.config.training.eval_batch_size
    return Evaluation(split, evaluation.evaluate(trained.model, data.load(split), size))
