"""The loss ``adaptive_infonce`` where one number of its inputs is NaN or infinite.

Shapes: B rows, N candidates, d width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.chaos.ops import infonce
from tests.chaos.ops.inputs import assert_close, laid

PLACES = ("h_ctr", "h_cvr", "tau", "tau per column", "row_weight", "column_bias")
OF_ROWS = ("loss", "lse", "positive_logit", "entropy", "d h_ctr", "d tau")


def problem(sizes: dict[str, int], options: dict[str, Any]) -> Callable[[], None] | None:
    """Returns a function that compares, or None if the case is not valid."""
    rows, columns = sizes["rows"], sizes["rows"] + sizes["extra"]
    where = options.get("where", "h_ctr")
    needs = {"row_weight": "weight", "column_bias": "column_bias"}
    if not rows or not infonce.is_valid(sizes, options) or needs.get(where, "reduction") not in options:
        return None
    leaves = infonce.drawn_leaves(rows, columns, sizes["width"], options)
    arguments = infonce.drawn_arguments(rows, columns, options)
    exact = [x.detach().double() for x in leaves]
    if not infonce.is_computable(exact, arguments, leaves[0].dtype):
        return None
    given = (arguments, torch.ones(rows, dtype=torch.float64), options)
    truth = infonce.results(exact, *given, torch.float64, "reference")
    pytorch = infonce.results(leaves, *given, None, "reference")
    dtype = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    terms, _ = infonce.conditions(exact, *given, dtype)
    place = int(torch.randint(0, leaves[PLACES.index(where)].shape[0], ()))
    if where != "h_cvr" and where != "column_bias" and not infonce.counts(leaves, arguments, options)[place]:
        return None
    spoiled = _spoiled(leaves, PLACES.index(where), place, options)

    def compare() -> None:
        if where in ("tau", "column_bias"):
            return _is_refused(lambda: infonce.results(spoiled, *given, None, "cpu"))
        own = infonce.results(spoiled, *given, None, "cpu")
        changed = infonce.results([x.detach().double() for x in spoiled], *given, torch.float64, "reference")
        for name, x in own.items():
            if x.is_floating_point():
                # A gradient of 0, of a row that does not count, is better than the reference's 0 * inf.
                silent = x.isfinite() & ~changed[name].isfinite() & ((x != 0) | (not name.startswith("d ")))
                assert not silent.any(), f"{name}: finite where the reference is not"
        if where != "h_cvr":
            others = torch.arange(rows) != place
            for name in (each for each in OF_ROWS if each in own):
                parts = (each[name][others] for each in (own, truth, pytorch))
                assert_close(*parts, dtype, terms[name].expand(rows, *terms[name].shape[1:])[others], name)

    return compare


def _is_refused(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        message = str(error)
    else:
        raise AssertionError("a number that is not finite is not refused")
    assert "tau" in message or "column_bias" in message, message


def _spoiled(leaves: list[Tensor], number: int, place: int, options: dict[str, Any]) -> list[Tensor]:
    """Returns the leaves with one number of row ``place`` of one of them changed."""
    x = leaves[number].clone(memory_format=torch.contiguous_format)
    row = x[place].view(-1)
    row[int(torch.randint(0, len(row), ()))] = float(options.get("value", "nan"))
    layout = options.get(f"layout_{'ab'[number]}") if number < 2 else None
    return [*leaves[:number], laid(x, layout) if layout != "expanded" else x, *leaves[number + 1 :]]
