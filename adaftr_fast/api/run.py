"""``adaftr_fast.train``, ``load_run`` and ``evaluate``: runs, their results and their models."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from adaftr_fast.api.places import Place, local, output_folder, place_of
from adaftr_fast.api.prepared import open_data
from adaftr_fast.api.ranks import joined, output
from adaftr_fast.config import RunConfig, WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.memory import Memory
from adaftr_fast.display.tables import Shown, Table
from adaftr_fast.errors import CheckpointError
from adaftr_fast.explain.buckets import ScoreBuckets
from adaftr_fast.explain.doubts import data_doubts, find_doubts, leaks, ties, training_doubts
from adaftr_fast.explain.importance import Importance, permutation_importance
from adaftr_fast.models.build import ModelClass, class_name
from adaftr_fast.runs.run import train_one
from adaftr_fast.training import evaluation
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.spinning import warn_of_spinning
from adaftr_fast.training.trained import (
    METRIC_COLUMNS,
    Run,
    Trained,
    load_trained,
    metric_cells,
    metric_notes,
)
from adaftr_fast.training.trainer import OnEpoch

if TYPE_CHECKING:
    from adaftr_fast.display.figures import Picture


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """Metrics of a model on one split. It prints as tables: the metrics, AUC and GAUC in percent,
    and the importance.

    Attributes:
        split: the name of the split.
        metrics: by task, as fractions: "auc", "logloss", "calibration", "gauc" with groups, and
            "cvr_auc" of a later stage of a funnel.
        buckets: by task, the rows in ten buckets by score: calibration, lift and gain.
        importance: the permutation importance of the fields, if it was asked for.
        gauc_weights: how GAUC weighs the groups.
        doubts: why the model is not worth explaining yet, if so, and what to do next, a sentence
            each.
        run: the folder of the run, for the title of the page.
    """

    _gap = "\n\n"
    split: str
    metrics: TaskMetrics
    buckets: dict[str, ScoreBuckets] = field(default_factory=dict)
    importance: Importance | None = None
    run: str = ""
    doubts: list[str] = field(default_factory=list)
    gauc_weights: str = "none"

    def table(self) -> Table:
        """Returns a table with one row per task."""
        return Table([f"{self.split}: task", *METRIC_COLUMNS], metric_cells(self.metrics))

    def numbers(self) -> dict[str, Any]:
        """Returns what the command prints as JSON: split, metrics, and the importance by field and
        task, if any.
        """
        content: dict[str, Any] = {"split": self.split, "metrics": self.metrics}
        found = self.importance
        if found is not None:
            mean = found.mean.tolist()
            error = found.standard_error.tolist()
            content["importance"] = {
                name: {
                    task: {"mean": m, "standard_error": e} for task, m, e in zip(found.tasks, *each)
                }
                for name, *each in zip(found.fields, mean, error)
            }
        return content

    def curves(self) -> Picture:
        """Draws observed over predicted rates and the cumulative gain of each task."""
        from adaftr_fast.explain.page import draw  # imports matplotlib

        return draw(self.buckets)

    def write(self, folder: Place) -> list[str]:
        """Writes ``evaluation.md``, one page, and its picture ``evaluation.png``; returns the paths
        of both.

        Raises:
            OSError: a file cannot be written.
        """
        from adaftr_fast.explain.page import PAGE, PAGE_PICTURE, page_sections  # imports matplotlib

        title = f"{self.run} on the {self.split} split"
        sections = page_sections(
            title,
            [self.table().markdown(), *metric_notes(self.metrics, self.gauc_weights)],
            self.doubts,
            self.buckets,
            self.importance,
        )
        with output_folder(folder) as target:
            self.curves().save_with(target / PAGE, sections)
        return [f"{place_of(folder)}/{name}" for name in (PAGE, PAGE_PICTURE)]

    def _parts(self) -> list[str | Table]:
        return [
            self.table(),
            *metric_notes(self.metrics, self.gauc_weights),
            *([] if self.importance is None else [self.importance.table()]),
            *self.doubts,
        ]


def train(
    data: PreparedData | Place | None = None,
    out: Place = "runs/train",
    *,
    config: RunConfig | str | Path | None = None,
    model: dict[str, Any] | type[nn.Module] | None = None,
    optimizer: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    preset: Literal["paper", "fitted"] | None = None,
    restart: bool = False,
    warm_start: Run | Place | WarmStartConfig | None = None,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Trains one model and measures it on the test split.

    The folder then holds a report of one page, report.md, with its picture. An unfinished run of
    the same settings in ``out`` is resumed; a finished one is replaced once an epoch is done. Under
    torchrun every rank calls this function, and each gets the result.

    Args:
        data: a prepared folder or its path; None takes ``config.data.folder``.
        out: the folder of the run.
        config: a complete configuration, or a TOML file of some options.
        model, optimizer, training: options that differ from ``config``, for example
            ``model={"name": "mmoe"}``. A class of one's own as ``model``, a ``MultiTaskModel`` or a
            ``torch.nn.Module`` that computes logits [B, T], stands for ``{"name":
            "module:Class"}``; it is called as ``Class(num_embeddings, task_names, config.model,
            field_names)``.
        preset: where the options come from that neither ``config`` nor the arguments set: "fitted",
            the number of training rows (``adaftr_fast.config.fitted``), or "paper". None takes that
            of ``config``, then that of the data set: data sets that ship have the paper's, and
            other data fitted ones.
        restart: discard an unfinished run in ``out``.
        warm_start: a run to start from: embedding rows by field and value, dense layers by name and
            shape. A ``WarmStartConfig`` also names the task of a Single-DNN whose tables are
            copied.
        on_epoch: a function that is called with the record of each validation (one of
            ``Run.epochs``) once it is saved. If it returns True, training stops, and the best
            weights so far are measured on the test split.

    Raises:
        ConfigError: an option is unknown, its value has a wrong type or is out of range, or a class
            is not a model.
        DataError: there is no prepared folder.
        CheckpointError: ``out`` holds an unfinished run of other settings or data, or cannot be
            written, or no weight of ``warm_start`` fits.
        TrainingError: training cannot go on, for example because the loss is not finite.
        TypeError: an argument is not of the types named here.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run is saved, and the same call continues it.

    Example::

        run = adaftr_fast.train("data/mine", "runs/mine", model={"name": "adaftr"},
        training={"max_epochs": 5})
    """
    if isinstance(model, type):
        model = {"name": class_name(model)}
    sections = {"model": model, "optimizer": optimizer, "training": training}
    settings = _settings(config, sections, preset)
    own = settings.model.name if settings.model.is_own else None
    prepared = open_data(settings.data.folder if data is None else data)
    settings = settings.with_options(data={"folder": prepared.name})
    if warm_start is not None:
        if not isinstance(warm_start, WarmStartConfig):
            warm_start = WarmStartConfig(str(run_folder(warm_start, "warm_start")))
        settings = replace(settings, warm_start=warm_start)
    if settings.training.device == "cpu":
        warn_of_spinning()
    with (
        joined(settings.training) as ranks,
        output(out, ranks) as to,
    ):
        run = train_one(
            prepared,
            settings,
            to.local,
            restart=restart,
            ranks=ranks,
            output=to,
            report=True,
            on_epoch=on_epoch,
        )
    return replace(run, folder=local(out), model_class=own)


def load_run(folder: Place, *, model_class: ModelClass | None = None) -> Run:
    """Reads a run that ``train`` wrote. An interrupted run can be read once it has finished an
    epoch.

    Args:
        folder: the folder of the run.
        model_class: the class of a model of one's own, or its name as "module:Class", which is
            imported. A run does not choose the code that is imported, so it must be given.

    Raises:
        CheckpointError: the folder holds no run, a damaged one, or one that needs ``model_class``.
        ConfigError: ``model_class`` is not a model, or the run has a built-in one.
    """
    run = Run.read(local(folder), model_class)
    _ = run.trained  # so that a damaged file is an error of this call
    return run


def evaluate(
    run: Run | Place,
    data: PreparedData | Place | None = None,
    split: str = "test",
    *,
    importance: bool = False,
    repeats: int = 5,
    max_rows: int = 50_000,
    seed: int = 0,
    memory: float | None = None,
    progress: bool = True,
    model_class: ModelClass | None = None,
) -> Evaluation:
    """Measures the best weights of a run on one split, and what each field is worth.

    Args:
        run: a run or its folder.
        data: a prepared folder with the ids and tasks of the run's; None takes the folder it was
            trained on.
        split: "train", "validation" or "test".
        importance: also permute the values of each field among the rows, and measure the AUC that
            is lost.
        repeats: with ``importance``: the number of permutations of each field, for the standard
            error.
        max_rows: with ``importance``: the most rows to measure, which bounds the time; they are
            drawn at random.
        seed: with ``importance``: of the permutations and the draw.
        memory: how many GB (2^30 bytes) the process may take, beside the model and the rows of
            ``importance``. The exact metrics keep the predictions of all rows of the split, so this
            is checked before they are computed; None for any number.
        progress: with ``importance``: show a progress bar.
        model_class: as for ``load_run``; a ``Run`` knows it.

    Raises:
        CheckpointError: the run has no whole checkpoint or needs ``model_class``, or ids or tasks
            of ``data`` have another meaning.
        ConfigError: ``repeats`` or ``max_rows`` is less than 1, or ``memory`` is too small for the
            split.
        DataError: there is no prepared folder, or no such split.
        TypeError: an argument is not of the types named here.

    Example::

        found = adaftr_fast.evaluate(run, importance=True)
        found.importance.mean  # [F, T], the AUC that is lost without each field
        found.write("runs/mine")
    """
    prepared = None if data is None else open_data(data)
    name = str(run_folder(run))
    if isinstance(run, Run) and model_class is None:
        trained = run.trained
    else:
        trained = load_trained(local(run_folder(run)), model_class)
    model = trained.model
    if prepared is None:
        prepared = trained.data(local(trained.config.data.folder))
    trained.check_data(prepared)
    rows = prepared.load(split)
    training = trained.config.training
    batch_size = training.eval_batch_size
    tasks = model.task_names
    if memory is not None:
        needed = evaluation.memory_needed(len(rows), len(tasks))
        Memory.of(memory).check_all(needed, f"the predictions of {len(rows):,} rows")
    predictions = evaluation.predict(model, rows, batch_size)
    metrics = evaluation.measure(tasks, predictions, rows.funnel or (), training.gauc_weights)
    buckets = {
        task: ScoreBuckets.of(y, z, predictions.weight)
        for task, y, z in zip(tasks, predictions.labels.T, predictions.logits.T)
    }
    measured = None
    if importance:
        measured = permutation_importance(
            model,
            rows,
            prepared.manifest.features,
            repeats=repeats,
            max_rows=max_rows,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    doubts = [
        *find_doubts(metrics),
        *ties(buckets),
        *_training_doubts(trained, prepared),
        *data_doubts(prepared.manifest),
        *leaks(model, rows, prepared.manifest, metrics, batch_size),
    ]
    return Evaluation(split, metrics, buckets, measured, name, doubts, training.gauc_weights)


def _training_doubts(trained: Trained, data: PreparedData) -> list[str]:
    rows = data.manifest.splits["train"].rows
    config = trained.config
    try:
        return training_doubts(Run.read(trained.folder), rows, config.training, config.optimizer)
    except CheckpointError:  # without the records of its epochs
        return []


def run_folder(run: Run | Place, argument: str = "run") -> Path | str:
    """Returns the folder of a run, or its URL.

    Raises:
        TypeError: ``run``, which the user knows as ``argument``, is neither a run nor a path.
    """
    if isinstance(run, Run) and run.folder is not None:
        return run.folder
    if not isinstance(run, str | os.PathLike):
        raise TypeError(f"{argument}: expected a run or its folder, got {type(run).__name__}")
    return place_of(run)


def _settings(
    config: RunConfig | str | Path | None,
    sections: dict[str, dict[str, Any] | None],
    preset: Literal["paper", "fitted"] | None,
) -> RunConfig:
    """Returns ``config`` with the options of ``sections`` and the preset."""
    if config is None:
        config = RunConfig(preset="data")
    elif isinstance(config, str | Path):
        config = RunConfig.from_toml(config, preset="data")
    elif not isinstance(config, RunConfig):
        raise TypeError(f"config: expected a RunConfig or the path of a TOML file, got {config!r}")
    for name, options in sections.items():
        if not isinstance(options, dict | None):
            raise TypeError(f"{name}: expected a dict of options, got {options!r}")
    if preset is not None:
        config = replace(config, preset=preset)
    return config.with_options(**{name: options for name, options in sections.items() if options})
