"""The report of Table 1: Markdown, JSON and a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes

from adaftr_fast._figures import BLUE, Picture, plain
from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast._tables import Table
from adaftr_fast.experiments.complexity import FIXED, WITH, WITHOUT, Complexity, Cost

REFERENCE = "MMoE"


def write_complexity_report(folder: Path, found: Complexity, command: str) -> list[Path]:
    """Writes ``complexity.md``, ``.json`` and ``.png`` to ``folder`` and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"complexity.{kind}" for kind in ("md", "json", "png")]
    draw_complexity(found).save(paths[2])
    replace_file(paths[1], (dumps({"command": command} | asdict(found), indent=2) + "\n").encode())
    sections = [
        f"# Cost of each model (Table 1): {found.dataset}",
        f"`{command}`",
        cost_summary(found),
        "![time per sample](complexity.png)",
    ]
    replace_file(paths[0], ("\n\n".join(sections) + "\n").encode())
    return paths


def cost_summary(found: Complexity) -> str:
    """Returns the text of the report."""
    return "\n\n".join((cost_table(found), contrast_text(found), machine_text(found)))


def cost_table(found: Complexity) -> str:
    """Returns the table with one row per model; times are also given relative to MMoE."""
    reference = _cost(found, REFERENCE)
    rows = [
        [
            each.title,
            f"{each.table_parameters:,}",
            f"{each.dense_parameters:,}",
            f"{each.deployed_parameters:,}",
            f"{each.train_us:.2f}",
            f"{each.train_us / reference.train_us:.2f}x",
            f"{each.infer_us:.2f}",
            f"{each.infer_us / reference.infer_us:.2f}x",
        ]
        for each in found.costs
    ]
    times = ["training, µs/sample", "vs. MMoE", "inference, µs/sample", "vs. MMoE"]
    header = ["model", "in tables", "dense", "dense, deployed", *times]
    return Table(header, rows, text_columns=1).markdown()


def contrast_text(found: Complexity) -> str:
    """Returns the cost that the contrastive loss adds to a step."""
    plain, fixed, whole = (_cost(found, title).train_us for title in (WITHOUT, FIXED, WITH))
    return (
        f"The contrastive loss adds {fixed - plain:.2f} µs per sample to a training step. The relatedness network "
        f"and the adaptive temperature add {whole - fixed:.2f} µs. Together they take "
        f"{100 * (whole - plain) / whole:.0f} % of AdaFTR's step. Inference does not compute them."
    )


def machine_text(found: Complexity) -> str:
    """Describes the measurement and the machine."""
    facts = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    return (
        f"Median times of alternating steps at batch size {found.batch_size:,}: loss, gradients and update for "
        f"training, a forward pass for inference; float32 on the CPU, without data loading. {facts}."
    )


def _cost(found: Complexity, title: str) -> Cost:
    return next(each for each in found.costs if each.title == title)


def draw_complexity(found: Complexity) -> Picture:
    """Draws bars from zero of the training and the inference time."""
    figure = Picture(11, 4)
    figure.suptitle(f"Time per sample at batch size {found.batch_size:,}: {found.dataset}")
    left, right = figure.subplots(1, 2)
    _paint(left, "training", [(each.title, each.train_us) for each in found.costs])
    _paint(right, "inference", [(each.title, each.infer_us) for each in found.costs])
    return figure


def _paint(axes: Axes, title: str, times: list[tuple[str, float]]) -> None:
    axes.barh([name for name, _ in times], [value for _, value in times], color=BLUE)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlabel("µs per sample")
    axes.set_ylabel("model")
    plain(axes, "x")
