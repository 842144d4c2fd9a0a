"""``adaftr-fast demo``: MMoE and AdaFTR on the flights that ship with the package.

Like the command line itself, this imports what is slow to import only when it runs.
"""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from adaftr_fast._json import dumps
from adaftr_fast.config.model import ModelConfig
from adaftr_fast.config.training import DataConfig, OptimizerConfig, TrainingConfig

DEMO_NOTES = (
    "One seed each: differences of a few tenths of a point are noise. The tasks stand in for ad events: click is a "
    "departure 15 or more minutes late, conversion one that also arrives 30 or more minutes late."
)


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Adds the options of ``demo``."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the prepared data, both runs and the report"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew even if --out holds an unfinished run")
    parser.add_argument("--training", type=TrainingConfig, default=TrainingConfig())


def run_demo(arguments: jsonargparse.Namespace) -> None:
    """Prepares, trains both models, or goes on with them, and reports."""
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.data.prepare.run import prepare
    from adaftr_fast.data.schema.parse import load_schema
    from adaftr_fast.runs.run import train_one
    from adaftr_fast.training.journal import METRICS
    from adaftr_fast.training.report import metrics_table, write_report
    from adaftr_fast.training.sharding import check_replicated

    schema, folder = load_schema("flights"), arguments.out / "data"
    training = TrainingConfig(**arguments.training.as_dict())
    check_replicated("demo", training)
    prepare(schema, None, folder, progress=training.progress)
    data = PreparedData(folder)
    runs = []
    for name in ("mmoe", "adaftr"):
        print(f"\n{name}: {len(data.manifest.fields)} fields, {sum(data.manifest.num_embeddings):,} ids")
        config = {
            "data": DataConfig(str(folder)),
            "model": ModelConfig(name=name),
            "optimizer": OptimizerConfig(),
            "training": training,
        }
        runs.append(train_one(data, config, arguments.out / name, restart=arguments.restart))
    records = [{"model": run.name} | record for run in runs for record in run.epochs]
    (arguments.out / METRICS).write_text("".join(dumps(record) + "\n" for record in records))
    write_report(arguments.out, "Flights: MMoE and AdaFTR", runs, notes=DEMO_NOTES)
    print(f"\nTest split (AUC and GAUC in points of 100)\n{metrics_table(runs)}\n\n{DEMO_NOTES}")
    print(f"Report: {arguments.out / 'report.md'} and report.png")
