"""Downloads wheels for a GPU machine without a network: Python 3.12 on Linux, x86-64, with torch
and Triton.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROOT

MANIFEST = "manifest.json"
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
    "memeff==0.3.1", "inf-cl==1.2.1", "jsonargparse>=4.40", "docstring-parser>=0.16", "typeshed-client>=2.3",
    "pyyaml>=6", "importlib-resources>=6", "typing-extensions>=4.10", "safetensors>=0.5", "tqdm>=4.60", "pyarrow>=17",
    "setuptools>=77", "wheel>=0.40", "pybind11>=2.13", "ninja>=1.11", "packaging>=24",
    "expecttest>=0.2", "pytest>=8", "pytest-benchmark>=5", "pytest-xdist>=3.6", "pytest-timeout>=2.3", "execnet>=2.1",
    "py-cpuinfo2>=10", "pluggy>=1.5", "iniconfig>=2", "pygments>=2.7", "hypothesis>=6.100", "sortedcontainers>=2.1",
]
# fmt: on
LIMITS = {"setuptools": "<82"}  # of torch 2.11


def collect(folder: Path, without: list[str]) -> int:
    """Writes wheels and ``manifest.json`` with the name, version, file and sha256 of each. Prints
    what they come to.

    Args:
        folder: where to. Its other contents stay; a wheel that is there already is not downloaded
            again.
        without: names of packages that the machine has.

    Raises:
        SystemExit: a name of ``without`` is not collected, or a package cannot be had.
    """
    known = {name_of(requirement): requirement for requirement in REQUIREMENTS}
    if unknown := sorted({normal(name) for name in without} - set(known)):
        sys.exit(
            f"benchmarks.gpu: --without: expected names among {', '.join(known)}; got "
            f"{', '.join(unknown)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, requirement in known.items():
        if name in {normal(each) for each in without}:
            continue
        wheel = obtain(requirement + (("," + LIMITS[name]) if name in LIMITS else ""), folder)
        entries.append(entry_of(wheel, requirement))
        print(
            f"{entries[-1]['name']} {entries[-1]['version']}: "
            f"{wheel.stat().st_size / 2**20:.2f} MiB",
            flush=True,
        )
    draft = folder / f"{MANIFEST}.tmp"
    draft.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / MANIFEST)
    total = sum(entry["bytes"] for entry in entries)
    both = total + tracked()
    print(
        f"{folder}: {len(entries)} wheels, {total / 2**20:.1f} MiB; {both / 2**20:.1f} MiB with "
        "the checkout"
    )
    return 0


def tracked() -> int:
    """Returns the bytes of the checkout's tracked files, which go to the GPU machine too; 0 without
    git.
    """
    if shutil.which("git") is None:
        return 0
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sum(path.lstat().st_size for path in paths if path.exists())


def obtain(requirement: str, folder: Path) -> Path:
    """Returns the wheel of one package in ``folder``, downloaded, or built where the index has only
    its source.

    Raises:
        SystemExit: neither works.
    """
    pip = [sys.executable, "-m", "pip"]
    platforms = [f"--platform={each}" for each in PLATFORMS]
    target = [
        "--only-binary=:all:",
        f"--python-version={PYTHON}",
        "--implementation=cp",
        *platforms,
    ]
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        options = [
            "-q",
            "--no-deps",
            "--disable-pip-version-check",
            "--find-links",
            str(folder),
            requirement,
        ]
        tried = subprocess.run(
            [*pip, "download", *target, "-d", fresh, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if tried.returncode:
            built = subprocess.run(
                [*pip, "wheel", "-w", fresh, *options], cwd=ROOT, capture_output=True, text=True
            )
            if built.returncode or not list(Path(fresh).glob("*-none-any.whl")):
                sys.exit(
                    f"benchmarks.gpu: {requirement}: no wheel for Python {PYTHON}: "
                    f"{tried.stderr}{built.stderr}"
                )
        (wheel,) = Path(fresh).glob("*.whl")
        return Path(shutil.move(wheel, folder / wheel.name))


def entry_of(wheel: Path, requirement: str) -> dict[str, Any]:
    version = wheel.name.split("-")[1]
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    name, size = name_of(requirement), wheel.stat().st_size
    return {
        "name": name,
        "version": version,
        "requirement": requirement,
        "file": wheel.name,
        "bytes": size,
        "sha256": sha256,
    }


def enough(entry: dict[str, Any], present: str | None) -> bool:
    """Whether a machine that has version ``present`` of a package, or None, can do without its
    wheel.
    """
    if present is None:
        return False
    _, relation, wanted = re.split(r"(==|>=)", entry["requirement"])
    return present == wanted if relation == "==" else numbers(present) >= numbers(wanted)


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version)[0])]


def name_of(requirement: str) -> str:
    return normal(re.split(r"==|>=", requirement)[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
