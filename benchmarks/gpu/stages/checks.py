"""Checks of what only a GPU shows, as functions of the device that return facts or raise
AssertionError.

On the CPU, where a dry run goes, streams and graphs are left out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

import adaftr_fast as af
from benchmarks.gpu.stages import contestants as forms
from benchmarks.gpu.timing import graphed
from tests.ops.infonce.inputs import inputs
from tests.tolerances import SLACK, assert_same_bits, error

ROWS = 1000
WIDTH = 128
LOGITS = 1e4
FIELDS = [50, 3, 2000]


def transposed_scores(device: str) -> dict[str, Any]:
    """The column sweep forms the row sweep's scores again, transposed; where they differ, d h_cvr
    is off.

    Both are judged by the tolerance rule: PyTorch's own error on the same inputs and a constant.
    """
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scale = LOGITS / 4 if dtype != torch.float16 else 100.0
        tensors = [t.to(dtype).double() for t in inputs(ROWS, ROWS, WIDTH, scale=scale)[:2]]
        leaves = [*(t.to(device, dtype) for t in tensors), torch.ones(ROWS, device=device)]
        leaves = tuple(t.requires_grad_() for t in leaves)
        true = forms.truth(leaves)
        largest = (leaves[0].detach().double() @ leaves[1].detach().double().T).abs().max().item()
        own, theirs = (
            forms.errors(forms.step(loss, leaves), true) for loss in (forms.ours, forms.literal)
        )
        name = str(dtype).removeprefix("torch.")
        found[name] = {"largest logit": largest, "ours": own, "PyTorch": theirs}
        for each, value in own.items():
            bound = theirs[each] + SLACK[dtype]
            assert value <= bound, (
                f"{name}, logits up to {largest:.3g}: {each} errs by {value:.3g}, allowed "
                f"{bound:.3g}"
            )
    return found


def graph_of_the_loss(device: str) -> dict[str, Any]:
    """A graph that was captured once gives the loss of other inputs on replay, in the same bits."""
    for precision in ("bfloat16", "float32"):
        leaves = forms.problem(ROWS, WIDTH, precision, device)
        replay, held = graphed(lambda leaves=leaves: forms.step(forms.ours, leaves), device)
        others = forms.problem(ROWS, WIDTH, precision, device)
        with torch.no_grad():
            for leaf, other in zip(leaves, others):
                leaf.copy_(other.flip(0) * 0.5 if other.dim() > 1 else other * 2)
        held = replay() or held
        expected = forms.step(forms.ours, leaves)
        assert_same_bits(held, expected)
    return {"equal": True}


def stream(device: str) -> AbstractContextManager[object]:
    return torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def busy(device: str) -> None:
    """Keeps the default stream occupied, so that work which wrongly waits for it, or does not wait,
    is seen.
    """
    if device == "cuda":
        torch.cuda._sleep(50_000_000)


def loss_on_a_stream(device: str) -> dict[str, Any]:
    """The loss on a stream of its own, whose inputs are written on that stream too, equals that on
    the default one.
    """
    source = forms.problem(ROWS, WIDTH, "float32", device)
    expected = forms.step(forms.ours, source)
    synchronize(device)
    busy(device)
    with stream(device):
        leaves = tuple((leaf.detach() * 1).requires_grad_() for leaf in source)
        found = forms.step(forms.ours, leaves)
    synchronize(device)
    assert_same_bits(found, expected)
    return {"equal": True}


def train_embedding(device: str, optimizer: str) -> Tensor:
    """Returns the table after some steps of an optimizer, in rows that every batch looks up again
    and others.
    """
    torch.manual_seed(0)
    table = af.FusedEmbedding(FIELDS, 8)
    table.to(device)
    update = getattr(af.optim, optimizer)(table, lr=0.01)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.stack([torch.randint(0, rows, (300,), generator=g) for rows in FIELDS], 1).to(
            device
        )
        update.zero_grad()
        table(ids).sin().sum().backward()
        update.step()
    table.flush()
    return table.weight.detach()


def embedding_on_a_stream(device: str) -> dict[str, Any]:
    """Look-up, backward and update on a stream of its own give the table of the default one, for
    every optimizer.
    """
    found = {}
    for optimizer in ("SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"):
        expected = train_embedding(device, optimizer)
        on_cpu = train_embedding("cpu", optimizer)
        synchronize(device)
        busy(device)
        with stream(device):
            weight = train_embedding(device, optimizer)
        synchronize(device)
        assert torch.equal(weight, expected), f"{optimizer}: another table on a stream of its own"
        found[optimizer] = error(weight.cpu(), on_cpu.double())
        assert found[optimizer] <= 1e-5, (
            f"{optimizer}: differs from the CPU's table by {found[optimizer]:.3g}"
        )
    return {"difference from the CPU": found}


def second_device(device: str) -> dict[str, Any]:
    """The loss and the embedding on another GPU than the current one."""
    if device != "cuda" or torch.cuda.device_count() < 2:
        return {"skipped": "one device"}
    expected = forms.step(forms.ours, forms.problem(ROWS, WIDTH, "float32", "cuda:0"))
    found = forms.step(forms.ours, forms.problem(ROWS, WIDTH, "float32", "cuda:1"))
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(found, expected)), (
        "another loss on cuda:1"
    )
    for optimizer in ("SGD", "Adam"):
        tables = [train_embedding(each, optimizer).cpu() for each in ("cuda:0", "cuda:1")]
        assert torch.equal(*tables), f"{optimizer}: another table on cuda:1"
    return {"equal": True}


def temperature_on_the_cpu(device: str) -> dict[str, Any]:
    """A 0-dim temperature on the CPU gives the result of one on the GPU. In a graph it is right, or
    it is refused.
    """
    a, b, _ = forms.problem(ROWS, WIDTH, "float32", device)
    tau = torch.tensor(0.07)
    expected = af.adaptive_infonce(a, b, tau.to(device))
    assert torch.equal(af.adaptive_infonce(a, b, tau), expected), (
        "another loss than with tau on the GPU"
    )
    try:
        replay, held = graphed(lambda: af.adaptive_infonce(a, b, tau).detach(), device)
    except RuntimeError as refusal:
        return {"in a graph": f"refused: {str(refusal).splitlines()[0][:200]}"}
    held = replay() if device == "cpu" else (replay(), held)[1]
    assert torch.equal(held, expected.detach()), "another loss in a graph"
    return {"in a graph": "equal"}


CHECKS = {
    "S and its transpose at logits near 1e4": transposed_scores,
    "the loss in a CUDA graph": graph_of_the_loss,
    "the loss on a stream": loss_on_a_stream,
    "the embedding on a stream": embedding_on_a_stream,
    "a second device": second_device,
    "a 0-dim temperature on the CPU": temperature_on_the_cpu,
}
