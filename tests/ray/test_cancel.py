"""What becomes of the calls in progress when another one fails."""

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="make test-ray installs it")

from adaftr_fast.engines import Ray


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
        Ray(cpus=1, grace=3).map(call, [0, 1], done=fail)
    assert (tmp_path / "interrupted").exists()
    (process,) = tmp_path.glob("process-*")
    end = time.monotonic() + 30
    while (Path("/proc") / process.name.removeprefix("process-")).exists():
        assert time.monotonic() < end
        time.sleep(0.1)
