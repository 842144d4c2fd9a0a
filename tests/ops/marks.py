"""Marks and contexts shared by the op tests."""

from contextlib import contextmanager

import pytest
import torch

import adaftr_fast as af
from adaftr_fast._extension import has_cpp_gradients

needs_extension = pytest.mark.skipif(
    af.cpu_capability() == "none", reason="the C++ extension is not built"
)
needs_cpp_gradients = pytest.mark.skipif(
    not has_cpp_gradients(), reason="no C++ autograd functions for this torch"
)

# The instruction sets that have a kernel of their own, by op and type: the tables `kTables` in
# csrc/cpu/<op>/. An instruction set without one uses the one below it. Where "generic" is alone,
# the op converts to float32 before.
VECTORS = ("generic", "avx2", "avx512", "neon")
KERNELS = {
    "infonce": {
        torch.float64: VECTORS,
        torch.float32: VECTORS,
        torch.bfloat16: ("generic", "avx512_bf16", "amx", "neon_bf16"),
        torch.float16: ("generic", "amx"),
    },
    "sigmoid": {
        torch.float64: VECTORS,
        torch.float32: VECTORS,
        torch.bfloat16: ("generic",),
        torch.float16: ("generic",),
    },
    "mlp": {
        torch.float64: VECTORS,
        torch.float32: VECTORS,
        torch.bfloat16: (*VECTORS, "avx512_bf16", "neon_bf16"),
    },
    "embedding": {torch.float32: ("generic", "avx2")},
}
KERNELS["mixture"] = KERNELS["mlp"]
KERNELS["blocks"] = KERNELS["sigmoid"]
KERNELS["symmetric"] = KERNELS["infonce"]  # the half types are two sweeps of one direction


def each_kernel(op, *dtypes, prefix=()):
    """Returns the parameters (*prefix, dtype, instruction set) of every kernel that the op has for
    these types.
    """
    names = [(dtype, name) for dtype in dtypes for name in KERNELS[op][dtype]]
    label = "".join(f"{each}-" for each in prefix)
    return [
        pytest.param(*prefix, *each, id=f"{label}{str(each[0])[6:]}-{each[1]}") for each in names
    ]


def on_kernels(op, *dtypes):
    """Runs a test, which takes ``dtype`` and ``instruction_set``, once for every kernel of the op
    for these types.
    """
    return pytest.mark.parametrize(
        ("dtype", "instruction_set"), each_kernel(op, *dtypes), indirect=["instruction_set"]
    )


@contextmanager
def on_threads(count):
    """Runs the block on ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
