"""Analyses the learned temperature (Eq. 12) by labels, by field values and against true quantities.

Shapes: N rows of the test split. All numbers are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from adaftr_fast._publish import read_published
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.encode.encoders import CROSS_SEPARATOR, Vocabulary
from adaftr_fast.experiments.jobs import Job
from adaftr_fast.runs.run import build
from adaftr_fast.training.checkpoint.weights import FILE, load_checkpoint, load_weights
from adaftr_fast.training.evaluation import diagnose, spread
from adaftr_fast.training.files import BEST

VALUES = 10  # most frequent values of a field that the plot labels


@dataclass(frozen=True)
class LabelGroup:
    """Rows with one combination of labels: their number, mean temperature and its 5, 50 and 95 % quantiles."""

    labels: dict[str, int]
    rows: int
    mean: float
    points: dict[str, float]


@dataclass(frozen=True)
class FieldEffect:
    """The relation between the temperature and a field.

    Attributes:
        field: the name of the field.
        explained: share of the temperature's variance between the values of the field, in [0, 1].
        values: mean temperature of the most frequent values, by value.
    """

    field: str
    explained: float
    values: dict[str, float]


@dataclass(frozen=True)
class Temperature:
    """The temperature of one pair of tasks.

    Attributes:
        pair: ``<anchor>-<other>``.
        points: 5, 50 and 95 % quantiles over all rows.
        labels: the combinations of labels that occur.
        fields: all fields, in descending order of explained variance.
        truth: Spearman's rank correlation with each true quantity of the data set.
    """

    pair: str
    points: dict[str, float]
    labels: list[LabelGroup]
    fields: list[FieldEffect]
    truth: dict[str, float]


def analyse(data: PreparedData, jobs: Sequence[Job]) -> list[Temperature]:
    """Analyses the temperatures of trained models on the test split, for each pair of tasks.

    Raises:
        CheckpointError: the checkpoint of a run is missing or damaged.
        BusyError: the checkpoint was replaced during each of many attempts.
        DataError: the test split or the vocabulary cannot be read.
    """
    learned = [_temperatures(data, job) for job in jobs]
    table = read_split(data.folder, data.manifest, "test")
    names = dict(_value_names(data))
    return [_analyse_pair(name, np.stack([each[name] for each in learned]), table, data, names) for name in learned[0]]


def _temperatures(data: PreparedData, job: Job) -> dict[str, np.ndarray]:
    """Computes the temperatures of the best weights, float32 [N] per pair."""
    weights, _ = read_published(job.folder / BEST / FILE, lambda _: load_checkpoint(job.folder / BEST))
    model = build(job.config.model, data)
    load_weights(model, weights, str(job.folder / BEST))
    return diagnose(model, data.load("test"), job.config.training.eval_batch_size)


def _analyse_pair(
    name: str, tau: np.ndarray, table: pa.Table, data: PreparedData, names: dict[str, list[str]]
) -> Temperature:
    """Analyses the temperatures ``tau`` [seeds, N] of one pair."""
    tau = tau.astype(np.float64)
    effects = [
        field_effect(field.name, tau, table[field.name].to_numpy(), names[field.name]) for field in data.manifest.fields
    ]
    known = [column for column in table.column_names if column.startswith(TRUTH)]
    truth = {
        column.removeprefix(TRUTH): float(
            np.mean([spearmanr(each, table[column].to_numpy()).statistic for each in tau])
        )
        for column in known
    }
    return Temperature(
        pair=name.removeprefix("tau/"),
        points=_mean_points(tau),
        labels=list(label_groups(tau, {task: table[task].to_numpy() for task in data.manifest.tasks})),
        fields=sorted(effects, key=lambda effect: -effect.explained),
        truth=truth,
    )


def label_groups(tau: np.ndarray, labels: dict[str, np.ndarray]) -> Iterator[LabelGroup]:
    """Groups temperatures ``tau`` [seeds, N] by the combinations of ``labels`` (0 or 1, [N] each) that occur."""
    for combination in product((0, 1), repeat=len(labels)):
        rows = np.logical_and.reduce([each == value for each, value in zip(labels.values(), combination)])
        if rows.any():
            chosen = tau[:, rows]
            named = dict(zip(labels, combination))
            yield LabelGroup(named, int(rows.sum()), float(chosen.mean()), _mean_points(chosen))


def field_effect(field: str, tau: np.ndarray, ids: np.ndarray, names: Sequence[str]) -> FieldEffect:
    """Relates ``tau`` [seeds, N] to the ids [N] of a field; ``names`` are the values by id."""
    counts = np.bincount(ids, minlength=len(names))
    present = np.flatnonzero(counts)
    means, explained = [], []
    for each in tau:
        of_values = np.bincount(ids, weights=each, minlength=len(names))[present] / counts[present]
        between = np.average((of_values - each.mean()) ** 2, weights=counts[present])
        means.append(of_values)
        explained.append(between / each.var() if np.ptp(each) > 0 else 0.0)
    mean = np.mean(means, axis=0)
    common = np.argsort(-counts[present], kind="stable")[:VALUES]
    values = {names[present[position]]: float(mean[position]) for position in common}
    return FieldEffect(field, float(np.mean(explained)), values)


def _mean_points(tau: np.ndarray) -> dict[str, float]:
    points = [spread(each) for each in tau]
    return {name: float(np.mean([each[name] for each in points])) for name in points[0]}


def _value_names(data: PreparedData) -> Iterator[tuple[str, list[str]]]:
    """Yields each field with its values by id."""
    encoders = read_encoders(data.folder, data.manifest)
    for field in data.manifest.fields:
        encoder, ids = encoders[field.name], range(1, field.num_embeddings)
        values = encoder.values.to_pylist() if isinstance(encoder, Vocabulary) else [None] * len(ids)
        yield field.name, ["unknown", *(_name(value) or _bucket(field, number) for number, value in zip(ids, values))]


def _name(value: str | None) -> str | None:
    """Formats a value; the parts of a crossed value are joined by a control character."""
    return value and value.replace(CROSS_SEPARATOR, " & ")


def _bucket(field: FieldInfo, number: int) -> str:
    """Formats the bucket of an id of a numeric field, or the id itself if the edges are unknown."""
    if field.edges is None:
        return str(number)
    low = f"{field.edges[number - 2]:g}" if number >= 2 else "-∞"
    high = f"{field.edges[number - 1]:g}" if number <= len(field.edges) else "∞"
    return f"{low} to {high}"
