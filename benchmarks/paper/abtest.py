"""The online A/B test of Section 3.4 as a simulation on a synthetic log, whose true probabilities
are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import t

from adaftr_fast._figures import BLUE, GRAY, VERMILION, Picture, plain
from adaftr_fast._tables import Table
from benchmarks.cells import model_of
from benchmarks.paper.auctions import (
    Auctions,
    Bidder,
    model_bidder,
    simulate,
    true_bidder,
)
from benchmarks.paper.report import Report
from benchmarks.paper.study import Study

SAMPLES = 1000
LEVEL = 0.95
METRICS = ("CTR", "CVR", "CPC", "eCPM", "conversions", "value")
"""Clicks per impression; conversions per click; cost per conversion; and cost, conversions and the
sum of the prices of conversions per 1,000 impressions. CPC is the paper's cost per conversion, not
per click.
"""
PAPER = {"CTR": 2.37, "CVR": 4.82, "CPC": -5.78}
"""Relative improvements of Table 7, in percent."""


@dataclass(frozen=True)
class Lift:
    """The relative difference of one metric between the arms, in percent of the control's.

    Attributes:
        metric: the metric.
        mean: the difference of the metrics over the auctions of all seeds together.
        auctions: the bounds of the 95 % interval over resampled auctions, for these models.
        seeds: the bounds over auctions and training seeds, a t interval; None for one seed.
        by_seed: the difference for each seed, [S].
    """

    metric: str
    mean: float
    auctions: tuple[float, float]
    seeds: tuple[float, float] | None
    by_seed: list[float]


def rates(counts: np.ndarray, impressions: float) -> np.ndarray:
    """Computes ``METRICS`` [..., M] of summed counts [..., 4]; nan without clicks or
    conversions.
    """
    clicks, conversions, cost, value = np.moveaxis(counts, -1, 0)
    per_thousand = 1000 / impressions
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [clicks / impressions, conversions / clicks, cost / conversions]
    found += [each * per_thousand for each in (cost, conversions, value)]
    return np.moveaxis(np.where(np.isfinite(found), found, np.nan), 0, -1)


def lifts(control: np.ndarray, treatment: np.ndarray, samples: int = SAMPLES) -> list[Lift]:
    """Compares two arms whose counts [S, n, 4] belong to the same auctions, seed by seed.

    For the first interval, auctions are resampled with replacement, each with what it adds in both
    arms and for every seed; the bounds are percentiles. The second is ``mean`` -+ t sqrt(v + s^2 /
    S), with the variance v of these samples, the standard deviation s of ``by_seed``, and t of S -
    1 degrees of freedom; a bootstrap over few seeds would be too narrow.
    """
    arms = np.stack([control, treatment])  # [2, S, n, 4]
    by_seed = _relative(arms.sum(2))  # [S, M]
    mean = _relative(arms.sum((1, 2)))
    resampled = np.stack([*_resampled(arms, samples)])  # [R, 2, S, 4]
    drawn = _relative(resampled.sum(2).swapaxes(0, 1))  # [R, M]
    fixed = _bounds(drawn)
    over_seeds = _t_bounds(mean, drawn.var(0), by_seed)
    return [
        Lift(
            name,
            float(mean[m]),
            fixed[m],
            None if over_seeds is None else over_seeds[m],
            by_seed[:, m].tolist(),
        )
        for m, name in enumerate(METRICS)
    ]


def _relative(arms: np.ndarray) -> np.ndarray:
    """Returns the differences in percent [..., M] of summed counts [2, ..., 4]; nan where the
    control's is 0.
    """
    control, treatment = rates(arms, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 100 * (treatment / control - 1)
    return np.where(np.isfinite(found), found, np.nan)


def _resampled(arms: np.ndarray, samples: int) -> Iterator[np.ndarray]:
    """Yields the summed counts [2, S, 4] of resampled auctions."""
    auctions = arms.shape[2]
    columns = np.ascontiguousarray(np.moveaxis(arms, 2, 0).reshape(auctions, -1))
    random = np.random.default_rng(0)
    for _ in range(samples):
        times = np.bincount(random.integers(0, auctions, auctions), minlength=auctions)
        yield (times.astype(np.float64) @ columns).reshape(arms.shape[0], arms.shape[1], -1)


def _t_bounds(
    mean: np.ndarray, variance: np.ndarray, by_seed: np.ndarray
) -> list[tuple[float, float]] | None:
    """Returns the bounds of ``mean`` [M] over auctions, with this ``variance`` [M], and seeds
    [S, M]; None for one.
    """
    seeds = len(by_seed)
    if seeds < 2:
        return None
    quantile = float(t.ppf((1 + LEVEL) / 2, seeds - 1))
    width = quantile * np.sqrt(variance + by_seed.var(0, ddof=1) / seeds)
    return list(zip((mean - width).tolist(), (mean + width).tolist()))


def _bounds(values: np.ndarray) -> list[tuple[float, float]]:
    """Returns the percentiles of samples [R, M] by metric; nan where a sample is nan."""
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return list(zip(low.tolist(), high.tolist()))


TRUE = "true probabilities"


@dataclass(frozen=True)
class Size:
    """The number of auctions, and of candidates in each."""

    auctions: int
    slate: int


@dataclass(frozen=True)
class Arm:
    """One arm of the test.

    Attributes:
        title: the model, or ``TRUE``.
        metrics: ``METRICS`` of the auctions of all seeds together; nan where there are no clicks or
            conversions.
        by_seed: the same for each seed.
        weights: w of Eq. 16 for each seed.
    """

    title: str
    metrics: dict[str, float]
    by_seed: list[dict[str, float]]
    weights: list[float]


@dataclass(frozen=True)
class ABTest:
    """The result of the experiment.

    Attributes:
        dataset: the name of the data set.
        size: the size of the test.
        seeds: the training seeds.
        arms: the control, the treatment, and the bidder that knows the true probabilities.
        lifts: the differences of the treatment to the control.
        same_winner: share of the auctions in which both choose the same candidate, for each seed.
    """

    dataset: str
    size: Size
    seeds: list[int]
    arms: list[Arm]
    lifts: list[Lift]
    same_winner: list[float]


def run_abtest(study: Study, size: Size) -> ABTest:
    """Runs the A/B test of a backbone, the control, and of AdaFTR on it, the treatment.

    Args:
        study: the data, of a generated log, and the runs.
        size: the size of the test. Every seed has the same auctions.

    Raises:
        ConfigError: as ``Auctions``.
        TrainingError: as ``Study.train``.
        CheckpointError: the checkpoint of a run is missing or damaged.
    """
    data = study.data
    auctions = Auctions(data, size.slate)
    planned = study.train("abtest")
    batch = study.config.training.eval_batch_size
    bidders = [model_bidder(model_of(cell), data, auctions.stages, batch) for *_, cell in planned]
    every = [*bidders, true_bidder()]
    counts, winners = simulate(auctions, every, size.auctions)
    # both of a seed come before the next seed; the last one knows the true probabilities
    control = counts[:-1:2]
    treatment = counts[1:-1:2]
    titles = [variant.title for _, variant, _ in planned[:2]]
    return ABTest(
        dataset=data.manifest.dataset,
        size=size,
        seeds=[seed for seed, *_ in planned[::2]],
        arms=[
            _arm(titles[0], control, every[:-1:2]),
            _arm(titles[1], treatment, every[1:-1:2]),
            _arm(TRUE, counts[-1:], every[-1:]),
        ],
        lifts=lifts(control, treatment),
        same_winner=(winners[:-1:2] == winners[1:-1:2]).mean(1).tolist(),
    )


def _arm(title: str, counts: np.ndarray, bidders: Sequence[Bidder]) -> Arm:
    sums = counts.sum(1)  # [S, 4]
    seeds, auctions, _ = counts.shape
    together = rates(sums.sum(0), seeds * auctions)
    by_seed = [_named(each) for each in rates(sums, auctions)]
    return Arm(title, _named(together), by_seed, [each.weight for each in bidders])


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


PERCENT = ("CTR", "CVR")
FEWER_IS_BETTER = ("CPC",)


def report(found: ABTest) -> Report:
    """Returns the report of the test."""
    return Report(
        "abtest",
        f"A/B test, simulated (Table 7): {found.dataset}",
        summary(found),
        ["![relative differences](abtest.png)", "## How the auctions work", RULES],
        draw_abtest(found),
        [asdict(found)],
    )


RULES = (
    "Each auction has a user and a slate of candidate ads from the distribution of the synthetic "
    "log, after its last row. Both arms bid p_b = w · ŷ_ctr · ŷ_cvr · p_c for every candidate (Eq. "
    "16). The price p_c of an ad is log-normal, and w makes the mean of ŷ_ctr · ŷ_cvr on the "
    "validation split the conversion rate. The highest bid wins and costs the highest bid for "
    "another item. The click and the conversion of the winner are drawn from its true "
    "probabilities, in both arms with the same random numbers. So CTR, CVR, conversions and value "
    "differ by the choices alone; CPC, the cost per conversion as in the paper, and eCPM also by "
    "how far an arm's bids lie apart."
)


def summary(found: ABTest) -> str:
    """Returns the tables and their captions."""
    seeds = f"{len(found.seeds)} training seed{'s' if len(found.seeds) > 1 else ''}"
    same = 100 * sum(found.same_winner) / len(found.same_winner)
    return "\n\n".join(
        (
            arm_table(found.arms),
            f"{found.size.auctions:,} auctions of {found.size.slate} candidates for each of "
            f"{seeds} ({', '.join(map(str, found.seeds))}). eCPM, conversions and value (the sum "
            "of the prices of conversions) are per 1,000 impressions. Both models choose the same "
            f"candidate in {same:.1f} % of the auctions.",
            lift_table(found),
            "Differences in percent of the control's metric. The 95 % intervals are that of 1,000 "
            "bootstrap samples "
            "of the auctions, for these models, and a t interval over auctions and seeds.",
        )
    )


def arm_table(arms: list[Arm]) -> str:
    """Returns the table with one row per arm."""
    header = ["arm", *(f"{name}, %" if name in PERCENT else name for name in METRICS)]
    return Table(
        header, [[arm.title, *(_number(arm, name) for name in METRICS)] for arm in arms]
    ).markdown()


def _number(arm: Arm, name: str) -> str:
    value = arm.metrics[name]
    return f"{100 * value:.2f}" if name in PERCENT else f"{value:.3f}"


def lift_table(found: ABTest) -> str:
    """Returns the table of differences, one row per metric."""
    control, treatment, _ = (arm.title for arm in found.arms)
    header = [
        f"{treatment} against {control}",
        "better",
        "difference, %",
        "auctions",
        "auctions and seeds",
        "Table 7",
    ]
    rows = [
        [
            lift.metric,
            "lower"
            if lift.metric in FEWER_IS_BETTER
            else "-"
            if lift.metric == "eCPM"
            else "higher",
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
    """Draws a dot and an interval per metric; a thin interval is over seeds too, and each gray dot
    is a seed.
    """
    picture = Picture(7, 0.42 * len(found.lifts) + 1.6)
    picture.suptitle(
        f"{found.arms[1].title} against {found.arms[0].title}, simulated A/B test: {found.dataset}"
    )
    axes = picture.subplots()
    axes.axvline(0, color=GRAY, linewidth=1)
    for place, lift in enumerate(found.lifts):
        _paint(axes, place, lift)
    low, high = axes.get_xlim()
    # at least one percent, so that rounding looks like no difference
    axes.set_xlim(min(low, -1), max(high, 1))
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
