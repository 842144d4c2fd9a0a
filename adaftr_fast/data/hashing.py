"""Hashes and counter-based random numbers. Each number is a function of a key and an index only.

A log of any length can therefore be generated in chunks of any size and in any order. A property of
a user or value is the same in every row, without a table of users or values. Shapes: n numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the constants of splitmix64 (Steele, Lea & Flood 2014)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
# of numbers that hold four, and two
_HALVES = np.uint64(0x0000FFFF0000FFFF)
_LOW = np.uint64(0xFFFFFFFF)


def stream_key(seed: int, *names: str) -> np.uint64:
    """Returns the key of a stream of random numbers: a hash of the seed and of the
    stream's name.
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def bits(stream: np.uint64, index: np.ndarray) -> np.ndarray:
    """Returns 64 random bits for each index of a stream, uint64 [n]: splitmix64 at an arbitrary
    position.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        state = index.astype(np.uint64)
        state *= _GOLDEN
        state += stream
        for shift, factor in _MIX:
            state ^= state >> shift
            state *= factor
        state ^= state >> np.uint64(31)
    return state


def uniform(stream: np.uint64, index: np.ndarray) -> np.ndarray:
    """Returns uniform random numbers in [0, 1), float64 [n]."""
    return fraction(bits(stream, index))


def approx_normal(stream: np.uint64, index: np.ndarray) -> np.ndarray:
    """Returns random numbers of mean 0 and variance 1, float64 [n].

    Each is the scaled sum of four uniform 16-bit numbers: nearly normal, within ±3.47.
    """
    four = bits(stream, index)
    two = (four & _HALVES) + (four >> np.uint64(16) & _HALVES)
    total = (two & _LOW) + (two >> np.uint64(32))
    return (total - 2.0 * 65535) * np.sqrt(3.0) / 65535


def text_hash(values: pa.Array) -> np.ndarray:
    """Returns a hash of the text of each value, uint64 [n], equal on every machine.

    A missing value hashes as empty text.
    """
    encoded = values.cast(pa.string()).fill_null("").dictionary_encode()
    digests = (
        hashlib.blake2b(text.encode(), digest_size=8).digest()
        for text in encoded.dictionary.to_pylist()
    )
    hashes = np.frombuffer(b"".join(digests), "<u8")
    return hashes[encoded.indices.to_numpy()].astype(np.uint64)


def fraction(hashes: np.ndarray) -> np.ndarray:
    """Maps hashes, uint64 [n], to float64 in [0, 1)."""
    return (hashes >> np.uint64(11)) * 2.0**-53


def zipf(samples: np.ndarray, values: int, exponent: float) -> np.ndarray:
    """Maps uniform ``samples`` [n] to Zipf-distributed ranks 1 ... ``values``, int64 [n].

    Rank k has a probability of about ``k^-exponent``. The rank is a bounded Pareto variable rounded
    down. Unlike the zeta distribution, it has a closed-form inverse.
    """
    power = 1.0 - exponent
    if power == 0.0:
        ranks = np.exp(samples * np.log(values + 1.0))
    else:
        ranks = (1.0 + samples * ((values + 1.0) ** power - 1.0)) ** (1.0 / power)
    return np.minimum(ranks.astype(np.int64), values)
