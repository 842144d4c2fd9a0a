"""Auctions on a synthetic log: each has a user, a slate of candidate ads, and their true
probabilities.

Bidders rank the candidates of the same auctions, and what the winners' impressions lead to is
drawn.

Shapes: n auctions, K candidates of each, F fields, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adaftr_fast.data import hashing
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.matrix import matrix
from adaftr_fast.data.encode.encoders import encode_field
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.data.synthetic.log import ImpressionLog, as_arrow
from adaftr_fast.data.synthetic.truth import Values
from adaftr_fast.errors import ConfigError, TrainingError
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.training.evaluation import predict

BLOCK = 8192  # auctions in memory at a time; the values do not depend on it
PRICE_SPREAD = 0.5  # standard deviation of the logarithm of the advertisers' prices


@dataclass(frozen=True)
class Candidates:
    """The candidates of n auctions.

    Attributes:
        ids: int32 [n * K, F], as the models read them.
        item: the advertised item, which is the advertiser; a slate may hold one several times,
            int64 [n, K].
        click: true probability of a click, float64 [n, K].
        conversion: true probability of a conversion given a click, float64 [n, K].
        price: p_c of Eq. 16, what the advertiser pays for a conversion at most, float64 [n, K].
        draws: the random numbers in [0, 1) that decide on the click and the conversion of the
            winner, whichever candidate that is, float64 [n, 2].
    """

    ids: Tensor
    item: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    price: np.ndarray
    draws: np.ndarray


class Auctions:
    """Draws auctions from the distribution of a synthetic log. Each is a function of its number and
    the log alone.

    An auction is of one user. Its candidates are K impressions after the last one of the log, with
    the items and the fields of these impressions. The price of an item is log-normal.

    Args:
        data: prepared data of a generated log.
        slate: K, the number of candidates.

    Raises:
        ConfigError: the data set is not generated, its tasks are not the stages of the log, a field
            is multi-valued or dense, or ``slate`` < 2.
        DataError: the vocabulary cannot be read.
    """

    def __init__(self, data: PreparedData, slate: int) -> None:
        if slate < 2:
            raise ConfigError(f"slate: expected >= 2 candidates, got {slate}")
        manifest = data.manifest
        self.schema = manifest.parsed
        if self.schema.generate is None:
            raise ConfigError(
                "abtest: expected a data set with true probabilities, whose schema has [generate], "
                f"such as synthetic, got {manifest.dataset}"
            )
        self.log = ImpressionLog(self.schema.generate)
        self.slate = slate
        self.stages = (self.log.stages[0], self.log.stages[-1])
        if len(set(self.stages)) < 2 or not set(self.stages) <= set(manifest.tasks):
            stages = ", ".join(self.log.stages)
            raise ConfigError(
                f"abtest: expected tasks with the first and the last stage of the log, {stages}, "
                f"got {', '.join(manifest.tasks)}"
            )
        if others := [each.name for each in manifest.fields if each.multiple] + [
            each.name for each in manifest.dense
        ]:
            raise ConfigError(
                "abtest: expected single-valued fields, got multi-valued or dense "
                f"{', '.join(others)}"
            )
        self.encoders = read_encoders(data.folder, manifest)

    def blocks(self, auctions: int) -> Iterator[Candidates]:
        """Yields the candidates of the first auctions, ``BLOCK`` auctions at a time."""
        for start in range(0, auctions, BLOCK):
            yield self.candidates(np.arange(start, min(start + BLOCK, auctions)))

    def candidates(self, number: np.ndarray) -> Candidates:
        """Returns the candidates of the auctions with these numbers [n]."""
        row = self.log.config.rows + number[:, None] * self.slate + np.arange(self.slate)  # [n, K]
        owners = self.log.owners(row.ravel())
        # that of the first candidate
        owners["user"] = np.repeat(owners["user"][:: self.slate], self.slate)
        values = {
            each.name: self.log.field_values(each, owners[each.owner])
            for each in self.log.layout.fields
        }
        conditional = self.log.truth.outcome(values).conditional
        deviate = hashing.approx_normal(self._stream("price"), owners["item"])
        draws = [hashing.uniform(self._stream(name), number) for name in ("click", "conversion")]
        return Candidates(
            ids=self.encode(values),
            item=owners["item"].reshape(row.shape),
            click=conditional[:, 0].reshape(row.shape),
            conversion=conditional[:, 1:].prod(1).reshape(row.shape),
            price=np.exp(PRICE_SPREAD * deviate).reshape(row.shape),
            draws=np.stack(draws, 1),
        )

    def encode(self, values: dict[str, Values]) -> Tensor:
        """Encodes fields of a log as preparation does -> int32 [rows, F]."""
        rows = pa.RecordBatch.from_pydict({name: as_arrow(each) for name, each in values.items()})
        columns = [
            encode_field(field, self.encoders[field.name], rows).to_numpy()
            for field in self.schema.fields
        ]
        return torch.from_numpy(matrix(columns, np.int32))

    def _stream(self, name: str) -> np.uint64:
        return hashing.stream_key(self.log.config.seed, "abtest", name)


COUNTS = ("clicks", "conversions", "cost", "value")
"""What an auction adds: the winner's click, its conversion, its cost, and the price of that
conversion, or 0.
"""


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


def model_bidder(
    model: MultiTaskModel, data: PreparedData, stages: tuple[str, str], batch_size: int
) -> Bidder:
    """Returns the bidder of a model, with w such that the mean score on the validation split is the
    conversion rate.

    Args:
        model: the model, which is put into evaluation mode.
        data: the prepared data that it was trained on.
        stages: the click and the conversion task. As for every model here, the latter is a rate
            over impressions, which is y_ctr * y_cvr of Eq. 16 (docs/paper.md).
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
        raise TrainingError(
            "abtest: the validation split, which calibrates the bids, has no conversion"
        )
    return Bidder(score, converted / float(product(seen.logits).mean()))


def true_bidder() -> Bidder:
    """Returns the bidder that knows the true probabilities."""
    return Bidder(lambda candidates: candidates.click * candidates.conversion)


def simulate(
    auctions: Auctions, bidders: Sequence[Bidder], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the first ``number`` auctions for each of b bidders, with the same candidates and the
    same draws.

    Returns:
        ``COUNTS`` [b, n, 4] and the places of the winners in their slates [b, n], see ``decide``.
    """
    counts = []
    winners = []
    for candidates in auctions.blocks(number):
        found = [decide(candidates, bidder.bids(candidates)) for bidder in bidders]
        counts.append([each for each, _ in found])
        winners.append([each for _, each in found])
    return np.concatenate(counts, 1), np.concatenate(winners, 1)


def decide(candidates: Candidates, bids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Awards each impression to the highest of ``bids`` [n, K], at the price of the highest of
    other items (Vickrey).

    The winner is clicked if the auction's first draw is below its true click rate, and a click
    converts if the second draw is below its true conversion rate. The draws are the auction's, so
    two bidders that choose the same candidate get the same click and conversion.

    Returns:
        ``COUNTS``, float64 [n, 4], and the places of the winners in their slates, int64 [n].
    """
    winners = bids.argmax(1)
    click, conversion, price, item = (
        np.take_along_axis(each, winners[:, None], 1)[:, 0]
        for each in (candidates.click, candidates.conversion, candidates.price, candidates.item)
    )
    # no advertiser bids against itself
    cost = np.where(candidates.item == item[:, None], 0, bids).max(1)
    clicked = candidates.draws[:, 0] < click
    converted = clicked & (candidates.draws[:, 1] < conversion)
    counts = np.stack([clicked, converted, cost, converted * price], 1).astype(np.float64)
    return counts, winners
