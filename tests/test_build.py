"""setup.py and build_backend.py, with compilers that fail and without torch. Nothing real is
compiled: a stand-in for the C++ compiler writes empty files.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

from tests.forks import Script

ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NONE = "ADAFTR_FAST_BUILD=none"
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
os.chdir(sys.argv[1])
if {cuda!r}:
    import torch
    from torch.utils import cpp_extension
    torch.version.cuda, cpp_extension.CUDA_HOME = {cuda!r}, os.environ["CUDA_HOME"]
sys.argv = ["setup.py", "-q", *{command!r}.split()]
runpy.run_path("setup.py", run_name="__main__")
"""

AUTOGRAD = "_autograd_" + "_".join(torch.__version__.split(".")[:2])
SOURCES = ("csrc/cpu/op.cpp", "csrc/autograd/gradient.cpp", "csrc/cuda/op.cu")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins are shell scripts")
pytest.importorskip("setuptools", minversion="77")


@pytest.fixture
def package(tmp_path):
    """Returns a package with the extensions of an earlier build, in a folder that setup.py can
    build in.
    """
    for name in ("csrc/bindings.cpp", *SOURCES, "adaftr_fast/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "kernels").mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("_C", AUTOGRAD, "_cuda"):
        (tmp_path / "adaftr_fast" / f"{name}{SUFFIX}").write_bytes(b"an earlier build")
    return tmp_path / "adaftr_fast"


@pytest.fixture
def build(package, tmp_path):
    """Returns a function that runs setup.py, as if torch were built with ``cuda`` if
    that is given.
    """
    script(tmp_path / "g++", CXX)

    def run(mode, cuda=None, command="build_ext --inplace", **environment):
        environment = {"CXX": tmp_path / "g++", "CUDA_HOME": tmp_path / "nowhere"} | environment
        done = Script(
            SETUP.format(cuda=cuda, command=command),
            tmp_path,
            ADAFTR_FAST_BUILD=mode,
            **environment,
        )
        done.stdout, done.stderr = done.communicate()
        return done

    return run


def script(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


def notes(package):
    return json.loads((package / "_build.json").read_text())


def extensions(package):
    """Returns the extensions that lie there, and whether they are of this build."""
    return {
        path.name.removesuffix(SUFFIX): path.read_bytes() == b""
        for path in package.glob(f"*{SUFFIX}")
    }


def test_a_failing_cxx_compiler_leaves_the_references(build, package, tmp_path):
    script(
        tmp_path / "knows-its-version", CXX.replace("while", "echo 'error: no'; exit 1; while", 1)
    )
    done = build("auto", CXX=str(tmp_path / "knows-its-version"))
    assert done.returncode == 0, done.stderr
    assert "knows-its-version" in notes(package)["adaftr_fast._C"]
    assert "adaftr_fast: adaftr_fast._C is not built: " in done.stderr
    assert extensions(package) == {}


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("13.2.0", 'nvcc failed: op.cu(3): error: identifier "x" is undefined'),
        ("99.1.0", "is greater than the maximum required version by CUDA 13.0"),
    ],
)
def test_a_failing_nvcc_leaves_the_cpu_kernels(build, package, tmp_path, version, reason):
    script(tmp_path / "cuda/bin/nvcc", NVCC.format(release="13.0"))
    script(tmp_path / "g++", CXX.replace("13.2.0", version))
    done = build("auto", cuda="13.0", CUDA_HOME=str(tmp_path / "cuda"))
    assert done.returncode == 0, done.stderr
    assert reason in notes(package)["adaftr_fast._cuda"]
    assert extensions(package) == {"_C": True, AUTOGRAD: True}
    (built,) = (tmp_path / "build").glob("lib*/adaftr_fast")  # what a wheel would have
    assert notes(built) == notes(package)
    assert extensions(built) == extensions(package)
    shown = sorted(
        line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("[")
    )
    assert {Path(name).name for name in shown} >= {"bindings.cpp", "op.cpp"}


@pytest.mark.parametrize(
    ("cuda", "home", "reason"),
    [
        ("13.0", "13.0", None),
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


def test_without_torch_the_build_fails(package, tmp_path):
    script(tmp_path / "hidden/torch/__init__.py", "raise ImportError('No module named torch')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "hidden"), "ADAFTR_FAST_BUILD": "auto"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "setup.py: torch cannot be imported (No module named torch): install it first"
    )
    assert "ADAFTR_FAST_BUILD=none" in done.stderr
    assert not (package / "_build.json").exists()


@pytest.mark.parametrize(
    ("mode", "environment", "message"),
    [
        (
            "cpu",
            {"CXX": "no-such-c++"},
            "but adaftr_fast._C is not built: no C++ compiler 'no-such-c++' on PATH",
        ),
        (
            "cuda",
            {"CUDA_HOME": "cuda"},
            "ADAFTR_FAST_BUILD=cuda, but adaftr_fast._cuda is not built: nvcc failed: op.cu",
        ),
        ("gpu", {}, "ADAFTR_FAST_BUILD must be auto, cuda, cpu or none, got 'gpu'"),
    ],
)
def test_what_is_demanded_fails_the_build(build, package, tmp_path, mode, environment, message):
    script(tmp_path / "cuda/bin/nvcc", NVCC.format(release="13.0"))
    if "CUDA_HOME" in environment:
        environment = {"CUDA_HOME": str(tmp_path / "cuda")}
    done = build(mode, cuda="13.0", **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (package / "_build.json").exists()
    assert mode != "cuda" or "_cuda" not in extensions(package)  # that of before is not left over


def test_functions_for_another_torch_are_not_left_over(build, package):
    other = package / f"_autograd_2_9{SUFFIX}"
    other.touch()
    assert build("cpu").returncode == 0
    assert not other.exists()


def test_none_builds_nothing_and_touches_no_extension(build, package, tmp_path):
    assert build("none").returncode == 0
    assert extensions(package) == {"_C": False, AUTOGRAD: False, "_cuda": False}
    assert not (package / "_build.json").exists()
    assert build("none", command="build").returncode == 0
    assert notes(tmp_path / "build/lib/adaftr_fast") == dict.fromkeys(
        ["adaftr_fast._C", "adaftr_fast._cuda"], NONE
    )
    assert build("cpu", cuda="13.0").returncode == 0
    assert notes(package) == {"adaftr_fast._cuda": "ADAFTR_FAST_BUILD=cpu"}
    assert extensions(package) == {"_C": True, AUTOGRAD: True}  # no CUDA kernels of before


@pytest.mark.parametrize("built", [True, False])
def test_an_editable_install_with_none_keeps_the_notes_of_what_is_built_in_place(
    package, build, built
):
    before = {"adaftr_fast._cuda": "torch has no CUDA"}
    (package / "_build.json").write_text(json.dumps(before))
    for path in () if built else package.glob(f"*{SUFFIX}"):
        path.unlink()
    done = build("none", command="editable_wheel --dist-dir dist")
    assert done.returncode == 0, done.stderr
    assert notes(package) == (
        before if built else dict.fromkeys(["adaftr_fast._C", "adaftr_fast._cuda"], NONE)
    )


FIND = """
import sys
sys.path.insert(0, {root!r})
import build_backend
build_backend.outer_path = {outer_path}
build_backend.find_torch()
import torch
print(torch.__file__)
"""


@pytest.fixture
def isolated(tmp_path):
    """Returns a function that finds torch from an environment that has setuptools alone, as pip
    makes one.
    """
    (tmp_path / "site").mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (tmp_path / "site" / name).symlink_to(Path(setuptools.__file__).parents[1] / name)
    (tmp_path / "site/sitecustomize.py").write_text(
        "import sys; sys.path[:] = [each for each in sys.path if 'site-packages' not in each]"
    )

    def find(outer_path="build_backend.outer_path", **environment):
        return subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                FIND.format(root=str(ROOT), outer_path=outer_path),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path / "site"),
                "PYTHONNOUSERSITE": "1",
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return find


def test_the_backend_finds_the_torch_outside_pips_environment(isolated):
    assert isolated().stdout.strip() == torch.__file__


def test_the_backend_is_not_misled_by_the_finder_of_pip(isolated, tmp_path):
    """It yields every distribution beside the backend, such as the egg-info that an earlier build
    left.
    """
    script(
        tmp_path / "beside/adaftr_fast-0.1.0.dist-info/METADATA",
        "Name: adaftr-fast\nVersion: 0.1.0\n",
    )
    script(
        tmp_path / "site/sitecustomize.py",
        "import sys\n"
        "from importlib.metadata import DistributionFinder, MetadataPathFinder\n"
        "sys.path[:] = [each for each in sys.path if 'site-packages' not in each]\n"
        "class Finder:\n"
        "    def find_spec(self, *_): return None\n"
        "    def find_distributions(self, _):\n"
        f"        context = DistributionFinder.Context(path=[{str(tmp_path / 'beside')!r}])\n"
        "        return MetadataPathFinder.find_distributions(context)\n"
        "sys.meta_path.insert(0, Finder())\n",
    )
    done = isolated()
    assert done.stdout.strip() == torch.__file__, done.stderr


@pytest.mark.parametrize("version", [None, "2.8.0"])
def test_the_backend_refuses_without_a_torch_that_will_run(isolated, tmp_path, version):
    (tmp_path / "outer").mkdir()
    if version is not None:
        script(tmp_path / "outer/torch/__init__.py", "")
        script(
            tmp_path / f"outer/torch-{version}.dist-info/METADATA",
            f"Name: torch\nVersion: {version}\n",
        )
    done = isolated(outer_path=f"lambda: [{str(tmp_path / 'outer')!r}]", ADAFTR_FAST_BUILD="auto")
    assert done.returncode == 1
    assert (
        f"expected torch>=2.11 in {sys.prefix}, got {version or 'none'}. Type: pip install"
        in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
    none = isolated(outer_path="lambda: 1 / 0", ADAFTR_FAST_BUILD="none")
    # from the last lines of FIND: the backend has not looked
    assert "No module named 'torch'" in none.stderr
