"""The seconds and bytes of a step of one rank.

W ranks, B rows of a rank and step, F fields, E width, U distinct table rows of B rows, R rows of all tables, P dense
weights, d width of what is contrasted. Bytes are those a rank receives.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FIELDS, IDS = 23, 10_000  # of the step that is measured
CALLS = {"gather": 5, "reduce_scatter": 1, "all_reduce": 1}
"""Collectives of a step. Gathered: sizes, candidates, counts of rows, rows, their values. Scattered: the candidates'
gradients. Reduced: the dense gradients."""


@dataclass(frozen=True)
class Work:
    """A rank's share of a step."""

    ranks: int  # W
    rows: int  # B
    fields: int = FIELDS  # F
    width: int = 8  # E
    distinct: float = 1.0  # U / (B F)
    table_rows: int = FIELDS * IDS  # R
    dense: int = 60_000  # P
    contrasted: int = 64  # d

    @property
    def touched(self) -> float:
        """Distinct table rows of a rank's rows, U."""
        return self.distinct * self.rows * self.fields

    @property
    def received(self) -> dict[str, dict[str, float]]:
        """Bytes of a step from other ranks: by what they are, and by the collective that moves them."""
        others = self.ranks - 1
        candidates = others * self.rows * 4 * self.contrasted
        return {
            "table rows": {"gather": others * self.touched * (8 + 4 * self.width)},  # number and gradient
            "dense": {"all_reduce": 2 * others / self.ranks * 4 * self.dense},
            "candidates": {"gather": candidates, "reduce_scatter": candidates},  # their gradients return
        }

    def received_sharded(self) -> float:
        """Bytes of a step if each rank held 1 / W of the tables: ids with their numbers, vectors, gradients."""
        return (self.ranks - 1) / self.ranks * self.rows * self.fields * (8 + 2 * 4 * self.width)

    def contrast_flops(self, products: int = 3) -> float:
        """Of the loss: ``products`` of [B, d] by [d, W B], forward and backward: 3 on CPU, 4 on GPU."""
        return products * 2 * self.rows * self.ranks * self.rows * self.contrasted


@dataclass(frozen=True)
class Collective:
    """The time of a collective, ``latency + bytes / link``."""

    latency: float  # seconds
    link: float  # bytes received a second


@dataclass(frozen=True)
class Rates:
    """What a rank of some machine does in a second, while all ranks are busy."""

    rows: float  # through everything but the contrast
    contrast_flops: float
    merge: float  # table rows of other ranks merged and moved
    waiting: float  # share of the computing that is added because ranks wait for the slowest at each collective
    collectives: Mapping[str, Collective]  # by the names of CALLS


def step_seconds(work: Work, rates: Rates, products: int = 3) -> dict[str, float]:
    """Seconds of a step by what they go to, nothing overlapping."""
    parts = {
        "rows": work.rows / rates.rows,
        "contrast": work.contrast_flops(products) / rates.contrast_flops,
        "merging": (work.ranks - 1) * work.touched / rates.merge,
    }
    if work.ranks == 1:
        return parts
    parts["waiting"] = rates.waiting * sum(parts.values())
    parts["latency"] = sum(calls * rates.collectives[kind].latency for kind, calls in CALLS.items())
    for name, sizes in work.received.items():
        parts[name] = sum(size / rates.collectives[kind].link for kind, size in sizes.items())
    return parts
