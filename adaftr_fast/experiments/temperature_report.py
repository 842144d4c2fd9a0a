"""The report of the temperature: Markdown, JSON and a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes

from adaftr_fast._figures import BLUE, VERMILION, Picture, plain
from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast._tables import Table
from adaftr_fast.experiments.report import COLLAPSED
from adaftr_fast.experiments.temperature import FieldEffect, LabelGroup, Temperature

DRAWN_FIELDS = 3


def write_temperature_report(folder: Path, dataset: str, found: list[Temperature], command: str) -> list[Path]:
    """Writes ``temperature.md``, ``.json`` and ``.png`` to ``folder`` and returns their paths."""
    paths = [folder / f"temperature.{kind}" for kind in ("md", "json", "png")]
    draw_temperature(dataset, found).save(paths[2])
    content = {"command": command, "dataset": dataset, "pairs": [asdict(each) for each in found]}
    replace_file(paths[1], (dumps(content, indent=2) + "\n").encode())
    sections = [f"# The learned temperature (Equation 12): {dataset}", f"`{command}`", READING]
    sections += [temperature_tables(each) for each in found]
    sections.append("![temperature by labels and by values](temperature.png)")
    replace_file(paths[0], ("\n\n".join(sections) + "\n").encode())
    return paths


READING = (
    "Temperatures of the rows of the test split with AdaFTR's best weights. All numbers are means over the seeds. "
    "A low temperature means that the model predicts related tasks."
)


def temperature_tables(found: Temperature) -> str:
    """Formats one pair of tasks as Markdown: by labels, by field, and against true quantities if they are known."""
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
        sections.append(Table(["known quantity", "rank correlation with τ"], rows, text_columns=1).markdown())
    return "\n\n".join(sections)


def _label_table(groups: list[LabelGroup]) -> str:
    rows = [
        [_labels_text(group), f"{group.rows:,}", f"{group.mean:.4f}", *(f"{p:.4f}" for p in group.points.values())]
        for group in groups
    ]
    return Table(["labels", "rows", "mean τ", "5 %", "50 %", "95 %"], rows, text_columns=1).markdown()


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
    """Draws one row per pair: τ by combination of labels, then by value of the fields that explain most variance."""
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
        axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=VERMILION, capsize=4)
    axes.set_yticks(range(len(found.labels)), [f"{_labels_text(each)}\n{each.rows:,} rows" for each in found.labels])
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
