"""Auctions on a synthetic log: each has a user, a slate of candidate ads, and their true probabilities.

Shapes: n auctions, K candidates of each, F fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adaftr_fast.data import hashing
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.matrix import matrix
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.encode.encoders import encode_field
from adaftr_fast.data.synthetic.log import ImpressionLog, as_arrow
from adaftr_fast.data.synthetic.truth import Values
from adaftr_fast.errors import ConfigError

BLOCK = 8192  # auctions in memory at a time; the values do not depend on it
PRICE_SPREAD = 0.5  # standard deviation of the logarithm of the advertisers' prices


@dataclass(frozen=True)
class Candidates:
    """The candidates of n auctions.

    Attributes:
        ids: int32 [n * K, F], as the models read them.
        item: the advertised item, which is the advertiser; a slate may hold one several times, int64 [n, K].
        click: true probability of a click, float64 [n, K].
        conversion: true probability of a conversion given a click, float64 [n, K].
        price: p_c of Eq. 16, what the advertiser pays for a conversion at most, float64 [n, K].
        draws: the random numbers in [0, 1) that decide on the click and the conversion of the winner, whichever
            candidate that is, float64 [n, 2].
    """

    ids: Tensor
    item: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    price: np.ndarray
    draws: np.ndarray


class Auctions:
    """Draws auctions from the distribution of a synthetic log. Each is a function of its number and the log alone.

    An auction is of one user. Its candidates are K impressions after the last one of the log, with the items and the
    fields of these impressions. The price of an item is log-normal.

    Args:
        data: prepared data of a generated log.
        slate: K, the number of candidates.

    Raises:
        ConfigError: the data set is not generated, its tasks are not the stages of the log, a field is multi-valued or
            dense, or ``slate`` < 2.
        DataError: the vocabulary cannot be read.
    """

    def __init__(self, data: PreparedData, slate: int) -> None:
        if slate < 2:
            raise ConfigError(f"slate: expected >= 2 candidates, got {slate}")
        manifest = data.manifest
        self.schema = manifest.parsed
        if self.schema.generate is None:
            raise ConfigError(
                f"abtest: expected a data set with true probabilities, whose schema has [generate], such as synthetic, "
                f"got {manifest.dataset}"
            )
        self.log = ImpressionLog(self.schema.generate)
        self.slate = slate
        self.stages = (self.log.stages[0], self.log.stages[-1])
        if len(set(self.stages)) < 2 or not set(self.stages) <= set(manifest.tasks):
            stages = ", ".join(self.log.stages)
            raise ConfigError(
                f"abtest: expected tasks with the first and the last stage of the log, {stages}, got "
                f"{', '.join(manifest.tasks)}"
            )
        if others := [each.name for each in manifest.fields if each.multiple] + [each.name for each in manifest.dense]:
            raise ConfigError(f"abtest: expected single-valued fields, got multi-valued or dense {', '.join(others)}")
        self.encoders = read_encoders(data.folder, manifest)

    def blocks(self, auctions: int) -> Iterator[Candidates]:
        """Yields the candidates of the first auctions, ``BLOCK`` auctions at a time."""
        for start in range(0, auctions, BLOCK):
            yield self.candidates(np.arange(start, min(start + BLOCK, auctions)))

    def candidates(self, number: np.ndarray) -> Candidates:
        """Returns the candidates of the auctions with these numbers [n]."""
        row = self.log.config.rows + number[:, None] * self.slate + np.arange(self.slate)  # [n, K]
        owners = self.log.owners(row.ravel())
        owners["user"] = np.repeat(owners["user"][:: self.slate], self.slate)  # that of the first candidate
        values = {each.name: self.log.field_values(each, owners[each.owner]) for each in self.log.layout.fields}
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
        columns = [encode_field(field, self.encoders[field.name], rows).to_numpy() for field in self.schema.fields]
        return torch.from_numpy(matrix(columns, np.int32))

    def _stream(self, name: str) -> np.uint64:
        return hashing.stream_key(self.log.config.seed, "abtest", name)
