"""``adaftr_fast.train``, ``load_run`` and ``evaluate``: runs, their results and their models."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaftr_fast._files import AnyPath
from adaftr_fast._tables import Table, paragraphs
from adaftr_fast.api.prepared import open_data
from adaftr_fast.config import RunConfig, WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.distributed.ranks import joined
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.models.own import ModelClass, class_name
from adaftr_fast.runs.output import output
from adaftr_fast.runs.record import read_result
from adaftr_fast.runs.run import train_one
from adaftr_fast.runs.trained import TrainedModel, load_trained
from adaftr_fast.stores import as_path, local_copy
from adaftr_fast.training import evaluation
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.result import METRIC_COLUMNS, TrainedRun, metric_cells, result_table

if TYPE_CHECKING:
    from adaftr_fast._figures import Picture


@dataclass(frozen=True, eq=False)
class Run:
    """A run on disk. It prints as a table of its test metrics, in a notebook also as curves.

    Attributes:
        folder: the folder with metrics.jsonl, ``best/`` and test.json.
        result: the epochs, the best epoch, the test metrics and, after ``train``, learned values of each test row.
        model_class: the class of a model of one's own, or its name; None for a built-in model.
        loaded: the model, if it has been loaded.
    """

    folder: AnyPath
    result: TrainedRun
    model_class: ModelClass | None = None
    loaded: TrainedModel | None = None

    @cached_property
    def trained(self) -> TrainedModel:
        """The model with its best weights, and the description in its checkpoint. Raises CheckpointError."""
        return self.loaded or load_trained(local_copy(self.folder), self.model_class)

    @property
    def model(self) -> MultiTaskModel:
        """The model with its best weights, on the CPU, in evaluation mode."""
        return self.trained.model

    @property
    def config(self) -> RunConfig:
        """The configuration that the run was trained with."""
        return self.trained.about.config

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """One record per validation, as in metrics.jsonl: losses, validation metrics, seconds, samples a second."""
        return self.result.epochs

    @property
    def test(self) -> TaskMetrics:
        """Metrics on the test split by task, as fractions: "auc", "logloss", "calibration", and "gauc" with groups.

        A later stage of a funnel also has "cvr_auc", the AUC of p_cvr = p_ctcvr / p_ctr on the clicked rows.
        Empty while the run is unfinished.
        """
        return self.result.test

    def table(self, *others: Run) -> Table:
        """Returns a table of test metrics and speed, one row per run and task; AUC and GAUC in percent.

        Args:
            others: runs to list below this one.
        """
        return result_table([run.result for run in (self, *others)])

    def summary(self) -> str:
        """Returns one line with the folder and the best epoch."""
        result = self.result
        best = f"best epoch {result.best_epoch:g} of {result.trained_epochs:g}"
        unfinished = "" if result.test else "; unfinished: no test metrics yet"
        return f"{self.folder}: {result.name}, {best}{unfinished}"

    def curves(self, *others: Run) -> Picture:
        """Draws training loss, validation AUC and the quantiles of learned values by epoch.

        Args:
            others: runs to draw beside this one.
        """
        from adaftr_fast.training.report import draw  # imports matplotlib

        return draw([run.result for run in (self, *others)])

    def __repr__(self) -> str:
        return f"{self.summary()}\n{self.table().markdown()}" if self.test else self.summary()

    def _repr_html_(self) -> str:
        image = base64.b64encode(self.curves()._repr_png_()).decode()
        table = self.table().html() if self.test else ""
        return f'{paragraphs(self.summary())}{table}<img alt="curves" src="data:image/png;base64,{image}">'


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on one split. It prints as a table, AUC and GAUC in percent.

    Attributes:
        split: the name of the split.
        metrics: by task, as fractions: "auc", "logloss", "calibration", "gauc" with groups, and "cvr_auc" of a later
            stage of a funnel.
    """

    split: str
    metrics: TaskMetrics

    def table(self) -> Table:
        """Returns a table with one row per task."""
        return Table([f"{self.split}: task", *METRIC_COLUMNS], metric_cells(self.metrics))

    def __repr__(self) -> str:
        return self.table().markdown()

    def _repr_html_(self) -> str:
        return self.table().html()


def train(
    data: PreparedData | str | AnyPath | None = None,
    out: str | AnyPath = "runs/train",
    *,
    config: RunConfig | str | Path | None = None,
    model: dict[str, Any] | type[MultiTaskModel] | None = None,
    optimizer: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    restart: bool = False,
    warm_start: Run | str | AnyPath | WarmStartConfig | None = None,
) -> Run:
    """Trains one model and measures it on the test split.

    The folder then holds a report of one page, report.md, with its picture. An unfinished run of the same settings in
    ``out`` is resumed; a finished one is replaced once an epoch is done.
    Under torchrun every rank calls this function, and each gets the result.

    Args:
        data: a prepared folder or its path; None takes ``config.data.folder``.
        out: the folder of the run.
        config: a configuration or a TOML file; the defaults are the paper's.
        model, optimizer, training: options that differ from ``config``, for example ``model={"name": "mmoe"}``. A class
            of one's own as ``model`` stands for ``{"name": "module:Class"}``; it is called as
            ``Class(num_embeddings, task_names, config.model, field_names)``.
        restart: discard an unfinished run in ``out``.
        warm_start: a run to start from: embedding rows by field and value, dense layers by name and shape. A
            ``WarmStartConfig`` also names the task of a Single-DNN whose tables are copied.

    Raises:
        ConfigError: an option is unknown, its value has a wrong type or is out of range, or a class is not a model.
        DataError: there is no prepared folder.
        CheckpointError: ``out`` holds an unfinished run of other settings or data, or cannot be written, or no weight
            of ``warm_start`` fits.
        TrainingError: training cannot go on, for example because the loss is not finite.
        TypeError: an argument is not of the types named here.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is saved, and the same call continues it.

    Example::

        run = adaftr_fast.train("data/mine", "runs/mine", model={"name": "adaftr"}, training={"max_epochs": 5})
    """
    if isinstance(model, type):
        model = {"name": class_name(model)}
    settings = _settings(config, {"model": model, "optimizer": optimizer, "training": training})
    own = settings.model.name if settings.model.is_own else None
    prepared = open_data(settings.data.folder if data is None else data)
    settings = settings.with_options(data={"folder": prepared.name})
    if warm_start is not None:
        settings = replace(settings, warm_start=_start(warm_start))
    place = as_path(out)
    with joined(settings.training.device, settings.training.rank_timeout) as ranks, output(place, ranks) as to:
        result = train_one(prepared, settings, to.local, restart=restart, ranks=ranks, output=to, report=True)
    return Run(place, result, own)


def _start(source: Run | str | AnyPath | WarmStartConfig) -> WarmStartConfig:
    return source if isinstance(source, WarmStartConfig) else WarmStartConfig(str(run_folder(source, "warm_start")))


def load_run(folder: str | AnyPath, *, model_class: ModelClass | None = None) -> Run:
    """Reads a run that ``train`` wrote. An interrupted run can be read once it has finished an epoch.

    Args:
        folder: the folder of the run.
        model_class: the class of a model of one's own, or its name as "module:Class", which is imported. A run does not
            choose the code that is imported, so it must be given.

    Raises:
        CheckpointError: the folder holds no run, a damaged one, or one that needs ``model_class``.
        ConfigError: ``model_class`` is not a model, or the run has a built-in one.
    """
    local = local_copy(folder)
    trained = load_trained(local, model_class)
    return Run(as_path(folder), read_result(local, trained.about), model_class, trained)


def evaluate(
    run: Run | str | AnyPath,
    data: PreparedData | str | AnyPath | None = None,
    split: str = "test",
    *,
    model_class: ModelClass | None = None,
) -> Evaluation:
    """Measures the best weights of a run on one split.

    Args:
        run: a run or its folder.
        data: a prepared folder with the ids and tasks of the run's; None takes the folder it was trained on.
        split: "train", "validation" or "test".
        model_class: as for ``load_run``; a ``Run`` knows it.

    Raises:
        CheckpointError: the run has no whole checkpoint or needs ``model_class``, or ids or tasks of ``data`` have
            another meaning.
        DataError: there is no prepared folder, or no such split.
        TypeError: an argument is not of the types named here.
    """
    prepared = None if data is None else open_data(data)
    if isinstance(run, Run) and model_class is None:
        trained = run.trained
    else:
        trained = load_trained(local_copy(run_folder(run)), model_class)
    if prepared is None:
        prepared = trained.data()
    trained.check_data(prepared)
    size = trained.about.config.training.eval_batch_size
    return Evaluation(split, evaluation.evaluate(trained.model, prepared.load(split), size))


def run_folder(run: Run | str | AnyPath, argument: str = "run") -> AnyPath:
    """Returns the folder of a run.

    Raises:
        TypeError: ``run``, which the user knows as ``argument``, is neither a run nor a path.
    """
    if isinstance(run, Run):
        return run.folder
    if not isinstance(run, str | AnyPath):
        raise TypeError(f"{argument}: expected a run or its folder, got {type(run).__name__}")
    return as_path(run)


def _settings(config: RunConfig | str | Path | None, sections: dict[str, dict[str, Any] | None]) -> RunConfig:
    """Returns ``config`` with the options of ``sections``."""
    if config is None:
        config = RunConfig()
    elif isinstance(config, str | Path):
        config = RunConfig.from_toml(config)
    elif not isinstance(config, RunConfig):
        raise TypeError(f"config: expected a RunConfig or the path of a TOML file, got {config!r}")
    for name, options in sections.items():
        if not isinstance(options, dict | None):
            raise TypeError(f"{name}: expected a dict of options, got {options!r}")
    return config.with_options(**{name: options for name, options in sections.items() if options})
