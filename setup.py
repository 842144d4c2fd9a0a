"""Builds three extensions, each by itself.

  _C                    the CPU kernels, by libtorch's stable ABI: one build serves torch 2.11 and every later version
  _autograd_<version>   the C++ autograd functions, for the version of torch that is installed alone; a package without
                        them computes the same gradients in Python
  _cuda                 the CUDA kernels, for the version of torch that is installed

ADAFTR_FAST_BUILD selects what is built:
  auto  what can be built (the default); the package runs without the rest, on its plain-PyTorch references
  cuda  all extensions, or the build fails
  cpu   ``_C`` and ``_autograd_<version>``, or the build fails
  none  nothing
Every build but ``none`` fails without the torch that the package will run with; build_backend.py
finds it. Why an extension is missing is written to ``adaftr_fast/_build.json``, beside the
extensions; ``adaftr-fast info`` shows it. TORCH_CUDA_ARCH_LIST selects the GPUs, as in every
extension of torch. ADAFTR_FAST_SANITIZE=1 builds ``_C`` with AddressSanitizer and UBSan.
ADAFTR_FAST_PORTABLE=1 links both libraries for the CPU so that they run with the glibc and
libstdc++ of manylinux_2_28; csrc/portable.cpp says how.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

MODES = ("auto", "cuda", "cpu", "none")
MODE = os.environ.get("ADAFTR_FAST_BUILD", "auto")
if MODE not in MODES:
    raise SystemExit(f"setup.py: ADAFTR_FAST_BUILD must be auto, cuda, cpu or none, got {MODE!r}")
NONE = "ADAFTR_FAST_BUILD=none"  # adaftr_fast/_extension.py does not warn of what was chosen
# Apple's clang has none: one thread computes
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
SANITIZE = os.environ.get("ADAFTR_FAST_SANITIZE") == "1"
PORTABLE = os.environ.get("ADAFTR_FAST_PORTABLE") == "1"
# ninja, where the environment is not activated
os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

torch = cpp_extension = no_torch = None
if MODE != "none":
    try:
        import torch
        from torch.utils import cpp_extension
    except (ImportError, OSError) as error:  # OSError: a library that torch needs is missing
        no_torch = (
            f"torch cannot be imported ({error}): install it first, the extensions are compiled "
            "against it"
        )

C = "adaftr_fast._C"
CUDA = "adaftr_fast._cuda"
AUTOGRAD = "adaftr_fast._autograd_" + "_".join(torch.__version__.split(".")[:2]) if torch else None
# a build without these fails
DEMANDED = {"cuda": [C, AUTOGRAD, CUDA], "cpu": [C, AUTOGRAD]}.get(MODE, [])


def cxx_obstacle():
    """Returns why C++ cannot be compiled, or None."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    return f"no C++ compiler {compiler!r} on PATH" if shutil.which(compiler) is None else None


def cuda_obstacle():
    """Returns why CUDA cannot be compiled, or None."""
    if MODE == "cpu":
        return "ADAFTR_FAST_BUILD=cpu"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    home = cpp_extension.CUDA_HOME
    if home is None:
        return "no nvcc found (CUDA_HOME is not set)"
    return nvcc_obstacle(Path(home, "bin", "nvcc"))


def nvcc_obstacle(nvcc):
    """Returns why this nvcc cannot compile for torch, or None. Another minor version of
    CUDA can.
    """
    if not nvcc.exists():
        return f"no nvcc found in {nvcc.parent} (CUDA_HOME={cpp_extension.CUDA_HOME})"
    try:
        shown = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    except OSError as error:
        return f"{nvcc} does not run: {error.strerror}"
    version = re.search(r"release (\d+)\.\d+", shown.stdout)
    if version is None:
        return f"{nvcc} --version names no release: {(shown.stdout + shown.stderr).strip()!r}"
    if version[1] != torch.version.cuda.split(".")[0]:
        return (
            f"nvcc is CUDA {version[0].split()[1]}, torch is built with CUDA {torch.version.cuda}"
        )
    return None


def cxx_flags():
    # No -march flag: code for one instruction set stands in its own file, under its own target
    # pragma, and is chosen at run time (csrc/cpu/runtime/capability.h).
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi", "-Wno-unknown-pragmas"]
    # -g0: Python's own flags may have -g, which makes the build slower and _C ten times as large.
    return ["-O3", "-g0", "-std=c++20", *OPENMP, "-fno-math-errno", *warnings]


def cpu_extension(name, files):
    sanitizers = [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-omit-frame-pointer",
        "-g",
        "-O1",
    ]
    own_libstdcxx = [
        "-static-libstdc++",
        "-Wl,--exclude-libs,libstdc++.a",
        "-Wl,--gc-sections",
        "-s",
    ]
    return cpp_extension.CppExtension(
        name,
        [*files, *["csrc/portable.cpp"] * PORTABLE],
        include_dirs=[os.path.abspath("csrc")],
        extra_compile_args={"cxx": [*cxx_flags(), "-fvisibility=hidden", *sanitizers * SANITIZE]},
        extra_link_args=[*OPENMP, *sanitizers[:1] * SANITIZE, *own_libstdcxx * PORTABLE],
    )


def c_extension():
    return cpu_extension(C, ["csrc/bindings.cpp", *sources("csrc/cpu", ".cpp")])


def autograd_extension():
    return cpu_extension(AUTOGRAD, sources("csrc/autograd", ".cpp"))


def cuda_extension():
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        # torch has no default without a visible GPU
        os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0;9.0+PTX"
    return cpp_extension.CUDAExtension(
        CUDA,
        [*sources("csrc/cuda", ".cpp"), *sources("csrc/cuda", ".cu")],
        include_dirs=[os.path.abspath("csrc")],
        extra_compile_args={"cxx": cxx_flags(), "nvcc": ["-O3", "-std=c++20"]},
    )


def sources(folder, suffix):
    return sorted(str(path) for path in Path(folder).rglob(f"*{suffix}"))


def extensions():
    """Returns the extensions; one that cannot be built has no sources and says why."""
    if no_torch is not None:  # sdist needs none
        return [Extension(C, [])]
    found = []
    for name, obstacle, make in (
        (C, cxx_obstacle(), c_extension),
        (AUTOGRAD, cxx_obstacle(), autograd_extension),
        (CUDA, cuda_obstacle(), cuda_extension),
    ):
        found.append(make() if obstacle is None else Extension(name, []))
        found[-1].obstacle = obstacle
    return found


@contextlib.contextmanager
def copy_of_output(path):
    """Copies to a file what this process and the compilers it starts print. Shows ninja's commands
    as [n/m] file.
    """
    sys.stdout.flush()
    saved = os.dup(1), os.dup(2)
    progress = r"s/^(\[[0-9]+\/[0-9]+\]) .* -c ([^ ]+) .*/\1 \2/"
    tee = subprocess.Popen(
        ["sh", "-c", 'tee "$0" | sed -u -E "$1"', path, progress], stdin=subprocess.PIPE
    )
    os.dup2(tee.stdin.fileno(), 1)
    os.dup2(tee.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)
        tee.communicate()


def failure(log, error):
    """Returns in one line which tool failed and its first error, from the output of ninja and the
    compilers.
    """
    command = re.search(r"^FAILED:.*\n(\S+)", log, re.MULTILINE)  # as ninja prints it
    tool = Path(command[1]).name if command else "the build"
    pattern = "error:|fatal  |cannot find|undefined reference"
    errors = (line.strip() for line in log.splitlines() if re.search(pattern, line))
    first = next(errors, (str(error) or repr(error)).splitlines()[0])
    return f"{tool} failed: {first[:300].rstrip('.')}"


class BuildEach(build_ext if cpp_extension is None else cpp_extension.BuildExtension):
    """Builds each extension by itself: torch's class builds none if one fails."""

    def run(self):
        if MODE == "none":
            return
        if no_torch is not None:
            raise SystemExit(
                f"setup.py: {no_torch}, or set ADAFTR_FAST_BUILD=none to build without kernels"
            )
        for folder in self.folders():  # those for other versions of torch may be of other sources
            for other in folder.glob("adaftr_fast/_autograd_*"):
                if not other.name.startswith(AUTOGRAD.rpartition(".")[2]):
                    other.unlink()
        options = dict(vars(self))
        built = []
        reasons = {}
        # fails early if it must
        for extension in sorted(self.extensions, key=lambda each: each.obstacle is None):
            # each has a file build.ninja
            objects = os.path.join(options["build_temp"], extension.name)
            vars(self).update(options, extensions=[extension], build_temp=objects)
            reason = extension.obstacle or self.attempt()
            vars(self).update(options)  # the class cannot run again as its run() leaves it
            if reason is None:
                built.append(extension)
            else:
                reasons[extension.name] = reason
                self.give_up(extension, reason)
        self.extensions = built
        for folder in self.folders():
            write_down(folder, reasons)

    def attempt(self):
        """Builds ``self.extensions``. Returns why it failed, or None."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            try:
                with copy_of_output(log):
                    super().run()
            # of ninja, setuptools or torch's checks, which have no common class
            except Exception as error:
                return failure(log.read_text(errors="replace"), error)
        return None

    def folders(self):
        """Returns the folders that receive the extensions."""
        return [Path(self.build_lib)] + [Path()] * bool(self.inplace)

    def give_up(self, extension, reason):
        """Removes what an earlier build left, which may be of other sources. Exits if the extension
        is demanded.
        """
        for folder in self.folders():
            (folder / self.get_ext_filename(extension.name)).unlink(missing_ok=True)
        if extension.name in DEMANDED:
            raise SystemExit(
                f"setup.py: ADAFTR_FAST_BUILD={MODE}, but {extension.name} is not built: {reason}"
            )
        print(f"adaftr_fast: {extension.name} is not built: {reason}", file=sys.stderr)


class BuildPython(build_py):
    """Writes down that nothing else was to be built, where that is so.

    An editable install keeps the extensions that an earlier build left in place, and their notes.
    """

    def run(self):
        super().run()
        if MODE == "none" and not (self.editable_mode and built_in_place()):
            write_down(
                Path() if self.editable_mode else Path(self.build_lib),
                dict.fromkeys((C, CUDA), NONE),
            )


def built_in_place():
    """Returns whether the source folder has an extension for this Python."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return any(Path(*name.split(".")).with_suffix(suffix).exists() for name in (C, CUDA))


def write_down(folder, reasons):
    notes = folder / "adaftr_fast" / "_build.json"
    notes.parent.mkdir(parents=True, exist_ok=True)
    temporary = notes.with_suffix(".new")
    temporary.write_text(json.dumps(reasons, indent=1), encoding="utf-8")
    temporary.replace(notes)


def main():
    kernels = "adaftr_fast.kernels"  # stands at the root as kernels/
    setup(
        packages=[
            *find_packages(include=["adaftr_fast", "adaftr_fast.*"]),
            kernels,
            *(f"{kernels}.{name}" for name in find_packages("kernels")),
        ],
        package_dir={kernels: "kernels"},
        ext_modules=[] if MODE == "none" else extensions(),
        cmdclass={"build_ext": BuildEach, "build_py": BuildPython},
    )


if __name__ == "__main__":
    main()
