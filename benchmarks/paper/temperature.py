"""The learned temperature (Eq. 12) by labels, by field values and against true quantities, and its
report.

Shapes: N rows of the test split. All numbers are means over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.encode.encoders import CROSS_SEPARATOR, Vocabulary
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.display.figures import BLUE, VERMILION, Picture, plain
from adaftr_fast.training.evaluation import examine, spread
from benchmarks.cells import Cell, model_of
from benchmarks.paper.report import Report
from benchmarks.render import Case, Cases, of_cases

VALUES = 10  # most frequent values of a field that the plot labels
DRAWN_FIELDS = 3
# a temperature whose 5 and 95 % quantiles are closer than this is effectively constant
COLLAPSED = 0.01
POINTS = "{points[p5]:.4f} | {points[p50]:.4f} | {points[p95]:.4f}"


def analyse(data: PreparedData, cells: Sequence[Cell]) -> Cases:
    """Analyses the temperatures of trained models on the test split.

    Returns:
        A case per pair of tasks: the data and seeds, its name, 5, 50 and 95 % quantiles over all rows (points), the
        combinations of labels that occur (``label_groups``), the single-valued fields in descending
        order of explained variance (``field_effect``), and Spearman's rank correlation with each
        true quantity of the data set.

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
    origin = {
        "set": data.manifest.dataset,
        "data": data.manifest.fingerprint[:12],
        "seeds": [cell.config.training.seed for cell in cells],
    }
    return [
        origin | _analyse_pair(name, np.stack([each[name] for each in learned]), table, data, names)
        for name in learned[0]
    ]


def _analyse_pair(
    name: str, tau: np.ndarray, table: pa.Table, data: PreparedData, names: dict[str, list[str]]
) -> Case:
    """Analyses the temperatures ``tau`` [seeds, N] of one pair."""
    tau = tau.astype(np.float64)
    effects = [
        field_effect(field.name, tau, table[field.name].to_numpy(), names[field.name])
        for field in data.manifest.fields
        if not field.multiple
    ]
    truth = {
        column.removeprefix(TRUTH): float(
            np.mean([spearmanr(each, table[column].to_numpy()).statistic for each in tau])
        )
        for column in table.column_names
        if column.startswith(TRUTH)
    }
    labels = {task: table[task].to_numpy() for task in data.manifest.tasks}
    return {
        "pair": name.removeprefix("tau/"),
        "points": _mean_points(tau),
        "labels": list(label_groups(tau, labels)),
        "fields": sorted(effects, key=lambda effect: -effect["explained"]),
        "truth": truth,
    }


def label_groups(tau: np.ndarray, labels: dict[str, np.ndarray]) -> Iterator[Case]:
    """Groups temperatures ``tau`` [seeds, N] by the combinations of ``labels`` (0 or 1, [N] each)
    that occur: their number of rows, mean temperature and its quantiles.
    """
    for combination in product((0, 1), repeat=len(labels)):
        rows = np.logical_and.reduce(
            [each == value for each, value in zip(labels.values(), combination)]
        )
        if rows.any():
            chosen = tau[:, rows]
            yield {
                "labels": ", ".join(f"{task} {value}" for task, value in zip(labels, combination)),
                "rows": int(rows.sum()),
                "mean": float(chosen.mean()),
                "points": _mean_points(chosen),
            }


def field_effect(field: str, tau: np.ndarray, ids: np.ndarray, names: Sequence[str]) -> Case:
    """Relates ``tau`` [seeds, N] to the ids [N] of a field; ``names`` are the values by id.

    Returns:
        The field, the share of the temperature's variance between its values, in [0, 1], and the
        mean temperature of its most frequent values, by value, from the lowest.
    """
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
    lowest_first = common[np.argsort(mean[common], kind="stable")]
    values = {names[present[place]]: float(mean[place]) for place in lowest_first}
    return {"field": field, "explained": float(np.mean(explained)), "values": values}


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


def report(dataset: str, cases: Cases) -> Report:
    """Returns the report of the temperatures."""
    return Report(
        "temperature",
        f"The learned temperature (Equation 12): {dataset}",
        "\n\n".join(map(pair_text, cases)),
        [
            "Temperatures of the rows of the test split with AdaFTR's best weights. All numbers are "
            "means over the seeds. A low temperature means that the model predicts related tasks.",
            "![temperature by labels and by values](temperature.png)",
        ],
        _draw(dataset, cases),
        cases,
    )


def pair_text(case: Case) -> str:
    """Formats one pair of tasks as Markdown: by labels, by field, and against true quantities if
    they are known.
    """
    low, middle, high = case["points"].values()
    remark = "; effectively constant" if high - low < COLLAPSED else ""
    fields = []
    for effect in case["fields"]:
        shown = [f"{value} ({tau:.4f})" for value, tau in effect["values"].items()]
        fields.append(effect | {"low": shown[0], "high": shown[-1]})
    sections = [
        f"## {case['pair']}",
        f"All rows: 5 % {low:.4f}, 50 % {middle:.4f}, 95 % {high:.4f}{remark}.",
        by_labels([case]),
        of_cases(
            "field | lowest frequent value (mean τ) | highest | variance explained",
            "lllr",
            "{field} | {low} | {high} | {explained:.1%}",
            fields,
        ),
    ]
    if case["truth"]:
        sections.append(with_truth([case]))
    return "\n\n".join(sections)


def by_labels(cases: Cases) -> str:
    """The temperatures of the rows of each combination of labels."""
    return of_cases(
        "data | labels | rows | mean τ | 5 % | 50 % | 95 %",
        "llrrrrr",
        f"{{set}} | {{labels}} | {{rows:,}} | {{mean:.4f}} | {POINTS}",
        [{"set": case["set"]} | group for case in cases for group in case["labels"]],
    )


def with_truth(cases: Cases) -> str:
    """The rank correlations of the temperature with the true quantities of the data."""
    return of_cases(
        "data | known quantity | rank correlation with τ",
        "llr",
        "{set} | {name} | {found:+.3f}",
        [
            {"set": case["set"], "name": name, "found": found}
            for case in cases
            for name, found in case["truth"].items()
        ],
    )


def _draw(dataset: str, cases: Cases) -> Picture:
    """Draws one row per pair: τ by combination of labels, then by value of the fields that explain
    most variance.
    """
    columns = 1 + DRAWN_FIELDS
    figure = Picture(4 * columns, 3.6 * len(cases))
    figure.suptitle(f"The learned temperature: {dataset}")
    for line, case in zip(figure.subplots(len(cases), columns, squeeze=False), cases):
        _paint_labels(line[0], case)
        for axes, effect in zip(line[1:], case["fields"]):
            _paint_field(axes, effect)
        for axes in line[1 + len(case["fields"]) :]:
            axes.set_axis_off()
    return figure


def _paint_labels(axes: Axes, case: Case) -> None:
    """Draws the median and the 5 % and 95 % quantiles of each combination."""
    groups = case["labels"]
    low, middle, high = np.transpose([list(each["points"].values()) for each in groups])
    places = range(len(groups))
    interval = [middle - low, high - middle]
    axes.errorbar(middle, places, xerr=interval, fmt="o", color=VERMILION, capsize=4)
    axes.set_yticks(places, [f"{each['labels']}\n{each['rows']:,} rows" for each in groups])
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set_title(f"{case['pair']}: by labels (5, 50, 95 %)")
    axes.set_xlabel("τ")
    axes.set_ylabel("labels")
    plain(axes, "x")


def _paint_field(axes: Axes, effect: Case) -> None:
    names, values = zip(*effect["values"].items())
    axes.plot(values, range(len(values)), "o", color=BLUE)
    axes.set_yticks(range(len(names)), [name[:24] for name in names])
    axes.set_title(f"{effect['field']}: {effect['explained']:.0%} of the variance")
    axes.set_xlabel("mean τ")
    axes.set_ylabel(effect["field"])
    plain(axes, "x")
