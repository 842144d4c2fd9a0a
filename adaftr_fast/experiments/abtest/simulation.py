"""Lets bidders rank the candidates of the same auctions, and draws what the winners' impressions lead to.

Shapes: n auctions, K candidates of each, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import TrainingError
from adaftr_fast.experiments.abtest.candidates import Auctions, Candidates
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.training.evaluation import predict

COUNTS = ("clicks", "conversions", "cost", "value")
"""What an auction adds: the winner's click, its conversion, its cost, and the price of that conversion, or 0."""


@dataclass(frozen=True)
class Bidder:
    """Bids p_b = w * score * p_c for every candidate (Eq. 16).

    Attributes:
        score: returns y_ctr * y_cvr of the candidates, float64 [n, K].
        weight: w, the weight for calibration.
    """

    score: Callable[[Candidates], np.ndarray]
    weight: float = 1.0

    def bids(self, candidates: Candidates) -> np.ndarray:
        """Returns p_b, float64 [n, K]."""
        return self.weight * self.score(candidates) * candidates.price


@dataclass(frozen=True)
class Traffic:
    """What the auctions of one bidder lead to.

    Attributes:
        counts: the columns of ``COUNTS``, float64 [n, 4].
        winners: the places of the winners in their slates, int64 [n].
    """

    counts: np.ndarray
    winners: np.ndarray


def model_bidder(model: MultiTaskModel, data: PreparedData, stages: tuple[str, str], batch_size: int) -> Bidder:
    """Returns the bidder of a model, with w such that the mean score on the validation split is the conversion rate.

    Args:
        model: the model, which is put into evaluation mode.
        data: the prepared data that it was trained on.
        stages: the click and the conversion task. As for every model here, the latter is a rate over impressions, which
            is y_ctr * y_cvr of Eq. 16 (docs/paper.md).
        batch_size: rows per forward pass.

    Raises:
        DataError: the validation split cannot be read.
        TrainingError: the validation split has no conversion.
    """
    click, conversion = (model.task_names.index(stage) for stage in stages)

    def product(logits: np.ndarray) -> np.ndarray:
        """Returns y_ctr * y_cvr of logits [rows, T]; y_cvr is at most 1."""
        wide = np.minimum(logits[:, click], logits[:, conversion]).astype(np.float64)
        return 1 / (1 + np.exp(-wide))

    def score(candidates: Candidates) -> np.ndarray:
        with torch.no_grad():
            parts = [model(ids).numpy() for ids in candidates.ids.split(batch_size)]
        return product(np.concatenate(parts)).reshape(candidates.price.shape)

    seen = predict(model, data.load("validation"), batch_size)
    converted = float(seen.labels[:, conversion].mean())
    if not converted:
        raise TrainingError("abtest: the validation split, which calibrates the bids, has no conversion")
    return Bidder(score, converted / float(product(seen.logits).mean()))


def true_bidder() -> Bidder:
    """Returns the bidder that knows the true probabilities."""
    return Bidder(lambda candidates: candidates.click * candidates.conversion)


def simulate(auctions: Auctions, bidders: Sequence[Bidder], number: int) -> list[Traffic]:
    """Runs the first ``number`` auctions for each bidder, with the same candidates and the same draws."""
    parts: list[list[Traffic]] = [[] for _ in bidders]
    for candidates in auctions.blocks(number):
        for part, bidder in zip(parts, bidders, strict=True):
            part.append(decide(candidates, bidder.bids(candidates)))
    return [
        Traffic(np.concatenate([each.counts for each in part]), np.concatenate([each.winners for each in part]))
        for part in parts
    ]


def decide(candidates: Candidates, bids: np.ndarray) -> Traffic:
    """Awards each impression to the highest of ``bids`` [n, K], at the price of the highest of other items (Vickrey).

    The winner is clicked if the auction's first draw is below its true click rate, and a click converts if the second
    draw is below its true conversion rate. The draws are the auction's, so two bidders that choose the same candidate
    get the same click and conversion.
    """
    winners = bids.argmax(1)
    click, conversion, price, item = (
        np.take_along_axis(each, winners[:, None], 1)[:, 0]
        for each in (candidates.click, candidates.conversion, candidates.price, candidates.item)
    )
    cost = np.where(candidates.item == item[:, None], 0, bids).max(1)  # no advertiser bids against itself
    clicked = candidates.draws[:, 0] < click
    converted = clicked & (candidates.draws[:, 1] < conversion)
    return Traffic(np.stack([clicked, converted, cost, converted * price], 1).astype(np.float64), winners)
