"""The report of the A/B test: Markdown, JSON and a plot."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes

from adaftr_fast._figures import BLUE, GRAY, VERMILION, Picture, plain
from adaftr_fast._files import replace_file
from adaftr_fast._json import dumps
from adaftr_fast._tables import Table
from adaftr_fast.experiments.abtest.metrics import METRICS, PAPER, Lift
from adaftr_fast.experiments.abtest.run import ABTest, Arm

PERCENT = ("CTR", "CVR")
FEWER_IS_BETTER = ("CPC",)


def write_abtest_report(folder: Path, found: ABTest, command: str) -> list[Path]:
    """Writes ``abtest.md``, ``.json`` and ``.png`` to ``folder`` and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"abtest.{kind}" for kind in ("md", "json", "png")]
    draw_abtest(found).save(paths[2])
    replace_file(paths[1], (dumps({"command": command} | asdict(found), indent=2) + "\n").encode())
    sections = [
        f"# A/B test, simulated (Table 7): {found.dataset}",
        f"`{command}`",
        summary(found),
        "![relative differences](abtest.png)",
        "## How the auctions work",
        RULES,
    ]
    replace_file(paths[0], ("\n\n".join(sections) + "\n").encode())
    return paths


RULES = (
    "Each auction has a user and a slate of candidate ads from the distribution of the synthetic log, after its last "
    "row. Both arms bid p_b = w · ŷ_ctr · ŷ_cvr · p_c for every candidate (Eq. 16). The price p_c of an ad is "
    "log-normal, and w makes the mean of ŷ_ctr · ŷ_cvr on the validation split the conversion rate. The highest bid "
    "wins and costs the highest bid for another item. The click and the conversion of the winner are drawn from its "
    "true probabilities, in both arms with the same random numbers. So CTR, CVR, conversions and value differ by the "
    "choices alone; CPC, the cost per conversion as in the paper, and eCPM also by how far an arm's bids lie apart."
)


def summary(found: ABTest) -> str:
    """Returns the tables and their captions."""
    seeds = f"{len(found.seeds)} training seed{'s' if len(found.seeds) > 1 else ''}"
    same = 100 * sum(found.same_winner) / len(found.same_winner)
    return "\n\n".join(
        (
            arm_table(found.arms),
            f"{found.size.auctions:,} auctions of {found.size.slate} candidates for each of {seeds} "
            f"({', '.join(map(str, found.seeds))}). eCPM, conversions and value (the sum of the prices of conversions) "
            f"are per 1,000 impressions. Both models choose the same candidate in {same:.1f} % of the auctions.",
            lift_table(found),
            "Differences in percent of the control's metric. The 95 % intervals are that of 1,000 bootstrap samples "
            "of the auctions, for these models, and a t interval over auctions and seeds.",
        )
    )


def arm_table(arms: list[Arm]) -> str:
    """Returns the table with one row per arm."""
    header = ["arm", *(f"{name}, %" if name in PERCENT else name for name in METRICS)]
    return Table(header, [[arm.title, *(_number(arm, name) for name in METRICS)] for arm in arms]).markdown()


def _number(arm: Arm, name: str) -> str:
    value = arm.metrics[name]
    return f"{100 * value:.2f}" if name in PERCENT else f"{value:.3f}"


def lift_table(found: ABTest) -> str:
    """Returns the table of differences, one row per metric."""
    control, treatment, _ = (arm.title for arm in found.arms)
    header = [f"{treatment} against {control}", "better", "difference, %", "auctions", "auctions and seeds", "Table 7"]
    rows = [
        [
            lift.metric,
            "lower" if lift.metric in FEWER_IS_BETTER else "-" if lift.metric == "eCPM" else "higher",
            f"{lift.mean:+.2f}",
            _interval(lift.auctions),
            "-" if lift.seeds is None else _interval(lift.seeds),
            f"{PAPER[lift.metric]:+.2f}" if lift.metric in PAPER else "-",
        ]
        for lift in found.lifts
    ]
    return Table(header, rows, text_columns=2).markdown()


def _interval(bounds: tuple[float, float]) -> str:
    low, high = bounds
    if math.isnan(low + high):
        return "-"
    return f"{low:+.2f} to {high:+.2f}"


def draw_abtest(found: ABTest) -> Picture:
    """Draws a dot and an interval per metric; a thin interval is over seeds too, and each gray dot is a seed."""
    picture = Picture(7, 0.42 * len(found.lifts) + 1.6)
    picture.suptitle(f"{found.arms[1].title} against {found.arms[0].title}, simulated A/B test: {found.dataset}")
    axes = picture.subplots()
    axes.axvline(0, color=GRAY, linewidth=1)
    for place, lift in enumerate(found.lifts):
        _paint(axes, place, lift)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1), max(high, 1))  # at least one percent, so that rounding looks like no difference
    axes.set_yticks(range(len(found.lifts)), [lift.metric for lift in found.lifts])
    axes.set_ylim(len(found.lifts) - 0.5, -0.5)
    axes.set_xlabel("difference, % of the control; 95 % intervals")
    axes.set_ylabel("metric")
    plain(axes, "x")
    return picture


def _paint(axes: Axes, place: int, lift: Lift) -> None:
    axes.plot(lift.by_seed, [place] * len(lift.by_seed), "o", color=GRAY, alpha=0.4, markersize=3)
    if lift.seeds is not None:
        axes.hlines(place, *lift.seeds, color=BLUE, linewidth=1)
    axes.hlines(place, *lift.auctions, color=VERMILION, linewidth=3)
    axes.plot(lift.mean, place, "o", color=VERMILION, markersize=6)
