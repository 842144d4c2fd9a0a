"""The command line starts without torch, and bounds how long OpenMP threads spin before torch is
imported.
"""

import os
import subprocess
import sys

import pytest

from adaftr_fast import _startup

SCRIPT = """
import sys
sys.argv = ["adaftr-fast", "train", "--help"]
import adaftr_fast
from adaftr_fast.cli import main
try:
    main()
except SystemExit:
    print("torch" in sys.modules)
print(all(getattr(adaftr_fast, name) is not None for name in reversed(adaftr_fast.__all__)))
"""
OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def run(*command, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | variables
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


PREPARE = """
import sys
sys.argv = ["adaftr-fast", *sys.argv[1:]]
from adaftr_fast.cli import main
print(main(), "torch" in sys.modules)
"""


def test_prepare_does_not_import_torch(tmp_path):
    rows = "".join(f"{n % 7},{n % 3 // 2},{n * 0.5}\n" for n in range(400))
    (tmp_path / "log.csv").write_text("item,click,price\n" + rows)
    command = ["prepare", "--files", "log.csv", "--labels", "click", "--dense", "price"]
    found = subprocess.run(
        [sys.executable, "-c", PREPARE, *command, "--out", "data"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.endswith("0 False\n")


def test_help_does_not_import_torch_and_all_public_names_exist():
    assert run("-c", SCRIPT).endswith("False\nTrue")


def test_the_command_line_keeps_settings_of_the_environment():
    lines = run("-m", "adaftr_fast.cli", "info", GOMP_SPINCOUNT="7").splitlines()
    assert (
        next(line for line in lines if line.startswith("waiting threads")).split()[-1]
        == "GOMP_SPINCOUNT=7"
    )
    assert any("C++ extension" in line for line in lines)
    assert any(
        "flights, flights3, flights_late, insteval, movielens, synthetic, synthetic3" in line
        for line in lines
    )


@pytest.mark.parametrize(("load", "count"), [(0.9, "10000"), (1.1, "300")])
def test_threads_spin_less_beside_other_work(monkeypatch, load, count):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.environ", dict(os.environ))
    _startup.bound_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == count


def test_a_library_user_keeps_the_settings_of_the_process():
    out = run("-c", "import adaftr_fast; print(adaftr_fast.build_info()['waiting threads'])")
    assert out == "GOMP_SPINCOUNT unset: 300,000 rounds"
