import math
import tomllib

import pytest

from benchmarks.cells import Record
from benchmarks.paper.catalog import Experiment, Variant
from benchmarks.paper.report import draw, main_table, remarks, report
from benchmarks.paper.results import Results, Row
from benchmarks.paper.results import found as line_of

SCORES = {"MMoE": [0.60, 0.62, 0.64], "PLE": [0.605, 0.61, 0.64], "AdaFTR": [0.61, 0.632, 0.651]}


def record(click, **changes):
    test = {
        "click": {"auc": click, "gauc": click - 0.1},
        "conversion": {"auc": click + 0.1, "gauc": math.nan},
    }
    learned = {"tau/click-conversion": {"p5": 0.1, "p50": 0.2, "p95": 0.3}}
    found = {"validation": test, "test": test, "epochs": 5, "best_epoch": 2, "learned": learned}
    return line_of(Record("k", "f" * 64, "commit", "cpu", {}, 2.0, **(found | changes)))


@pytest.fixture
def results(budget):
    rows = []
    for title, scores in SCORES.items():
        against = ("MMoE",) if title != "MMoE" else ()
        variant = Variant(title, {"name": "adaftr" if title == "AdaFTR" else "mmoe"}, against)
        rows.append(Row(variant, {seed: record(score) for seed, score in enumerate(scores)}))
    wanted = Experiment("table4", "Every model (Table 4)", tuple(row.variant for row in rows))
    return Results(wanted, "tiny", ["click", "conversion"], budget, rows)


@pytest.fixture
def page(results, tmp_path):
    """Writes the report, and returns its page."""

    def page():
        path, picture = report(results, "nobody").write(tmp_path / "out", "the command")
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        return path.read_text()

    return page


def cells(table, line):
    return [cell.strip() for cell in table.splitlines()[2 + line].split("|")][1:-1]


def test_the_table_has_the_form_of_the_paper(results):
    table = main_table(results)
    assert [cell.strip() for cell in table.splitlines()[0].split("|")][1:-1] == [
        "model", "click AUC", "click GAUC", "conversion AUC",
    ]  # fmt: skip
    assert cells(table, 0) == ["MMoE", "_62.000_ ± 2.000", "_52.000_ ± 2.000", "_72.000_ ± 2.000"]
    # AdaFTR's differences 1, 1.2, 1.1: t = 1.1 / (0.1 / sqrt 3), p = .0027
    assert cells(table, 1)[1] == "61.833 ± 1.893 (-0.167)"
    assert cells(table, 2)[1] == "**63.100** ± 2.052 (+1.100)*"


def test_the_report_lists_the_comparisons(results, page):
    text = page()
    assert (
        "| AdaFTR | MMoE | click | AUC | +1.100 ± 0.100 | 0.0027 | 0.0165 | 3 of 3 | +1.100 ± 0.100 |"
        in text
    )
    assert "0.3 of 6 tests" in text
    assert "| AdaFTR | tau/click-conversion | 0.1000 | 0.2000 | 0.3000 |" in text
    options = tomllib.loads(text.split("```toml\n")[1].split("```")[0])  # as --config reads them
    assert options["optimizer"]["lr"] == 0.01
    assert "progress" not in options["training"]
    assert "nobody" in text


def test_runs_that_ended_while_they_improved_are_counted(results):
    assert "after their last epoch" not in remarks(results.rows)
    results.rows[1].runs[0] = record(0, epochs=2.0, best_epoch=2.0)
    assert (
        " runs are best after their last epoch, so they may not be trained to their end"
        in remarks(results.rows)
    )


def test_a_diverged_run_is_excluded_and_named(results):
    diverged = record(0, test={}, validation={}, learned={}, error="the loss is not finite")
    results.rows[2].runs[1] = diverged
    results.rows[0].runs[2] = record(0.64, dead_tasks=["conversion"])
    results.rows[1].runs.update(dict.fromkeys(range(3), diverged))
    assert "- AdaFTR, seed 1: diverged and is excluded: the loss is not finite" in remarks(
        results.rows
    )
    assert "- MMoE, seed 2: task conversion is dead" in remarks(results.rows)
    table = main_table(results)
    assert cells(table, 2)[1] == "**63.050** ± 2.899 (+1.050)*"  # seeds 0 and 2, paired with MMoE's
    assert cells(table, 1)[1:] == ["-", "-", "-"]  # a row without runs
    assert results.compare("AdaFTR", "MMoE", "click", "auc").pairs == 2
    for row in results.rows:  # one seed has no spread and no test
        del row.runs[1], row.runs[2]
    assert cells(main_table(results), 2)[1] == "**61.000** (+1.000)"


def test_comparisons_have_the_difference_on_validation(results):
    row = results.rows[2]
    for seed, auc in enumerate((0.63, 0.61, 0.66)):
        row.runs[seed] = row.runs[seed] | {"validation": {"click": {"auc": auc}}}
    found = next(each for each in results.comparisons() if each.title == "AdaFTR")
    assert (found.task, found.metric) == ("click", "auc")
    assert found.validation.mean == pytest.approx(100 * (0.03 - 0.01 + 0.02) / 3)


def test_true_probabilities_have_a_row(results, page):
    assert "true probabilities" not in page()
    results.bayes.update({"click": {"auc": 0.7, "gauc": 0.6}})
    table = main_table(results)
    assert cells(table, 3) == ["true probabilities", "70.000", "60.000", "-"]


@pytest.mark.parametrize(("form", "value"), [("dots", "get_xlabel"), ("line", "get_ylabel")])
def test_the_plot_has_a_row_per_metric(results, form, value):
    object.__setattr__(results.experiment, "form", form)
    figure = draw(results)
    assert [(axes.get_title(), getattr(axes, value)()) for axes in figure.axes] == [
        (task, f"test {metric}, %")
        for metric in ("AUC", "GAUC")
        for task in ("click", "conversion")
    ]
    assert not any(axes.patches for axes in figure.axes)  # no bars, which a cut axis would distort
    assert len(figure.legends) == (form == "line")


def test_a_row_is_a_dot_with_its_seeds_and_its_interval(results):
    axes = draw(results).axes[0]
    assert [each.get_text() for each in axes.get_yticklabels()] == ["MMoE", "PLE", "AdaFTR"]
    seeds, mean = axes.lines[:2]
    assert list(seeds.get_xdata()) == [60, 62, 64]
    assert list(mean.get_xdata()) == pytest.approx([62])
    (interval,) = axes.containers[0].lines[2]
    assert interval.get_segments()[0][:, 0] == pytest.approx([60, 64])
