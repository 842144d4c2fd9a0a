"""``sigmoid_contrast`` and ``adaptive_infonce`` with other targets, against references in float64.

Shapes: B rows, N candidates, d width.
"""

import re
from functools import partial

import pytest
import torch

import adaftr_fast as af
from adaftr_fast.ops.infonce.reference import IGNORE
from tests.ops.cases import infonce
from tests.ops.cases.inputs import assert_close, laid, sensitivity, spoiled
from tests.tolerances import SLACK

UPSTREAM = 1.0, 2.0  # the least and the largest gradient of a loss without reduction


def sigmoid(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    if not infonce.is_valid(sizes, options):
        return None
    a, b, tau, *_ = infonce.drawn_leaves(sizes["rows"], sizes["columns"], sizes["width"], options)
    numbers = [tau.new_tensor(options.get("scale", 3.0)), tau.new_tensor(-2.0)]
    arguments = infonce.drawn_arguments(sizes["rows"], sizes["columns"], options)
    given = {name: x for name, x in arguments.items() if name in ("positive_index", "reduction")}
    return _problem(
        lambda x, backend: af.sigmoid_contrast(*x, backend=backend, **given),
        [a, b, *numbers],
        options,
    )


def targets(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    rows = sizes["rows"]
    columns = sizes["columns"]
    labeled = "labels" in options
    if not infonce.is_valid(sizes, options) or (
        labeled and ({"positive", "margin"} & options.keys() or columns < rows)
    ):
        return None
    *leaves, weight, _ = infonce.drawn_leaves(rows, columns, sizes["width"], options)
    given = infonce.drawn_arguments(rows, columns, options)
    given |= {name: options[name] for name in ("margin", "label_smoothing") if name in options}
    if labeled:  # every row finds its label among the first candidates
        label = torch.arange(columns) % options["labels"]
        given["positive_group"] = torch.where(torch.rand(rows) < 0.2, IGNORE, label[:rows]), label
    if "mask" in options:
        if labeled or {"positive", "symmetric"} <= options.keys():
            return None
        given["candidate_mask"] = torch.rand(rows, columns) < options["mask"]
    if "weight" in options:
        given["row_weight"] = weight
    symmetric = "symmetric" in options

    def loss(x, backend):
        a, b, tau, tau_column = x
        return af.adaptive_infonce(
            a, b, (tau, tau_column) if symmetric else tau, backend=backend, **given
        )

    return _problem(loss, leaves, options, _largest_terms(*leaves))


def _largest_terms(a, b, *taus):
    """Returns the largest term of the sums that are the loss and each gradient.

    Where p and q are equal, a gradient is 0, but what rounding leaves of p - q. Rounding a logit
    and the logsumexp moves p by 2**-23 of itself for each unit of the logit: an eighth of the four
    roundings that each term is allowed.
    """
    if not len(a) or not len(b):
        return {}
    least = min(float(tau.min()) for tau in taus)
    logit = float((a.abs().double() @ b.abs().double().T).max()) / least
    moved = UPSTREAM[1] * (1 + logit / 8) / least
    return {
        "loss": logit,
        "gradient 0": moved * float(b.abs().max()),
        "gradient 1": moved * float(a.abs().max()),
        "gradient 2": moved * logit,
        "gradient 3": moved * logit,
    }


def infonce_spoiled(sizes, options):
    """Returns a function that compares, or None if the case is not valid: one number of one of the
    inputs of ``adaptive_infonce`` is NaN or infinite.
    """
    rows = sizes["rows"]
    where = options.get("where", "h_ctr")
    needs = {"row_weight": "weight", "column_bias": "column_bias"}
    if not infonce.is_valid(sizes, options) or needs.get(where, "reduction") not in options:
        return None
    leaves = infonce.drawn_leaves(rows, sizes["columns"], sizes["width"], options)
    arguments = infonce.drawn_arguments(rows, sizes["columns"], options)
    exact = [x.detach().double() for x in leaves]
    number = infonce.NAMES.index(where)
    if not len(leaves[number]) or not infonce.is_computable(exact, arguments, leaves[0].dtype):
        return None
    x = leaves[number].clone(memory_format=torch.contiguous_format)
    place = int(torch.randint(0, len(x), ()))
    row = x[place].view(-1)
    row[int(torch.randint(0, len(row), ()))] = float(options.get("value", "nan"))
    layout = options.get(f"layout_{'ab'[number]}") if number < 2 else None
    leaves[number] = laid(x, layout) if layout != "expanded" else x
    narrow = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    errors, _ = infonce.conditions(exact, arguments, exact[4] * 0 + 1, options, narrow)
    slack = {name: float(x.abs().max()) if x.numel() else 0.0 for name, x in errors.items()}

    def call(x, backend):
        return infonce.results(x, arguments, torch.ones(rows), options, None, backend)

    # Rows that share the number, and what adds up these of them that count, may be not finite.
    own = (
        1 if where not in ("h_cvr", "column_bias") else arguments.get("block", sum(sizes.values()))
    )
    shares = torch.arange(rows) // own == place // own
    counted = torch.ones(rows, dtype=torch.bool)
    if "weight" in options:
        counted = leaves[4] != 0
    if "positive_index" in arguments:
        counted = counted & (arguments["positive_index"] != IGNORE)
    reached = dict.fromkeys(
        ("d h_cvr", "d tau per column", "d column_bias"), (shares & counted).any()
    )
    reached |= {"d h_ctr": (shares & counted)[:, None], "loss": shares & counted}
    reached |= dict.fromkeys(("lse", "positive_logit", "entropy", "d row_weight"), shares)
    reached["d tau"] = reached["loss"]
    return _compared(call, leaves, options, slack, reached)


def _problem(loss, leaves, options, largest=None):
    """Returns a function that compares a loss and its gradients.

    Args:
        loss: of the inputs, by a backend.
        largest: the largest term of the loss and of each gradient; 1 by default.
    """
    if any(x.numel() and x.abs().max() > 1e4 for x in leaves):
        return None
    # z - z, which depends on no z but by rounding
    if "spoiled" in options and min(len(x) for x in leaves[:2]) < 2:
        return None
    leaves = list(spoiled(dict(enumerate(leaves)), options).values())
    leaves[:2] = [laid(x, options.get(f"layout_{side}")) for x, side in zip(leaves, "ab")]
    narrow = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    eps = infonce.rounding(narrow, options)
    slack = {}
    if narrow in (torch.float32, torch.float64):  # the half types' tolerance covers it
        # of a sum of some hundred terms
        slack = {name: 4 * eps * size for name, size in (largest or {}).items()}
    return _compared(partial(_results, loss, options), leaves, options, slack)


def _compared(call, leaves, options, slack, reached=None):
    """Returns a function that compares results, or that what the reference refuses is refused.

    Args:
        call: returns the results of the inputs by a backend, by name.
        slack: by how much rounding may change each result, beside what it makes of the inputs.
        reached: which numbers of each result depend on one that is not finite.
    """
    narrow = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    reference, own = (lambda x, by=by: call(x, by) for by in ("reference", "cpu"))
    exact = [x.double() for x in leaves]
    eps = infonce.rounding(narrow, options)
    try:
        truth = reference(exact)
        pytorch = reference(leaves)
    except RuntimeError as error:
        return partial(_is_refused, lambda: own(leaves), str(error))
    terms = sensitivity(reference, exact, 16 * eps)
    reached = reached or _reached(reference, exact)

    def compare():
        torch.set_float32_matmul_precision(options.get("precision", "highest"))
        try:
            found = own(leaves)
        finally:
            torch.set_float32_matmul_precision("highest")
        for name, x in found.items():
            if x.is_floating_point():
                term = terms[name].nan_to_num() + max(SLACK[narrow], eps, slack.get(name, 0.0))
                term = term.masked_fill(reached[name] & ~x.isfinite(), torch.inf)
                assert_close(x, truth[name], pytorch[name], narrow, term, name)

    return compare


def _reached(reference, leaves):
    """Returns which results depend on a number that is not finite: they differ between two others
    in its place.
    """
    low, high = (
        reference([torch.where(x.isfinite(), x, number) for x in leaves]) for number in (-1e4, 1e4)
    )
    return {name: x != high[name] for name, x in low.items()}


def _results(loss, options, leaves, backend):
    """Returns the loss and its gradients by name."""
    held = [x.detach().requires_grad_("no_grad" not in options) for x in leaves]
    value = loss(held, backend)
    if not value.requires_grad:
        return {"loss": value}
    # 0 asks for no gradient
    upstream = torch.linspace(*UPSTREAM, value.numel(), dtype=value.dtype).view(value.shape)
    gradients = torch.autograd.grad(
        value, held, upstream if value.dim() else None, allow_unused=True
    )
    found = {f"gradient {number}": g for number, g in enumerate(gradients) if g is not None}
    return {"loss": value.detach()} | found


def _is_refused(call, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call()


OPS = {"sigmoid": sigmoid, "targets": targets, "infonce_spoiled": infonce_spoiled}
