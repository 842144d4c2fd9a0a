"""Ops on the vectors of bags, look-ups in tables of int8, and ops that only graphs or GPUs call,
against plain PyTorch.

Shapes: B rows, F fields, E width, N ids of all bags.
"""

import torch

from adaftr_fast.ops.embedding import segments as ops
from adaftr_fast.ops.embedding.int8 import int8_embedding
from adaftr_fast.ops.embedding.reference.int8 import round_rows
from tests.ops.cases.inputs import assert_close, laid
from tests.ops.cases.tables import random_ids, starts_of

KERNELS = torch.ops.adaftr_fast


def int8(sizes, options):
    """Returns a function that compares a look-up with one of the rows as numbers."""
    fields = sizes["fields"]
    rows = sizes["rows"]
    weight, scale = round_rows(torch.randn(sum(fields), sizes["width"]))
    starts = starts_of(fields)
    dtype = getattr(torch, options.get("ids", "int64"))
    offsets = None
    factors = None
    if "bags" in options:
        counts = torch.randint(0, sizes["longest"] + 1, (rows * len(fields),))
        offsets = laid(starts_of(counts.tolist()), options.get("layout_offsets"))
        field = (torch.arange(len(counts)) % len(fields)).repeat_interleave(counts)
        drawn = torch.rand(len(field), dtype=torch.float64)
        ids = (drawn * torch.tensor(fields)[field]).long()
        bag = torch.arange(len(counts)).repeat_interleave(counts)
        table_rows = ids + starts[field]
        factors = torch.randn(len(ids)) if "weights" in options else None
    else:
        ids = random_ids(fields, rows, options)
        bag = torch.arange(ids.numel())
        table_rows = (ids + starts[:-1]).flatten()
    mean = options.get("mean", False)
    numbers = (weight.double() * scale.double())[table_rows]
    if factors is not None:
        numbers *= factors.double()[:, None]
    truth = torch.zeros(rows * len(fields), sizes["width"], dtype=torch.float64)
    terms = truth.index_add(0, bag, numbers.abs())
    truth = truth.index_add(0, bag, numbers)
    if offsets is not None and mean:
        truth, terms = (each / offsets.diff().clamp(min=1)[:, None] for each in (truth, terms))
    truth, terms = (
        each.view(rows, -1) if rows else each.new_empty(0, len(fields) * sizes["width"])
        for each in (truth, terms)
    )

    def compare():
        own = int8_embedding(weight, scale, ids.to(dtype), offsets, factors, starts, mean)
        eps = torch.finfo(torch.float32).eps
        assert_close(own, truth, truth, torch.float32, terms * 8 * eps, "looked up")

    return compare


def segments(sizes, options):
    """Returns a function that compares sums and maxima over bags, their gradients, and what is
    repeated for each id of a bag.
    """
    dtype = getattr(torch, options.get("dtype", "float32"))
    counts = torch.randint(0, sizes["longest"] + 1, (sizes["bags"],))
    offsets = laid(starts_of(counts.tolist()), options.get("layout_offsets"))
    bag = torch.arange(len(counts)).repeat_interleave(counts)
    vectors = torch.randn(len(bag), sizes["width"], dtype=dtype)
    grad = torch.randn(len(counts), sizes["width"], dtype=dtype)
    ids = torch.randint(0, 9, (len(bag),)).to(getattr(torch, options.get("ids", "int64")))
    sums = torch.zeros(len(counts), sizes["width"], dtype=torch.float64)
    truth = sums.index_add(0, bag, vectors.double())
    terms = sums.index_add(0, bag, vectors.double().abs()) * 4 * torch.finfo(dtype).eps
    counted = torch.rand(len(bag)) < 0.8
    largest = torch.zeros(len(counts), sizes["width"], dtype=dtype)
    for b in bag[counted].unique().tolist():
        largest[b] = vectors[counted & (bag == b)].amax(0)
    is_largest = counted[:, None] & (vectors == largest[bag])
    equals = torch.zeros_like(largest).index_add(0, bag, is_largest.to(dtype))

    def compare():
        leaf = vectors.clone().requires_grad_()
        own = ops.sum_bags(leaf, offsets)
        assert_close(own.detach(), truth, truth, dtype, terms, "sums")
        own.backward(grad)
        assert leaf.grad.equal(grad[bag]), "the gradient of a sum"
        leaf.grad = None
        own = ops.max_bags(leaf, offsets, counted)
        assert own.detach().equal(largest), "maxima"
        own.backward(grad)
        assert leaf.grad.equal(is_largest * (grad / equals.clamp(min=1))[bag]), "their gradient"
        assert ops.repeat_by_bag(grad, offsets, len(bag)).equal(grad[bag]), "repeated"
        assert ops.bag_of_id(ids, offsets).equal(bag), "bags"
        assert ops.rows_of_field(ids, 5, 9).equal(ids.long() + 5), "rows of a field"
        rows = KERNELS.embedding_rows(ids[:, None], torch.tensor([0, 9]))
        assert rows.equal(ids.long()), "rows of a table"
        merged, values = KERNELS.merge_rows(rows, vectors, 9)
        assert merged.equal(rows.unique()), "merged rows"
        assert KERNELS.strictly_rising(merged), "merged rows"
        assert KERNELS.strictly_rising(rows) == (len(rows) < 2 or bool((rows.diff() > 0).all()))
        expected = torch.zeros(9, sizes["width"], dtype=torch.float64)
        total = expected.index_add(0, rows, vectors.double())[merged]
        bound = expected.index_add(0, rows, vectors.double().abs())[merged]
        eps = 4 * torch.finfo(dtype).eps
        assert_close(values, total, total, dtype, bound * eps * max(1, len(rows)) ** 0.5, "merged")

    return compare


OPS = {"int8": int8, "segments": segments}
