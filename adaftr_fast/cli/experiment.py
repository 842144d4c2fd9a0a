"""The command ``experiment``."""

from __future__ import annotations

import shlex
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from adaftr_fast._json import dumps
from adaftr_fast.cli.options import Command, OnEngine, Place, options
from adaftr_fast.config import RunConfig
from adaftr_fast.errors import ConfigError

if TYPE_CHECKING:
    from adaftr_fast.experiments.report import Report
    from adaftr_fast.experiments.study import Study
    from adaftr_fast.runs.output import Output

Name = Literal[
    "table4",
    "table5",
    "table6",
    "recommended",
    "fig3",
    "fig4",
    "temperature",
    "complexity",
    "abtest",
]
NAMES = get_args(Name)


@options
class Experiment(OnEngine, Command):
    """Run or resume the experiment of a table or figure, and write its report."""

    sections = ("model", "optimizer", "training")
    positional = ("name",)
    texts: ClassVar = {
        "engine": "What trains the runs: local, processes of this machine, or ray, a Ray cluster "
        "that sees --out"
    }
    name: Name
    """The experiment: table4, table5, table6, recommended, fig3, fig4, temperature, complexity or
    abtest; the options below apply to all rows, except those that it varies.
    """
    dataset: str
    """A data set that info lists, a schema file (.toml), or a prepared folder."""
    files: list[str] = field(default_factory=list)
    """Input files of a data set that is not included."""
    bad_rows: float = 0.0
    """Maximum share of rows of --files that cannot be read or lack a label; they alone are left
    out.
    """
    out: Place = "runs/experiments"
    """Folder for data, runs and reports."""
    seeds: int = 3
    """Number of seeds per row, from training.seed upwards."""
    jobs: int | None = None
    """Number of parallel runs, each on one thread; does not change results (default: one per core,
    with --engine ray as many as the cluster can run).
    """
    auctions: int = 100_000
    """Number of auctions of abtest."""
    slate: int = 10
    """Number of candidate ads of each auction of abtest."""

    def __call__(self) -> None:
        from adaftr_fast.runs.output import output
        from adaftr_fast.training.sharding import check_replicated

        counts = {"seeds": self.seeds, "jobs": self.jobs}
        if self.name == "abtest":
            counts["auctions"] = self.auctions
        for option, count in counts.items():
            if count is not None and count < 1:
                raise ConfigError(f"--{option}: expected >= 1, got {count}")
        if self.name == "complexity" and self.engine != "local":
            raise ConfigError(
                "--engine: expected local for complexity, which times this machine, got "
                f"{self.engine}"
            )
        check_replicated("experiment", self.config.training)
        with output(self.out) as out:
            self._run(out)

    def _run(self, out: Output) -> None:
        from adaftr_fast._locks import writing_folder
        from adaftr_fast.engines import Processes, cores
        from adaftr_fast.experiments.study import Study, open_dataset

        training = self.config.training
        data, folder = open_dataset(self.dataset, self.files, out, training.progress, self.bad_rows)
        if (bad_rows := data.manifest.bad_rows) and bad_rows.bad:
            print(f"Left out: {bad_rows.summary()}")
        reports = (f"{self.name}.{kind}" for kind in ("md", "json", "png"))
        local = Processes(self.jobs or cores())
        with (
            self.training_engine(self.out, training.device, local, self.jobs) as engine,
            writing_folder(folder, *reports),
        ):
            report = self._report(Study(data, self.config, self.seeds, engine, folder))
            paths = report.write(folder, self._command())
        print(f"\n{report.text}\n\nReport: {', '.join(map(out.recorded, paths))}")

    def _report(self, study: Study) -> Report:
        """Runs the experiment."""
        from adaftr_fast.experiments import abtest, complexity, report, temperature

        data = study.data
        if self.name == "complexity":
            return complexity.report(complexity.measure(data, self.config))
        if self.name == "temperature":
            jobs = [job for *_, job in study.train(self.name)]
            return temperature.report(data.manifest.dataset, temperature.analyse(data, jobs))
        if self.name == "abtest":
            size = abtest.Size(self.auctions, self.slate)
            return abtest.report(abtest.run_abtest(study, size))
        return report.report(study.compare(self.name))

    def _command(self) -> str:
        """Returns the command that makes the same tables, with the options of a ``--config`` file
        as options.
        """
        words = ["adaftr-fast", "experiment", self.name, "--dataset", self.dataset]
        words += ["--files", *self.files] if self.files else []
        words += ["--bad_rows", str(self.bad_rows)] if self.bad_rows else []
        words += ["--seeds", str(self.seeds)]
        if self.name == "abtest":
            words += ["--auctions", str(self.auctions), "--slate", str(self.slate)]
        defaults = RunConfig().flat() | {"training.progress": self.config.training.progress}
        for name, value in self.config.flat().items():
            if value != defaults[name]:
                words += [f"--{name}", value if isinstance(value, str) else dumps(value)]
        return shlex.join([*words, "--out", self.out])
