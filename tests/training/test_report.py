import itertools

import numpy as np
import pytest

from adaftr_fast.training.report import draw, write_report
from adaftr_fast.training.result import TrainedRun, result_table


@pytest.fixture
def runs():
    def run(name, diagnostics):
        epochs = [
            {
                "epoch": epoch,
                "seconds": 2.0,
                "samples_per_s": 50_000.0,
                "train": {"click": 0.5 / epoch, "conversion": 0.4 / epoch, "l2": 0.1},
                "validation": {task: {"auc": 0.6 + 0.01 * epoch} for task in ("click", "conversion")},
            }
            for epoch in (1, 2, 3)
        ]
        test = {
            "click": {"auc": 0.69514, "gauc": 0.68, "logloss": 0.48},
            "conversion": {"auc": 0.72, "logloss": 0.35, "cvr_auc": 0.615},
        }
        return TrainedRun(name, epochs, 2, test, diagnostics)

    return [run("mmoe", {}), run("adaftr", {"tau/click-conversion": np.linspace(0.05, 0.25, 101)})]


def test_the_table_is_aligned_markdown(runs):
    lines = result_table(runs).markdown().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")][1:5] == ["model", "task", "AUC", "GAUC"]
    assert [cell.strip() for cell in lines[0].split("|")][5:7] == ["log-loss", "CVR AUC"]
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == [
        "mmoe", "click", "69.51", "68.00", "0.4800", "-", "2", "50,000", "2.0",
    ]  # fmt: skip
    assert lines[3].split("|")[4].strip() == "-"  # no GAUC
    assert lines[3].split("|")[6].strip() == "61.50"
    assert set(lines[1]) == set("|-: ")


def test_the_report_has_table_temperature_and_plot(runs, tmp_path):
    write_report(tmp_path / "report", "Flights", runs, notes="A note.")
    text = (tmp_path / "report/report.md").read_text()
    assert text.startswith("# Flights\n\n| model")
    assert "A note." in text
    assert "| adaftr | tau/click-conversion | 0.0600 | 0.1500 | 0.2400 |" in text
    assert (tmp_path / "report/report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(list((tmp_path / "report").iterdir())) == 2


def test_the_plot_shows_each_task_and_the_temperature(runs):
    titles = [axes.get_title() for axes in draw(runs).axes]
    assert titles == [
        "click: training loss",
        "conversion: training loss",
        "click: validation AUC, %",
        "conversion: validation AUC, %",
        "adaftr: tau/click-conversion",
    ]
    assert len(draw(runs[:1]).axes) == 4  # without diagnostics


def test_axes_do_not_overlap(runs):
    figure = draw([*runs, *runs])  # two histograms in the last column
    figure.canvas.draw()
    boxes = [axes.get_tightbbox(figure.canvas.get_renderer()) for axes in figure.axes]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
