"""The online A/B test of Section 3.4 as a simulation on a synthetic log, whose true probabilities
are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.stats import t

from adaftr_fast.display.figures import BLUE, GRAY, VERMILION, Picture, plain
from benchmarks.cells import model_of
from benchmarks.paper.auctions import Auctions, model_bidder, simulate, true_bidder
from benchmarks.paper.catalog import changed_options
from benchmarks.paper.report import Report
from benchmarks.paper.study import Study
from benchmarks.render import Case, Cases, of_cases

SAMPLES = 1000
LEVEL = 0.95
METRICS = ("CTR", "CVR", "CPC", "eCPM", "conversions", "value")
"""Clicks per impression; conversions per click; cost per conversion; and cost, conversions and the
sum of the prices of conversions per 1,000 impressions. CPC is the paper's cost per conversion, not
per click.
"""
BETTER = {"CPC": "lower", "eCPM": "-"}  # of the others, higher
PAPER = {"CTR": 2.37, "CVR": 4.82, "CPC": -5.78}
"""Relative improvements of Table 7, in percent."""


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


def lifts(control: np.ndarray, treatment: np.ndarray, samples: int = SAMPLES) -> Cases:
    """Compares two arms whose counts [S, n, 4] belong to the same auctions, seed by seed.

    For the first interval, auctions are resampled with replacement, each with what it adds in both
    arms and for every seed; the bounds are percentiles. The second is ``mean`` -+ t sqrt(v + s^2 /
    S), with the variance v of these samples, the standard deviation s of ``by seed``, and t of S -
    1 degrees of freedom; a bootstrap over few seeds would be too narrow.

    Returns:
        A case per metric, in percent of the control's: the mean, the difference of the metric over
        the auctions of all seeds together; the bounds of the 95 % interval over auctions; those
        over auctions and training seeds, None for one seed; and the difference by seed.
    """
    arms = np.stack([control, treatment])  # [2, S, n, 4]
    by_seed = _relative(arms.sum(2))  # [S, M]
    mean = _relative(arms.sum((1, 2)))
    resampled = np.stack([*_resampled(arms, samples)])  # [R, 2, S, 4]
    drawn = _relative(resampled.sum(2).swapaxes(0, 1))  # [R, M]
    fixed = _bounds(drawn)
    over_seeds = _t_bounds(mean, drawn.var(0), by_seed)
    return [
        {
            "metric": name,
            "mean": float(mean[m]),
            "auctions": fixed[m],
            "seeds": None if over_seeds is None else over_seeds[m],
            "by seed": by_seed[:, m].tolist(),
        }
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


def run_abtest(study: Study, auctions: int, slate: int) -> Case:
    """Runs the A/B test of a backbone, the control, and of AdaFTR on it, the treatment.

    Args:
        study: the data, of a generated log, and the runs.
        auctions: the number of auctions, the same ones for every seed.
        slate: the number of candidates of each.

    Returns:
        The data, the options that all rows have in common, and the size of the test; the training
        seeds; the arms, with ``METRICS`` of the auctions of all
        seeds together and by seed, and w of Eq. 16 by seed: the control, the treatment and the
        bidder that knows the true probabilities; the ``lifts``; and by seed the share of the
        auctions in which both choose the same candidate.

    Raises:
        ConfigError: as ``Auctions``.
        TrainingError: as ``Study.train``.
        CheckpointError: the checkpoint of a run is missing or damaged.
    """
    source = Auctions(study.data, slate)
    planned = study.train("abtest")
    batch = study.config.training.eval_batch_size
    every = [model_bidder(model_of(cell), study.data, source.stages, batch) for *_, cell in planned]
    every.append(true_bidder())
    counts, winners = simulate(source, every, auctions)
    # both of a seed come before the next seed; the last one knows the true probabilities
    parts = [slice(0, -1, 2), slice(1, -1, 2), slice(-1, None)]
    titles = [*(variant.title for _, variant, _ in planned[:2]), "true probabilities"]
    control, treatment, _ = (counts[part] for part in parts)
    return {
        "set": study.data.manifest.dataset,
        "options": changed_options(study.config),
        "data": study.data.manifest.fingerprint[:12],
        "auctions": auctions,
        "slate": slate,
        "seeds": [seed for seed, *_ in planned[::2]],
        "arms": [
            {"arm": title, "weights": [each.weight for each in every[part]]} | _arm(counts[part])
            for title, part in zip(titles, parts)
        ],
        "lifts": lifts(control, treatment),
        "same winner": (winners[parts[0]] == winners[parts[1]]).mean(1).tolist(),
    }


def _arm(counts: np.ndarray) -> Case:
    """Returns the metrics of counts [S, n, 4], over all seeds and by seed."""
    sums = counts.sum(1)
    seeds, auctions, _ = counts.shape
    return {
        "metrics": _named(rates(sums.sum(0), seeds * auctions)),
        "by seed": [_named(each) for each in rates(sums, auctions)],
    }


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))


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


def report(dataset: str, found: Case) -> Report:
    """Returns the report of the test."""
    return Report(
        "abtest",
        f"A/B test, simulated (Table 7): {dataset}",
        text([found]),
        ["![relative differences](abtest.png)", "## How the auctions work", RULES],
        _draw(f"{_against(found)}, simulated A/B test: {dataset}", found["lifts"]),
        [found],
    )


def text(cases: Cases) -> str:
    """The metrics of the arms of a test, and the differences between the two models."""
    (found,) = cases
    seeds = found["seeds"]
    same = 100 * sum(found["same winner"]) / len(seeds)
    arms = of_cases(
        "arm | CTR | CVR | " + " | ".join(METRICS[2:]),
        "lrrrrrr",
        "{arm} | {metrics[CTR]:.2%} | {metrics[CVR]:.2%} | "
        + " | ".join(f"{{metrics[{name}]:.3f}}" for name in METRICS[2:]),
        found["arms"],
    )
    return (
        f"{arms}\n\n{found['auctions']:,} auctions of {found['slate']} candidates for each of "
        f"{len(seeds)} training seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))}). eCPM, "
        "conversions and value (the sum of the prices of conversions) are per 1,000 impressions. "
        f"Both models choose the same candidate in {same:.1f} % of the auctions.\n\n"
        f"{lift_table(_against(found), found['lifts'])}\n\nDifferences in percent of the control's "
        "metric. The 95 % intervals are that of 1,000 bootstrap samples of the auctions, for these "
        "models, and a t interval over auctions and seeds."
    )


def _against(found: Case) -> str:
    control, treatment, _ = (each["arm"] for each in found["arms"])
    return f"{treatment} against {control}"


def lift_table(title: str, found: Cases) -> str:
    """Returns the table of differences, one row per metric."""
    return of_cases(
        f"{title} | better | difference, % | auctions | auctions and seeds | Table 7",
        "llrrrr",
        "{metric} | {better} | {mean:+.2f} | {intervals[0]} | {intervals[1]} | {paper:+.2f}",
        [
            each
            | {
                "better": BETTER.get(each["metric"], "higher"),
                "intervals": [_interval(each[kind]) for kind in ("auctions", "seeds")],
                "paper": PAPER.get(each["metric"]),
            }
            for each in found
        ],
    )


def _interval(bounds: tuple[float, float] | None) -> str:
    if bounds is None or math.isnan(sum(bounds)):
        return "-"
    return "{:+.2f} to {:+.2f}".format(*bounds)


def _draw(title: str, found: Cases) -> Picture:
    """Draws a dot and an interval per metric; a thin interval is over seeds too, and each gray dot
    is a seed.
    """
    picture = Picture(7, 0.42 * len(found) + 1.6)
    picture.suptitle(title)
    axes = picture.subplots()
    axes.axvline(0, color=GRAY, linewidth=1)
    for place, lift in enumerate(found):
        by_seed = lift["by seed"]
        axes.plot(by_seed, [place] * len(by_seed), "o", color=GRAY, alpha=0.4, markersize=3)
        if lift["seeds"] is not None:
            axes.hlines(place, *lift["seeds"], color=BLUE, linewidth=1)
        axes.hlines(place, *lift["auctions"], color=VERMILION, linewidth=3)
        axes.plot(lift["mean"], place, "o", color=VERMILION, markersize=6)
    low, high = axes.get_xlim()
    # at least one percent, so that rounding looks like no difference
    axes.set_xlim(min(low, -1), max(high, 1))
    axes.set_yticks(range(len(found)), [lift["metric"] for lift in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("difference, % of the control; 95 % intervals")
    axes.set_ylabel("metric")
    plain(axes, "x")
    return picture
