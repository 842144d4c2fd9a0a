import numpy as np

from adaftr_fast.data import hashing

ROWS = np.arange(200_000)


def test_numbers_depend_on_key_and_index_alone():
    stream = hashing.stream_key(3, "user")
    whole = hashing.bits(stream, ROWS)
    assert np.array_equal(hashing.bits(stream, ROWS[777:1000]), whole[777:1000])
    assert np.array_equal(hashing.bits(stream, ROWS[::-1]), whole[::-1])
    assert not np.array_equal(hashing.bits(hashing.stream_key(3, "item"), ROWS), whole)
    assert not np.array_equal(hashing.bits(hashing.stream_key(4, "user"), ROWS), whole)


def test_bits_are_those_of_splitmix64():
    # The first three outputs of the published generator from state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hashing.bits(np.uint64(1234567), np.arange(1, 4)).tolist() == expected


def test_distributions():
    stream = hashing.stream_key(0, "x")
    flat = hashing.uniform(stream, ROWS)
    assert flat.min() >= 0
    assert flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.003
    normal = hashing.approx_normal(stream, ROWS)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 0.01


def test_zipf_ranks():
    for exponent in (0.5, 1.0, 1.05):
        ranks = hashing.zipf(hashing.uniform(hashing.stream_key(0, "x"), ROWS), 1_000, exponent)
        counts = np.bincount(ranks, minlength=1_001)
        assert (counts[0], len(counts)) == (0, 1_001)
        slope = np.log(counts[10:20].sum() / counts[100:200].sum()) / np.log(10)
        # ten times as many ranks, each 10^exponent times rarer
        assert abs(slope - (exponent - 1)) < 0.05
    assert hashing.zipf(np.array([0.0, np.nextafter(1.0, 0.0)]), 5, 1.05).tolist() == [1, 5]
    assert hashing.zipf(np.array([0.0, 0.99]), 1, 1.05).tolist() == [1, 1]
