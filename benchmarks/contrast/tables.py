"""The tables of the study, from the cases of its results file: set, backbone, row, seed
and scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import isnan, nan
from statistics import fmean, stdev

from scipy.stats import t

from benchmarks.contrast.rows import ADDED, BATCH, CHOSEN, GRID, PARTS, SETTINGS
from benchmarks.paper.catalog import TITLES
from benchmarks.paper.results import Difference, holm, paired
from benchmarks.render import Cases, table

WITHIN = 0.05  # points of AUC that count as equal
Rows = dict[str, dict[int, dict[str, float]]]  # of a set and a backbone: the scores by row and seed


@dataclass(frozen=True)
class Test:
    """A comparison of two rows of a set over a backbone in one score, such as "test click"."""

    part: str
    name: str
    backbone: str
    row: str
    against: str
    score: str


def results(cases: Cases) -> dict[tuple[str, str], Rows]:
    """Returns the rows by set and backbone."""
    found = {}
    for case in cases:
        rows = found.setdefault((case["set"], case["backbone"]), {})
        rows.setdefault(case["row"], {})[case["seed"]] = case["scores"]
    return found


def difference(rows: Rows, row: str, against: str, score: str, seeds: Iterable[int]) -> Difference:
    """Compares two rows over the seeds that both have, in points; runs that diverged
    are left out.
    """
    both = [
        (rows[row][seed][score], rows[against][seed][score])
        for seed in seeds
        if all(score in rows.get(each, {}).get(seed, {}) for each in (row, against))
    ]
    return paired([a for a, _ in both], [b for _, b in both])


def scores_of(name: str, rows: Rows) -> list[str]:
    """Returns the scores of both tasks by which a set is judged: by the true probabilities if they
    are known.
    """
    kind = "expected " if name.startswith("synthetic") else "test "
    # {} has diverged
    first = next((scores for runs in rows.values() for scores in runs.values() if scores), {})
    return [score for score in first if score.startswith(kind)]


def comparisons(cases: Cases) -> dict[Test, tuple[Difference, float]]:
    """Returns every comparison of the parts that read the test split, with p corrected for all of
    them.
    """
    found = {}
    known = results(cases)
    for test in _tests(known):
        rows = known[test.name, test.backbone]
        seeds = PARTS[test.part].seeds
        found[test] = difference(rows, test.row, test.against, test.score, seeds)
    corrected = holm([each.p for each in found.values()])
    return {test: (each, p) for (test, each), p in zip(found.items(), corrected)}


def _tests(found: dict[tuple[str, str], Rows]) -> Iterator[Test]:
    for part, against in AGAINST.items():
        for name, backbone, row in product(
            PARTS[part].sets, PARTS[part].backbones, PARTS[part].rows
        ):
            rows = found.get((name, backbone), {})
            others = [other for other in against(row, backbone) if row in rows and other in rows]
            for other, score in product(others, scores_of(name, rows)):
                yield Test(part, name, backbone, row, other, score)


def _backbone(row: str, backbone: str) -> list[str]:
    return [TITLES[backbone]]


def _adaptive(row: str, backbone: str) -> list[str]:
    setting, _, k = row.rpartition(", k = ")
    return [] if setting == "as printed" else [f"as printed, k = {k}"]


def _printed(row: str, backbone: str) -> list[str]:
    if row == WHOLE_BATCH:
        return []  # part of confirm
    return [TITLES[backbone], "as printed, k = 16" if row.startswith("k = 16") else WHOLE_BATCH]


WHOLE_BATCH = f"as printed, k = {BATCH:,}"
AGAINST = {
    "confirm": _backbone,
    "backbones": _backbone,
    "sparsity": _backbone,
    "temperature": _adaptive,
    "why": _printed,
    "apart": _backbone,
}
"""The rows with which each row of a part is compared."""


def gains(cases: Cases) -> dict[tuple[str, str, str], dict[int, Difference]]:
    """Returns the differences to MMoE on the validation split, by set, setting and task, and by
    number of rows.
    """
    part = PARTS["grid"]
    found = {}
    for name in part.sets:
        rows = results(cases).get((name, "mmoe"), {})
        for setting, score in product(SETTINGS, ("validation click", "validation conversion")):
            found[name, setting, score.split()[1]] = {
                k: difference(rows, f"{setting}, k = {k:,}", TITLES["mmoe"], score, part.seeds)
                for k in GRID
            }
    return found


def means(cases: Cases) -> dict[int, float]:
    """Returns the mean of the gains by number of rows; the largest one decides on the number."""
    return {k: fmean(each[k].mean for each in gains(cases).values()) for k in GRID}


def grid(cases: Cases) -> str:
    """The gains on the validation split by number of rows, and their means."""
    lines = []
    for names, by_k in gains(cases).items():
        seeds = min(each.pairs for each in by_k.values())
        lines.append([*names, *(f"{each.mean:+.3f}" for each in by_k.values()), str(seeds)])
    lines.append(["**mean**", "", "", *(f"**{mean:+.3f}**" for mean in means(cases).values()), ""])
    header = "set | setting | task | " + " | ".join(f"k = {k:,}" for k in GRID) + " | seeds"
    return table(header, "lll" + "r" * (len(GRID) + 1), lines)


def _compared(part: str, cases: Cases) -> str:
    """The comparisons of a part, with both tasks in a line, and the p of a one-sided test of a loss
    beyond.
    """
    lines = {}
    for test, (found, p) in comparisons(cases).items():
        if test.part == part:
            names = [test.name, TITLES[test.backbone], test.row, test.against]
            shown = f"**{_shown(found)}**" if p < 0.05 else _shown(found)
            lines.setdefault(replace(test, score=""), names).extend(
                [shown, _p(p), _p(_beyond(found, -1))]
            )
    columns = f"{{}} task | p, Holm | p, not {WITHIN} below"
    header = (
        f"set | backbone | row | against | {columns.format('first')} | {columns.format('second')}"
    )
    return table(header, "llllrrrrrr", lines.values())


def equal(cases: Cases) -> str:
    """Few rows against the whole batch, with the p of two one-sided tests of a
    difference beyond.
    """
    known = results(cases)
    lines = []
    for part, setting, k in product(("confirm", "backbones"), SETTINGS, (CHOSEN, ADDED)):
        for name, backbone in product(PARTS[part].sets, PARTS[part].backbones):
            rows = known.get((name, backbone), {})
            pair = [f"{setting}, k = {each:,}" for each in (k, BATCH)]
            if all(row in rows for row in pair):
                line = [name, TITLES[backbone], pair[0]]
                for score in scores_of(name, rows):
                    found = difference(rows, *pair, score, PARTS[part].seeds)
                    line += [_shown(found), _p(max(_beyond(found, side) for side in (-1, 1)))]
                lines.append(line)
    columns = f"{{}} task | p, within {WITHIN}"
    header = f"set | backbone | row | {columns.format('first')} | {columns.format('second')}"
    return table(header, "lllrrrr", lines)


def _shown(found: Difference) -> str:
    spread = f" ± {found.std:.3f}" if found.pairs > 1 else ""
    return f"{found.mean:+.3f}{spread} ({found.higher} of {found.pairs})"


def _p(p: float) -> str:
    return "" if isnan(p) else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _beyond(found: Difference, side: int) -> float:
    """Returns p of the one-sided test that the true difference is not beyond ``WITHIN`` below (-1)
    or above (1) 0.
    """
    if found.pairs < 2 or not found.std > 0:
        return nan
    return float(t.sf((WITHIN - side * found.mean) / found.std * found.pairs**0.5, found.pairs - 1))


HEADLINE = ("MMoE", WHOLE_BATCH, "recommended, k = 2")


def headline(cases: Cases) -> str:
    """AUC on flights over every seed that was run, also those that chose the number of rows."""
    rows = results(cases)["flights", "mmoe"]
    seeds = sorted(set.intersection(*(set(rows[name]) for name in HEADLINE)))
    cells = []
    for name in HEADLINE:
        means = [
            f"{fmean(scores):.3f} ± {stdev(scores):.3f}"
            for task in ("click", "conversion")
            for scores in [[rows[name][seed][f"test {task}"] for seed in seeds]]
        ]
        gains = [
            difference(rows, name, HEADLINE[0], score, seeds)
            for score in ("test conversion", "validation conversion")
        ]
        shown = [f"{each.mean:+.3f} ({each.higher} of {each.pairs})" for each in gains]
        cells.append([name, *means, *(["", ""] if name == HEADLINE[0] else shown)])
    header = "model | click AUC | conversion AUC | against MMoE | on validation"
    return table(header, "lrrrr", cells)


def towers(cases: Cases) -> str:
    """AUC of each run of the part towers, which shows towers that died."""
    part = PARTS["towers"]
    rows = {TITLES[each] for each in part.backbones} | part.rows.keys()
    cells = [
        [
            TITLES[case["backbone"]],
            case["row"],
            str(case["seed"]),
            f"{case['scores']['test click']:.2f}",
            f"{case['scores']['test conversion']:.2f}",
        ]
        for case in cases
        if case["set"] in part.sets and case["row"] in rows and case["seed"] in part.seeds
    ]
    return table("backbone | row | seed | click AUC | conversion AUC", "llrrr", cells)


TABLES = {
    "contrast_headline": headline,
    "contrast_grid": grid,
    "contrast_confirm": partial(_compared, "confirm"),
    "contrast_equal": equal,
    "contrast_temperature": partial(_compared, "temperature"),
    "contrast_why": partial(_compared, "why"),
    "contrast_apart": partial(_compared, "apart"),
    "contrast_towers": towers,
    "contrast_backbones": partial(_compared, "backbones"),
    "contrast_sparsity": partial(_compared, "sparsity"),
}
"""The tables in docs/results.md and README.md."""
