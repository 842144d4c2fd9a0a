"""Whether the random cases of the ops find what is wrong."""

import math
import signal
import subprocess
import sys

import pytest
import torch

import adaftr_fast as af
from tests.chaos.ops import check, guards
from tests.chaos.ops.drawing import OPS, SIDES
from tests.chaos.ops.guards import Guarded
from tests.chaos.ops.inputs import assert_close
from tests.forks import ROOT
from tests.ops.marks import needs_extension


@needs_extension
@pytest.mark.parametrize("name", ["sigmoid", "targets"])
def test_nan_in_results_that_depend_on_no_nan_is_found(name, monkeypatch):
    options = {"spoiled": "nan"} | ({"margin": 0.1} if name == "targets" else {})
    case = {"op": name, "sizes": {"rows": 5, "columns": 6, "width": 8}, "options": options}

    def check_all():
        for seed in range(8):  # one spoils an anchor, on which the gradient of no other depends
            check(case | {"seed": seed})

    check_all()
    function = "sigmoid_contrast" if name == "sigmoid" else "adaptive_infonce"
    right = getattr(af, function)
    factors = {"reference": 1.0, "cpu": math.nan}
    wrong = lambda *x, backend, **given: right(*x, backend=backend, **given) * factors[backend]  # noqa: E731
    monkeypatch.setattr(af, function, wrong)
    with pytest.raises(AssertionError, match="not finite"):
        check_all()


def test_an_error_above_the_denormals_is_found():
    truth = torch.full((3,), 1e-35, dtype=torch.float64)
    with pytest.raises(AssertionError, match="error 1 against float64"):
        assert_close(
            2 * truth.float(),
            truth,
            truth.float(),
            torch.float32,
            torch.zeros_like(truth),
            "result",
        )


TOUCH = """
import ctypes, sys
import torch
from tests.chaos.ops.guards import guarded

side = sys.argv[1]
x = torch.arange(12, dtype=torch.int16).view(3, 4)[:, :3].t()
copy = guarded(x, side)
assert copy.equal(x) and copy.stride() == x.stride()
end = copy.data_ptr() + copy.itemsize * 11
ctypes.c_char.from_address(end - 1 if side == "after" else copy.data_ptr()).value
print("inside", flush=True)
ctypes.c_char.from_address(end if side == "after" else copy.data_ptr() - 1).value
print("outside", flush=True)
"""


@pytest.mark.parametrize("side", SIDES)
def test_memory_beside_a_guarded_tensor_is_protected(side):
    command = [sys.executable, "-c", TOUCH, side]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (found.returncode, found.stdout) == (-signal.SIGSEGV, "inside\n"), found.stderr


OF_ONE_DIRECTION = {"rows": 5, "columns": 6, "width": 8}
PAIRED = {"rows": 5, "columns": 5, "width": 8}
TABLE = {"rows": 5, "width": 4, "fields": [3, 7]}
LISTS = {"tensors": [3, 1]}
CASES = [
    ("infonce", OF_ONE_DIRECTION, {}),
    ("infonce", PAIRED, {"symmetric": True}),
    ("infonce", PAIRED, {"block": 2}),
    ("targets", OF_ONE_DIRECTION, {"margin": 0.1}),
    ("targets", OF_ONE_DIRECTION, {"labels": 2}),
    ("sigmoid", OF_ONE_DIRECTION, {}),
    ("lookup", TABLE, {"missed": 3}),
    ("squares", TABLE, {"missed": 3}),
    ("bags", TABLE | {"longest": 3}, {"missed": 3, "weights": "normal"}),
    ("select", {"rows": 5, "fields": 2, "longest": 3}, {}),
    ("int8", TABLE | {"longest": 3}, {"bags": True}),
    ("segments", {"bags": 5, "width": 4, "longest": 3}, {}),
    *(
        ("steps", {"table": 9, "rows": 3, "width": 4}, {"optimizer": name})
        for name in ("sgd_", "adagrad_", "rowwise_adagrad_", "lazy_adam_")
    ),
    ("adam", {"rows": 3, "width": 4, "fields": [3, 7], "steps": 3}, {}),
    ("mlp", {"rows": 5, "inputs": [3, 2], "stacks": [[4, 2], [3]]}, {}),
    ("mixture", {"rows": 5, "tasks": 2, "experts": 3, "width": 4}, {}),
    ("log_loss", {"rows": 5, "tasks": 2}, {"weighted": True}),
    ("lists", LISTS, {}),
    ("dense_adam", LISTS, {}),
    ("columns", {"rows": 70, "columns": 5}, {"placed": True}),
]


@needs_extension
def test_every_op_is_called_on_guarded_memory(monkeypatch):
    """All but what runs on GPUs alone, and the references, which are plain PyTorch."""
    called = set()

    class Listed(Guarded):
        def __exit__(self, *error):
            called.update(self.called)
            return super().__exit__(*error)

    monkeypatch.setattr(guards, "Guarded", Listed)
    for op, sizes, options in CASES:
        for seed, side in enumerate(SIDES):
            check({"op": op, "sizes": sizes, "options": options | {"guards": side}, "seed": seed})
    names = {
        schema.name.partition("::")[2]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("adaftr_fast::")
    }
    elsewhere = {name for name in names if name.endswith(("_triton", "_reference"))}
    # in C++, the second is a call of the look-up and one of squared_norm
    unguarded = {"raise_reported", "embedding_and_squares"}
    plain = {"infonce_masked", "sum_rows"}  # PyTorch's ops alone
    assert names - elsewhere - called == unguarded | plain
    assert {op for op, _, _ in CASES} | {"infonce_spoiled"} == OPS.keys()
