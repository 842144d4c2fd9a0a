import numpy as np
import pyarrow as pa
import pytest

from adaftr_fast.data.encode.lookup import SEARCH_LEAST, Lookup

INTEGERS = np.random.default_rng(0).permutation(2 * SEARCH_LEAST) - 100
ENDS = [-(2**63), 2**63 - 1]


@pytest.mark.parametrize(
    "known",
    [
        INTEGERS.tolist(),
        [*ENDS, *(2**40 * INTEGERS).tolist()],
        [*map(str, INTEGERS), "", "é" * 70],
        ["b", "a"],
        [2**62, 3],
        [],
    ],
)
def test_a_few_values_are_found_as_many_are(known):
    kind = pa.array(known).type if known else pa.int64()
    others = [*ENDS, *range(-110, -90), *(2**40 * INTEGERS[:50] + 1).tolist()]
    others = list(map(str, others)) if pa.types.is_string(kind) else others
    asked = pa.array([None, *known, *others], kind)
    place = {value: number for number, value in enumerate(known)}
    expected = pa.array([place.get(value, -1) for value in asked.to_pylist()], pa.int32())
    lookup = Lookup(pa.array(known, kind))
    assert lookup.find(asked).equals(expected)
    for start in range(0, len(asked), 200):
        assert lookup.find(asked.slice(start, 200)).equals(expected.slice(start, 200))
