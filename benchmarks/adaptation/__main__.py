"""Compares adaptive contrasts with the recommended setting.

    python -m benchmarks.adaptation --dataset flights --seeds 3 --first 100     development, on validation
    python -m benchmarks.adaptation --dataset flights --seeds 10 --rows NAME    confirmation, on the test split

Protocol, written before the first run. The question is whether anything that adapts to the row, or to the state of
training, is better than the recommended setting (tau = 0.05, beta falling to 0 over two epochs).

1. Development: every row below on flights, synthetic and census, seeds 100 to 102, judged by the validation AUC of the
   sparser task only. The test split is not read.
2. The row with the best mean difference to the recommended setting over the three sets goes to confirmation: seeds 0 to
   9 on flights, flights_late, synthetic and census, judged on the test split by a two-sided paired t-test with Holm's
   correction over the sets. Success: better at p < 0.05 on two sets and worse on none.
3. All rows that were tried are reported, with those of development.

The training options are those of ``adaftr-fast experiment``; census needs ``--optimizer.lr 0.002 --training.patience
2``, as in docs/results.md. Runs are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

from pathlib import Path

from adaftr_fast._tables import Table
from adaftr_fast.cli.options import Parser, add_config, read_config
from adaftr_fast.config import RunConfig
from adaftr_fast.config.presets import preset
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.experiments.catalog import TITLES, Variant
from adaftr_fast.experiments.jobs import Outcome, plan
from adaftr_fast.experiments.pool import run_all
from adaftr_fast.experiments.statistics import paired
from adaftr_fast.experiments.study import open_dataset

CONTROL = "recommended"
MODEL = "benchmarks.adaptation.models:Adaptive"


def rows(backbone: str) -> dict[str, Variant]:
    """Returns every row by its title."""

    def adaptive(title: str, options: dict[str, object], **changes: object) -> Variant:
        return Variant(title, preset(CONTROL) | {"name": MODEL, "options": options} | changes, (CONTROL,))

    return {
        each.title: each
        for each in (
            Variant(CONTROL, preset(CONTROL) | {"name": "adaftr"}),
            Variant(TITLES[backbone], {"name": backbone}, (CONTROL,)),
            adaptive("weights: related", {"weights": "related"}),
            adaptive("weights: unrelated", {"weights": "unrelated"}),
            adaptive("weights: balanced", {"weights": "balanced"}),
            adaptive("weights: positives", {"weights": "positives"}),
            adaptive("cosine: fixed 0.1", {"cosine": "fixed"}, tau_fixed=0.1),
            adaptive("cosine: fixed 0.1, 10 beta", {"cosine": "fixed"}, tau_fixed=0.1, beta=0.1),
            adaptive("cosine: adaptive", {"cosine": "adaptive"}),
            adaptive("cosine: adaptive, 10 beta", {"cosine": "adaptive"}, beta=0.1),
            adaptive("ratio: 1", {"ratio": 1.0}),
            adaptive("ratio: 10", {"ratio": 10.0}),
            adaptive("ratio: 1, constant", {"ratio": 1.0}, contrast_epochs=0.0),
        )
    }


def compare(
    data: PreparedData, config: RunConfig, titles: list[str], seeds: range, jobs: int, folder: Path, split: str
) -> Table:
    """Trains the rows and returns their differences to the first one on ``split``, for each task."""
    chosen = [rows(config.model.backbone)[title] for title in titles]
    planned = [(row.title, seed, plan(data, row, config, seed, folder)) for seed in seeds for row in chosen]
    outcomes = run_all([job for *_, job in planned], workers=jobs, progress=config.training.progress)
    found = {title: [outcomes[job.key] for name, _, job in planned if name == title] for title in titles}
    header = ["row", *(f"{task} {column}" for task in data.manifest.tasks for column in ("AUC", "difference", "p"))]
    lines = [[title, *_cells(each, found[titles[0]], data.manifest.tasks, split)] for title, each in found.items()]
    return Table(header, lines, text_columns=1)


def _cells(row: list[Outcome], first: list[Outcome], tasks: list[str], split: str) -> list[str]:
    cells = []
    for task in tasks:
        both = [(a, b) for a, b in zip(row, first) if not (a.error or b.error)]  # that have not diverged
        values, reference = ([100 * getattr(each, split)[task]["auc"] for each in side] for side in zip(*both))
        difference = paired(values, reference)
        shown = f"{difference.mean:+.3f} ± {difference.std:.3f} ({difference.higher} of {difference.pairs})"
        cells += [f"{sum(values) / len(values):.3f}", shown, f"{difference.p:.4f}"]
    return cells


def main() -> None:
    parser = Parser(prog="python -m benchmarks.adaptation", parser_mode="toml")
    parser.add_argument("--dataset", type=str, required=True, help="as of adaftr-fast experiment")
    parser.add_argument("--files", type=str, nargs="+", default=[], help="input files of the data set")
    parser.add_argument("--rows", type=str, nargs="+", default=[], help="titles of rows (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--split", type=str, default="validation", choices=["validation", "test"])
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder of data and runs")
    sections = ("model", "optimizer", "training")
    add_config(parser, sections)
    arguments = parser.parse_args()
    config = read_config(arguments, sections)
    data, folder = open_dataset(arguments.dataset, arguments.files, arguments.out, config.training.progress)
    titles = list(dict.fromkeys([CONTROL, *(arguments.rows or rows(config.model.backbone))]))
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    print(compare(data, config, titles, seeds, arguments.jobs, folder / "runs", arguments.split).markdown())


if __name__ == "__main__":
    main()
