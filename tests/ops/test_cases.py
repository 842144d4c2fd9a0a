"""Fixed cases of the ops, and whether cases find what is wrong."""

import math
import os
import signal
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch.utils._pytree import tree_map_only

import adaftr_fast as af
from tests.forks import ROOT
from tests.ops.cases import check, guards
from tests.ops.cases.drawing import FLOATS, OPS, SIDES
from tests.ops.cases.guards import Guarded
from tests.ops.cases.inputs import assert_close
from tests.ops.infonce.losses import Calls
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
from tests.ops.cases.guards import guarded

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
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert (found.returncode, found.stdout) == (-signal.SIGSEGV, "inside\n"), found.stderr


OF_ONE_DIRECTION = {"rows": 5, "columns": 6, "width": 8}
PAIRED = {"rows": 5, "columns": 5, "width": 8}
TABLE = {"rows": 5, "width": 4, "fields": [3, 7]}
BAGS = TABLE | {"longest": 3}
LISTS = {"tensors": [3, 1]}
# several blocks of fields, bitmap words and summary words
MANY = {"rows": 130, "fields": [1, 7, 5000, 64, 65, 1, 9, 10, 11, 12]}
FEW = {"rows": 3000, "fields": [40, 3000]}
STACKS = (
    {"inputs": [184], "stacks": [[192], [6]]},
    {"inputs": [64, 37], "stacks": [[64, 32, 16, 1], [5, 1, 70], [33]]},
    {"inputs": [1], "stacks": [[1, 1]]},
)
MIXTURES = ((1, 1, 1, 1), (65, 2, 3, 64), (70, 1, 9, 150), (200, 5, 7, 37))
WIDTHS = (*range(1, 9), 12, 16, 17, 21, 32)
EXACT = {"dtype": "float64"}
HALF = {"dtype": "bfloat16"}
STRIDED = {"layout_ids": "strided", "layout_offsets": "strided", "weights": "normal"}


def each(sizes, options):
    """Returns a case for every combination."""
    return list(product(sizes, options))


# Sizes and options by op. Results are held to the tolerance rule alone.
EXAMPLES = {
    "lookup": each(
        [MANY | {"width": width} for width in WIDTHS],
        ({}, {"ids": "int32", "layout_ids": "transposed"}, EXACT),
    )
    # scratch memory serves tables of other sizes
    + each([{"rows": 50, "width": 2, "fields": fields} for fields in ([2], [3, 70_000, 1])], [{}]),
    "squares": each(
        [sizes | {"width": width} for sizes in (MANY, FEW) for width in (8, 5)],
        ({}, {"only": "output"}, {"only": "squares"}),
    ),
    "bags": each([BAGS], (STRIDED, STRIDED | {"mean": True})),
    "steps": each(
        [{"table": 900, "rows": 333, "width": width} for width in WIDTHS],
        [
            {"optimizer": name, "dtype": dtype, "weight_decay": 0.01}
            for name in ("sgd_", "adagrad_", "rowwise_adagrad_", "lazy_adam_")
            for dtype in FLOATS
        ],
    ),
    "adam": [
        ({"rows": 4, "width": width, "fields": [60, 3, 17], "steps": 40}, options)
        for width, options in (
            (1, {"beta1": 0.0, "beta2": 0.99, "eps": 1e-3}),
            (7, {"beta2": 0.5, "schedule": True}),
            (8, {"beta1": 0.5, "beta2": 0.9, "weight_decay": 1e-2, "eps": 1.0}),
            (19, {"beta1": 0.99, "beta2": 0.9999, "optimizer": "AdamW", "weight_decay": 1e-2}),
        )
    ],
    "mixture": each(
        [dict(zip(("rows", "tasks", "experts", "width"), sizes)) for sizes in MIXTURES],
        ({}, EXACT, HALF, {"upstream": 0.3, "logit_spread": 1e4}),
    ),
    "mlp": each(
        [stacks | {"rows": rows} for stacks in STACKS for rows in (0, 1, 13, 65, 200)],
        [
            each | rectified
            for each in (
                {},
                EXACT,
                {"reduced": True, "half_inputs": True},
                {"upstream": 0.3, "wanted": 0.5, "layout_inputs": "transposed"}
                | {"layout_weights": "transposed", "layout_grad": "strided"},
            )
            for rectified in ({}, {"rectified": 1})
        ],
    ),
    "dense_adam": each(
        [{"tensors": [11_000, 1, 5]}],
        [kind | {"steps": 3, "threads": threads} for kind in ({}, EXACT) for threads in (1, 3)],
    ),
    "lists": each(
        [{"tensors": [9000, 1, 77]}],
        [
            kind | {"layout": "transposed", "threads": threads}
            for kind in ({}, EXACT, HALF)
            for threads in (1, 3)
        ],
    ),
    "log_loss": each(
        [{"rows": rows, "tasks": tasks} for rows, tasks in ((0, 2), (1, 1), (13, 3), (1100, 2))],
        [
            each | weighted | spread
            for each in ({}, EXACT, {"layout_logits": "transposed", "layout_labels": "transposed"})
            for weighted in ({}, {"weighted": True})
            for spread in ({}, {"spread": 100.0})
        ],
    ),
}


@needs_extension
@pytest.mark.parametrize("op", EXAMPLES)
def test_results_are_as_accurate_as_those_of_pytorch(op):
    for sizes, options in EXAMPLES[op]:
        check({"op": op, "sizes": sizes, "options": options, "seed": 4}, cancels=False)


# One case of every op, and of each of its ways to other kernels.
CASES = [
    ("infonce", OF_ONE_DIRECTION, {}),
    ("infonce", PAIRED, {"symmetric": True}),
    ("infonce", PAIRED, {"block": 2}),
    ("targets", OF_ONE_DIRECTION, {"margin": 0.1}),
    ("targets", OF_ONE_DIRECTION, {"labels": 2}),
    ("sigmoid", OF_ONE_DIRECTION, {}),
    ("lookup", TABLE, {"missed": 3}),
    ("squares", TABLE, {"missed": 3}),
    ("bags", BAGS, {"missed": 3, "weights": "normal"}),
    ("select", {"rows": 5, "fields": 2, "longest": 3}, {}),
    ("int8", BAGS, {"bags": True}),
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


# torch compares gradients with a function that takes no sparse ones; nn/embedding/test_compile.py
# compares these.
SPARSE = ("fused_embedding", "embedding_bags", "embedding_and_squares_backward")


@needs_extension
def test_ops_pass_the_checks_of_torch():
    """Schema, autograd, fake tensors and compilation, but of one whose bool depends on values."""
    with Calls() as calls:
        for op, sizes, options in CASES:
            check({"op": op, "sizes": sizes, "options": options, "seed": 1})
    called = {op: (args, kwargs or {}) for op, args, kwargs in calls.found}
    del called[torch.ops.adaftr_fast.strictly_rising.default]
    for op, (args, kwargs) in called.items():
        names = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(op, args, kwargs, test_utils=names)
        if op._schema.name.partition("::")[2] in SPARSE:
            args = tree_map_only(torch.Tensor, torch.Tensor.detach, args)
        torch.library.opcheck(op, args, kwargs, test_utils="test_aot_dispatch_dynamic")
