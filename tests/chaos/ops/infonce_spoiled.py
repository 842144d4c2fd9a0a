"""The loss ``adaptive_infonce`` where one number of its inputs is NaN or infinite.

Shapes: B rows, N candidates, d width.
"""

import torch

from adaftr_fast.ops.infonce.reference import IGNORE
from tests.chaos.ops import infonce
from tests.chaos.ops.inputs import assert_close, laid, sensitivity

PLACES = ("h_ctr", "h_cvr", "tau", "tau per column", "row_weight", "column_bias")
OF_ROWS = ("loss", "lse", "positive_logit", "entropy", "d h_ctr", "d tau", "d row_weight")


def problem(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    rows, columns = sizes["rows"], sizes["columns"]
    where = options.get("where", "h_ctr")
    needs = {"row_weight": "weight", "column_bias": "column_bias"}
    if not infonce.is_valid(sizes, options) or needs.get(where, "reduction") not in options:
        return None
    leaves = infonce.drawn_leaves(rows, columns, sizes["width"], options)
    arguments = infonce.drawn_arguments(rows, columns, options)
    exact = [x.detach().double() for x in leaves]
    number = PLACES.index(where)
    if not len(leaves[number]) or not infonce.is_computable(exact, arguments, leaves[0].dtype):
        return None
    place = int(torch.randint(0, len(leaves[number]), ()))
    spoiled = _spoiled(leaves, number, place, options)
    ignored = (
        where == "tau"
        and "positive_index" in arguments
        and arguments["positive_index"][place] == IGNORE
    )
    if where in ("tau", "column_bias") and not ignored:
        given = (arguments, torch.ones(rows), options, None, "cpu")
        return lambda: _is_refused(lambda: infonce.results(spoiled, *given))
    counted = infonce.counts(spoiled, arguments, options)
    of_a_row = where not in ("h_cvr", "column_bias")
    shared_by = 1 if of_a_row else arguments.get("block", max(rows, columns))  # consecutive rows
    others = torch.arange(rows) // shared_by != place // shared_by
    narrow = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    whole, _ = infonce.conditions(
        exact, arguments, torch.ones(rows, dtype=torch.float64), options, narrow
    )
    slack = {name: float(x.abs().max()) if x.numel() else 0.0 for name, x in whole.items()}
    return lambda: _compare(spoiled, arguments, options, counted, others, slack)


def _compare(leaves, arguments, options, counted, others, slack):
    """Compares with the reference.

    Args:
        counted: whether each row is an input of the loss and the gradients [B].
        others: whether each row's results do not depend on the number that is not finite [B].
        slack: by how much rounding may change each result without that number.
    """
    ones, narrow = torch.ones(len(others)), torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    is_input = bool(counted[~others].any())

    def reference(tensors):
        return infonce.results(tensors, arguments, ones, options, torch.float64, "reference")

    exact = [x.detach().double() for x in leaves]
    truth = reference(exact)
    terms = sensitivity(reference, exact, 16 * infonce.rounding(narrow, options))
    pytorch = infonce.results(leaves, arguments, ones, options, None, "reference")
    own = infonce.results(leaves, arguments, ones, options, None, "cpu")
    for name, true in truth.items():
        x, theirs = own[name], pytorch[name]
        if name in OF_ROWS:
            zero = name in ("loss", "d h_ctr", "d tau")
            assert not (zero and x[~counted].any()), f"{name}: of a row that does not count"
            assert x[others].isfinite().all() or x.dtype == torch.bool, (
                f"{name}: not finite in other rows"
            )
        elif not is_input:
            assert x.isfinite().all(), f"{name}: not finite because of a row that does not count"
        if x.is_floating_point():
            assert not (x.isfinite() & ~true.isfinite()).any(), (
                f"{name}: finite where the reference is not"
            )
            both = x.isfinite() & true.isfinite()
            error = terms[name][both] + slack.get(name, 0.0)
            assert_close(*(each[both] for each in (x, true, theirs)), narrow, error, name)


def _is_refused(call):
    try:
        call()
    except RuntimeError as error:
        message = str(error)
    else:
        raise AssertionError("a number that is not finite is not refused")
    assert "tau" in message or "column_bias" in message, message


def _spoiled(leaves, number, place, options):
    """Returns the leaves with one number of row ``place`` of one of them changed."""
    x = leaves[number].clone(memory_format=torch.contiguous_format)
    row = x[place].view(-1)
    row[int(torch.randint(0, len(row), ()))] = float(options.get("value", "nan"))
    layout = options.get(f"layout_{'ab'[number]}") if number < 2 else None
    return [*leaves[:number], laid(x, layout) if layout != "expanded" else x, *leaves[number + 1 :]]


OPS = {"infonce_spoiled": problem}
