"""setup.py with compilers that fail. Nothing real is compiled: a stand-in for the C++ compiler writes empty files."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
CXX = """#!/bin/sh
case "$1" in --version) echo "g++ 13.2.0"; exit;; -dumpfullversion) echo 13.2.0; exit;; esac
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then : > "$2"; fi
  shift
done
"""
NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {release}, V{release}.1"; exit; fi
echo "op.cu(3): error: identifier \\"x\\" is undefined"
exit 1
"""
SETUP = """
import os, runpy, sys
if {cuda!r}:
    import torch
    from torch.utils import cpp_extension
    torch.version.cuda, cpp_extension.CUDA_HOME = {cuda!r}, os.environ["CUDA_HOME"]
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins are shell scripts")
pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("pybind11")


@pytest.fixture
def package(tmp_path):
    """Returns a package with the extensions of an earlier build, in a folder that setup.py can build in."""
    for name in ("csrc/bindings.cpp", "csrc/cpu/op.cpp", "csrc/cuda/op.cu", "adaftr_fast/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "kernels").mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("_C", "_cuda"):
        (tmp_path / "adaftr_fast" / f"{name}{SUFFIX}").write_bytes(b"an earlier build")
    return tmp_path / "adaftr_fast"


@pytest.fixture
def build(package, tmp_path):
    """Returns a function that runs setup.py, as if torch were built with ``cuda`` if that is given."""
    script(tmp_path / "g++", CXX)

    def run(mode, cuda=None, **environment):
        environment = {"CXX": str(tmp_path / "g++"), "CUDA_HOME": str(tmp_path / "nowhere"), **environment}
        return subprocess.run(
            [sys.executable, "-c", SETUP.format(cuda=cuda)],
            cwd=tmp_path,
            env={**os.environ, "ADAFTR_FAST_BUILD": mode, **environment},
            capture_output=True,
            text=True,
        )

    return run


def script(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


def notes(package):
    return json.loads((package / "_build.json").read_text())


def extensions(package):
    """Returns the extensions that lie there, and whether they are of this build."""
    return {path.name.removesuffix(SUFFIX): path.read_bytes() == b"" for path in package.glob(f"*{SUFFIX}")}


def test_a_failing_cxx_compiler_leaves_the_references(build, package):
    done = build("auto", CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "/bin/false" in notes(package)["adaftr_fast._C"]
    assert "adaftr_fast: adaftr_fast._C is not built: " in done.stderr
    assert extensions(package) == {}


def test_a_failing_nvcc_leaves_the_cpu_kernels(build, package, tmp_path):
    script(tmp_path / "cuda/bin/nvcc", NVCC.format(release="13.0"))
    done = build("auto", cuda="13.0", CUDA_HOME=str(tmp_path / "cuda"))
    assert done.returncode == 0, done.stderr
    assert notes(package) == {"adaftr_fast._cuda": 'nvcc failed: op.cu(3): error: identifier "x" is undefined'}
    assert extensions(package) == {"_C": True}
    (built,) = (tmp_path / "build").glob("lib*/adaftr_fast")  # what a wheel would have
    assert notes(built) == notes(package)
    assert extensions(built) == extensions(package)


def test_a_cxx_compiler_that_cuda_does_not_support_leaves_the_cpu_kernels(build, package, tmp_path):
    script(tmp_path / "cuda/bin/nvcc", NVCC.format(release="13.0"))
    script(tmp_path / "g++", CXX.replace("13.2.0", "99.1.0"))
    done = build("auto", cuda="13.0", CUDA_HOME=str(tmp_path / "cuda"))
    assert done.returncode == 0, done.stderr
    assert "is greater than the maximum required version by CUDA 13.0" in notes(package)["adaftr_fast._cuda"]
    assert extensions(package) == {"_C": True}


@pytest.mark.parametrize(
    ("cuda", "home", "reason"),
    [
        ("13.0", "13.0", None),
        ("13.2", "13.0", None),
        ("13.0", "12.4", "nvcc is CUDA 12.4, torch is built with CUDA 13.0"),
        ("13.0", "none", "no nvcc found in {folder}/none/bin (CUDA_HOME={folder}/none)"),
        ("13.0", None, "no nvcc found (CUDA_HOME is not set)"),
        ("13.0", "forbidden", "{folder}/forbidden/bin/nvcc does not run: Permission denied"),
        ("13.0", "silent", "{folder}/silent/bin/nvcc --version names no release: 'V13'"),
        (None, "13.0", f"torch {torch.__version__} has no CUDA"),
    ],
)
def test_what_prevents_cuda_is_named(monkeypatch, tmp_path, cuda, home, reason):
    for version in ("12.4", "13.0"):
        script(tmp_path / version / "bin/nvcc", NVCC.format(release=version))
    script(tmp_path / "silent/bin/nvcc", "#!/bin/sh\necho V13")
    script(tmp_path / "forbidden/bin/nvcc", "")
    (tmp_path / "forbidden/bin/nvcc").chmod(0o644)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # setup.py appends to it
    monkeypatch.setenv("ADAFTR_FAST_BUILD", "auto")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None if home is None else str(tmp_path / home))
    found = runpy.run_path(str(ROOT / "setup.py"))["cuda_obstacle"]()
    assert found == (None if reason is None else reason.format(folder=tmp_path))


def test_a_cpu_build_leaves_no_cuda_kernels_of_before(build, package):
    assert build("cpu", cuda="13.0").returncode == 0
    assert notes(package) == {"adaftr_fast._cuda": "ADAFTR_FAST_BUILD=cpu"}
    assert extensions(package) == {"_C": True}


def test_without_torch_nothing_is_built(build, package, tmp_path):
    script(tmp_path / "hidden/torch/__init__.py", "raise ImportError('No module named torch')")
    done = build("auto", PYTHONPATH=str(tmp_path / "hidden"))
    assert done.returncode == 0, done.stderr
    assert all(reason.startswith("torch cannot be imported (No module") for reason in notes(package).values())
    assert len(notes(package)) == 2
    assert extensions(package) == {}


@pytest.mark.parametrize(
    ("mode", "environment", "message"),
    [
        ("cpu", {"CXX": "/bin/false"}, "ADAFTR_FAST_BUILD=cpu, but adaftr_fast._C is not built: the build failed"),
        ("cpu", {"CXX": "no-such-c++"}, "but adaftr_fast._C is not built: no C++ compiler 'no-such-c++' on PATH"),
        ("cuda", {}, "ADAFTR_FAST_BUILD=cuda, but adaftr_fast._cuda is not built: no nvcc found in"),
        ("gpu", {}, "ADAFTR_FAST_BUILD must be auto, cuda, cpu or none, got 'gpu'"),
    ],
)
def test_what_is_demanded_fails_the_build(build, package, mode, environment, message):
    done = build(mode, cuda="13.0", **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (package / "_build.json").exists()


def test_cuda_kernels_that_are_demanded_and_fail_are_not_left_over(build, package, tmp_path):
    script(tmp_path / "cuda/bin/nvcc", NVCC.format(release="13.0"))
    done = build("cuda", cuda="13.0", CUDA_HOME=str(tmp_path / "cuda"))
    assert done.returncode == 1
    assert "adaftr_fast._cuda is not built: nvcc failed: op.cu(3): error:" in done.stderr
    assert "_cuda" not in extensions(package)


def test_none_builds_nothing_and_touches_nothing(build, package):
    assert build("none").returncode == 0
    assert extensions(package) == {"_C": False, "_cuda": False}
    assert not (package / "_build.json").exists()
