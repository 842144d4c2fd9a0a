"""The optimizers of the embedding against references in float64.

Shapes: R rows of the table, U rows of the batch, E width.
"""

import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import missed_steps, stored
from adaftr_fast.ops.embedding.reference import optim as reference
from tests.ops.cases.inputs import assert_close, laid, spoiled
from tests.ops.cases.tables import random_ids

LR = 0.05


def steps(sizes, options):
    """Returns a function that compares one step of an optimizer's op, or None if the case is not
    valid.
    """
    table = sizes["table"]
    width = sizes["width"]
    name = options.get("optimizer")
    if name is None or not table or not width or sizes["rows"] > table:
        return None
    dtype = getattr(torch, options.get("dtype", "float32"))
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rows = laid(torch.randperm(table)[: sizes["rows"]].sort().values, options.get("layout_rows"))
    weight = torch.randn(table, width).to(dtype)
    grad = (torch.randn(len(rows), width) * options.get("spread", 1.0)).to(dtype)
    if not grad.isfinite().all():
        return None
    shapes = {"sgd_": [], "adagrad_": [(table, width)], "rowwise_adagrad_": [(table,)]}
    shapes["lazy_adam_"] = [(table, 2, width)]
    state = [torch.rand(shape).to(state_dtype) * ("fresh" not in options) for shape in shapes[name]]
    weight, grad, *state = spoiled(
        {"weight": weight, "grad": grad} | dict(enumerate(state)), options
    ).values()
    grad = laid(grad, options.get("layout_grad"))
    scalars = [options.get("lr", LR), options.get("weight_decay", 0.0)]
    if name != "sgd_":
        scalars.append(options.get("eps", 1e-8))
    if name == "lazy_adam_":
        scalars += [options.get("beta1", 0.9), options.get("beta2", 0.999)]

    def stepped(function, cast):
        tables = [x.clone() if cast is None else x.to(cast, copy=True) for x in (weight, *state)]
        with torch.no_grad():
            function(*tables, rows, grad if cast is None else grad.to(cast), *scalars)
        return tables

    truth = stepped(getattr(reference, name), torch.float64)
    pytorch = stepped(getattr(reference, name), None)

    def compare():
        own = stepped(getattr(torch.ops.adaftr_fast, f"embedding_{name}"), None)
        others = torch.ones(table, dtype=torch.bool)
        others[rows] = False
        assert own[0][others].nan_to_num(7).equal(weight[others].nan_to_num(7)), (
            "a row without gradient changed"
        )
        for x, true, theirs, what in zip(own, truth, pytorch, ("weight", "state")):
            rounding = (
                true[true.isfinite()].abs().amax() * torch.finfo(x.dtype).eps
                if true.isfinite().any()
                else true
            )
            assert_close(x, true, theirs, x.dtype, rounding, what)

    return compare


def adam(sizes, options):
    """Returns a function that compares steps of the deferred Adam with torch's on a dense table."""
    if not sizes["width"] or not sizes["steps"]:
        return None
    dtype = getattr(torch, options.get("dtype", "float32"))
    fields = sizes["fields"]
    width = sizes["width"]
    name = options.get("optimizer", "Adam")
    start = torch.randn(sum(fields), width)
    ids = [random_ids(fields, sizes["rows"], options) for _ in range(sizes["steps"])]
    grads = [
        torch.randn(sizes["rows"], len(fields) * width) * options.get("spread", 1.0) for _ in ids
    ]
    given = {
        "lr": options.get("lr", LR),
        "eps": options.get("eps", 1e-8),
        "weight_decay": options.get("weight_decay", 0.0),
    }
    given["betas"] = (options.get("beta1", 0.9), options.get("beta2", 0.999))

    def dense(dtype, noise=0.0):
        table = start.to(dtype, copy=True).requires_grad_()
        optimizer = getattr(torch.optim, name)([table], **given)
        starts = torch.tensor([0, *fields]).cumsum(0)[:-1]
        for step, (each, grad) in enumerate(zip(ids, grads)):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad(set_to_none=False)
            table[each + starts].flatten(1).backward(grad.to(dtype))
            if table.grad is None:
                table.grad = torch.zeros_like(table)
            optimizer.step()
            table.data += noise * rate(step) * torch.randn_like(table).sign()
        return table.detach()

    def rate(step):
        return given["lr"] * (1 + step % 3 if "schedule" in options else 1)

    truth = dense(torch.float64)
    pytorch = dense(dtype)
    # A step is at most about lr, whatever the gradient, and its error is in units of it. Weight
    # decay makes the next gradient of the error, which Adam may magnify.
    noise = 16 * torch.finfo(dtype).eps
    rounding = (dense(torch.float64, noise) - truth).abs()
    rounding += given["lr"] * 3 * sizes["steps"] * noise

    def compare():
        embedding = FusedEmbedding(fields, width, dtype=dtype)
        with torch.no_grad():
            embedding.weight.copy_(start)
        optimizer = getattr(optim, name)(embedding, **given)
        for step, (each, grad) in enumerate(zip(ids, grads)):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            embedding(each).backward(grad.to(dtype))
            optimizer.step()
            if "flushes" in options and step % 4 == 1:
                embedding.flush()
        flushed = stored(embedding.weight).clone()
        if (steps := missed_steps(embedding.weight)) is not None:  # flush() itself calls no guards
            state = [x.clone() for x in steps.tensors]
            torch.ops.adaftr_fast.embedding_adam_flush_(flushed, state)
        embedding.flush()
        assert embedding.weight.equal(flushed), "flushed rows"
        assert_close(embedding.weight.detach(), truth, pytorch, dtype, rounding, "weight")

    return compare


OPS = {"steps": steps, "adam": adam}
