"""Look-ups and bags of the embedding, and their gradients, against the reference.

Shapes: B rows, F fields, E width, N ids of all bags.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.ops.embedding.bags import embedding_bags
from adaftr_fast.ops.embedding.lookup import fused_embedding
from adaftr_fast.ops.embedding.optim import deferred_embedding
from adaftr_fast.ops.embedding.reference import bags as bag_reference
from adaftr_fast.ops.embedding.reference import lookup as reference
from tests.chaos.ops.inputs import assert_close, laid


def first_rows(fields: list[int]) -> Tensor:
    """Returns the first row of each field, and the number of all rows, [F + 1]."""
    return torch.tensor([0, *torch.tensor(fields).cumsum(0).tolist()])


def random_ids(fields: list[int], rows: int, options: dict[str, Any]) -> Tensor:
    """Returns ids [B, F], of which a part lies at the end of its field."""
    limit = options.get("distinct", max(fields))
    ids = torch.stack([torch.randint(0, min(n, limit), (rows,)) for n in fields], 1)
    last = torch.tensor(fields) - 1
    return torch.where(torch.rand(ids.shape) < 0.1, last, ids)


def table(sizes: dict[str, Any], options: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Returns a table, and the state of an Adam whose rows have missed steps, [] without one."""
    dtype = getattr(torch, options.get("dtype", "float32"))
    if "missed" not in options or dtype in (torch.float16, torch.bfloat16):
        return (torch.randn(sum(sizes["fields"]), sizes["width"]) * options.get("spread", 1.0)).to(dtype), []
    embedding = FusedEmbedding(sizes["fields"], sizes["width"], dtype=dtype)
    optimizer = optim.Adam(embedding, lr=0.1)
    for _ in range(options["missed"]):
        optimizer.zero_grad()
        embedding(random_ids(sizes["fields"], 3, {})).sin().sum().backward()
        optimizer.step()
    deferred = embedding.by_width[0].deferred
    return embedding.weight.detach(), deferred.tensors if deferred.stale else []


def widened(state: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in state]


def spoil(ids: Tensor, limits: Tensor, options: dict[str, Any]) -> bool:
    """Replaces an id by a bad one where the case says so; returns whether it does. ``limits`` are those of each id."""
    if "bad" not in options or not ids.numel():
        return False
    place = int(torch.randint(0, ids.numel(), ()))
    bad = limits.flatten()[place] if options["bad"] == "last" else options["bad"]
    ids.view(-1)[place] = bad
    return True


def refuses(call: Callable[[], object]) -> None:
    """Asserts that a bad id is named."""
    with pytest.raises(IndexError, match="out of range for field"):
        call()


def lookup(sizes: dict[str, Any], options: dict[str, Any]) -> Callable[[], None] | None:
    """Returns a function that compares, or None if the case is not valid."""
    fields, rows = sizes["fields"], sizes["rows"]
    if sizes["width"] < 1:
        return None
    starts = first_rows(fields)
    weight, state = table(sizes, options)
    ids = random_ids(fields, rows, options).to(getattr(torch, options.get("ids", "int64")))
    bad = spoil(ids, torch.tensor(fields).expand(ids.shape), options)
    ids = laid(ids, options.get("layout_ids"))
    bad = bad and bool(((ids < 0) | (ids >= torch.tensor(fields))).any())
    grad = laid(torch.randn(rows, len(fields) * sizes["width"]).to(weight.dtype), options.get("layout_grad"))

    def call() -> Tensor:
        leaf = weight.clone().requires_grad_()
        out = deferred_embedding(leaf, ids, starts, state) if state else fused_embedding(leaf, ids, starts)
        return out, leaf

    def compare() -> None:
        if bad:
            return refuses(call)
        out, leaf = call()
        if state:
            truth = reference_current(weight, ids, starts, state)
            assert_close(out.detach(), *truth, weight.dtype, truth[0].new_zeros(()), "look-up")
        else:
            assert out.detach().equal(reference.fused_embedding(weight, ids, starts)), "look-up: not the rows"
        out.backward(grad)
        compare_gradient(leaf.grad, lambda g: reference.fused_embedding_backward(g, ids, starts, sizes["width"]), grad)

    return compare


def reference_current(weight: Tensor, ids: Tensor, starts: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the current rows of a deferred Adam in float64, and in the type of the table."""
    from adaftr_fast.ops.embedding.reference.optim import deferred_embedding as look_up

    return look_up(weight.double(), ids, starts, widened(state)), look_up(weight, ids, starts, state)


def compare_gradient(found: Tensor, merge: Callable[[Tensor], tuple[Tensor, Tensor]], grad: Tensor) -> None:
    """Compares a sparse gradient with ``merge`` in float64."""
    rows, truth = merge(grad.double())
    _, own = merge(grad)
    _, terms = merge(grad.double().abs())
    assert found._indices()[0].equal(rows), "rows of the gradient"
    rounding = torch.finfo(grad.dtype).eps
    assert_close(found._values(), truth, own, grad.dtype, terms * 4 * rounding, "gradient")


def bags(sizes: dict[str, Any], options: dict[str, Any]) -> Callable[[], None] | None:
    """Returns a function that compares, or None if the case is not valid."""
    fields, rows = sizes["fields"], sizes["rows"]
    if sizes["width"] < 1:
        return None
    starts = first_rows(fields)
    weight, state = table(sizes, options)
    counts = torch.randint(0, sizes["longest"] + 1, (rows * len(fields),))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    field = (torch.arange(len(counts)) % len(fields)).repeat_interleave(counts)
    limits = torch.tensor(fields)[field]
    values = (torch.rand(len(field), dtype=torch.float64) * limits.clamp(max=options.get("distinct", 10**9))).long()
    values = values.to(getattr(torch, options.get("ids", "int64")))
    factors = None
    if "weights" in options:
        factors = torch.randn(len(values)).to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        if options["weights"] == "some zero":
            factors *= torch.rand(len(values)) < 0.5
    bad = spoil(values, limits, options)
    layout = options.get("layout_ids") if options.get("layout_ids") != "expanded" else None
    values, offsets = laid(values, layout), laid(offsets, options.get("layout_offsets"))
    factors = None if factors is None else laid(factors, layout)
    mean = options.get("mean", False)
    grad = laid(torch.randn(rows, len(fields) * sizes["width"]).to(weight.dtype), options.get("layout_grad"))
    arguments = (values, offsets, factors, starts)

    def call() -> tuple[Tensor, Tensor]:
        leaf = weight.clone().requires_grad_()
        return embedding_bags(leaf, *arguments, mean, state), leaf

    def compare() -> None:
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
        out.backward(grad)
        compare_bag_gradient(leaf.grad, arguments, sizes["width"], mean, grad)

    return compare


def compare_bag_gradient(found: Tensor, arguments: tuple, width: int, mean: bool, grad: Tensor) -> None:
    values, offsets, factors, starts = arguments

    def merge(g: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
        return bag_reference.embedding_bags_backward(g, values, offsets, factors, starts, width, mean)

    rows, truth = merge(grad.double(), factors)
    terms = merge(grad.double().abs(), None if factors is None else factors.abs())[1]
    assert found._indices()[0].equal(rows), "rows of the gradient"
    terms = terms * 4 * torch.finfo(grad.dtype).eps
    assert_close(found._values(), truth, merge(grad, factors)[1], grad.dtype, terms, "gradient")
