"""The learned temperature (Eq. 12) by labels, by field values and against true quantities, and its
report.

Shapes: N rows of the test split. All numbers are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from adaftr_fast._figures import BLUE, VERMILION, Picture, plain
from adaftr_fast._tables import Table
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.encode.encoders import CROSS_SEPARATOR, Vocabulary
from adaftr_fast.training.evaluation import examine, spread
from benchmarks.cells import Cell, model_of
from benchmarks.paper.report import COLLAPSED, Report

VALUES = 10  # most frequent values of a field that the plot labels


@dataclass(frozen=True)
class LabelGroup:
    """Rows with one combination of labels: their number, mean temperature and its 5, 50 and 95 %
    quantiles.
    """

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
        fields: the single-valued fields, in descending order of explained variance.
        truth: Spearman's rank correlation with each true quantity of the data set.
    """

    pair: str
    points: dict[str, float]
    labels: list[LabelGroup]
    fields: list[FieldEffect]
    truth: dict[str, float]


def analyse(data: PreparedData, cells: Sequence[Cell]) -> list[Temperature]:
    """Analyses the temperatures of trained models on the test split, for each pair of tasks.

    Raises:
        CheckpointError: the checkpoint of a run is missing or damaged.
        BusyError: the checkpoint was replaced during each of many attempts.
        DataError: the test split or the vocabulary cannot be read.
    """
    test = data.load("test")
    learned = [
        examine(model_of(cell), test, cell.config.training.eval_batch_size)[1] for cell in cells
    ]
    table = read_split(data.folder, data.manifest, "test")
    names = _value_names(data)
    return [
        _analyse_pair(name, np.stack([each[name] for each in learned]), table, data, names)
        for name in learned[0]
    ]


def _analyse_pair(
    name: str, tau: np.ndarray, table: pa.Table, data: PreparedData, names: dict[str, list[str]]
) -> Temperature:
    """Analyses the temperatures ``tau`` [seeds, N] of one pair."""
    tau = tau.astype(np.float64)
    effects = [
        field_effect(field.name, tau, table[field.name].to_numpy(), names[field.name])
        for field in data.manifest.fields
        if not field.multiple
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
        labels=list(
            label_groups(tau, {task: table[task].to_numpy() for task in data.manifest.tasks})
        ),
        fields=sorted(effects, key=lambda effect: -effect.explained),
        truth=truth,
    )


def label_groups(tau: np.ndarray, labels: dict[str, np.ndarray]) -> Iterator[LabelGroup]:
    """Groups temperatures ``tau`` [seeds, N] by the combinations of ``labels`` (0 or 1, [N] each)
    that occur.
    """
    for combination in product((0, 1), repeat=len(labels)):
        rows = np.logical_and.reduce(
            [each == value for each, value in zip(labels.values(), combination)]
        )
        if rows.any():
            chosen = tau[:, rows]
            named = dict(zip(labels, combination))
            yield LabelGroup(named, int(rows.sum()), float(chosen.mean()), _mean_points(chosen))


def field_effect(field: str, tau: np.ndarray, ids: np.ndarray, names: Sequence[str]) -> FieldEffect:
    """Relates ``tau`` [seeds, N] to the ids [N] of a field; ``names`` are the values by id."""
    counts = np.bincount(ids, minlength=len(names))
    present = np.flatnonzero(counts)
    means = []
    explained = []
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


def _value_names(data: PreparedData) -> dict[str, list[str]]:
    """Returns the values of each field by id."""
    encoders = read_encoders(data.folder, data.manifest)
    names = {}
    for field in data.manifest.fields:
        encoder = encoders[field.name]
        if isinstance(encoder, Vocabulary):
            # a control character joins the parts of a crossed value
            texts = encoder.values.to_pylist()
            values = [text.replace(CROSS_SEPARATOR, " & ") for text in texts]
        else:
            values = [_bucket(field, number) for number in range(1, field.num_embeddings)]
        names[field.name] = ["unknown", *values]
    return names


def _bucket(field: FieldInfo, number: int) -> str:
    """Formats the bucket of an id of a numeric field, or the id itself if the edges are unknown."""
    if field.edges is None:
        return str(number)
    low = f"{field.edges[number - 2]:g}" if number >= 2 else "-∞"
    high = f"{field.edges[number - 1]:g}" if number <= len(field.edges) else "∞"
    return f"{low} to {high}"


DRAWN_FIELDS = 3


def report(dataset: str, found: list[Temperature]) -> Report:
    """Returns the report of the temperatures."""
    return Report(
        "temperature",
        f"The learned temperature (Equation 12): {dataset}",
        "\n\n".join(map(temperature_tables, found)),
        [READING, "![temperature by labels and by values](temperature.png)"],
        draw_temperature(dataset, found),
        [asdict(each) for each in found],
    )


READING = (
    "Temperatures of the rows of the test split with AdaFTR's best weights. All numbers are means "
    "over the seeds. A low temperature means that the model predicts related tasks."
)


def temperature_tables(found: Temperature) -> str:
    """Formats one pair of tasks as Markdown: by labels, by field, and against true quantities if
    they are known.
    """
    low, middle, high = found.points.values()
    remark = "; effectively constant" if high - low < COLLAPSED else ""
    sections = [
        f"## {found.pair}",
        f"All rows: 5 % {low:.4f}, 50 % {middle:.4f}, 95 % {high:.4f}{remark}.",
        _label_table(found.labels),
        _field_table(found.fields),
    ]
    if found.truth:
        rows = [[name, f"{value:+.3f}"] for name, value in found.truth.items()]
        sections.append(Table(["known quantity", "rank correlation with τ"], rows).markdown())
    return "\n\n".join(sections)


def _label_table(groups: list[LabelGroup]) -> str:
    rows = [
        [
            _labels_text(group),
            f"{group.rows:,}",
            f"{group.mean:.4f}",
            *(f"{p:.4f}" for p in group.points.values()),
        ]
        for group in groups
    ]
    return Table(["labels", "rows", "mean τ", "5 %", "50 %", "95 %"], rows).markdown()


def _labels_text(group: LabelGroup) -> str:
    return ", ".join(f"{task} {value}" for task, value in group.labels.items())


def _field_table(fields: list[FieldEffect]) -> str:
    rows = []
    for each in fields:
        low, high = (choose(each.values, key=each.values.__getitem__) for choose in (min, max))
        ends = [f"{value} ({each.values[value]:.4f})" for value in (low, high)]
        rows.append([each.field, *ends, f"{100 * each.explained:.1f}"])
    header = ["field", "lowest frequent value (mean τ)", "highest", "variance explained, %"]
    return Table(header, rows, text_columns=3).markdown()


def draw_temperature(dataset: str, found: list[Temperature]) -> Picture:
    """Draws one row per pair: τ by combination of labels, then by value of the fields that explain
    most variance.
    """
    columns = 1 + DRAWN_FIELDS
    figure = Picture(4 * columns, 3.6 * len(found))
    figure.suptitle(f"The learned temperature: {dataset}")
    for line, each in zip(figure.subplots(len(found), columns, squeeze=False), found, strict=True):
        _paint_labels(line[0], each)
        for axes in line[1:]:
            axes.set_axis_off()
        for axes, effect in zip(line[1:], each.fields):
            _paint_field(axes, effect)
    return figure


def _paint_labels(axes: Axes, found: Temperature) -> None:
    """Draws the median and the 5 % and 95 % quantiles of each combination."""
    for place, group in enumerate(found.labels):
        low, middle, high = group.points.values()
        axes.errorbar(
            middle,
            place,
            xerr=[[middle - low], [high - middle]],
            fmt="o",
            color=VERMILION,
            capsize=4,
        )
    axes.set_yticks(
        range(len(found.labels)),
        [f"{_labels_text(each)}\n{each.rows:,} rows" for each in found.labels],
    )
    axes.set_ylim(-0.6, len(found.labels) - 0.4)
    axes.set_title(f"{found.pair}: by labels (5, 50, 95 %)")
    axes.set_xlabel("τ")
    axes.set_ylabel("labels")
    plain(axes, "x")


def _paint_field(axes: Axes, effect: FieldEffect) -> None:
    axes.set_axis_on()
    ordered = sorted(effect.values.items(), key=lambda item: item[1])
    axes.plot([tau for _, tau in ordered], range(len(ordered)), "o", color=BLUE)
    axes.set_yticks(range(len(ordered)), [name[:24] for name, _ in ordered])
    axes.set_title(f"{effect.field}: {100 * effect.explained:.0f} % of the variance")
    axes.set_xlabel("mean τ")
    axes.set_ylabel(effect.field)
    plain(axes, "x")
