"""Does the gain of the contrast grow as conversions become rarer, as the paper says?

    python -m benchmarks.adaptation.sparsity --seeds 5     -> docs/results/synthetic_sparsity.png

Trains MMoE, AdaFTR as printed and the recommended setting on the synthetic log with conversion rates from 0.02 to 5 %
of the impressions, all else equal. The AUC of conversion is the expected one: every row of the test split counts as a
positive with its true probability and as a negative with the rest, so it has no noise of drawn labels, which would
hide everything where the test split holds eight conversions.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from adaftr_fast._figures import Picture, plain, style
from adaftr_fast._tables import Table
from adaftr_fast.cli.options import Parser
from adaftr_fast.config import RunConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import TRUTH, read_split
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.experiments.catalog import experiment
from adaftr_fast.experiments.jobs import Job, plan
from adaftr_fast.experiments.pool import run_all
from adaftr_fast.experiments.statistics import Difference, paired
from adaftr_fast.runs.trained import load_trained
from adaftr_fast.training.evaluation import predict
from adaftr_fast.training.metrics import auc

RATES = (0.0002, 0.001, 0.003, 0.01, 0.033, 0.05)
TITLES = ("MMoE", "AdaFTR", "AdaFTR, recommended")
TASK, CLICK = "conversion", 0.14


def schema(rate: float) -> Schema:
    """Returns the schema ``synthetic`` with another rate of conversions."""
    found = load_schema("synthetic")
    assert found.generate is not None
    generate = replace(found.generate, rates={"click": CLICK, TASK: rate})
    return replace(found, name=f"synthetic_{rate:g}", generate=generate)


def expected_auc(job: Job, data: PreparedData) -> float:
    """Returns the AUC in percent of a run's best weights, in expectation over the labels of the test split."""
    trained = load_trained(job.folder)
    logits = predict(trained.model, data.load("test"), 8192).logits[:, data.manifest.tasks.index(TASK)]
    truth = read_split(data.folder, data.manifest, "test", [TRUTH + TASK])[TRUTH + TASK].to_numpy().astype(np.float64)
    labels = np.repeat([1, 0], len(truth))
    return 100 * auc(labels, np.tile(logits, 2), np.concatenate([truth, 1 - truth]))


def draw(found: dict[tuple[str, float], list[float]], path: Path) -> None:
    """Draws the difference of each row to MMoE by rate, with its standard error."""
    picture = Picture(6.6, 3.4)
    axes = picture.subplots()
    for number, title in enumerate(TITLES[1:]):
        differences = [paired(found[title, rate], found[TITLES[0], rate]) for rate in RATES]
        errors = [each.std / each.pairs**0.5 for each in differences]
        color, line = style(number)
        shifted = [100 * rate * 1.05 ** (number - 0.5) for rate in RATES]
        axes.errorbar(
            shifted, [each.mean for each in differences], errors, label=title, color=color, linestyle=line, marker="."
        )
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("conversions, % of impressions")
    axes.set_ylabel("gain over MMoE,\nAUC points of conversion")
    plain(axes)
    picture.legend(loc="outside upper left", frameon=False, fontsize="small", ncols=2)
    picture.save(path)


def _shown(difference: Difference) -> str:
    return f"{difference.mean:+.3f} ± {difference.std:.3f} ({difference.higher} of {difference.pairs})"


def main() -> None:
    parser = Parser(prog="python -m benchmarks.adaptation.sparsity")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/sparsity"), help="folder of data and runs")
    parser.add_argument("--picture", type=Path, default=Path("docs/results/synthetic_sparsity.png"))
    arguments = parser.parse_args()
    config = RunConfig(training=TrainingConfig(progress=False))
    found: dict[tuple[str, float], list[float]] = {}
    for rate in RATES:
        folder = arguments.out / f"{rate:g}"
        prepare(schema(rate), [], folder / "data", progress=False)
        data = PreparedData(folder / "data")
        every = experiment("recommended", config.model, data.manifest.tasks).variants
        rows = [row for row in every if row.title in TITLES]
        jobs = {
            (row.title, seed): plan(data, row, config, seed, folder / "runs")
            for seed, row in product(range(arguments.seeds), rows)
        }
        run_all(list(jobs.values()), workers=arguments.jobs, progress=True)
        for title in TITLES:
            found[title, rate] = [expected_auc(jobs[title, seed], data) for seed in range(arguments.seeds)]
    lines = [
        [f"{100 * rate:g}", f"{np.mean(found[TITLES[0], rate]):.3f}"]
        + [_shown(paired(found[title, rate], found[TITLES[0], rate])) for title in TITLES[1:]]
        for rate in RATES
    ]
    print(Table(["conversions, %", *TITLES], lines, text_columns=0).markdown())
    draw(found, arguments.picture)


if __name__ == "__main__":
    main()
