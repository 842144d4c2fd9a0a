"""Stacks of dense layers and mixtures of experts against their references in float64.

Shapes: B rows, T tasks, k experts, v width of an expert.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast.ops.mlp.op  # noqa: F401  # defines the ops
from adaftr_fast.ops.mlp import reference
from tests.chaos.ops.inputs import assert_close, laid, spoiled

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
                truth = truth.relu() if index < relus else truth
                assert_close(
                    outputs[layer], truth, truth, narrow, terms * 4 * eps, f"output {layer}"
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
        truth = backward(reference.mlp_backward, Tensor.double, upstream, outputs)
        # as the kernel takes None
        zeros = [torch.zeros_like(y) if g is None else g for g, y in zip(upstream, outputs)]
        terms = backward(reference.mlp_backward, lambda t: t.double().abs(), zeros, outputs)
        types = [x.dtype if x.dtype == torch.bfloat16 else narrow for x in inputs] + [
            narrow
        ] * 2 * len(weights)
        for number, (x, true, term, each) in enumerate(zip(own, truth, terms, types, strict=True)):
            rounding = max(eps, HALF if each == torch.bfloat16 else 0.0) * 4 * max(depths)
            assert_close(x, true, true, each, term * rounding, f"gradient {number}")

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


OPS = {"mlp": mlp, "mixture": mixture}
