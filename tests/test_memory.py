"""The memory that the machine and the process's cgroups leave."""

import sys

import pytest

from adaftr_fast import _memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(params=[1, 2])
def group(request, tmp_path, monkeypatch):
    """Returns a function that writes the limit, usage and file pages of a cgroup of version 1 or 2.

    The process is in /job/step, which has no files.
    """
    root, files, line = {
        1: (
            tmp_path / "memory",
            _memory.VERSION_1,
            "4:cpu,memory:/job/step\n2:cpuset:/other\n0::/\n",
        ),
        2: (tmp_path, _memory.VERSION_2, "0::/job/step\n"),
    }[request.param]
    (tmp_path / "own").write_text(line)
    monkeypatch.setattr(_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(_memory, "OWN_CGROUPS", tmp_path / "own")

    def write(name, limit, usage=5000, pages=2000):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files.limit).write_text(f"{limit}\n")
        (folder / files.usage).write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 3000\n{files.pages} {pages}\n")

    return write


@pytest.mark.parametrize("name", ["", "job"])
def test_a_limit_of_the_own_cgroup_or_an_ancestor_counts(name, group):
    assert _memory.limit() > _memory.available() > 8000  # those of the machine
    group(name, 8000)
    assert (_memory.limit(), _memory.available()) == (8000, 8000 - 5000 + 2000)
    group("job/step", 7000, usage=8500, pages=100)  # the least of several counts
    assert (_memory.limit(), _memory.available()) == (7000, 0)


@pytest.mark.parametrize("unlimited", ["max", 2**62])
def test_without_a_limit_the_machine_counts(unlimited, group):
    machine = _memory.limit()
    group("job/step", unlimited)
    group("other", 8000)
    assert _memory.limit() == machine
    assert _memory.available() > 8000


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "MEMINFO", tmp_path / "absent")
    monkeypatch.setattr(_memory, "OWN_CGROUPS", tmp_path / "absent")
    assert _memory.available() is None
    assert _memory.limit() > 0
