"""Renders the cases of bench_limits.py as a Markdown table."""

from typing import Any

from benchmarks.render import OURS, Cases, table

BEST, LITERAL = "best of PyTorch, ms", "literal eager on gaussian inputs, ms"
PRODUCTS = ("scores", "rows", "columns")  # S = A B^T, P B, P^T A


def limits(cases: Cases) -> str:
    """The loss beside its own products and exponentials from cache, and the speed-ups that they leave room for.

    PyTorch is measured in float32; a case in bfloat16 is compared with its time at the same size.
    """
    best, literal = ({_size(case): case[name] for case in cases if name in case} for name in (BEST, LITERAL))

    def row(case: dict[str, Any]) -> list[str]:
        ms, counts = case["ms"], case["counts"]
        products = sum(ms[part] for part in PRODUCTS)
        both, whole = products + ms["exponentials"], ms[OURS]
        rate = 2e-6 * sum(counts[part] for part in PRODUCTS) / products  # an addition comes with each multiplication
        cells = [case["dtype"], f"{case['rows']:,} x {case['d']}", str(case["threads"]), f"{rate:.0f}"]
        cells += [f"{each:.2f}" for each in (products, ms["exponentials"], whole)]
        cells += [f"{each / whole:.0%}" for each in (products, both)]
        torch = best.get(_size(case))
        cells += [f"{torch / each:.1f}x" for each in (products, both, whole)] if torch else [""] * 3
        return [*cells, f"{literal[_size(case)] / products:.1f}x" if _size(case) in literal else ""]

    header = "operands | B x d | threads | GFLOP/s | products, ms | exponentials, ms | loss, ms | products / loss"
    header += " | both / loss | best of PyTorch / products | / both | / loss | literal eager, gaussian / products"
    return table(header, "llrrrrrrrrrrr", map(row, cases))


def _size(case: dict[str, Any]) -> tuple[int, int, int]:
    return case["rows"], case["d"], case["threads"]


TABLES = {"limits": limits}
