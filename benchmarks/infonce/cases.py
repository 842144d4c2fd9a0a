"""The loss's cases and contestants, as data."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast as af

SIZES = [(1024, 64), (1024, 128), (4096, 64), (8192, 128)]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(kind: str, rows: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """h_ctr, h_cvr [rows, d] and tau [rows] in [0.05, 1.05], all requiring gradients.

    ``gaussian``: unit Gaussians, whose logits reach hundreds as a trained tower's do, so that most
    softmax entries are subnormal. ``mild``: scaled to dot products of unit variance, where none is.
    """
    g = torch.Generator().manual_seed(0)
    scale = {"gaussian": 1.0, "mild": d**-0.25}[kind]
    a, b = (torch.randn(rows, d, generator=g).mul_(scale).to(dtype) for _ in range(2))
    return [t.requires_grad_() for t in (a, b, torch.rand(rows, generator=g).add_(0.05))]


def literal(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    return F.cross_entropy(a @ b.T / tau[:, None], torch.arange(len(a), device=a.device))


def prescaled(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    return F.cross_entropy((a / tau[:, None]) @ b.T, torch.arange(len(a), device=a.device))


def linear_cross_entropy(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    return F.linear_cross_entropy(a / tau[:, None], b, torch.arange(len(a), device=a.device))


def chunked_linear_cross_entropy(a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    target = torch.arange(len(a), device=a.device)
    scaled = (a / tau[:, None]).to(a.dtype)  # it has no temperature
    return F.linear_cross_entropy(scaled, b, target, options=torch.nn.LinearCrossEntropyOptions())


def contestants() -> Iterator[tuple[str, Loss]]:
    """Ours first, then what PyTorch offers."""
    yield "adaptive_infonce", af.adaptive_infonce
    yield "eager, literal", literal
    yield "eager, a / tau", prescaled
    yield "torch.compile, literal", torch.compile(literal)
    yield "torch.compile, a / tau", torch.compile(prescaled)
    if hasattr(F, "linear_cross_entropy"):
        yield "linear_cross_entropy", linear_cross_entropy
        yield "linear_cross_entropy, chunked", chunked_linear_cross_entropy


def forward_backward(loss: Loss, tensors: list[Tensor]) -> Callable[[], None]:
    """A step that leaves fresh gradients on ``tensors``."""

    def step() -> None:
        for t in tensors:
            t.grad = None
        loss(*tensors).backward()

    return step


def bare_products(rows: int, d: int) -> Callable[[], None]:
    """The three matrix products that the loss and its gradients contain, and nothing else."""
    a = torch.randn(rows, d)
    b = torch.randn(rows, d)
    p = torch.rand(rows, rows)
    s = torch.empty(rows, rows)
    o = torch.empty(rows, d)

    def step() -> None:
        torch.mm(a, b.T, out=s)
        torch.mm(p, b, out=o)
        torch.mm(p.T, a, out=o)

    return step
