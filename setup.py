"""Builds the C++ (and, where torch has CUDA and nvcc is found, CUDA) extension ``adaftr_fast._C``.

ADAFTR_FAST_BUILD = auto (default) | cuda | cpu | none. Without torch or a compiler ``auto`` yields a pure-Python
package that runs on the plain-PyTorch references; ``adaftr-fast info`` then says so.
ADAFTR_FAST_SANITIZE=1 builds with AddressSanitizer and UBSan.
"""

import glob
import os
import shutil
import sys

from setuptools import find_packages, setup

BUILD = os.environ.get("ADAFTR_FAST_BUILD", "auto")
SANITIZE = os.environ.get("ADAFTR_FAST_SANITIZE") == "1"


def notice(reason: str) -> None:
    print(f"adaftr_fast: building without the extension: {reason}", file=sys.stderr)


def extension() -> dict:
    if BUILD not in ("auto", "cuda", "cpu", "none"):
        raise SystemExit(f"setup.py: ADAFTR_FAST_BUILD must be auto, cuda, cpu or none, got {BUILD!r}")
    if BUILD == "none":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        if BUILD != "auto":
            raise
        notice(f"torch cannot be imported ({error}); install torch first and use --no-build-isolation")
        return {}
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        if BUILD != "auto":
            raise SystemExit(f"setup.py: ADAFTR_FAST_BUILD={BUILD}, but no C++ compiler {compiler!r} is on PATH")
        notice(f"no C++ compiler {compiler!r} on PATH")
        return {}

    has_cuda = torch.version.cuda is not None and CUDA_HOME is not None
    if BUILD == "cuda" and not has_cuda:
        raise SystemExit(
            f"setup.py: ADAFTR_FAST_BUILD=cuda, but torch.version.cuda={torch.version.cuda} and CUDA_HOME={CUDA_HOME}"
        )
    cuda_sources = sorted(glob.glob("csrc/cuda/**/*.cu", recursive=True))
    with_cuda = has_cuda and BUILD in ("auto", "cuda") and bool(cuda_sources)
    sources = sorted(glob.glob("csrc/**/*.cpp", recursive=True))
    if with_cuda:
        sources += cuda_sources
    # No -march flag: code for one instruction set stands in its own file, under its own target pragma,
    # and is chosen at run time (csrc/cpu/runtime/capability.h).
    cxx = [
        "-O3",
        "-std=c++20",
        "-fopenmp",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-psabi",
    ]
    cxx += ["-Wno-unknown-pragmas"]
    link = ["-fopenmp"]
    if SANITIZE:
        sanitizers = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-omit-frame-pointer", "-g", "-O1"]
        cxx, link = cxx + sanitizers, link + sanitizers[:1]
    make = CUDAExtension if with_cuda else CppExtension
    module = make(
        "adaftr_fast._C",
        sources,
        include_dirs=[os.path.abspath("csrc")],
        define_macros=[("ADAFTR_FAST_CUDA", "1")] if with_cuda else [],
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-std=c++20"]} if with_cuda else {"cxx": cxx},
        extra_link_args=link,
        optional=BUILD == "auto",  # a compiler that cannot build it leaves the references; info says so
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)}}


# kernels/ lives at the root and is installed as adaftr_fast.kernels.
KERNELS = "adaftr_fast.kernels"
setup(
    packages=[
        *find_packages(include=["adaftr_fast", "adaftr_fast.*"]),
        KERNELS,
        *(f"{KERNELS}.{name}" for name in find_packages("kernels")),
    ],
    package_dir={KERNELS: "kernels"},
    **extension(),
)
