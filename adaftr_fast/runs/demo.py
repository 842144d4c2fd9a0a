"""The demo: trains MMoE and AdaFTR on the flights data set and compares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from adaftr_fast.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema import parse
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.files.json import dumps
from adaftr_fast.files.whole import replace_file
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.runs.run import train_one, writing
from adaftr_fast.training.checkpoint.files import check_shared_folder
from adaftr_fast.training.report import write_report
from adaftr_fast.training.sharding import check_replicated
from adaftr_fast.training.trained import METRICS, PICTURE, REPORT, result_table

NOTES = (
    "Each model is trained with one seed, so differences of a few tenths of a percentage point are "
    "noise. The tasks stand in for ad events: click is a departure 15 or more minutes late, "
    "conversion one that also arrives 30 or more minutes late."
)


def run_demo(
    out: Path,
    training: TrainingConfig,
    *,
    restart: bool = False,
    ranks: Ranks = ALONE,
    output: Output = HERE,
) -> None:
    """Prepares the data, trains or resumes both models, prints the comparison and writes a report.

    Args:
        out: the folder of the data, the runs and the report.
        training: the training options of both models.
        restart: discards unfinished runs in ``out``.
        ranks: the ranks that train together. All of them must see ``out``; rank 0 prepares the data
            and prints.
        output: the output that ``out`` is.

    Raises:
        TrainingError, CheckpointError, BusyError, KeyboardInterrupt: see ``train_one``.
    """
    check_replicated("demo", training)
    folder = out / "data"

    def prepared() -> None:
        prepare(parse.load_schema("flights"), None, folder, progress=training.progress)

    with writing(out, ranks, METRICS, REPORT, PICTURE):
        check_shared_folder(out, ranks, "every rank reads the prepared data")
        ranks.after_rank_zero(prepared)
        data = PreparedData(folder)
        fields = len(data.manifest.fields)
        ids = sum(data.manifest.num_embeddings)
        config = RunConfig(data=DataConfig(output.recorded(folder)), training=training)
        options: dict[str, Any] = {"restart": restart, "ranks": ranks, "output": output}
        runs = []
        for name in ("mmoe", "adaftr"):
            if ranks.is_rank_zero:
                print(f"\n{name}: {fields} fields, {ids:,} ids")
            config = replace(config, model=ModelConfig(name=name))
            runs.append(train_one(data, config, out / name, report=True, **options))
        if ranks.is_rank_zero:
            records = [{"model": run.name} | record for run in runs for record in run.epochs]
            lines = "".join(dumps(record) + "\n" for record in records)
            replace_file(out / METRICS, lines.encode())
            write_report(out, "Flights: MMoE and AdaFTR", runs, after=NOTES)
            print(f"\nTest split (AUC and GAUC in %)\n{result_table(runs)}\n\n{NOTES}")
            print(f"Report: {output.recorded(out / REPORT)} and {PICTURE}")
