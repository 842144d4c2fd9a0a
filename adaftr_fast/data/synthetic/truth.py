"""The data-generating process: from the values of a row to the true probabilities of its events.

Every value of every field has an effect on each stage of the funnel, a fixed and nearly normal
number. The score of a stage is the sum of its effects and of the effect of the pair (user segment,
item segment), standardized over rows. The click score also contributes to later stages, by an
amount that differs between rows:

    logit p(click)                  = b_0 + spread * a
    relatedness rho                 = low + (high - low) * sigmoid(3 g),  g from the two segments of the row
    logit p(stage k | stage k - 1)  = b_k + spread * (rho a + sqrt(1 - rho^2) c_k)

a is the score of the click and c_k the score of stage k. Where rho is high, the causes of clicks
also cause conversions. Where it is low, conversions have causes of their own. The intercepts b are
set so that the mean probabilities equal the given rates.

Shapes: n rows, K stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaftr_fast.data import hashing

Values = np.ndarray | tuple[np.ndarray, np.ndarray]
"""int64 [n], 0 = missing; or a multi-valued field as (tokens [m], offsets [n + 1]), at least one
token per row.
"""

STEEPNESS = 3.0  # slope of relatedness in g: most rows are near low or high
# weight of the segment pair relative to a field: an interaction that no sum over fields expresses
PAIR_WEIGHT = 1.5


@dataclass(frozen=True)
class Outcome:
    """Probabilities and relatedness of n rows.

    Attributes:
        conditional: p(stage k | stage k - 1), float64 [n, K].
        relatedness: float64 [n].
    """

    conditional: np.ndarray
    relatedness: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """p(stage k) over all impressions, float64 [n, K]."""
        return np.cumprod(self.conditional, axis=1)


class Truth:
    """The data-generating process of one log, calibrated on some of its rows.

    Args:
        rates: share of impressions that reach each stage.
        spread: standard deviation of each stage's logit.
        relatedness: bounds (low, high) of the relatedness.
        segments: fields that determine the relatedness.
        sample: values of the calibration rows by field.
        sizes: the largest value of the fields whose effects are kept in tables, which is faster
            than computing them.
    """

    def __init__(
        self,
        seed: int,
        rates: dict[str, float],
        spread: float,
        relatedness: tuple[float, float],
        segments: tuple[str, str],
        sample: dict[str, Values],
        sizes: dict[str, int],
    ) -> None:
        self.seed = seed
        self.sizes = sizes
        self._tables: dict[np.uint64, np.ndarray] = {}  # effects by value, for each stream
        self.spread = spread
        self.bounds = relatedness
        self.segments = segments
        self.stages = list(rates)
        self._scales: dict[str, tuple[float, float]] = {}  # mean and standard deviation of scores
        for name in ("relatedness", *self.stages):
            score = self._score(name, sample)
            self._scales[name] = float(score.mean()), float(score.std()) or 1.0
        self.intercepts = np.zeros(len(rates))
        logits, _ = self._logits(sample)
        reach = np.ones(len(logits))
        for k, rate in enumerate(rates.values()):
            self.intercepts[k] = _intercept(logits[:, k], reach, rate)
            reach *= _sigmoid(self.intercepts[k] + logits[:, k])

    def outcome(self, values: dict[str, Values]) -> Outcome:
        """Returns the true probabilities of rows with these values by field."""
        logits, relatedness = self._logits(values)
        return Outcome(_sigmoid(self.intercepts + logits), relatedness)

    def _logits(self, values: dict[str, Values]) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits without intercepts [n, K] and relatedness [n]."""
        scores = {
            name: (self._score(name, values) - mean) / deviation
            for name, (mean, deviation) in self._scales.items()
        }
        low, high = self.bounds
        rho = low + (high - low) * _sigmoid(STEEPNESS * scores["relatedness"])
        first, *later = (scores[stage] for stage in self.stages)
        mixed = [first, *(rho * first + np.sqrt(1.0 - rho**2) * score for score in later)]
        return self.spread * np.stack(mixed, axis=1), rho

    def _score(self, name: str, values: dict[str, Values]) -> np.ndarray:
        user, item = (values[segment] for segment in self.segments)
        assert isinstance(user, np.ndarray)  # segments are single-valued
        assert isinstance(item, np.ndarray)
        if name == "relatedness":
            of_user, of_item = (self._key("relatedness", segment) for segment in self.segments)
            return hashing.approx_normal(of_user, user) + hashing.approx_normal(of_item, item)
        pair = hashing.bits(self._key("pair", name), user) + item.astype(np.uint64)
        score = PAIR_WEIGHT * hashing.approx_normal(self._key("pair effect", name), pair)
        for field, field_values in values.items():
            score += self._effect(name, field, field_values)
        return score

    def _effect(self, name: str, field: str, values: Values) -> np.ndarray:
        """Returns the effect of each value [n].

        For a multi-valued field it is the sum of its tokens' effects, divided by the square root of
        their number.
        """
        stream = self._key("effect", name, field)
        if isinstance(values, tuple):
            tokens, offsets = values
            sums = np.add.reduceat(self._effects(stream, field, tokens), offsets[:-1])
            return sums / np.sqrt(np.diff(offsets))
        return self._effects(stream, field, values)

    def _key(self, *names: str) -> np.uint64:
        return hashing.stream_key(self.seed, *names)

    def _effects(self, stream: np.uint64, field: str, values: np.ndarray) -> np.ndarray:
        if field not in self.sizes:
            return hashing.approx_normal(stream, values)
        if stream not in self._tables:
            self._tables[stream] = hashing.approx_normal(stream, np.arange(self.sizes[field] + 1))
        return self._tables[stream].take(values)


def _intercept(logits: np.ndarray, reach: np.ndarray, rate: float) -> float:
    """Returns b with mean(reach * sigmoid(b + logits)) = rate, by bisection to float64
    precision.
    """
    low = -60.0
    high = 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.mean(reach * _sigmoid(middle + logits)) < rate else (low, middle)
        )
    return (low + high) / 2


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))
