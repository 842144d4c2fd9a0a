"""Reports of runs: Markdown tables and a picture of losses, validation AUC and learned values by
epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.display.tables import Table
from adaftr_fast.files.toml import to_toml
from adaftr_fast.training.curves import draw
from adaftr_fast.training.evaluation import spread
from adaftr_fast.training.trained import PICTURE, REPORT, Run, metric_notes, result_table

TAU_MEANS = (
    "τ (tau) is the temperature of the contrast between two tasks, of each row: a low one draws "
    "the representations of "
    "the tasks together and pushes the most similar other rows away, a high one hardly ties the "
    "tasks. Equal quantiles "
    "mean that it has become a constant."
)


def write_report(
    folder: Path,
    title: str,
    runs: Sequence[Run],
    *,
    before: str = "",
    after: str = "",
    first: str = "model",
) -> None:
    """Writes ``report.md`` and ``report.png`` to ``folder``.

    Args:
        folder: the folder, which is created.
        title: the title.
        runs: the runs.
        before: Markdown above the table of test metrics.
        after: Markdown at the end.
        first: what the names of the runs are, for the header of the tables.

    Raises:
        OSError: a file cannot be written.
    """
    tables = [result_table(runs, first).markdown(), _learned_table(runs, first)]
    draw(runs).save_with(
        folder / REPORT, [f"# {title}", before, *tables, f"![curves]({PICTURE})", after]
    )


def _learned_table(runs: Sequence[Run], first: str) -> str:
    rows = [
        [run.name, name, *(f"{value:.4f}" for value in spread(values).values())]
        for run in runs
        for name, values in run.diagnostics.items()
    ]
    if not rows:
        return ""
    table = Table([first, "learned", "5 %", "50 %", "95 %"], rows, text_columns=2).markdown()
    return f"{table}\n\n{TAU_MEANS}" if any(each[1].startswith("tau/") for each in rows) else table


def write_page(folder: Path, manifest: Manifest, config: RunConfig, run: Run) -> None:
    """Writes ``report.md`` and ``report.png`` to the run folder.

    Args:
        folder: the run folder.
        manifest: the manifest of the prepared data.
        config: the configuration of the run.
        run: the result of the run, with test metrics.

    Raises:
        OSError: a file cannot be written.
    """
    title = f"{config.model.name} on {manifest.dataset}"
    doubts = [f"**Before you use it:** {each}" for each in run.doubts]
    before = "\n\n".join([*doubts, _facts(manifest, config, run)])
    notes = metric_notes(run.test, config.training.gauc_weights)
    after = "\n\n".join(filter(None, [*notes, changed_options(config), _next(run)]))
    write_report(folder, title, [run], before=before, after=after)


def _monitor(config: RunConfig) -> str:
    monitor = config.training.monitor
    return monitor if "/" in monitor else f"mean {'AUC' if monitor == 'auc' else monitor}"


def _next(run: Run) -> str:
    """Returns what the losses say, and the commands that go on."""
    lines = []
    if run.trained_epochs > run.best_epoch:
        lines.append(
            f"Validation is best after epoch {run.best_epoch:g} of {run.trained_epochs:g}, whose "
            "weights are kept."
        )
    lines += [
        "Which fields matter, calibration, lift and gain: `adaftr-fast evaluate --run RUN "
        "--importance --out RUN`.",
        "A model that scores raw rows: `adaftr-fast export --run RUN --out MODEL`.",
    ]
    return "## What next\n\n" + "\n".join(f"- {line}" for line in lines)


def _facts(manifest: Manifest, config: RunConfig, run: Run) -> str:
    rows = ", ".join(f"{each.rows:,} {name}" for name, each in manifest.splits.items())
    seconds = sum(record["seconds"] for record in run.epochs)
    time = f"{seconds / 60:,.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"
    facts = {
        "data": f"{manifest.dataset} in {config.data.folder}: rows {rows}",
        "inputs": f"{len(manifest.features):,} fields, {sum(manifest.num_embeddings):,} ids",
        "tasks": ", ".join(manifest.tasks),
        "best epoch": f"{run.best_epoch:g} of {run.trained_epochs:g}, by {_monitor(config)} in "
        "validation",
        "training time": f"{time}, {run.samples_per_s:,.0f} samples/s",
    }
    if config.warm_start is not None:
        facts["warm start"] = config.warm_start.run
    return Table(
        ["run", ""], [[name, text] for name, text in facts.items()], text_columns=2
    ).markdown()


def changed_options(config: RunConfig) -> str:
    """Returns the options that differ from the paper's, as TOML for ``--config``."""
    defaults = RunConfig().flat()
    changed: dict[str, Any] = {}
    for name in SECTIONS:
        section = config.to_dict()[name].items()
        options = {
            key: value for key, value in section if value not in (None, defaults[f"{name}.{key}"])
        }
        if options:
            changed[name] = options
    if not changed:
        return ""
    text = to_toml({"preset": "paper"} | changed).rstrip()
    return f"## Options that differ from the paper's\n\n```toml\n{text}\n```"
