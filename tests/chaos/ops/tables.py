"""Look-ups and bags of the embedding, and their gradients, against the reference.

Shapes: B rows, F fields, E width, N ids of all bags.
"""

from itertools import pairwise

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import missed_steps, stored
from adaftr_fast.ops.embedding.bags import embedding_bags, select_bags
from adaftr_fast.ops.embedding.lookup import fused_embedding
from adaftr_fast.ops.embedding.reference import bags as bag_reference
from adaftr_fast.ops.embedding.reference import lookup as reference
from tests.chaos.ops.inputs import assert_close, laid, spoiled


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


def refuses(call):
    """Asserts that a bad id is named."""
    with pytest.raises(IndexError, match="out of range for field"):
        call()


def lookup(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    fields, rows = sizes["fields"], sizes["rows"]
    if sizes["width"] < 1:
        return None
    starts = starts_of(fields)
    weight, state = table(sizes, options)
    ids = random_ids(fields, rows, options).to(getattr(torch, options.get("ids", "int64")))
    bad = spoil(ids, torch.tensor(fields).expand(ids.shape), options)
    ids = laid(ids, options.get("layout_ids"))
    bad = bad and bool(((ids < 0) | (ids >= torch.tensor(fields))).any())
    grad = torch.randn(rows, len(fields) * sizes["width"]).to(weight.dtype)
    weight, grad = spoiled({"weight": weight, "grad": grad}, options).values()
    grad = laid(grad, options.get("layout_grad"))

    def call():
        leaf = weight.clone().requires_grad_("no_grad" not in options)
        out = fused_embedding(leaf, ids, starts, state)
        return out, leaf

    def compare():
        if bad:
            return refuses(call)
        out, leaf = call()
        if state:
            truth = reference_current(weight, ids, starts, state)
            assert_close(out.detach(), *truth, weight.dtype, truth[0].new_zeros(()), "look-up")
        else:
            rows_of_ids = reference.fused_embedding(weight, ids, starts)
            assert out.detach().nan_to_num(7).equal(rows_of_ids.nan_to_num(7)), (
                "look-up: not the rows"
            )
        if not out.requires_grad:
            return
        out.backward(grad)
        compare_gradient(
            leaf.grad,
            lambda g: reference.fused_embedding_backward(g, ids, starts, sizes["width"]),
            grad,
        )

    return compare


def reference_current(weight, ids, starts, state):
    """Returns the current rows of a deferred Adam in float64, and in the type of the table."""
    look_up = reference.fused_embedding
    return look_up(weight.double(), ids, starts, widened(state)), look_up(
        weight, ids, starts, state
    )


def compare_gradient(found, merge, grad, *factors):
    """Compares a sparse gradient with ``merge`` in float64, a function of the gradient and of the
    ids' factors.
    """
    rows, truth = merge(grad.double(), *factors)
    _, own = merge(grad, *factors)
    _, terms = merge(
        grad.double().abs(), *(None if each is None else each.abs() for each in factors)
    )
    assert found._indices()[0].equal(rows), "rows of the gradient"
    rounding = torch.finfo(grad.dtype).eps
    assert_close(found._values(), truth, own, grad.dtype, terms * 4 * rounding, "gradient")


def bags(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    fields, rows = sizes["fields"], sizes["rows"]
    if sizes["width"] < 1:
        return None
    starts = starts_of(fields)
    weight, state = table(sizes, options)
    counts = torch.randint(0, sizes["longest"] + 1, (rows * len(fields),))
    offsets = starts_of(counts.tolist())
    field = (torch.arange(len(counts)) % len(fields)).repeat_interleave(counts)
    limits = torch.tensor(fields)[field]
    values = (
        torch.rand(len(field), dtype=torch.float64)
        * limits.clamp(max=options.get("distinct", 10**9))
    ).long()
    values = values.to(getattr(torch, options.get("ids", "int64")))
    factors = None
    if "weights" in options:
        factors = torch.randn(len(values)).to(
            torch.float64 if weight.dtype == torch.float64 else torch.float32
        )
        if options["weights"] == "some zero":
            factors *= torch.rand(len(values)) < 0.5
    bad = spoil(values, limits, options)
    layout = options.get("layout_ids") if options.get("layout_ids") != "expanded" else None
    values, offsets = laid(values, layout), laid(offsets, options.get("layout_offsets"))
    mean = options.get("mean", False)
    grad = torch.randn(rows, len(fields) * sizes["width"]).to(weight.dtype)
    floats = {"weight": weight, "grad": grad} | ({} if factors is None else {"factors": factors})
    weight, grad, *rest = spoiled(floats, options).values()
    factors = laid(rest[0], layout) if rest else None
    grad = laid(grad, options.get("layout_grad"))
    arguments = (values, offsets, factors, starts)

    def call():
        leaf = weight.clone().requires_grad_("no_grad" not in options)
        return embedding_bags(leaf, *arguments, mean, state), leaf

    def compare():
        if bad:
            return refuses(call)
        out, leaf = call()
        pooled = bag_reference.embedding_bags
        truth = pooled(weight.double(), *arguments, mean, widened(state))
        own = pooled(weight, *arguments, mean, state)
        positive = (values, offsets, None if factors is None else factors.abs(), starts)
        terms = pooled(weight.double().abs(), *positive, mean, [])
        rounding = torch.finfo(weight.dtype).eps
        assert_close(out.detach(), truth, own, weight.dtype, terms * 4 * rounding, "pooled")
        if not out.requires_grad:
            return
        out.backward(grad)

        def merge(g, factors):
            return bag_reference.embedding_bags_backward(
                g, values, offsets, factors, starts, sizes["width"], mean
            )

        compare_gradient(leaf.grad, merge, grad, factors)

    return compare


def select(sizes, options):
    """Returns a function that compares the selection of some fields' bags with a loop over all
    bags.
    """
    fields, rows = sizes["fields"], sizes["rows"]
    counts = torch.randint(0, sizes["longest"] + 1, (rows * fields,))
    offsets = starts_of(counts.tolist())
    values = torch.randint(0, 9, (int(offsets[-1]),)).to(
        getattr(torch, options.get("ids", "int64"))
    )
    factors = torch.randn(len(values)) if "weights" in options else None
    chosen = [
        field for field in range(fields) if float(torch.rand(())) < options.get("chosen", 0.5)
    ]
    positions, ends = [], [0]
    for bag, (start, end) in enumerate(pairwise(offsets.tolist())):
        if bag % fields in chosen:
            positions += range(start, end)
            ends.append(len(positions))
    fault = options.get("fault")
    if fault is not None:
        values, offsets, factors = _wrong_bags(values, offsets, factors, fault)
    layout = options.get("layout_ids") if options.get("layout_ids") != "expanded" else None
    values, offsets = laid(values, layout), laid(offsets, options.get("layout_offsets"))
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


OPS = {"lookup": lookup, "bags": bags, "select": select}
