"""The embedding's CUDA kernels: built for two GPU generations, and their bodies run on the CPU by a loop."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.ops.embedding.reference import lookup as reference
from adaftr_fast.ops.embedding.reference import optim as embedding_optim

HERE = Path(__file__).parent
INCLUDE = f"-I{HERE.parents[1] / 'csrc'}"
SIZES = [50, 3, 20]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_compiles_without_spills(architecture, tmp_path):
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-std=c++20", "-Xptxas=-v", INCLUDE]
    command += [str(HERE / "embedding_instances.cu"), "-o", str(tmp_path / "embedding.cubin")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert built.stderr.count("0 bytes spill stores, 0 bytes spill loads") == built.stderr.count("spill stores") > 0


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The bodies as a library for ctypes."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("serial") / "serial.so"
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", INCLUDE]
    subprocess.run(["c++", *flags, str(HERE / "embedding_serial.cpp"), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.lookup.restype = ctypes.c_ulonglong
    return loaded


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def i64(number):
    return ctypes.c_int64(number)


def ids_for(batch):
    return torch.stack([torch.randint(0, n, (batch,)) for n in SIZES], 1)


@pytest.mark.parametrize("width", [1, 6, 8, 16])
def test_lookup_and_merge(serial, width):
    emb, ids = FusedEmbedding(SIZES, width), ids_for(40)
    out = torch.empty(40, 3 * width)
    arguments = (pointer(emb.weight), pointer(ids), pointer(emb.offsets), pointer(out))
    assert serial.lookup(*arguments, i64(120), i64(3), i64(width)) == 2**64 - 1
    assert torch.equal(out, reference.fused_embedding(emb.weight.detach(), ids, emb.offsets))

    sorted_rows, order = torch.sort((ids + emb.offsets[:-1]).flatten(), stable=True)
    rows, counts = torch.unique_consecutive(sorted_rows, return_counts=True)
    begin = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    sums = torch.empty(len(rows), width)
    serial.merge(pointer(out), pointer(order), pointer(begin), pointer(sums), i64(len(rows)), i64(width))
    expected_rows, expected = reference.fused_embedding_backward(out, ids, emb.offsets, width)
    assert torch.equal(rows, expected_rows)
    torch.testing.assert_close(sums, expected)


def test_the_first_bad_id_is_reported(serial):
    emb, ids = FusedEmbedding(SIZES, 8), ids_for(40)
    ids[20, 1], ids[30, 0] = 3, -1
    out = torch.empty(40, 24)
    arguments = (pointer(emb.weight), pointer(ids), pointer(emb.offsets), pointer(out))
    assert serial.lookup(*arguments, i64(120), i64(3), i64(8)) == 61


@pytest.mark.parametrize("width", [3, 8])
def test_updates(serial, width):
    rows = torch.randperm(70)[:30].sort().values
    grad = torch.randn(30, width)
    states = [torch.zeros(1), torch.rand(70, width), torch.rand(70), torch.rand(70, 2, width)]
    for which, state in enumerate(states):
        weight = torch.randn(70, width)
        want, want_state = weight.clone(), state.clone()
        scalars = [ctypes.c_float(x) for x in (0.1, 0.01, 1e-8, 0.1, 0.001)]
        arguments = (pointer(weight), pointer(state), pointer(rows), pointer(grad), i64(30), i64(width))
        serial.update(which, *arguments, *scalars)
        if which == 0:
            embedding_optim.sgd_(want, rows, grad, 0.1, 0.01)
        elif which == 1:
            embedding_optim.adagrad_(want, want_state, rows, grad, 0.1, 0.01, 1e-8)
        elif which == 2:
            embedding_optim.rowwise_adagrad_(want, want_state, rows, grad, 0.1, 0.01, 1e-8)
        else:
            embedding_optim.lazy_adam_(want, want_state, rows, grad, 0.1, 0.01, 1e-8, 0.9, 0.999)
        torch.testing.assert_close(weight, want)
        torch.testing.assert_close(state, want_state)


class AdamArguments(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("weight", "moments", "current", "series")]
        + [(name, ctypes.c_int64) for name in ("width", "now", "base", "horizon")]
        + [(name, ctypes.c_float) for name in ("take1", "keep1", "keep2", "epsilon")]
    )


@pytest.mark.parametrize("steps", [20, 400], ids=["replayed", "in closed form"])
def test_deferred_adam(serial, steps):
    torch.manual_seed(0)
    emb = FusedEmbedding(SIZES, 8)
    optimizer = optim.Adam(emb, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        emb(ids_for(2)).sin().sum().backward()
        optimizer.step()
    moments, current, series, _, _, clock = emb.by_width[0].deferred.tensors
    weight = emb.weight.detach().clone()
    moments, current, series = moments.clone(), current.clone(), series.clone()
    horizon = int(clock[6])
    tables = (weight.data_ptr(), moments.data_ptr(), current.data_ptr(), series.data_ptr())
    arguments = AdamArguments(*tables, 8, steps, 0, horizon, 0.1, 0.9, 0.999, 1e-8)

    ids, out = ids_for(40), torch.empty(40, 24)
    serial.deferred_lookup(ctypes.byref(arguments), pointer(ids), pointer(emb.offsets), pointer(out), i64(120), i64(3))
    torch.testing.assert_close(out, emb(ids).detach(), rtol=1e-5, atol=1e-7)

    optimizer.zero_grad()
    emb(ids).sin().sum().backward()
    rows, grad = emb.weight.grad._indices()[0], emb.weight.grad._values()
    optimizer.step()
    step = steps + 1
    scalars = (0.01 / (1 - 0.9**step), (1 - 0.999**step) ** -0.5, 0.001)
    serial.adam(ctypes.byref(arguments), pointer(rows), pointer(grad), i64(len(rows)), *map(ctypes.c_float, scalars))
    torch.testing.assert_close(weight[rows], emb.weight.detach()[rows], rtol=1e-5, atol=1e-6)
    assert (current[rows] == step).all()
