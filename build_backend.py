"""The build backend: setuptools', which also sees the torch of the environment that the package is
installed into.

pip builds in an environment of its own, without torch. The extensions must be compiled against the
torch that they run with, and one downloaded for the build may be another. So the hooks look for
torch outside pip's build environment, and stop before anything is downloaded or compiled if there
is none.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import build_meta

ISOLATION = ("PYTHONPATH", "PYTHONNOUSERSITE")  # how pip hides what is installed from the hooks


def outer_path():
    """Returns where this interpreter imports from outside pip's build environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ISOLATION}
    code = "import json, sys; print(json.dumps(sys.path))"
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, check=True
    )
    return json.loads(shown.stdout)


def find_torch():
    """Makes the installed torch importable. Exits if there is none, or one that pip
    would replace.
    """
    if os.environ.get("ADAFTR_FAST_BUILD") == "none":
        return
    # what belongs to the build environment comes first
    if importlib.util.find_spec("torch") is None:
        sys.path += [folder for folder in outer_path() if folder not in sys.path]
        importlib.invalidate_caches()
    project = Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8")
    needed, least = re.search(r'"(torch>=([\d.]+))"', project).groups()
    # pip's finder for backend-path also returns what lies in this folder, whatever the name that is
    # asked for.
    named = (
        each for each in importlib.metadata.distributions(name="torch") if each.name == "torch"
    )
    found = next((each.version for each in named), "none")
    if numbers(found) >= numbers(least):
        return
    raise SystemExit(
        f"adaftr-fast: the kernels are compiled against the installed torch; expected {needed} in "
        f"{sys.prefix}, got "
        f'{found}. Type: pip install "{needed}" and repeat this command, or set '
        "ADAFTR_FAST_BUILD=none to install "
        "without kernels"
    )


def numbers(version):
    """Returns (2, 13) for "2.13.0+cpu"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def with_torch(hook):
    """Returns a hook of setuptools that finds torch first."""

    @functools.wraps(hook)
    def run(*arguments, **options):
        find_torch()
        return hook(*arguments, **options)

    return run


get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
build_sdist = build_meta.build_sdist
get_requires_for_build_wheel = with_torch(build_meta.get_requires_for_build_wheel)
prepare_metadata_for_build_wheel = with_torch(build_meta.prepare_metadata_for_build_wheel)
build_wheel = with_torch(build_meta.build_wheel)
get_requires_for_build_editable = with_torch(build_meta.get_requires_for_build_editable)
prepare_metadata_for_build_editable = with_torch(build_meta.prepare_metadata_for_build_editable)
build_editable = with_torch(build_meta.build_editable)
