"""Trains both arms, or finds their runs, and lets them bid in the same auctions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.engines.engine import Engine
from adaftr_fast.errors import TrainingError
from adaftr_fast.experiments.abtest.candidates import Auctions
from adaftr_fast.experiments.abtest.metrics import METRICS, Lift, lifts, rates
from adaftr_fast.experiments.abtest.simulation import Bidder, Traffic, model_bidder, simulate, true_bidder
from adaftr_fast.experiments.catalog import experiment
from adaftr_fast.experiments.pool import run_all
from adaftr_fast.experiments.study import plan_all
from adaftr_fast.runs.trained import load_trained

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
        metrics: ``METRICS`` of the auctions of all seeds together; nan where there are no clicks or conversions.
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


def run_abtest(
    data: PreparedData, config: RunConfig, size: Size, *, seeds: int, engine: Engine, folder: Path
) -> ABTest:
    """Runs the A/B test of a backbone, the control, and of AdaFTR on it, the treatment.

    Args:
        data: the prepared data of a generated log.
        config: the configuration that both models have in common.
        size: the size of the test. Every seed has the same auctions.
        seeds: the number of training seeds, from ``config.training.seed`` upwards.
        engine: the engine that runs the jobs.
        folder: contains ``runs/``, which experiments on the same data share.

    Raises:
        ConfigError: as ``Auctions``.
        TrainingError: a run diverged.
        EngineError: a training process was killed, or the cluster fails.
        CheckpointError: the checkpoint of a run is missing or damaged.
    """
    auctions = Auctions(data, size.slate)
    wanted = experiment("abtest", config.model, data.manifest.tasks)
    jobs = list(plan_all(wanted, data, config, seeds, folder))
    outcomes = run_all([job for *_, job in jobs], engine=engine, progress=config.training.progress)
    for seed, _, job in jobs:
        if error := outcomes[job.key].error:
            raise TrainingError(f"abtest: seed {seed} diverged: {error}")
    batch = config.training.eval_batch_size
    bidders = [model_bidder(load_trained(job.folder).model, data, auctions.stages, batch) for *_, job in jobs]
    *traffic, best = simulate(auctions, [*bidders, true_bidder()], size.auctions)
    control, treatment = traffic[::2], traffic[1::2]  # ``plan_all`` yields both of a seed before the next seed
    titles = [variant.title for variant in wanted.variants]
    return ABTest(
        dataset=data.manifest.dataset,
        size=size,
        seeds=sorted({seed for seed, *_ in jobs}),
        arms=[
            _arm(titles[0], control, bidders[::2]),
            _arm(titles[1], treatment, bidders[1::2]),
            _arm(TRUE, [best], [true_bidder()]),
        ],
        lifts=lifts([each.counts for each in control], [each.counts for each in treatment]),
        same_winner=[float(np.mean(a.winners == b.winners)) for a, b in zip(control, treatment, strict=True)],
    )


def _arm(title: str, traffic: Sequence[Traffic], bidders: Sequence[Bidder]) -> Arm:
    sums = np.stack([each.counts.sum(0) for each in traffic])  # [S, 4]
    auctions = len(traffic[0].counts)
    together = rates(sums.sum(0), len(traffic) * auctions)
    by_seed = [_named(each) for each in rates(sums, auctions)]
    return Arm(title, _named(together), by_seed, [each.weight for each in bidders])


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(METRICS, values.tolist(), strict=True))
