"""The report of an experiment: Markdown in the form of the paper's tables, and a plot.

The plot has the form of the paper's figures: one column per task, AUC above GAUC, with the spread
over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from adaftr_fast.display.figures import BLUE, GRAY, VERMILION, Picture, plain
from adaftr_fast.files.toml import to_toml
from benchmarks.measure import machine, save
from benchmarks.paper.results import METRICS, Difference, Results, Row, Spread
from benchmarks.render import Cases, of_cases, table


@dataclass(frozen=True)
class Report:
    """What an experiment has found, as it is printed and written.

    Attributes:
        name: the name of its files.
        title: the title of the page.
        text: the tables and their captions, which are printed, too.
        sections: the rest of the page; empty parts are left out.
        picture: the picture, which the page shows.
        cases: the numbers, where they are not those of records.
    """

    name: str
    title: str
    text: str
    sections: list[str]
    picture: Picture
    cases: Cases = ()

    def write(self, folder: Path, command: str) -> list[Path]:
        """Writes ``<name>.md`` and ``.png`` to ``folder``, and the cases to ``<name>.json``; returns
        their paths. The page names ``command``, which writes it again.
        """
        page = folder / f"{self.name}.md"
        self.picture.save_with(page, [f"# {self.title}", f"`{command}`", self.text, *self.sections])
        if self.cases:
            save(page.with_suffix(".json"), {"machine": machine()}, self.cases)
        return sorted(folder.glob(f"{self.name}.*"))


def report(results: Results, attribution: str = "") -> Report:
    """Returns the report of an experiment that compares rows; ``attribution`` is that of the data."""
    experiment = results.experiment
    options = results.config.to_dict()
    del options["training"]["progress"]
    shared = to_toml({name: options[name] for name in ("model", "optimizer", "training")})
    return Report(
        experiment.name,
        f"{experiment.title}: {results.dataset}",
        "\n\n".join(filter(None, (main_table(results), caption(results), remarks(results.rows)))),
        [
            f"![{experiment.title}]({experiment.name}.png)",
            _comparison_section(results),
            _learned_section(results.rows),
            f"## Budget of every row\n\n```toml\n{shared.rstrip()}\n```",
            f"Data: {attribution}" if attribution else "",
        ],
        draw(results),
    )


def main_table(results: Results) -> str:
    """Returns the table: one row per variant, one column per task and metric, mean ± std
    (difference)*.
    """
    columns = results.columns()
    lines = [[_cell(results, row, *column) for column in columns] for row in results.rows]
    if len(results.rows) > 2:
        for position, column in enumerate(columns):
            means = [row.spread(*column).mean for row in results.rows]
            known = [number for number, mean in enumerate(means) if not math.isnan(mean)]
            best = sorted(known, key=lambda number: -means[number])
            for number, mark in zip(best, ("**", "_")):  # best and second best
                mean, *rest = lines[number][position].split(" ", 1)
                lines[number][position] = " ".join([f"{mark}{mean}{mark}", *rest])
    rows = [[row.title, *line] for row, line in zip(results.rows, lines)]
    if results.bayes:
        rows.append(["true probabilities", *(results.optimum(*column) for column in columns)])
    header = ["model", *(f"{task} {metric.upper()}" for task, metric in columns)]
    return table(" | ".join(header), "l" + "r" * len(columns), rows)


def _cell(results: Results, row: Row, task: str, metric: str) -> str:
    text = _spread_text(row.spread(task, metric))
    if row.variant.against:
        difference = results.compare(row.title, row.variant.against[0], task, metric)
        if difference.pairs:
            text += f" ({difference.mean:+.3f}){'*' * difference.significant}"
    return text


def _spread_text(found: Spread | Difference, sign: str = "") -> str:
    if math.isnan(found.mean):  # without values
        return "-"
    return f"{found.mean:{sign}.3f}" + ("" if math.isnan(found.std) else f" ± {found.std:.3f}")


def caption(results: Results) -> str:
    """Returns the caption of the table."""
    seeds = results.seeds()
    count = results.tests()
    text = (
        f"Test split, in percent, mean ± standard deviation over {len(seeds)} "
        f"seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}). The weights are those with "
        "the best mean validation AUC; the test split is read once, after training. The best value "
        "is bold, the second best is in italics."
    )
    if count:
        text += (
            " Parentheses contain the difference to the first row under Comparisons; * marks p < "
            f"0.05 in a two-sided paired t-test over the seeds. About {count * 0.05:.1f} of "
            f"{count} tests would be significant by chance; Comparisons has p after Holm's "
            "correction for all of them."
        )
    return text


def remarks(rows: list[Row]) -> str:
    """Returns a line for each run that diverged or has a dead tower, and one for those that still
    improved.
    """
    lines = []
    trained = [run for row in rows for run in row.runs.values() if not run["error"]]
    improving = sum(run["best epoch"] >= run["epochs"] for run in trained)
    if improving:
        what = f"{improving} of {len(trained)} runs are best after their last epoch"
        lines.append(
            f"- {what}, so they may not be trained to their end: compare with more "
            "`--training.max_epochs`"
        )
    for row in rows:
        for seed, run in row.runs.items():
            if error := run["error"]:
                lines.append(f"- {row.title}, seed {seed}: diverged and is excluded: {error}")
            lines += [
                f"- {row.title}, seed {seed}: task {task} is dead (AUC close to 0.5)"
                for task in run["dead"]
            ]
    return "\n".join(lines)


def _comparison_section(results: Results) -> str:
    comparisons = results.comparisons()
    if not comparisons:
        return ""
    rows = []
    for each in comparisons:
        found = each.difference
        rows.append(
            [
                *(each.title, each.against, each.task, each.metric.upper()),
                _spread_text(found, "+"),
                *("-" if math.isnan(p) else f"{p:.4f}" for p in (found.p, each.corrected)),
                f"{found.higher} of {found.pairs}" if found.pairs else "-",
                _spread_text(each.validation, "+"),
            ]
        )
    header = (
        "row | against | task | metric | difference | p | p, Holm | seeds higher | on validation"
    )
    return "## Comparisons\n\n" + table(header, "llllrrrrr", rows)


def _learned_section(rows: list[Row]) -> str:
    """Returns the 5, 50 and 95 % quantiles of each row's diagnostics, averaged over seeds."""
    cases = []
    for row in rows:
        learned = [run["learned"] for run in row.runs.values() if run["learned"]]
        for name in learned[0] if learned else ():
            points = {
                point: sum(each[name][point] for each in learned) / len(learned)
                for point in learned[0][name]
            }
            cases.append({"row": row.title, "learned": name} | points)
    if not cases:
        return ""
    header = "row | learned | 5 % | 50 % | 95 %"
    line = "{row} | {learned} | {p5:.4f} | {p50:.4f} | {p95:.4f}"
    made = of_cases(header, "llrrr", line, cases)
    return f"## Learned per instance (test split, mean over seeds)\n\n{made}"


def draw(results: Results) -> Picture:
    """Draws a dot and an interval per row (Figure 4), or a line through all rows but the first
    (Figure 3).

    A dot is the mean over the seeds, its interval one standard deviation to each side, and each
    gray dot a seed.
    """
    tasks = results.tasks
    columns = results.columns()
    metrics = [metric for metric in METRICS if any(column[1] == metric for column in columns)]
    is_line = results.experiment.form == "line"
    height = 2.8 if is_line else 0.26 * len(results.rows) + 1.2
    picture = Picture(
        max(3.6 * len(tasks) + (0.0 if is_line else 1.2), 6.6), 0.8 + height * max(1, len(metrics))
    )
    picture.suptitle(
        f"{results.experiment.title}: {results.dataset}\nmean ± standard deviation over seeds",
        fontsize=11,
    )
    if not metrics:
        return picture
    for line, metric in zip(
        picture.subplots(len(metrics), len(tasks), squeeze=False), metrics, strict=True
    ):
        for number, (axes, task) in enumerate(zip(line, tasks, strict=True)):
            paint = _paint_line if is_line else _paint_dots
            paint(axes, results.rows, task, metric)
            if number and not is_line:
                axes.tick_params(labelleft=False)  # as in the first column
    if is_line:
        handles, names = picture.axes[0].get_legend_handles_labels()
        picture.legend(handles, names, loc="outside lower left", ncols=2, frameon=False)
    return picture


def _paint_dots(axes: Axes, rows: list[Row], task: str, metric: str) -> None:
    for place, row in enumerate(rows):
        (mean,), (deviation,) = _points([row], task, metric)
        color = VERMILION if row.variant.changes.get("name") == "adaftr" else BLUE
        scores = list(row.scores(task, metric).values())
        axes.plot(scores, [place] * len(scores), "o", color=GRAY, alpha=0.4, markersize=3)
        axes.errorbar(mean, place, xerr=deviation, fmt="o", color=color, markersize=6)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"test {metric.upper()}, %")
    axes.set_ylabel("model")
    axes.set_title(task)
    plain(axes, "x")


def _paint_line(axes: Axes, rows: list[Row], task: str, metric: str) -> None:
    means, deviations = _points(rows, task, metric)
    places = range(1, len(rows))
    axes.axhline(means[0], color=BLUE, linestyle="--", label=rows[0].title)
    axes.errorbar(
        places, means[1:], deviations[1:], color=VERMILION, marker="o", capsize=3, label="AdaFTR"
    )
    axes.set_xticks(places, [row.title for row in rows[1:]])
    axes.set_xlabel("contrasted tower layer")
    axes.set_ylabel(f"test {metric.upper()}, %")
    axes.set_title(task)
    plain(axes)


def _points(rows: Sequence[Row], task: str, metric: str) -> tuple[list[float], list[float]]:
    """Returns means and standard deviations; a row without results is nan and not drawn."""
    spreads = [row.spread(task, metric) for row in rows]
    return [each.mean for each in spreads], [
        0.0 if math.isnan(each.std) else each.std for each in spreads
    ]
