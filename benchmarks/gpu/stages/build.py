"""Installs what is missing and builds the extension for this GPU, without a network.

A package installed from this checkout would be shadowed by ``./adaftr_fast`` when a command runs
from the repository's root, so the installation is an editable one and the extension is built in
place. Both go to ``benchmarks.gpu.WORK`` and the checkout; the interpreter's own packages stay as
they are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu import ROOT
from benchmarks.gpu.cells import Cell, Row, Setting
from benchmarks.gpu.collect import is_needed
from benchmarks.gpu.processes import PACKAGE, SITE, run

LIMIT = 180  # seconds of a cell
TAIL = 4000  # characters of a command's output that are kept
SOURCES = ("csrc", "kernels", "setup.py", "pyproject.toml")
PIP = "-m pip install -q --disable-pip-version-check --no-index --no-deps --upgrade --target"
EXTENSIONS = ("C", "AUTOGRAD", "CUDA")  # the constants of setup.py that name them
# One of the extensions: setup.py builds one after the other, whose files do not fill many cores.
BUILD_ONE = """
import sys
import setup
every, name = setup.extensions, sys.argv.pop()
setup.extensions = lambda: [each for each in every() if each.name == getattr(setup, name)]
setup.main()
"""
DESCRIBE = "import json, adaftr_fast; print(json.dumps(adaftr_fast.build_info()))"
# A folder of PYTHONPATH has its .pth files read, which an editable installation consists of, only
# by this.
SITECUSTOMIZE = (
    f"import site\n\nsite.addsitedir({str(SITE)!r})\nsite.addsitedir({str(PACKAGE)!r})\n"
)


def cells(setting: Setting) -> Iterator[Cell]:
    yield Cell({"step": "wheels"}, wheels, seconds=5)
    if not setting.dry:
        yield Cell({"step": "package"}, package, seconds=8)
        yield Cell({"step": "extension"}, extension, seconds=85)
    yield Cell({"step": "import"}, describe, seconds=8)


def is_current(setting: Setting, row: Row) -> bool:
    """Whether this machine has what an earlier call built; it may be another machine, or the
    sources have changed.
    """
    if "failed" in row["result"]:
        return False
    if row["cell"]["step"] != "import" or setting.dry:
        folder = PACKAGE if row["cell"]["step"] == "package" else SITE
        return row["result"].get("host") == host() and (folder.exists() or setting.dry)
    return row["result"].get("sources") == digest() and "failed" not in describe(
        row["cell"], setting
    )


def host() -> str:
    """Returns an identification of the running machine that changes with each start of it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else os.uname().nodename


def digest() -> str:
    """Returns a sha256 of what the extension is built from."""
    found = hashlib.sha256(sys.version.encode())
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


def wheels(key: Row, setting: Setting) -> Row:
    """Installs the packages of ``setting.wheels`` that this environment lacks or has in another
    version.
    """
    SITE.mkdir(parents=True, exist_ok=True)
    (SITE / "sitecustomize.py").write_text(SITECUSTOMIZE)
    if setting.wheels is None:
        return {"installed": [], "host": host()}
    files = [
        file
        for file in sorted(setting.wheels.glob("*.whl"))
        if is_needed(file, present(file.name.split("-")[0]))
    ]
    if files and not setting.dry:
        checked([*PIP.split(), str(SITE), *map(str, files)], 120)
    return {"installed": [file.name for file in files], "host": host()}


def present(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(key: Row, setting: Setting) -> Row:
    """Makes the package importable, with its metadata and the folder of Triton kernels, from this
    checkout.
    """
    command = [*PIP.split(), str(PACKAGE), "--no-build-isolation", "--editable", str(ROOT)]
    return {"printed": checked(command, 120, ADAFTR_FAST_BUILD="none"), "host": host()}


def extension(key: Row, setting: Setting) -> Row:
    """Compiles what changed, all extensions at the same time, for this GPU alone."""
    variables = {"ADAFTR_FAST_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architectures()}
    variables["MAX_JOBS"] = os.environ.get("MAX_JOBS", str(os.cpu_count()))

    def build(name: str) -> str:
        command = ["-c", BUILD_ONE, "build_ext", "--inplace", name]
        return checked(command, LIMIT - 10, **variables)

    with ThreadPoolExecutor(len(EXTENSIONS)) as pool:
        printed = dict(zip(EXTENSIONS, pool.map(build, EXTENSIONS)))
    return {"printed": printed, "host": host(), "architectures": variables["TORCH_CUDA_ARCH_LIST"]}


def architectures() -> str:
    """Returns the compute capabilities of the GPUs, such as "9.0"."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            f"expected a CUDA GPU; torch {torch.__version__} (CUDA {torch.version.cuda}) sees none"
        )
    found = {
        torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count())
    }
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found))


def describe(key: Row, setting: Setting) -> Row:
    """Returns ``adaftr_fast.build_info()`` as a new process sees it, with "failed" where a part is
    missing.
    """
    kernels = "" if setting.dry else "import adaftr_fast.kernels.infonce.launch; "
    done = run([sys.executable, "-W", "ignore", "-c", kernels + DESCRIBE], 120)
    if done.returncode:
        return {"failed": done.stdout[-TAIL:]}
    info = json.loads(done.stdout.splitlines()[-1])
    found = {"info": info, "sources": digest(), "host": host()}
    if not setting.dry and not info["CUDA kernels"].startswith("built for "):
        found["failed"] = f"expected CUDA kernels, got {info['CUDA kernels']!r}"
    return found


def checked(arguments: list[str], seconds: float, **variables: str) -> str:
    """Returns the end of what Python prints.

    Raises:
        RuntimeError: it failed.
        TimeoutError: it took longer than ``seconds``.
    """
    done = run([sys.executable, *arguments], seconds, **variables)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout[-TAIL:]}"
        )
    return done.stdout[-TAIL:]
