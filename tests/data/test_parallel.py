import pytest

from adaftr_fast.data import parallel
from adaftr_fast.data.memory import PROGRAM, Memory
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.errors import ConfigError
from tests.forks import in_a_fork


def test_ordered_map_is_ordered_lazy_and_passes_errors_on():
    drawn = []

    def items():
        for item in range(1000):
            drawn.append(item)
            yield item

    results = ordered_map(lambda item: item * item, items(), int)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(drawn) < 100
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 // item, [1, 0, 1], int))


def test_ordered_map_holds_few_large_items(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 16)
    memory = Memory(PROGRAM + 400)
    assert memory.held == 300
    drawn = []
    items = (drawn.append(size) or size for size in [*[30] * 20, *[250] * 20])
    for number, size in enumerate(ordered_map(lambda item: item, items, int, memory)):
        assert sum(drawn[number:-1]) <= 300, "what is held when one more item is drawn"
        assert size == drawn[number]
    assert len(drawn) == 40
    with pytest.raises(ConfigError, match=r"^memory: expected at least 0.38 GB, .* got 0.375$"):
        list(ordered_map(lambda item: item, [301], int, memory))


def test_a_forked_process_cannot_continue_a_map_but_can_start_one():
    def squares():
        return ordered_map(lambda item: item * item, range(1000), int)

    started = squares()
    next(started)
    assert "this iterator was started before the process was forked" in in_a_fork(
        lambda: str(list(started))
    )
    assert in_a_fork(lambda: str(sum(squares()))) == str(sum(n * n for n in range(1000)))
    assert next(started) == 1
