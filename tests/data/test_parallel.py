import pytest

from adaftr_fast.data.parallel import ordered_map


def test_ordered_map_is_ordered_lazy_and_passes_errors_on():
    drawn = []

    def items():
        for item in range(1000):
            drawn.append(item)
            yield item

    results = ordered_map(lambda item: item * item, items())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(drawn) < 100
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 // item, [1, 0, 1]))
