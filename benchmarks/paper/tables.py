"""The tables of docs/results.md, from the lines that ``Study`` and the reports keep."""

from __future__ import annotations

from functools import partial

from benchmarks.paper.catalog import config_of
from benchmarks.paper.report import main_table, remarks
from benchmarks.paper.results import collect
from benchmarks.render import Cases


def of_experiment(name: str, cases: Cases) -> str:
    """The table of an experiment on one set, its seeds and remarks on its runs."""
    tasks = next(list(case["test"]) for case in cases if case["test"])
    results = collect(name, config_of(cases[0]["set"]), tasks, cases)
    first, last = results.seeds()[0], results.seeds()[-1]
    below = [f"Seeds {first} to {last}.", remarks(results.rows)]
    return "\n\n".join(filter(None, [main_table(results), *below]))


TABLES = {
    name: partial(of_experiment, name)
    for name in ("table4", "table5", "table6", "figure3", "figure4")
}
"""The tables in docs/results.md."""
