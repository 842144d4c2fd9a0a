"""Makes the interpreter sum every product in one order, as a GPU does, and reduce whole slices at a
time.

The interpreter multiplies with NumPy, whose BLAS on some CPUs gives A B^T other last bits than (B
A^T)^T. The column sweep forms the row sweep's scores again, transposed, and both must agree where
logits are large. It also calls the function of a reduction once an element, which takes seconds a
block; before each call of a function it searches ``triton.language`` for what it has to replace,
which takes longer than most of these functions; and each operation forms the types and shapes of
its results anew, which takes longer than the operation.
"""

import importlib.util
import inspect
import math
from functools import cache, reduce

import numpy as np
import pytest
import torch


def _in_order(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    a, b = a.astype(dtype), b.astype(dtype)
    acc = np.zeros((a.shape[0], b.shape[1]), dtype)
    for k in range(a.shape[1]):
        acc += a[:, k, None] * b[k]
    return acc


@pytest.fixture(autouse=True)
def large_calls(monkeypatch):
    """Makes every call take the paths of large ones: a maximum that stays, and splits of the column
    sweep.
    """
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setattr("adaftr_fast.kernels.infonce.launch.SMALL_PART", 0)
        monkeypatch.setattr("adaftr_fast.kernels.infonce.launch.FEW_BLOCKS", 0)


@pytest.fixture
def assume(monkeypatch):
    """Returns a function that sets the ``capability`` or the ``processors`` of the GPU that
    launches assume.
    """

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(f"adaftr_fast.kernels.infonce.launch.ASSUMED_{name.upper()}", value)

    return change


@pytest.fixture
def hopper(assume):
    """Launches as on sm_90."""
    assume(capability=90)


@pytest.fixture
def plans(monkeypatch):
    """The plans that are made."""
    from adaftr_fast.kernels.infonce import launch

    made, make = [], launch.make_plan
    monkeypatch.setattr(launch, "make_plan", lambda *key: made.append(make(*key)) or made[-1])
    return made


@pytest.fixture
def swept(monkeypatch):
    """For each call that takes the bounded sweep, whether that swept each block of rows."""
    from adaftr_fast.kernels.infonce import launch

    found, launched = [], launch.Launch.run

    def run(self, arguments):
        if self.kernel is launch.infonce_unbounded_row_sweep_kernel:
            found.append(arguments["swept_ptr"].tolist())
        launched(self, arguments)

    monkeypatch.setattr(launch.Launch, "run", run)
    return found


@pytest.fixture(autouse=True, scope="package")
def like_a_gpu():
    if torch.cuda.is_available():
        yield
        return
    from triton.language import core
    from triton.language.core import is_builtin
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        return TensorHandle(_in_order(a.data, b.data, d.data.dtype) + d.data, d.dtype.scalar)

    def generic_reduce(self, arguments):
        (argument,), axis = self.unravel(arguments, self.axis)
        first, *rest = (
            self.to_tensor(x, argument.dtype) for x in np.moveaxis(argument.handle.data, axis, 0)
        )
        return [reduce(self.combine_fn.fn, rest, first)]

    @cache
    def builtins(package):
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtin(package, *rest):
        names = builtins(package)
        # they are replaced and restored together
        if names and is_builtin(getattr(package, names[0])):
            for name in names:
                interpreter._patch_attr(package, name, getattr(package, name), *rest)

    np_dtype, np_dtypes = interpreter._get_np_dtype, {}

    def get_np_dtype(kind):
        if kind.name not in np_dtypes:
            np_dtypes[kind.name] = np_dtype(kind)
        return np_dtypes[kind.name]

    def unwrap_shape(shape):
        return [x.value if isinstance(x, core.constexpr) else x for x in shape]

    @cache
    def shape_of(*sizes):
        return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(
            math.prod(sizes)
        )

    def init_tensor(self, handle, kind):
        self.handle = handle
        self.type = kind
        self.dtype = kind.scalar
        self.shape, self.numel = shape_of(*kind.shape) if kind.is_block() else shape_of()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        patch.setattr(interpreter, "_get_np_dtype", get_np_dtype)
        patch.setattr(core, "_unwrap_shape", unwrap_shape)
        patch.setattr(core.tensor, "__init__", init_tensor)
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        patch.setattr(ReduceOps, "generic_reduce", generic_reduce)
        yield
