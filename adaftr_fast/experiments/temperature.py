"""What the learned temperature (Eq. 12) follows: the labels, the values of a field, and what is known of the truth.

N rows of the test split. All figures are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.dataset.vocabulary import VOCABULARY
from adaftr_fast.experiments.jobs import Job
from adaftr_fast.runs.run import build
from adaftr_fast.training.checkpoint.weights import load_checkpoint, load_weights
from adaftr_fast.training.evaluation import diagnose, spread
from adaftr_fast.training.trainer import BEST

VALUES = 10  # of a field, the most frequent ones: as many as a picture can name


@dataclass(frozen=True)
class LabelGroup:
    """Rows with one combination of labels: their number, mean temperature and its 5, 50 and 95 % points."""

    labels: dict[str, int]
    rows: int
    mean: float
    points: dict[str, float]


@dataclass(frozen=True)
class FieldEffect:
    """How the temperature goes with a field.

    Attributes:
        explained: share of the temperature's variance that lies between the field's values, in [0, 1].
        values: mean temperature of the most frequent values, by their name.
    """

    field: str
    explained: float
    values: dict[str, float]


@dataclass(frozen=True)
class Temperature:
    """One pair of tasks.

    Attributes:
        pair: ``<anchor>-<other>``.
        points: 5, 50 and 95 % points over all rows.
        labels: combinations of labels that occur.
        fields: all fields, the one that explains most first.
        truth: Spearman's rank correlation with each quantity the data set knows the truth of.
    """

    pair: str
    points: dict[str, float]
    labels: list[LabelGroup]
    fields: list[FieldEffect]
    truth: dict[str, float]


def analyse(data: PreparedData, jobs: Sequence[Job]) -> list[Temperature]:
    """The temperatures of the models that ``jobs`` trained, pair by pair, on the test split.

    Raises:
        CheckpointError: a run's checkpoint is absent or damaged.
    """
    learned = [_temperatures(data, job) for job in jobs]
    table = read_split(data.folder, data.manifest, "test")
    names = dict(_value_names(data))
    return [_analyse_pair(name, np.stack([each[name] for each in learned]), table, data, names) for name in learned[0]]


def _temperatures(data: PreparedData, job: Job) -> dict[str, np.ndarray]:
    """Per pair float32 [N], from the weights that were kept."""
    weights, _ = load_checkpoint(job.folder / BEST)
    model = build(job.config.model, data)
    load_weights(model, weights, str(job.folder / BEST))
    return diagnose(model, data.load("test"), job.config.training.eval_batch_size)


def _analyse_pair(
    name: str, tau: np.ndarray, table: pa.Table, data: PreparedData, names: dict[str, list[str]]
) -> Temperature:
    """``tau`` [seeds, N]."""
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
    """Temperatures ``tau`` [seeds, N] by combination of ``labels`` (0 or 1, [N] each), those that occur."""
    for combination in product((0, 1), repeat=len(labels)):
        rows = np.logical_and.reduce([each == value for each, value in zip(labels.values(), combination)])
        if rows.any():
            chosen = tau[:, rows]
            named = dict(zip(labels, combination))
            yield LabelGroup(named, int(rows.sum()), float(chosen.mean()), _mean_points(chosen))


def field_effect(field: str, tau: np.ndarray, ids: np.ndarray, names: Sequence[str]) -> FieldEffect:
    """What ``ids`` [N] of a field say about ``tau`` [seeds, N]; ``names`` of its values by id."""
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
    """Of each field, what its ids stand for."""
    vocabulary = pq.read_table(Path(data.folder) / VOCABULARY, columns=["field", "id", "value"])
    values: dict[str, dict[int, str]] = {}
    for field, number, value in zip(*(vocabulary[name].to_pylist() for name in ("field", "id", "value"))):
        values.setdefault(field, {})[number] = value
    for field in data.manifest.fields:
        known = values.get(field.name, {})
        yield field.name, ["unknown", *(known.get(k) or _bucket(field, k) for k in range(1, field.num_embeddings))]


def _bucket(field: FieldInfo, number: int) -> str:
    """Id ``number`` of a numeric field in words; the number itself where no edges are known."""
    if field.edges is None:
        return str(number)
    low = f"{field.edges[number - 2]:g}" if number >= 2 else "-∞"
    high = f"{field.edges[number - 1]:g}" if number <= len(field.edges) else "∞"
    return f"{low} to {high}"
