"""The loss ``adaptive_infonce`` against its float64 reference.

Shapes: B rows, N candidates, d width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import adaftr_fast as af
from adaftr_fast.ops.infonce.arguments import append_bias, product_dtype, reverse, row_scale
from adaftr_fast.ops.infonce.blocks import block_rows
from adaftr_fast.ops.infonce.candidates import Direction
from adaftr_fast.ops.infonce.reference import IGNORE, infonce_rows
from tests.chaos.ops.inputs import assert_close, laid

NAMES = ("h_ctr", "h_cvr", "tau", "tau per column", "row_weight", "column_bias")
# relative errors of a product, with a margin
PRODUCTS = {"highest": 2.0**-22, "high": 2.0**-14, "medium": 2.0**-6}


def problem(sizes: dict[str, int], options: dict[str, Any]) -> Callable[[], None] | None:
    """Returns a function that compares, or None if the case is not valid."""
    rows, columns = sizes["rows"], sizes["columns"]
    if not is_valid(sizes, options):
        return None
    leaves = drawn_leaves(rows, columns, sizes["width"], options)
    arguments = drawn_arguments(rows, columns, options)
    upstream = (
        torch.randn(rows, dtype=torch.float64) if options.get("reduction") == "none" else None
    )
    exact = [x.detach().double() for x in leaves]
    products = product_dtype(leaves[0], leaves[1], options.get("own_precision", "auto"))
    narrow = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
    narrow = products if products == torch.bfloat16 else narrow  # of the results
    if not is_computable(exact, arguments, leaves[0].dtype):
        return None
    if "ignore_above" in options:
        arguments["ignore_above"] = clear_margin(exact, arguments, options, products)
        if arguments["ignore_above"] is None:
            return None
    truth = results(exact, arguments, upstream, options, torch.float64, "reference")
    pytorch = results(leaves, arguments, upstream, options, None, "reference")
    terms, doubt = conditions(exact, arguments, upstream, options, products)

    def compare() -> None:
        torch.set_float32_matmul_precision(options.get("precision", "highest"))
        try:
            own = results(leaves, arguments, upstream, options, None, "cpu")
            again = results(leaves, arguments, upstream, options, None, "cpu")
        finally:
            torch.set_float32_matmul_precision("highest")
        for name, x in own.items():
            assert x.equal(again[name]), f"{name}: other bits in a second call"
            if x.dtype == torch.bool:
                assert x.equal(truth[name]) or bool(doubt[x != truth[name]].all()), name
            elif name in terms:
                assert_close(x, truth[name], pytorch[name], narrow, terms[name].nan_to_num(), name)

    return compare


def is_valid(sizes: dict[str, int], options: dict[str, Any]) -> bool:
    """Returns whether the options go together."""
    one_direction = {"column_bias", "ignore_above"} & options.keys()
    paired = "positive" in options or sizes["columns"] >= sizes["rows"]
    return sizes["width"] > 0 and paired and not ("symmetric" in options and one_direction)


def drawn_leaves(rows: int, columns: int, width: int, options: dict[str, Any]) -> list[Tensor]:
    """Returns h_ctr, h_cvr, both temperatures, the weights and the bias."""
    spread, pattern = options.get("spread", 1.0), options.get("pattern")
    a = torch.randn(rows, width, dtype=torch.float64) * spread**0.5 * width**-0.25
    b = torch.randn(columns, width, dtype=torch.float64) * spread**0.5 * width**-0.25
    if pattern == "equal rows":
        a, b = a[:1].expand(a.shape), b[:1].expand(b.shape)
    elif pattern == "jump" and rows:
        b[-1:] = 30 * a.mean(0)
    elif pattern == "positive":
        b[:rows] += 5 * a[:columns]
    elif pattern == "far":
        b[:rows] -= 5 * a[:columns]
    taus = [torch.rand(n, dtype=torch.float64) + 0.05 for n in (rows, columns)]
    if "tau" in options:
        taus = [tau * options["tau"] for tau in taus]
    weight = torch.rand(rows, dtype=torch.float64)
    if options.get("weight") in ("some zero", "all zero"):
        weight = weight * (torch.arange(rows) % 3 > 0) * (options["weight"] == "some zero")
    types = [getattr(torch, options.get("dtype", "float32"))] * 2
    types[1] = getattr(torch, options["other_dtype"]) if "other_dtype" in options else types[0]
    wide = torch.float64 if torch.float64 in types else torch.float32
    # the truth takes the numbers that the loss rounds to
    if options.get("own_precision") == "bfloat16":
        a, b = (x.to(dtype).bfloat16() for x, dtype in zip((a, b), types))
    layouts = [options.get(f"layout_{name}") for name in ("a", "b", "tau")]
    made = [laid(x.to(dtype), layout) for x, dtype, layout in zip((a, b), types, layouts)]
    bias = torch.randn(columns, dtype=torch.float64) * options.get("column_bias", 1.0)
    return [
        *made,
        *(laid(tau.to(wide), layouts[2]) for tau in taus),
        weight.to(wide),
        bias.to(wide),
    ]


def drawn_arguments(rows: int, columns: int, options: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kind = options.get("positive")
    if kind is not None:
        positive = torch.randint(0, max(1, columns), (rows,))
        if kind == "some ignored":
            positive[torch.rand(rows) < 0.3] = IGNORE
        if kind == "all ignored" or not columns:
            positive[:] = IGNORE
        found["positive_index"] = positive * 0 if kind == "one" and columns else positive
    if "groups" in options:
        found["row_group"] = torch.randint(0, options["groups"], (rows,))
        if columns != rows or "columns_grouped" in options:
            found["column_group"] = torch.randint(0, options["groups"], (columns,))
    if "block" in options and columns == rows:
        found["block"] = options["block"]
    return found | {name: options[name] for name in ("symmetric", "reduction") if name in options}


def clear_margin(
    exact: list[Tensor], arguments: dict[str, Any], options: dict[str, Any], dtype: torch.dtype
) -> float | None:
    """Returns a margin from which every candidate is further than rounding moves it, or None.

    It is the middle of a wide gap between the candidates' similarities, less that of the positive,
    near the quantile ``options["ignore_above"]``.
    """
    a, b, tau, *_, bias = exact
    if "tau_kind" in options and len(a):
        tau = tau[0].expand(len(a))
    if "column_bias" in options:
        a, b = append_bias(a, b, tau, bias)
    y = arguments.get("positive_index", torch.arange(len(a)))
    valid, y = y != IGNORE, y.clamp(min=0)
    if not valid.any():
        return 0.5
    s = (a @ b.T)[valid]
    above = s - s.gather(1, y[valid][:, None])
    found = above[torch.arange(len(b)) != y[valid][:, None]].sort().values
    low, high = (int((options["ignore_above"] + shift) * len(found)) for shift in (-0.1, 0.1))
    near = found[low : high + 2]
    if len(near) < 2:
        return 0.5 if not len(found) else float(found[-1]) + 1 + float(found[-1].abs())
    widest = near.diff().argmax()
    error = 16 * _product_error(dtype, options) * float((a.abs() @ b.abs().T).max())
    return float(near[widest : widest + 2].mean()) if near.diff()[widest] > 2 * error else None


def _product_error(dtype: torch.dtype, options: dict[str, Any]) -> float:
    """Returns the relative error of a dot product of a type."""
    if dtype == torch.float32 and "own_precision" not in options:
        return PRODUCTS[options.get("precision", "highest")]
    return 2.0**-50 if dtype == torch.float64 else 2.0**-22


def rounding(dtype: torch.dtype, options: dict[str, Any]) -> float:
    """Returns the relative error of a product, or of a stored probability if that is greater."""
    return max(
        _product_error(dtype, options),
        {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}.get(dtype, 0.0),
    )


def counts(leaves: list[Tensor], arguments: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Returns whether each row is part of the loss [B]: a row that is ignored or has no weight is
    not.
    """
    weighted = (
        leaves[4] != 0 if "weight" in options else torch.ones(len(leaves[0]), dtype=torch.bool)
    )
    return (
        weighted & (arguments["positive_index"] != IGNORE)
        if "positive_index" in arguments
        else weighted
    )


def is_computable(exact: list[Tensor], arguments: dict[str, Any], dtype: torch.dtype) -> bool:
    """Returns whether all logits are far below the largest float32, and the inputs are finite in
    ``dtype``.
    """
    a, b, *taus, _, bias = exact
    if not len(a) or not len(b):
        return True
    if not (a.isfinite().all() and b.isfinite().all()):
        return False
    # a gradient in the dimension of tau
    if dtype == torch.float16 and bias.abs().max() / taus[0].min() > 1e4:
        return False
    largest = a.abs().max() * b.abs().max() * a.shape[1] / min(tau.min() for tau in taus)
    return bool(largest < 1e30)


def results(
    leaves: list[Tensor],
    arguments: dict[str, Any],
    upstream: Tensor | None,
    options: dict[str, Any],
    dtype: torch.dtype | None,
    backend: str,
) -> dict[str, Tensor]:
    """Returns the loss, the statistics and the gradients by name."""
    frozen = options.get("frozen", "").split()
    held = [x.detach() if dtype is None else x.detach().to(dtype) for x in leaves]
    needed = [name not in frozen for name in ("a", "b", "tau")]
    for x, need in zip(held, [*needed, needed[2], True, True]):
        x.requires_grad_(need)
    h_ctr, h_cvr, *taus, weight, bias = held
    kind = options.get("tau_kind")
    if kind is not None:
        taus = [
            leaves_tau.detach()[0] if len(leaves_tau) else leaves_tau.new_ones(())
            for leaves_tau in taus
        ]
        taus = [float(tau) if kind == "scalar" else tau.requires_grad_(needed[2]) for tau in taus]
    given = dict(arguments) | ({"row_weight": weight} if "weight" in options else {})
    given |= {"column_bias": bias} if "column_bias" in options else {}
    if (
        "own_precision" in options
        and dtype is None
        and (backend == "cpu" or options["own_precision"] == "bfloat16")
    ):
        given["precision"] = options["own_precision"]
    with torch.set_grad_enabled("no_grad" not in options):
        # without statistics, both directions may share their similarities
        if options.get("symmetric"):
            loss = af.adaptive_infonce(h_ctr, h_cvr, tuple(taus), backend=backend, **given)
            found = {"loss": loss.detach()}
        else:
            loss, stats = af.adaptive_infonce(
                h_ctr, h_cvr, taus[0], return_stats=True, backend=backend, **given
            )
            found = {"loss": loss.detach(), **stats._asdict()}
    wanted = {
        name: x
        for name, x in zip(NAMES, (h_ctr, h_cvr, *taus, weight, bias))
        if isinstance(x, Tensor)
    }
    wanted = {name: x for name, x in wanted.items() if x.requires_grad}
    if loss.requires_grad:
        sent = None if upstream is None else upstream.to(loss.dtype)
        twice = "twice" in options
        gradients = torch.autograd.grad(
            loss, list(wanted.values()), sent, allow_unused=True, create_graph=twice
        )
        first = {f"d {name}": g for name, g in zip(wanted, gradients) if g is not None}
        found |= {name: g.detach() for name, g in first.items()}
        if twice:
            found |= _second(list(first.values()), wanted)
    return found


def _second(gradients: list[Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the gradients of a weighted sum of the gradients."""
    total = sum((g * torch.linspace(-1, 1, g.numel()).to(g).view(g.shape)).sum() for g in gradients)
    if not total.requires_grad:
        return {}
    second = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {f"dd {name}": g for name, g in zip(wanted, second) if g is not None}


def conditions(
    exact: list[Tensor],
    arguments: dict[str, Any],
    upstream: Tensor | None,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the error that rounding causes in each result, and whether rounding may decide
    ``top1`` [B].
    """
    a, b, tau, tau_column, weight, bias = exact
    if "tau_kind" in options and len(a) and len(b):
        tau, tau_column = tau[0].expand(len(a)), tau_column[0].expand(len(b))
    positive, row_group = arguments.get("positive_index"), arguments.get("row_group")
    column_group = arguments.get("column_group", row_group)
    kept = weight if "weight" in options else None
    scale = row_scale(a, positive, kept, arguments.get("reduction", "mean"), None)
    scale = (scale if upstream is None else scale * upstream).abs()
    if "column_bias" in options:
        a, b = append_bias(a, b, tau, bias)
    margin = arguments.get("ignore_above")
    one = _direction(a, b, tau, positive, row_group, column_group, scale, options, dtype, margin)
    terms = {"loss": one["loss"], "h_ctr": one["a"], "h_cvr": one["b"], "tau": one["tau"]}
    if "column_bias" in options:
        terms |= {
            "h_ctr": one["a"][:, :-1],
            "h_cvr": one["b"][:, :-1],
            "tau": one["tau"] + one["a"][:, -1],
        }
        terms["column_bias"] = one["b"][:, -1]
    if options.get("symmetric"):
        forth = Direction(a, b, positive, tau, row_group, column_group)
        back = reverse(forth, tau_column)
        groups = back.row_group, back.column_group
        two = _direction(back.anchors, a, back.tau, back.positive, *groups, scale, options, dtype)
        terms["loss"] = terms["loss"] + two["loss"]
        if len(a) and len(b):
            terms["h_ctr"] = terms["h_ctr"].max() + two["b"].max()
            terms["h_cvr"] = terms["h_cvr"].max() + two["a"].sum(0).max()
        terms["tau per column"] = two["tau"].sum()
    if "tau_kind" in options:
        terms = {name: x.sum() if name.startswith("tau") else x for name, x in terms.items()}
    if arguments.get("reduction") != "none":
        terms["loss"] = terms["loss"].sum()
    found = {name if name == "loss" else f"d {name}": x for name, x in terms.items()}
    found |= {name: one[name] for name in ("lse", "positive_logit", "entropy")}
    return found, one["doubt"]


def _direction(
    a: Tensor,
    b: Tensor,
    tau: Tensor,
    positive: Tensor | None,
    row_group: Tensor | None,
    column_group: Tensor | None,
    scale: Tensor,
    options: dict[str, Any],
    dtype: torch.dtype,
    margin: float | None = None,
) -> dict[str, Tensor]:
    """Returns the errors of one direction, from the relative error of a product and of a stored
    probability.
    """
    if not len(a) or not len(b):
        names = ("loss", "lse", "positive_logit", "entropy", "tau", "doubt")
        return {name: a.new_zeros(len(a)) for name in names} | {"a": a * 0, "b": b * 0}
    product, stored = _product_error(dtype, options), rounding(dtype, options)
    y = torch.arange(len(a)) if positive is None else positive
    valid, y = y != IGNORE, y.clamp(min=0)
    z = a @ b.T / tau[:, None]
    # [B], error of a logit
    delta = product * ((a.abs() @ b.abs().T) / tau[:, None]).max(1).values * 4
    negative = torch.arange(len(b)) != y[:, None]
    if row_group is not None and column_group is not None:
        negative &= row_group[:, None] != column_group[None]
    if margin is not None:
        negative &= ~(z * tau[:, None] > (z * tau[:, None]).gather(1, y[:, None]) + margin)
    block = options["block"] if "block" in options and len(a) == len(b) else max(len(a), len(b))
    negative &= torch.arange(len(a))[:, None] // block == torch.arange(len(b)) // block
    masked = torch.where(negative.scatter(1, y[:, None], True), z, -torch.inf)
    p = masked.softmax(1)
    near = torch.where(negative, p, 0).sum(1)  # 1 - p of the positive
    residual = torch.where(negative, p, 0).scatter(1, y[:, None], near[:, None])
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    # relative error of a sum of the probabilities
    summed = torch.finfo(acc).eps / 2 * len(b) ** 0.5
    # of a probability
    wrong = torch.expm1(2 * delta.clamp(max=300)).clamp(max=1e6) + 2 * stored + summed
    near = (near * (1 + wrong)).clamp(max=1.0)
    # Where a logit may err by more than its distance to another, any probability is possible.
    coefficient = torch.where(delta[:, None] > 0.1, 2.0, (residual * wrong[:, None]).clamp(max=2.0))
    coefficient = torch.where(valid[:, None], coefficient * (scale / tau)[:, None], 0)  # [B, N]
    # Probabilities, and their products with scale / tau, that are below the normal numbers count as
    # zero.
    lost = 4 * torch.finfo(acc).smallest_normal
    coefficient = coefficient + lost * torch.where(valid, scale / tau, 0).max()
    gaps = torch.where(negative, z, -torch.inf).amax(1) - z.gather(1, y[:, None])[:, 0]
    sizes = z.abs() + delta[:, None]
    largest = sizes.max(1).values
    count = torch.tensor(float(len(b))).log() + 1
    rows = infonce_rows(a, b, tau, positive, row_group, column_group, margin)
    if block < len(b):
        rows = block_rows(a, b, tau, block)
    of_loss = torch.where(delta > 0.1, 1.0, near) * delta + stored * rows.loss
    return {
        "loss": torch.where(valid, scale * (4 * of_loss + lost), 0),
        "lse": 4 * delta + stored * largest,
        "positive_logit": 4 * delta + product * largest,
        "entropy": torch.where(delta > 0.1, count, 4 * (wrong * rows.entropy + delta)),
        "a": coefficient @ b.abs(),
        "b": coefficient.T @ a.abs(),
        "tau": (coefficient * sizes).sum(1) + (scale / tau * near * delta * 4),
        "doubt": gaps.abs() <= 8 * delta + 1e-300,
    }
