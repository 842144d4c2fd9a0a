"""Stacks of dense layers, mixtures of experts, and ops on lists of tensors or columns, against their
references in float64.

Shapes: B rows, T tasks, k experts, v width of an expert.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast.ops.embedding.optim
import adaftr_fast.ops.mlp.op
import adaftr_fast.ops.norms  # noqa: F401  # defines the ops
from adaftr_fast._extension import place_rows
from adaftr_fast.ops.embedding.reference import optim as optim_reference
from adaftr_fast.ops.mlp import reference
from tests.ops.cases.guards import guarded
from tests.ops.cases.inputs import assert_close, laid, spoiled

KERNELS = torch.ops.adaftr_fast
HALF = torch.finfo(torch.bfloat16).eps


def mlp(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    rows = sizes["rows"]
    widths = sizes["inputs"]
    stacks = sizes["stacks"]
    reduced = options.get("reduced", False)
    dtype = torch.float32 if reduced else getattr(torch, options.get("dtype", "float32"))
    inputs = [torch.randn(rows, width) * options.get("spread", 1.0) for width in widths]
    types = [
        torch.bfloat16 if "half_inputs" in options and dtype == torch.float32 and i % 2 else dtype
        for i in range(9)
    ]
    inputs = [x.to(each) for x, each in zip(inputs, types)]
    reads = [number % len(widths) for number in range(len(stacks))]
    depths = [len(stack) for stack in stacks]
    rectified = [min(depth, options.get("rectified", depth - 1)) for depth in depths]
    weights = []
    biases = []
    for read, stack in zip(reads, stacks):
        for fan_in, out in zip([widths[read], *stack], stack):
            weights.append((torch.randn(out, fan_in) / fan_in**0.5).to(dtype))
            biases.append(torch.randn(out).to(dtype))
    floats = [*spoiled(dict(enumerate([*inputs, *weights, *biases])), options).values()]
    inputs = [laid(x, options.get("layout_inputs")) for x in floats[: len(inputs)]]
    weights = [laid(x, options.get("layout_weights")) for x in floats[len(inputs) : -len(biases)]]
    biases = floats[-len(biases) :]
    if inputs[0].dtype != dtype and not reduced and dtype == torch.float64:
        return None
    wanted = [int(torch.rand(()) < options.get("wanted", 1.0)) for _ in widths]
    lists = (depths, rectified)
    narrow, eps = (torch.bfloat16, HALF) if reduced else (dtype, torch.finfo(dtype).eps)

    def compare_layers(outputs):
        """Compares each layer, given the kernel's output of the layer before it."""
        layer = 0
        for read, depth, relus in zip(reads, *lists):
            for index in range(depth):
                x = inputs[read] if index == 0 else outputs[layer - 1]
                w = weights[layer]
                b = biases[layer]
                truth = F.linear(x.double(), w.double(), b.double())
                terms = F.linear(x.double().abs(), w.double().abs(), b.double().abs())
                theirs = F.linear(*(t.to(narrow) for t in (x, w, b)))
                if index < relus:
                    truth, theirs = truth.relu(), theirs.relu()
                assert_close(
                    outputs[layer], truth, theirs, narrow, terms * 4 * eps, f"output {layer}"
                )
                layer += 1

    def backward(op, change, upstream, y):
        sent = [None if g is None else change(g) for g in upstream]
        x, y, w, b = ([change(t) for t in each] for each in (inputs, y, weights, biases))
        return op(sent, x, y, reads, w, b, *lists, wanted)

    def compare():
        outputs = KERNELS.mlp(inputs, reads, weights, biases, *lists, reduced)
        compare_layers(outputs)
        upstream = [
            laid(torch.randn(y.shape).to(y.dtype), options.get("layout_grad"))
            if float(torch.rand(())) < options.get("upstream", 1.0)
            else None
            for y in outputs
        ]
        # The gradients are those at the kernel's outputs, since at others a relu may have another
        # mask.
        own = backward(KERNELS.mlp_backward, lambda t: t, upstream, outputs)
        truth, pytorch = (
            backward(reference.mlp_backward, partial(Tensor.to, dtype=each), upstream, outputs)
            for each in (torch.float64, narrow)
        )
        # as the kernel takes None
        zeros = [torch.zeros_like(y) if g is None else g for g, y in zip(upstream, outputs)]
        terms = backward(reference.mlp_backward, lambda t: t.double().abs(), zeros, outputs)
        types = [x.dtype if x.dtype == torch.bfloat16 else narrow for x in inputs] + [
            narrow
        ] * 2 * len(weights)
        for number, each in enumerate(zip(own, truth, pytorch, terms, types, strict=True)):
            x, true, theirs, term, kind = each
            rounding = max(eps, HALF if kind == torch.bfloat16 else 0.0) * 4 * max(depths)
            assert_close(x, true, theirs, narrow, term * rounding, f"gradient {number}")

    return compare


def mixture(sizes, options):
    """Returns a function that compares, or None if the case is not valid."""
    rows = sizes["rows"]
    tasks = sizes["tasks"]
    k = sizes["experts"]
    width = sizes["width"]
    if not tasks or not k or not width:
        return None
    dtype = getattr(torch, options.get("dtype", "float32"))
    experts = (torch.randn(rows, k, width) * options.get("spread", 1.0)).to(dtype)
    logits = (torch.randn(rows, tasks, k) * options.get("logit_spread", 1.0)).to(dtype)
    experts, logits = spoiled({"experts": experts, "logits": logits}, options).values()
    experts = laid(experts, options.get("layout_experts"))
    logits = laid(logits, options.get("layout_logits"))
    upstream = []
    for _ in range(tasks):
        keep = float(torch.rand(())) < options.get("upstream", 1.0)
        upstream.append(
            laid(torch.randn(rows, width).to(dtype), options.get("layout_grad")) if keep else None
        )
    wide = [None if g is None else g.double() for g in upstream]
    truth = [*reference.mixture(experts.double(), logits.double())]
    truth += reference.mixture_backward(wide, experts.double(), logits.double())
    pytorch = [
        *reference.mixture(experts, logits),
        *reference.mixture_backward(upstream, experts, logits),
    ]
    terms = _mixture_terms(wide, experts.double(), logits.double())

    def compare():
        own = [
            *KERNELS.mixture(experts, logits),
            *KERNELS.mixture_backward(upstream, experts, logits),
        ]
        eps = torch.finfo(dtype).eps
        for number, each in enumerate(zip(own, truth, pytorch, terms, strict=True)):
            x, true, theirs, term = each
            assert_close(x, true, theirs, dtype, term * 8 * eps, f"result {number}")

    return compare


def log_loss(sizes, options):
    """Returns a function that compares."""
    size = (sizes["rows"], sizes["tasks"])
    dtype = getattr(torch, options.get("dtype", "float32"))
    logits = (torch.randn(size) * options.get("spread", 1.0)).to(dtype)
    logits = laid(spoiled({"logits": logits}, options)["logits"], options.get("layout_logits"))
    labels = laid(torch.randint(2, size).to(dtype), options.get("layout_labels"))
    weight = torch.rand(size[0]).to(dtype) if options.get("weighted") else None
    divisor = float(max(size[0], 1))
    wide = None if weight is None else weight.double()
    truth = reference.log_loss(logits.double(), labels.double(), wide, divisor)
    pytorch = reference.log_loss(logits, labels, weight, divisor)

    def compare():
        own = KERNELS.log_loss(logits, labels, weight, divisor)
        eps = torch.finfo(dtype).eps
        for number, (x, true, theirs) in enumerate(zip(own, truth, pytorch, strict=True)):
            assert_close(x, true, theirs, dtype, (true.abs() + 1) * 8 * eps, f"result {number}")

    return compare


def _mixture_terms(upstream, experts, logits):
    """Returns the sums of the magnitudes that each result adds up."""
    sent = [None if g is None else g.abs() for g in upstream]
    positive = reference.mixture(experts.abs(), logits)
    d_experts, _ = reference.mixture_backward(sent, experts.abs(), logits)
    g = torch.stack(
        [
            experts.new_zeros(len(experts), experts.shape[2]) if each is None else each
            for each in sent
        ],
        1,
    )
    weights = logits.softmax(2)
    s = g @ experts.abs().transpose(1, 2)
    return [*positive, d_experts, weights * (s + (weights * s).sum(2, keepdim=True))]


def lists(sizes, options):
    """Returns a function that compares the sum of the squares of many tensors, and their multiples."""
    dtype = getattr(torch, options.get("dtype", "float32"))
    spread = options.get("spread", 1.0)
    tensors = [(torch.randn(n, 3) * spread).to(dtype) for n in sizes["tensors"]]
    tensors = [
        laid(x, options.get("layout")) for x in spoiled(dict(enumerate(tensors)), options).values()
    ]
    scales = torch.randn(len(tensors), dtype=torch.float64).tolist()
    factor = torch.randn((), dtype=dtype)
    squares = torch.stack([s * x.double().square().sum() for s, x in zip(scales, tensors)])
    truth = [squares.sum(), *(x.double() * s * factor.double() for x, s in zip(tensors, scales))]

    def compare():
        own = [KERNELS.squared_norm(tensors, scales), *KERNELS.scaled(factor, tensors, scales)]
        for number, (x, true) in enumerate(zip(own, truth, strict=True)):
            terms = squares.abs().sum() if number == 0 else true.abs()
            eps = torch.finfo(dtype).eps
            assert_close(x, true, true, dtype, terms * 16 * eps, f"result {number}")

    return compare


def dense_adam(sizes, options):
    """Returns a function that compares a step of Adam on dense weights."""
    dtype = getattr(torch, options.get("dtype", "float32"))
    spread = options.get("spread", 1.0)
    shapes = [(n, 2) for n in sizes["tensors"]]
    weights, grads, means = ([torch.randn(n, dtype=dtype) for n in shapes] for _ in range(3))
    grads = [spread * g for g in grads]
    means = [spread * m for m in means]
    squares = [spread**2 * torch.rand(n, dtype=dtype) for n in shapes]
    steps = [torch.tensor(float(options.get("steps", 0) + number)) for number in range(len(shapes))]

    def stepped(function, cast):
        lists = [[x.to(cast, copy=True) for x in each] for each in (weights, grads, means, squares)]
        counts = [x.clone() for x in steps]
        function(*lists, counts, LR, 0.9, 0.999, 1e-8)
        assert all(x == y + 1 for x, y in zip(counts, steps)), "steps"
        return [x for number, each in enumerate(lists) if number != 1 for x in each]

    truth = stepped(optim_reference.dense_adam_, torch.float64)
    pytorch = stepped(optim_reference.dense_adam_, dtype)

    def compare():
        own = stepped(KERNELS.dense_adam_, dtype)
        for number, each in enumerate(zip(own, truth, pytorch, strict=True)):
            x, true, theirs = each
            terms = 8 * torch.finfo(dtype).eps * (true.abs() + LR)
            assert_close(x, true, theirs, dtype, terms, f"result {number}")

    return compare


def columns(sizes, options):
    """Returns a function that compares rows that were copied from columns."""
    dtype = getattr(torch, options.get("dtype", "float32"))
    rows = sizes["rows"]
    side = options.get("guards", "after")
    given = [torch.randint(-99, 99, (rows,)).to(dtype) for _ in range(sizes["columns"])]
    places = torch.randperm(rows + 3)[:rows] if "placed" in options else None
    expected = torch.zeros(rows + 3 if "placed" in options else rows, len(given), dtype=dtype)
    expected[slice(None) if places is None else places] = torch.stack(given, 1)

    def compare():
        if place_rows is None:
            return
        found = guarded(torch.zeros_like(expected), side).numpy()
        at = None if places is None else guarded(places, side).numpy()
        place_rows([guarded(x, side).numpy() for x in given], at, found)
        assert torch.from_numpy(found).equal(expected), "rows"

    return compare


LR = 1e-2
OPS = {
    "mlp": mlp,
    "mixture": mixture,
    "log_loss": log_loss,
    "lists": lists,
    "dense_adam": dense_adam,
    "columns": columns,
}
