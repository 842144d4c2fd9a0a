"""Look-ups and bags of the embedding, and their gradients, against the reference.

Shapes: B rows, F fields, E width, N ids of all bags.
"""

from itertools import pairwise

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import missed_steps, stored
from adaftr_fast.ops.embedding.bags import embedding_bags, select_bags
from adaftr_fast.ops.embedding.lookup import embedding_and_squares, fused_embedding
from adaftr_fast.ops.embedding.reference import bags as bag_reference
from adaftr_fast.ops.embedding.reference import lookup as reference
from tests.ops.cases.inputs import assert_close, laid, spoiled


def starts_of(counts):
    """Returns where each of consecutive parts starts, such as the rows of a field, and where the
    last one ends.
    """
    return torch.tensor([0, *counts]).cumsum(0)


def random_ids(fields, rows, options):
    """Returns ids [B, F], of which a part lies at the end of its field."""
    limit = options.get("distinct", max(fields))
    ids = torch.stack([torch.randint(0, min(n, limit), (rows,)) for n in fields], 1)
    last = torch.tensor(fields) - 1
    return torch.where(torch.rand(ids.shape) < 0.1, last, ids)


def table(sizes, options):
    """Returns a table, and the state of an Adam whose rows have missed steps, [] without one."""
    dtype = getattr(torch, options.get("dtype", "float32"))
    if "missed" not in options or dtype in (torch.float16, torch.bfloat16):
        return (torch.randn(sum(sizes["fields"]), sizes["width"]) * options.get("spread", 1.0)).to(
            dtype
        ), []
    embedding = FusedEmbedding(sizes["fields"], sizes["width"], dtype=dtype)
    optimizer = optim.Adam(embedding, lr=0.1)
    for _ in range(options["missed"]):
        optimizer.zero_grad()
        embedding(random_ids(sizes["fields"], 3, {})).sin().sum().backward()
        optimizer.step()
    steps = missed_steps(embedding.weight)
    return stored(embedding.weight), [] if steps is None else steps.tensors


def widened(state):
    return [x.double() if x.is_floating_point() else x for x in state]


def spoil(ids, limits, options):
    """Replaces an id by a bad one where the case says so; returns whether it does. ``limits`` are
    those of each id.
    """
    if "bad" not in options or not ids.numel():
        return False
    place = int(torch.randint(0, ids.numel(), ()))
    bad = limits.flatten()[place] if options["bad"] == "last" else options["bad"]
    ids.view(-1)[place] = bad
    return True


def comparison(function, pooled, merge, weight, state, grad, factors, bad, exact, options):
    """Returns a function that compares.

    Args:
        function: what a table gives.
        pooled: the same by the reference, of a table, the factors of its ids and a state.
        merge: the rows of the gradient and their values by the reference, of the upstream gradient
            and the factors.
        bad: whether an id is out of range.
        exact: whether the results are the rows themselves.
    """
    positive = None if factors is None else factors.abs()
    rounding = torch.finfo(grad.dtype).eps

    def call():
        leaf = weight.clone().requires_grad_("no_grad" not in options)
        return function(leaf), leaf

    def compare():
        if bad:
            with pytest.raises(IndexError, match="out of range for field"):
                call()
            return
        out, leaf = call()
        truth = pooled(weight.double(), factors, widened(state))
        own = pooled(weight, factors, state)
        if exact:
            assert out.detach().nan_to_num(7).equal(own.nan_to_num(7)), "look-up: not the rows"
        terms = pooled(weight.double().abs(), positive, []) * 4 * rounding
        assert_close(out.detach(), truth, own, weight.dtype, terms, "pooled")
        if not out.requires_grad:
            return
        out.backward(grad)
        rows, truth = merge(grad.double(), factors)
        _, own = merge(grad, factors)
        _, terms = merge(grad.double().abs(), positive)
        assert leaf.grad._indices()[0].equal(rows), "rows of the gradient"
        terms = terms * 4 * rounding
        assert_close(leaf.grad._values(), truth, own, grad.dtype, terms, "gradient")

    return compare


def lookup(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    fields = sizes["fields"]
    rows = sizes["rows"]
    width = sizes["width"]
    if width < 1:
        return None
    starts = starts_of(fields)
    weight, state = table(sizes, options)
    ids = random_ids(fields, rows, options).to(getattr(torch, options.get("ids", "int64")))
    spoil(ids, torch.tensor(fields).expand(ids.shape), options)
    ids = laid(ids, options.get("layout_ids"))
    bad = bool(((ids < 0) | (ids >= torch.tensor(fields))).any())
    grad = torch.randn(rows, len(fields) * width).to(weight.dtype)
    weight, grad = spoiled({"weight": weight, "grad": grad}, options).values()
    grad = laid(grad, options.get("layout_grad"))

    def rows_of(weight, _, state):
        return reference.fused_embedding(weight, ids, starts, state)

    def merge(g, _):
        return reference.fused_embedding_backward(g, ids, starts, width)

    def function(leaf):
        return fused_embedding(leaf, ids, starts, state)

    return comparison(function, rows_of, merge, weight, state, grad, None, bad, not state, options)


def squares(sizes, options):
    """Returns a function that compares the look-up with the sum of its squares, and its gradient."""
    fields = sizes["fields"]
    rows = sizes["rows"]
    width = sizes["width"]
    starts = starts_of(fields)
    weight, state = table(sizes, options)
    ids = random_ids(fields, rows, options).to(getattr(torch, options.get("ids", "int64")))
    ids = laid(ids, options.get("layout_ids"))
    grad = torch.randn(rows, len(fields) * width).to(weight.dtype)
    weight, grad = spoiled({"weight": weight, "grad": grad}, options).values()
    grad = laid(grad, options.get("layout_grad"))
    factor = torch.randn((), dtype=weight.dtype)
    if "only" in options:  # one of the results has a gradient
        (grad if options["only"] == "squares" else factor).zero_()

    def results(cast):
        looked_up = reference.fused_embedding(cast(weight), ids, starts, [cast(x) for x in state])
        merged = reference.embedding_and_squares_backward(
            cast(grad), ids, starts, width, looked_up, cast(factor)
        )
        return [looked_up, looked_up.square().sum(), *merged]

    def absolute(x):
        return widened([x])[0].abs() if x is grad or x is factor else widened([x])[0]

    truth = results(lambda x: widened([x])[0])
    pytorch = results(lambda x: x)
    merged = reference.embedding_and_squares_backward(
        absolute(grad), ids, starts, width, truth[0].abs(), absolute(factor)
    )[1]
    bounds = (truth[0].abs(), truth[1], None, merged)

    def compare():
        leaf = weight.clone().requires_grad_()
        own = embedding_and_squares(leaf, ids, starts, state)
        sent = {"output": (own[0], grad), "squares": (own[1], factor)}
        only = options.get("only")
        torch.autograd.backward(*zip(*(sent.values() if only is None else [sent[only]])))
        assert leaf.grad._indices()[0].equal(truth[2]), "rows of the gradient"
        found = [*(x.detach() for x in own), None, leaf.grad._values()]
        for x, true, theirs, bound in zip(found, truth, pytorch, bounds):
            if x is not None:
                terms = bound * 8 * torch.finfo(x.dtype).eps
                assert_close(x, true, theirs, x.dtype, terms, f"result {list(true.shape)}")

    return compare


def bags(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    fields = sizes["fields"]
    rows = sizes["rows"]
    width = sizes["width"]
    if width < 1:
        return None
    starts = starts_of(fields)
    weight, state = table(sizes, options)
    counts = torch.randint(0, sizes["longest"] + 1, (rows * len(fields),))
    offsets = starts_of(counts.tolist())
    field = (torch.arange(len(counts)) % len(fields)).repeat_interleave(counts)
    limits = torch.tensor(fields)[field]
    drawn = torch.rand(len(field), dtype=torch.float64)
    values = (drawn * limits.clamp(max=options.get("distinct", 10**9))).long()
    values = values.to(getattr(torch, options.get("ids", "int64")))
    factors = None
    if "weights" in options:
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        factors = torch.randn(len(values)).to(wide)
        if options["weights"] == "some zero":
            factors *= torch.rand(len(values)) < 0.5
    bad = spoil(values, limits, options)
    layout = options.get("layout_ids") if options.get("layout_ids") != "expanded" else None
    values = laid(values, layout)
    offsets = laid(offsets, options.get("layout_offsets"))
    mean = options.get("mean", False)
    grad = torch.randn(rows, len(fields) * width).to(weight.dtype)
    floats = {"weight": weight, "grad": grad} | ({} if factors is None else {"factors": factors})
    weight, grad, *rest = spoiled(floats, options).values()
    factors = laid(rest[0], layout) if rest else None
    grad = laid(grad, options.get("layout_grad"))

    def pooled(weight, factors, state):
        return bag_reference.embedding_bags(weight, values, offsets, factors, starts, mean, state)

    def merge(g, factors):
        return bag_reference.embedding_bags_backward(
            g, values, offsets, factors, starts, width, mean
        )

    def function(leaf):
        return embedding_bags(leaf, values, offsets, factors, starts, mean, state)

    return comparison(function, pooled, merge, weight, state, grad, factors, bad, False, options)


def select(sizes, options):
    """Returns a function that compares the selection of some fields' bags with a loop over all
    bags.
    """
    fields = sizes["fields"]
    rows = sizes["rows"]
    counts = torch.randint(0, sizes["longest"] + 1, (rows * fields,))
    offsets = starts_of(counts.tolist())
    values = torch.randint(0, 9, (int(offsets[-1]),)).to(
        getattr(torch, options.get("ids", "int64"))
    )
    factors = torch.randn(len(values)) if "weights" in options else None
    chosen = [
        field for field in range(fields) if float(torch.rand(())) < options.get("chosen", 0.5)
    ]
    positions = []
    ends = [0]
    for bag, (start, end) in enumerate(pairwise(offsets.tolist())):
        if bag % fields in chosen:
            positions += range(start, end)
            ends.append(len(positions))
    fault = options.get("fault")
    if fault is not None:
        values, offsets, factors = _wrong_bags(values, offsets, factors, fault)
    layout = options.get("layout_ids") if options.get("layout_ids") != "expanded" else None
    values = laid(values, layout)
    offsets = laid(offsets, options.get("layout_offsets"))
    if fault is not None and _are_bags(values, offsets, factors, fields):
        return None

    def compare():
        if fault is not None:
            with pytest.raises(ValueError, match="embedding_bags: "):
                select_bags(values, offsets, factors, chosen, fields)
            return
        found, starts = select_bags(values, offsets, factors, chosen, fields)
        assert found.tolist() == positions, "positions"
        assert starts.tolist() == ends, "offsets"

    return compare


def _wrong_bags(values, offsets, factors, fault):
    """Returns bags with one fault."""
    if fault == "short offsets":
        return values, offsets[:-1], factors
    if fault == "other factors":
        return values, offsets, torch.randn(len(values) + 1)
    changed = offsets.clone()
    changed[int(torch.randint(0, len(offsets), ()))] = (
        -1 if fault == "negative" else len(values) + 5
    )
    return values, changed, factors


def _are_bags(values, offsets, factors, fields):
    rising = (
        bool((offsets.diff() >= 0).all()) and len(offsets) > 0 and (len(offsets) - 1) % fields == 0
    )
    ends = rising and int(offsets[0]) == 0 and int(offsets[-1]) == len(values)
    return ends and (factors is None or len(factors) == len(values))


OPS = {"lookup": lookup, "squares": squares, "bags": bags, "select": select}
