"""Calls on a Ray cluster: order, bounds, errors and lost workers."""

import os
import time

import pytest

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast.errors import DataError, EngineError
from adaftr_fast.extras.ray.engine import QUEUED, Ray, ray_engine
from tests.extras.ray.cluster import SECONDS, endless


def test_results_are_in_order_and_progress_is_counted_once(nodes, tmp_path):
    """By a connection that exists, which is used and stays."""

    def square(number, advance):
        (tmp_path / str(number)).touch()
        advance(1)
        advance(2)
        return number * number

    amounts = []
    finished = {}
    ahead = []

    def done(index, result):
        ahead.append(len(list(tmp_path.iterdir())) - len(finished))
        finished[index] = result

    with ray_engine("127.0.0.1:1") as engine:
        found = engine.map(square, range(40), done=done, advance=amounts.append)
    assert found == [number * number for number in range(40)]
    assert finished == dict(enumerate(found))
    assert amounts == [3] * 40
    assert max(ahead) <= 3 * QUEUED + 1
    assert Ray().map(square, []) == []


def assert_ended(folder):
    """Waits for the end of the processes that ``endless`` has named."""
    numbers = [path.name.removeprefix("process-") for path in folder.glob("process-*")]
    assert numbers
    end = time.monotonic() + SECONDS
    while running := [number for number in numbers if os.path.exists(f"/proc/{number}")]:
        assert time.monotonic() < end, running
        time.sleep(0.1)


def test_an_error_keeps_its_class_and_message_and_cancels_the_other_calls(nodes, tmp_path):
    def fail(number, advance):
        if number:
            endless(tmp_path)
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        raise DataError("log.csv: damaged")

    with pytest.raises(DataError) as raised:
        Ray().map(fail, range(6))
    assert str(raised.value) == "log.csv: damaged"
    assert "raised on node" in raised.value.__notes__[0]
    assert_ended(tmp_path)


def test_a_worker_that_dies_is_an_error(nodes):
    lost = "engine ray: a call was lost, also when it was repeated: WorkerCrashedError"
    with pytest.raises(EngineError, match=lost):
        Ray(retries=0).map(lambda number, advance: os._exit(1), [1])


def test_a_call_that_does_not_end_when_it_is_interrupted_is_killed(nodes, tmp_path):
    def call(number, advance):
        while not number:
            if list(tmp_path.glob("process-*")):
                return
            time.sleep(0.05)
        (tmp_path / f"process-{os.getpid()}").touch()
        while True:
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                (tmp_path / "interrupted").touch()

    def fail(*_):
        raise ValueError("done")

    with pytest.raises(ValueError, match="done"):
        Ray(cpus=1, grace=2).map(call, [0, 1], done=fail)
    assert (tmp_path / "interrupted").exists()
    assert_ended(tmp_path)
