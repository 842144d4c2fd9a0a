"""The tables of the study, from the cases of its file of results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.evidence.resample import SEED, replicates
from benchmarks.evidence.rows import CONTESTANTS, ORDER, PARTS, SEEDS, TRIALS
from benchmarks.render import Case, Cases, table

MARGIN = 0.05  # points of AUC
BASE = "MMoE"
DEFAULTS = ("MMoE, default", "blocks of two, default")
CHOICE = "choice by validation"
Runs = dict[tuple[str, str, int], dict[str, Any]]  # by set, row and seed


@dataclass(frozen=True)
class Estimate:
    """A difference of AUC in points, with its interval of 95 %, and the replicates that it is of."""

    mean: float
    low: float
    high: float
    replicates: np.ndarray

    @classmethod
    def of(cls, mean: float, replicates: np.ndarray) -> Estimate:
        low, high = np.percentile(replicates, [2.5, 97.5])
        return cls(mean, float(low), float(high), replicates)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def runs_of(cases: Cases) -> Runs:
    """Returns the runs that read the test split."""
    return {(case["set"], case["row"], case["seed"]): case for case in cases if "seed" in case}


def complete(cases: Cases, part: str) -> list[str]:
    """Returns the sets that have every run of a part, in the order of the protocol."""
    runs = runs_of(cases)
    return [
        name
        for each, name in ORDER
        if each == part and all((name, row, seed) in runs for row in PARTS[part] for seed in SEEDS)
    ]


def compare(runs: Runs, name: str, row: str, against: str) -> tuple[Estimate, np.ndarray]:
    """Compares two rows of a set by the mean AUC of both tasks, seed by seed.

    Returns:
        The difference, and that of each seed. Seeds of which a run diverged are left out.
    """
    gains, points = [], []
    for seed in SEEDS:
        ours, theirs = (_run(runs, name, each, seed) for each in (row, against))
        if "test" in ours and "test" in theirs:
            point = _mean(ours["test"]) - _mean(theirs["test"])
            points.append(point)
            gains.append(point + np.subtract(ours["resampled"], theirs["resampled"]) / 1000)
    drawn = replicates(np.asarray(gains), np.random.default_rng(SEED))
    return Estimate.of(float(np.mean(points)), drawn), np.asarray(points)


def over_sets(estimates: list[Estimate]) -> Estimate:
    """Returns the mean over sets, whose interval resamples the sets, too."""
    each = np.stack([estimate.replicates for estimate in estimates])
    sets, draws = each.shape
    chosen = np.random.default_rng(SEED).integers(sets, size=(sets, draws))
    mean = float(np.mean([estimate.mean for estimate in estimates]))
    return Estimate.of(mean, each[chosen, np.arange(draws)].mean(0))


def _run(runs: Runs, name: str, row: str, seed: int) -> dict[str, Any]:
    """Returns a run; of the choice by validation the one of two that it chooses."""
    if row != CHOICE:
        return runs[name, row, seed]
    both = [runs[name, each, seed] for each in DEFAULTS]
    return max(both, key=lambda run: _mean(run["validation"]))


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else -np.inf


def gains(parts: tuple[str, ...], against: Callable[[str], str], cases: Cases) -> str:
    """Returns the rows of some parts by set: AUC, and the difference to another row."""
    runs = runs_of(cases)
    sets = {part: complete(cases, part) for part in parts}
    names = dict.fromkeys(name for _, name in ORDER)
    lines = [
        _line(runs, name, row, against(row))
        for name in names
        for part in parts
        if name in sets[part]
        for row in PARTS[part]
    ]
    if not lines:
        return "No set is complete yet."
    header = (
        "set | row | AUC, mean of both tasks | against | difference, 95 % | median | by task | "
        "on validation | runs with a dead tower"
    )
    return table(header, "llrlrrrrr", lines)


def _line(runs: Runs, name: str, row: str, other: str) -> list[str]:
    found, others = ([runs[name, each, seed] for seed in SEEDS] for each in (row, other))
    tested = [_mean(run["test"]) for run in found if "test" in run]
    line = [name, row, f"{np.mean(tested):.3f} ± {np.std(tested, ddof=1):.3f}"]
    if other == row:
        line += [""] * 5
    else:
        estimate, points = compare(runs, name, row, other)
        line += [other, str(estimate), f"{np.median(points):+.3f}"]
        line += [_by_task(found, others), f"{_validated(found) - _validated(others):+.3f}"]
    return [*line, str(sum(bool(run["dead"]) for run in found))]


def _by_task(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    means = [
        {task: np.mean([run["test"][task] for run in runs if "test" in run]) for task in runs[0]["validation"]}
        for runs in (ours, theirs)
    ]  # fmt: skip
    return ", ".join(f"{task} {means[0][task] - means[1][task]:+.3f}" for task in means[0])


def _validated(runs: Iterable[dict[str, Any]]) -> float:
    return float(np.mean([_mean(run["validation"]) for run in runs if run["validation"]]))


def best_trial(cases: Cases, name: str, contestant: str) -> Case:
    """Returns the trial with the highest mean AUC on validation; of equal ones the first."""
    return max(
        _trials(cases, name, contestant),
        key=lambda case: (_mean(case["validation"]), -case["trial"]),
    )


def _trials(cases: Cases, name: str, contestant: str) -> list[Case]:
    about = name, contestant
    return [case for case in cases if (case["set"], case["row"]) == about and "trial" in case]


def tuning(cases: Cases) -> str:
    """Returns, by set and contestant, the chosen trial, its options and its gain on validation."""
    lines = []
    for name in complete(cases, "compare"):
        for row in CONTESTANTS:
            trials = {case["trial"]: case for case in _trials(cases, name, row)}
            assert len(trials) == TRIALS
            best = best_trial(cases, name, row)
            gain = _mean(best["validation"]) - _mean(trials[0]["validation"])
            options = best["options"]
            names = ("lr", "l2", "embedding_dim", "expert_hidden", "max_epochs")
            shown = [str(options[each]).strip("[]") for each in names]
            beta = str(options["beta"]) if options["name"] == "adaftr" else ""
            lines.append([name, row, str(best["trial"]), *shown, beta, f"{gain:+.3f}"])
    header = (
        "set | model | trial | lr | l2 | embedding | experts | epochs | beta | validation AUC "
        "above the default's"
    )
    return table(header, "llrrrrrrrr", lines)


def _no_harm(found: Estimate) -> str:
    return _beyond(found, -MARGIN)


def _gain(found: Estimate) -> str:
    return _beyond(found, MARGIN)


def _beyond(found: Estimate, bound: float) -> str:
    return "shown" if found.low > bound else "refuted" if found.high < bound else "open"


def _equal(found: Estimate) -> str:
    if found.low > -MARGIN and found.high < MARGIN:
        return "equal within 0.05"
    return "different" if found.low > MARGIN or found.high < -MARGIN else "open"


@dataclass(frozen=True)
class Claim:
    """A hypothesis of the protocol: a row against another one, in the mean over sets."""

    name: str
    row: str
    against: str
    part: str
    verdict: Callable[[Estimate], str]
    sets: str = ""  # the beginning of their names


CLAIMS = (
    Claim("H1", "blocks of two", BASE, "compare", _no_harm),
    Claim("H2", "blocks of two", BASE, "compare", _gain, "flights"),
    Claim("H3", "blocks of two", "whole batch, half of beta", "why", _equal),
    Claim("H4", "blocks of two, adaptive tau", "blocks of two", "why", _equal),
    Claim("H5", "blocks of two", "alignment", "why", _equal),
    Claim("H6", DEFAULTS[1], DEFAULTS[0], "compare", lambda found: ""),
    Claim("H6", CHOICE, DEFAULTS[0], "compare", lambda found: ""),
    Claim("H6", CHOICE, DEFAULTS[1], "compare", lambda found: ""),
)


def claims(cases: Cases) -> str:
    """Returns the hypotheses with their estimates over the sets that are complete so far."""
    runs = runs_of(cases)
    lines = []
    for claim in CLAIMS:
        sets = [name for name in complete(cases, claim.part) if name.startswith(claim.sets)]
        line = [claim.name, claim.row, claim.against, str(len(sets))]
        if sets:
            each = [compare(runs, name, claim.row, claim.against)[0] for name in sets]
            found = over_sets(each)
            median = float(np.median([estimate.mean for estimate in each]))
            line += [str(found), f"{median:+.3f}", claim.verdict(found)]
        else:
            line += ["", "", "no set is complete"]
        lines.append(line)
    header = "hypothesis | row | against | sets | mean difference, 95 % | median | verdict"
    return table(header, "lllrrrl", lines)


def _against(row: str) -> str:
    """Returns what a row of the part compare is compared with."""
    return DEFAULTS[0] if row == DEFAULTS[1] else row if row == DEFAULTS[0] else BASE


def _pairs(row: str) -> str:
    return "blocks of two"


TABLES = {
    "evidence_claims": claims,
    "evidence_compare": partial(gains, ("compare",), _against),
    "evidence_why": partial(gains, ("why", "blocks"), _pairs),
    "evidence_tuning": tuning,
}
"""The tables in docs/results.md."""
