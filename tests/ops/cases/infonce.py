"""The loss ``adaptive_infonce`` against its float64 reference.

Shapes: B rows, N candidates, d width.
"""

import math

import torch
from torch import Tensor

import adaftr_fast as af
from adaftr_fast.ops.infonce.arguments import append_bias, product_dtype, row_scale
from adaftr_fast.ops.infonce.reference import IGNORE
from tests.ops.cases.inputs import assert_close, laid

NAMES = ("h_ctr", "h_cvr", "tau", "tau per column", "row_weight", "column_bias")
OF_A_ROW = ("lse", "positive_logit", "entropy")
# relative errors of a product, with a margin
PRODUCTS = {"highest": 2.0**-22, "high": 2.0**-14, "medium": 2.0**-6}


def problem(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    rows = sizes["rows"]
    columns = sizes["columns"]
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

    def compare():
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


def is_valid(sizes, options):
    """Returns whether the options go together."""
    one_direction = {"column_bias", "ignore_above"} & options.keys()
    paired = "positive" in options or sizes["columns"] >= sizes["rows"]
    return sizes["width"] > 0 and paired and not ("symmetric" in options and one_direction)


def drawn_leaves(rows, columns, width, options):
    """Returns h_ctr, h_cvr, both temperatures, the weights and the bias."""
    spread = options.get("spread", 1.0)
    pattern = options.get("pattern")
    a = torch.randn(rows, width, dtype=torch.float64) * spread**0.5 * width**-0.25
    b = torch.randn(columns, width, dtype=torch.float64) * spread**0.5 * width**-0.25
    if pattern == "equal rows":
        a = a[:1].expand(a.shape)
        b = b[:1].expand(b.shape)
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


def drawn_arguments(rows, columns, options):
    found = {}
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


def clear_margin(exact, arguments, options, dtype):
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
    valid = y != IGNORE
    y = y.clamp(min=0)
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


def _product_error(dtype, options):
    """Returns the relative error of a dot product of a type."""
    if dtype == torch.float32 and "own_precision" not in options:
        return PRODUCTS[options.get("precision", "highest")]
    return 2.0**-50 if dtype == torch.float64 else 2.0**-22


def rounding(dtype, options):
    """Returns the relative error of a product, or of a stored probability if that is greater."""
    return max(
        _product_error(dtype, options),
        {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}.get(dtype, 0.0),
    )


def is_computable(exact, arguments, dtype):
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


def results(leaves, arguments, upstream, options, dtype, backend):
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


def _second(gradients, wanted):
    """Returns the gradients of a weighted sum of the gradients."""
    total = sum((g * torch.linspace(-1, 1, g.numel()).to(g).view(g.shape)).sum() for g in gradients)
    if not total.requires_grad:
        return {}
    second = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {f"dd {name}": g for name, g in zip(wanted, second) if g is not None}


def conditions(exact, arguments, upstream, options, dtype):
    """Returns the error that rounding causes in each result, and whether rounding may decide
    ``top1`` [B].

    The reference gives the derivative in each score of S [B, N], as that in the anchors where these
    are S and the candidates are the unit vectors. Rounding moves a logit by ``delta`` and a
    probability by the part ``wrong`` of itself; a gradient adds up the derivatives' errors.
    """
    a, b, *taus, weight, bias = exact
    if not len(a) or not len(b):
        zero = torch.zeros((), dtype=torch.float64)
        return dict.fromkeys(("loss", *OF_A_ROW, *(f"d {name}" for name in NAMES)), zero), zero
    if "tau_kind" in options:
        taus = [tau[0].expand(len(tau)) for tau in taus]
    given = {name: x for name, x in options.items() if name not in ("frozen", "no_grad", "twice")}
    unit = torch.eye(len(b), dtype=torch.float64)

    def derived(scores):
        leaves = [scores, unit, *exact[2:]]
        return results(leaves, arguments, upstream, given, torch.float64, "reference")

    tau = taus[0] if "symmetric" not in options else torch.stack([x.min() for x in taus]).min()
    tau = tau.view(-1, 1)
    scores = a @ b.T
    shift = bias if "column_bias" in options else torch.zeros_like(bias)
    product = _product_error(dtype, options)
    stored = rounding(dtype, options)
    largest = ((a.abs() @ b.abs().T) / tau + shift.abs()).amax(1)  # [B], of a logit
    delta = 4 * product * largest
    found = derived(scores)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    # relative error of a sum of the probabilities, in float64 that of the truth's sum besides
    sums = 2 if acc == torch.float64 else 1
    summed = sums * torch.finfo(acc).eps / 2 * len(b) ** 0.5
    wrong = torch.expm1(2 * delta.clamp(max=300)).clamp(max=1e6) + 2 * stored + summed
    kept = weight if "weight" in options else None
    reduction = arguments.get("reduction", "mean")
    scale = row_scale(a, arguments.get("positive_index"), kept, reduction, None)
    scale = (scale if upstream is None else scale * upstream).abs()
    scale = scale if "symmetric" not in options else scale.max().expand(len(a))
    most = 2 * scale[:, None] / tau
    # Where a logit may err by more than its distance to another, any probability is possible.
    derivative = found["d h_ctr"].abs()
    error = torch.minimum(derivative * wrong[:, None], most)
    error = torch.where(delta[:, None] > 0.1, most, error)
    # Probabilities, and their products with scale / tau, that are below the normal numbers count as
    # zero.
    lost = 4 * torch.finfo(acc).smallest_normal
    error = error + lost * most.max()
    of_tau = (
        error * ((scores / tau + shift).abs() + delta[:, None]) + 4 * delta[:, None] * derivative
    )
    # the probability of the others, or 1 where rounding may decide which has it
    others = (derivative * tau).sum(1) / scale.clamp(min=1e-300)
    near = torch.where(delta > 0.1, 1.0, (others * (1 + wrong)).clamp(max=1.0))
    of_loss = scale * (4 * near * delta + lost)
    terms = {
        "loss": (of_loss if reduction == "none" else of_loss.sum()) + stored * found["loss"],
        "lse": 4 * delta + stored * largest,
        "positive_logit": 4 * delta + product * largest,
        "d h_ctr": error @ b.abs(),
        "d h_cvr": error.T @ a.abs(),
        "d tau": of_tau.sum(1 if "tau_kind" not in options else (0, 1)),
        "d tau per column": of_tau.sum(),
        "d column_bias": (error * tau).sum(0),
    }
    if "symmetric" in options:
        return terms, delta
    entropy = 4 * (wrong * found["entropy"] + delta)
    terms["entropy"] = torch.where(delta > 0.1, math.log(len(b)) + 1, entropy)
    y = arguments.get("positive_index", torch.arange(len(a))).clamp(min=0)[:, None]
    moved = [
        derived(scores.scatter_add(1, y, way * (8 * delta[:, None] + 1e-300) * tau))["top1"]
        for way in (-1, 1)
    ]
    return terms, moved[0] != moved[1]


OPS = {"infonce": problem}
