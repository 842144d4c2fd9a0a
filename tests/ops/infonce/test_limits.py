"""The parts of the loss that benchmarks/infonce/bench_limits.py times alone, and the table of its figures."""

import pytest
import torch

from adaftr_fast._extension import is_built
from benchmarks.infonce.limits import BEST, LITERAL, limits

needs_extension = pytest.mark.skipif(not is_built(), reason="the parts are C++ kernels")
PRODUCTS = ("scores", "rows", "columns")


def parts(rows, columns, d, bfloat16=False):
    run = torch.ops.adaftr_fast._infonce_from_cache
    return {part: run(part, rows, columns, d, bfloat16) for part in (*PRODUCTS, "exponentials")}


@needs_extension
@pytest.mark.parametrize(("rows", "columns", "d"), [(64, 128, 64), (1000, 960, 128), (7, 32, 32)])
def test_parts_count_those_of_the_loss(instruction_set, rows, columns, d):
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # several take equal shares of the rows, rounded up
    try:
        counts = parts(rows, columns, d)
    finally:
        torch.set_num_threads(before)
    assert {counts[part] for part in PRODUCTS} == {rows * columns * d}
    assert counts["exponentials"] == rows * columns


@needs_extension
def test_threads_share_the_parts(instruction_set):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert parts(512, 512, 64)["scores"] == 512 * 512 * 64
    finally:
        torch.set_num_threads(before)


@needs_extension
def test_bfloat16_has_three_or_four_products(instruction_set):
    """Above 32,768 columns, fewer on many threads, S is made twice; AMX makes it twice always."""
    for columns, twice in ((4096, instruction_set == "amx"), (33_000, True)):
        counts = parts(64, columns, 64, bfloat16=True)
        if instruction_set in ("avx512_bf16", "amx"):
            products = 64 * (columns + -columns % 32) * 64
            assert counts["rows"] == counts["columns"] == counts["scores"] / (1 + twice) == products
        else:
            assert not any(counts.values())


@needs_extension
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sums", 8, 8, 8, False), "part must be scores, rows, columns or exponentials, got sums"),
        (("scores", 0, 8, 8, False), r"rows and columns must be positive .* got 0, 8 and 8"),
        (("scores", 8, 8, 513, False), r"width in \[1, 512\], got 8, 8 and 513"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.adaftr_fast._infonce_from_cache(*arguments)


def test_table():
    ms = {"scores": 1.0, "rows": 1.0, "columns": 2.0, "exponentials": 1.0, "adaptive_infonce": 8.0}
    counts = dict.fromkeys(("scores", "rows", "columns"), 10**8)
    case = {"dtype": "float32", "rows": 1024, "d": 96, "threads": 1, "counts": counts, "ms": ms}
    shown = limits([case | {BEST: 20.0, LITERAL: 40.0}, case | {"dtype": "bfloat16", "threads": 2}])
    float32, bfloat16 = shown.splitlines()[2:]
    assert float32 == "| float32 | 1,024 x 96 | 1 | 150 | 4.00 | 1.00 | 8.00 | 50% | 62% | 5.0x | 4.0x | 2.5x | 10.0x |"
    assert bfloat16.endswith("| 62% |  |  |  |  |")
