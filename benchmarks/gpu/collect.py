"""Downloads wheels for a GPU machine without a network: Python 3.12 on Linux, x86-64, with torch
and Triton.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import ROOT

PYTHON = "3.12"
PLATFORMS = [
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
]
# With "==", that version; with ">=", at least that one, which the machine may have already. Nothing
# is resolved: what a package needs is named here too. torch, Triton, CUDA and NumPy come with the
# machine; SciPy and matplotlib, which only reports need, are left out for their size.
# fmt: off
REQUIREMENTS = [
    "memeff==0.3.1", "inf-cl==1.2.1", "typing-extensions>=4.10", "safetensors>=0.5", "tqdm>=4.60", "pyarrow>=17",
    "setuptools>=77,<82", "wheel>=0.40", "pybind11>=2.13", "ninja>=1.11", "packaging>=24",
    "expecttest>=0.2", "pytest>=8", "pytest-benchmark>=5", "pytest-xdist>=3.6", "pytest-timeout>=2.3", "execnet>=2.1",
    "py-cpuinfo2>=10", "pluggy>=1.5", "iniconfig>=2", "pygments>=2.7", "hypothesis>=6.100", "sortedcontainers>=2.1",
]
# fmt: on


def collect(folder: Path, without: list[str]) -> int:
    """Writes a wheel of each package, and prints what they come to.

    Args:
        folder: where to. Its other contents stay; a wheel that is there already is not downloaded
            again.
        without: names of packages that the machine has.

    Raises:
        SystemExit: a name of ``without`` is not collected, or a package cannot be had.
    """
    known = {name_of(requirement): requirement for requirement in REQUIREMENTS}
    left_out = {normal(name) for name in without}
    if unknown := sorted(left_out - set(known)):
        sys.exit(
            f"benchmarks.gpu: --without: expected names among {', '.join(known)}; got "
            f"{', '.join(unknown)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sizes = []
    for name, requirement in known.items():
        if name not in left_out:
            wheel = obtain(requirement, folder)
            sizes.append(wheel.stat().st_size / 2**20)
            print(f"{wheel.name}: {sizes[-1]:.2f} MiB", flush=True)
    print(f"{folder}: {len(sizes)} wheels, {sum(sizes):.1f} MiB")
    return 0


def obtain(requirement: str, folder: Path) -> Path:
    """Returns the wheel of one package in ``folder``, downloaded, or built where the index has only
    its source.

    Raises:
        SystemExit: neither works.
    """
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    target = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    target += [f"--platform={each}" for each in PLATFORMS]
    options = ["--no-deps", "--find-links", str(folder), requirement]
    printed = ""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        for command in (["download", *target, "-d", fresh], ["wheel", "-w", fresh]):
            tried = subprocess.run(
                [*pip, *command, *options], cwd=ROOT, capture_output=True, text=True
            )
            printed += tried.stderr
            # what is built here for this Python alone does not serve
            kind = "*.whl" if command[0] == "download" else "*-none-any.whl"
            for wheel in Path(fresh).glob(kind):
                return Path(shutil.move(wheel, folder / wheel.name))
    sys.exit(f"benchmarks.gpu: {requirement}: no wheel for Python {PYTHON}: {printed}")


def is_needed(wheel: Path, present: str | None) -> bool:
    """Whether a machine that has version ``present`` of a package, or None, needs its wheel."""
    name = normal(wheel.name.split("-")[0])
    requirement = next(each for each in REQUIREMENTS if name_of(each) == name)
    _, relation, wanted, *_ = re.split(r"(==|>=|,)", requirement)
    if present is None or relation == "==":
        return present != wanted
    return numbers(present) < numbers(wanted)


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version)[0])]


def name_of(requirement: str) -> str:
    return normal(re.split(r"==|>=", requirement)[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
