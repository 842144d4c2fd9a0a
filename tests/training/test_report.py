import itertools
from dataclasses import replace

import numpy as np
import pytest

from adaftr_fast.training.report import draw, write_report
from adaftr_fast.training.trained import Run, result_table


@pytest.fixture
def runs():
    def run(name, diagnostics):
        epochs = [
            {
                "epoch": epoch,
                "seconds": 2.0,
                "samples_per_s": 50_000.0,
                "train": {"click": 0.5 / epoch, "conversion": 0.4 / epoch, "l2": 0.1},
                "validation": {
                    task: {"auc": 0.6 + 0.01 * epoch, "logloss": 0.5 + 0.1 * epoch}
                    for task in ("click", "conversion")
                },
            }
            for epoch in (1, 2, 3)
        ]
        test = {
            "click": {"auc": 0.69514, "gauc": 0.68, "logloss": 0.48},
            "conversion": {"auc": 0.72, "logloss": 0.35, "cvr_auc": 0.615},
        }
        return Run(name, epochs, 2, test, diagnostics=diagnostics)

    return [run("mmoe", {}), run("adaftr", {"tau/click-conversion": np.linspace(0.05, 0.25, 101)})]


def test_the_table_is_aligned_markdown(runs):
    lines = result_table(runs).markdown().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")][1:5] == ["model", "task", "AUC", "GAUC"]
    assert [cell.strip() for cell in lines[0].split("|")][5:9] == [
        "log-loss", "of the rate", "predicted/observed", "CVR AUC",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == [
        "mmoe", "click", "69.51", "68.00", "0.4800", "-", "-", "-", "2", "50,000", "2.0",
    ]  # fmt: skip
    assert lines[3].split("|")[4].strip() == "-"  # no GAUC
    assert lines[3].split("|")[8].strip() == "61.50"
    assert set(lines[1]) == set("|-: ")


def test_the_report_has_table_temperature_and_plot(runs, tmp_path):
    write_report(tmp_path / "report", "Flights", runs, after="A note.")
    text = (tmp_path / "report/report.md").read_text()
    assert text.startswith("# Flights\n\n| model")
    assert "A note." in text
    assert "| adaftr | tau/click-conversion | 0.0600 | 0.1500 | 0.2400 |" in text
    assert "τ (tau) is the temperature of the contrast" in text
    assert (tmp_path / "report/report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(list((tmp_path / "report").iterdir())) == 2


def labels(figure):
    return [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]


def with_learned(runs):
    for record in runs[1].epochs:
        record["diagnostics"] = {"tau/click-conversion": {"p5": 0.1, "p50": 0.2, "p95": 0.3}}
    return runs


def test_the_picture_shows_each_task_and_the_learned_values(runs):
    figure = draw(with_learned(runs))
    assert labels(figure) == [
        ("click", "log-loss (crosses: validation)"),
        ("conversion", "log-loss (crosses: validation)"),
        ("click", "validation AUC, %"),
        ("conversion", "validation AUC, %"),
        ("tau/click-conversion", "median (bar: 5 to 95 %)"),
    ]
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert list(figure.axes[2].lines[0].get_ydata()) == pytest.approx([61, 62, 63])
    lines = {each.get_marker(): each for each in figure.axes[0].lines}
    training = lines["."]
    validation = lines["x"]
    assert list(training.get_ydata()) == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert list(validation.get_ydata()) == pytest.approx([0.6, 0.7, 0.8])
    assert len(draw(runs[:1]).axes) == 4  # nothing learned
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["mmoe", "adaftr"]
    assert draw(runs[:1]).legends == []  # one run needs no name


def test_axes_and_names_do_not_overlap(runs):
    figure = draw([*with_learned(runs), *(Run("long" * 30, run.epochs, 2) for run in runs)])
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [each.get_tightbbox(renderer) for each in (*figure.axes, *figure.legends)]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert figure.legends[0].get_tightbbox(renderer).x1 < figure.bbox.x1


def test_one_epoch_undefined_numbers_and_runs_of_other_tasks_are_drawn(runs):
    first, other = runs
    del first.epochs[1:]
    first.epochs[0]["validation"]["click"]["auc"] = float("nan")
    epochs = [each | {"train": {}, "validation": {"view": {"auc": 0.6}}} for each in other.epochs]
    figure = draw([replace(first, best_epoch=1), replace(other, epochs=epochs)])
    assert [title for title, _ in labels(figure)] == 2 * ["click", "conversion", "view"]
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert figure.axes[0].get_xlim() == (0.5, 3.5)
