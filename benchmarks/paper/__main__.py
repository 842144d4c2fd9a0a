"""The paper's tables and figures on public data.

python -m benchmarks.paper table4 --dataset flights --seeds 10
python -m benchmarks.paper table6 --dataset data/census --optimizer.lr 0.002
python -m benchmarks.paper --help
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from adaftr_fast.cli.options import Command, Parser, options
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import MANIFEST
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.engines import cores
from adaftr_fast.errors import ConfigError, UserError
from adaftr_fast.training.sharding import check_replicated
from benchmarks.cells import open_data
from benchmarks.paper import abtest, complexity, report, temperature
from benchmarks.paper.report import Report
from benchmarks.paper.study import Study

PROGRAM = "python -m benchmarks.paper"


@options
class Paper(Command):
    """Train the runs of a table or figure that have no record yet, and write its report."""

    sections = ("model", "optimizer", "training")
    positional = ("name",)
    name: Literal[
        "table4",
        "table5",
        "table6",
        "recommended",
        "figure3",
        "figure4",
        "temperature",
        "complexity",
        "abtest",
    ]
    """The table or figure: table4, table5, table6, recommended, figure3, figure4, temperature,
    complexity or abtest; the options below apply to all rows, except those that it varies.
    """
    dataset: str
    """A data set that info lists, a schema file (.toml) that needs no files, or a prepared
    folder.
    """
    out: str = "runs/paper"
    """Folder for data, runs and reports."""
    results: str | None = None
    """File that keeps the results of the runs that an experiment compares, one a line; a run that
    is there is not repeated (default: results.json beside the report).
    """
    seeds: int = 3
    """Number of seeds per row, from training.seed upwards."""
    jobs: int = cores()
    """Number of parallel runs, each on one thread; does not change results."""
    auctions: int = 100_000
    """Number of auctions of abtest."""
    slate: int = 10
    """Number of candidate ads of each auction of abtest."""

    def write(self, command: str) -> None:
        """Writes the report, which names the command that writes it again."""
        for option in ("seeds", "jobs", "auctions"):
            if getattr(self, option) < 1:
                raise ConfigError(f"--{option}: expected >= 1, got {getattr(self, option)}")
        check_replicated(PROGRAM, self.config.training)
        if (Path(self.dataset) / MANIFEST).is_file():
            data = PreparedData(self.dataset)
            folder = Path(self.out) / data.manifest.dataset
        else:
            schema = load_schema(self.dataset)
            folder = Path(self.out) / schema.name
            data = open_data(folder / "data", schema)
        path = Path(self.results or folder / "results.json")
        made = self.report(Study(data, self.config, self.seeds, self.jobs, folder, path))
        paths = made.write(folder, command)
        print(f"\n{made.text}\n\nReport: {', '.join(map(str, paths))}")

    def report(self, study: Study) -> Report:
        """Trains what is missing, and returns the report."""
        name = study.data.manifest.dataset
        if self.name == "complexity":
            costs = complexity.measure(study.data, self.config)
            return complexity.report(name, self.config.training.batch_size, costs)
        if self.name == "temperature":
            cells = [cell for *_, cell in study.train(self.name)]
            return temperature.report(name, temperature.analyse(study.data, cells))
        if self.name == "abtest":
            return abtest.report(name, abtest.run_abtest(study, self.auctions, self.slate))
        return report.report(study.compare(self.name), study.data.manifest.attribution)


def main(words: list[str]) -> None:
    """Runs the command with the words behind its name."""
    parser = Parser(PROGRAM, Paper)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        parser.report_unknown(unknown)
    try:
        command = Paper.of(vars(found))
        command.write(f"{PROGRAM} {shlex.join(words)}")
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
