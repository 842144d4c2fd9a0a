import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import adaftr_fast
from adaftr_fast import _extension


@pytest.fixture
def unloadable(monkeypatch, tmp_path):
    """Returns a function that makes extensions fail to import, with or without their files and
    notes of the build.
    """

    def fail(name):
        raise ImportError("undefined symbol: torch")

    def make(there, notes=None):
        monkeypatch.setattr(importlib, "import_module", fail)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
        monkeypatch.setattr(_extension, "BUILD_NOTES", tmp_path / "_build.json")
        if notes is not None:
            (tmp_path / "_build.json").write_text(notes)

    return make


def with_torch(monkeypatch, version, cuda):
    monkeypatch.setattr(_extension, "_autograd", object())  # built for this torch
    monkeypatch.setattr(
        _extension,
        "torch",
        SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=cuda)),
    )


def load_c():
    return _extension._load(_extension.C, "C++", "The references are used")


@pytest.mark.parametrize(("load", "kernels"), [(load_c, r"C\+\+"), (_extension._load_cuda, "CUDA")])
def test_an_extension_that_fails_to_load_warns(unloadable, monkeypatch, load, kernels):
    with_torch(monkeypatch, "2.13.0", "13.0")
    # before
    unloadable(
        there=True, notes='{"adaftr_fast._C": "no compiler", "adaftr_fast._cuda": "no compiler"}'
    )
    with pytest.warns(
        RuntimeWarning, match=rf"the {kernels} extension is installed but does not load \(undefined"
    ):
        assert load() == (None, "built, but does not load: undefined symbol: torch")


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (None, "undefined symbol: torch"),
        ("[]", "undefined symbol: torch"),
        ("damaged", "undefined symbol: torch"),
        (
            '{"adaftr_fast._C": "no C++ compiler", "adaftr_fast._cuda": "no C++ compiler"}',
            "no C++ compiler",
        ),
    ],
)
@pytest.mark.parametrize("load", [load_c, _extension._load_cuda])
def test_a_missing_extension_does_not_warn_and_says_why_it_is_not_built(
    unloadable, monkeypatch, load, notes, reason
):
    with_torch(monkeypatch, "2.13.0", "13.0")
    unloadable(there=False, notes=notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load() == (None, f"not built: {reason}")


def test_cuda_kernels_are_not_imported_where_torch_has_no_cuda(unloadable, monkeypatch):
    with_torch(monkeypatch, "2.13.0+cpu", None)
    unloadable(there=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _extension._load_cuda() == (
            None,
            "built, but not loaded: torch 2.13.0+cpu has no CUDA",
        )
    unloadable(there=False)
    assert _extension._load_cuda() == (None, "not built: torch 2.13.0+cpu has no CUDA")
    unloadable(there=False, notes=json.dumps({"adaftr_fast._cuda": "no nvcc found"}))
    assert _extension._load_cuda() == (None, "not built: no nvcc found")


@pytest.mark.parametrize("op", ["adaptive_infonce", "FusedEmbedding"])
def test_the_first_op_without_kernels_warns_once(tmp_path, op):
    shown = first_uses(tmp_path, op, "no C++ compiler 'c++' on PATH")
    assert shown.count("RuntimeWarning") == 1
    assert (
        "the C++ kernels are not built: no C++ compiler 'c++' on PATH. The plain-PyTorch "
        "references run" in shown
    )
    assert "times slower" in shown
    assert _extension.CURE in shown
    if op == "adaptive_infonce":
        (tmp_path / "none").mkdir()
        # kernels that were not wanted
        assert first_uses(tmp_path / "none", op, "ADAFTR_FAST_BUILD=none") == ""


def test_a_torch_newer_than_the_newest_tested_is_remarked_on():
    found = [
        bool(_extension.untested(version))
        for version in ("2.11.0", "2.15.1+cu132", "2.16.0", "3.0.0")
    ]
    assert found == [False, False, True, True]


def first_uses(folder, op, reason):
    """Returns what a process without kernels prints that calls an op twice."""
    calls = {
        "adaptive_infonce": "adaftr_fast.adaptive_infonce(torch.ones(3, 2), torch.ones(3, 2), "
        "torch.ones(3))",
        "FusedEmbedding": "adaftr_fast.FusedEmbedding([3], 2)(torch.zeros(1, 1, dtype=torch.long))",
    }
    package = folder / "adaftr_fast"
    package.mkdir()
    for path in Path(adaftr_fast.__file__).parent.iterdir():
        if not path.name.startswith(("_C.", "_cuda.", "_build")):
            (package / path.name).symlink_to(path)
    (package / "_extension.py").unlink()
    # a link would find its notes elsewhere
    shutil.copy(Path(adaftr_fast.__file__).with_name("_extension.py"), package)
    (package / "_build.json").write_text(json.dumps({_extension.C: reason}))
    # An editable install finds the extension although it is not in the folder.
    block = f"import sys; sys.modules[{_extension.C!r}] = None"
    code = f"{block}\nimport torch, adaftr_fast\nfor _ in range(2):\n    {calls[op]}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_build_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(_extension, "_C", None)
    monkeypatch.setattr(_extension, "load_error", "not built: no C++ compiler")
    monkeypatch.setattr(_extension, "_cuda", None)
    monkeypatch.setattr(_extension, "cuda_load_error", "not built: no nvcc found")
    info = _extension.build_info()
    missing = "missing, plain-PyTorch references are used instead: not built: no C++ compiler"
    assert info["C++ extension"] == f"{missing}. {_extension.CURE}"
    assert info["CUDA kernels"] == "not built: no nvcc found"
    assert info["in use"] == "none"
    assert not _extension.is_built()
    assert not _extension.has_cuda_kernels()


def test_the_build_names_what_the_cuda_kernels_are_built_for(monkeypatch):
    facts = {"version": "13.0", "architectures": ["sm_80", "sm_90"]}
    monkeypatch.setattr(_extension, "_cuda", SimpleNamespace(build_info=lambda: facts))
    assert _extension.build_info()["CUDA kernels"] == "built for CUDA 13.0, sm_80 sm_90"
    assert _extension.has_cuda_kernels()


@pytest.mark.skipif(
    not (_extension.has_cuda_kernels() and torch.cuda.is_available()), reason="needs a GPU"
)
def test_loading_the_cuda_kernels_does_not_initialise_cuda():
    code = """
import ctypes, adaftr_fast
print(ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(shown) == 3  # CUDA_ERROR_NOT_INITIALIZED


@pytest.mark.skipif(not _extension.is_built(), reason="the C++ extension is not built")
def test_an_unknown_instruction_set_is_an_error_that_names_the_known():
    with pytest.raises(ValueError, match=r"expected one of generic, .*got mmx"):
        adaftr_fast.set_cpu_capability("mmx")
    assert (
        adaftr_fast.cpu_capability()
        == adaftr_fast.build_info()["this machine runs"].split(", ")[-1]
    )
