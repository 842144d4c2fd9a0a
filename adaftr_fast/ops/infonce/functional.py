"""Ops under torch.func, which refuses the functions of ``torch.library.register_autograd``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def functional(
    setup_context: Callable[..., None], backward_of: Callable[[str], Callable[..., Gradients]]
) -> type[torch.autograd.Function]:
    """Returns a function that calls an op of ``torch.ops.adaftr_fast``, differentiated by the formula of the op.

    ``apply`` takes the op's arguments and its name.
    """

    class Functional(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            *inputs, name = args
            outputs: tuple[Tensor, ...] = getattr(torch.ops.adaftr_fast, name)(*inputs)
            return outputs

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            *inputs_of_op, ctx.name = inputs
            setup_context(ctx, tuple(inputs_of_op), output)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor | None) -> Gradients:
            return *backward_of(ctx.name)(ctx, *upstream), None

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Gradients, tuple[int | None, ...]]:
            return loop(Functional, info.batch_size, in_dims, args)

    return Functional


def loop(
    function: type[torch.autograd.Function], size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Gradients, tuple[int | None, ...]]:
    """Calls a function once per element of vmap's dimension."""

    def at(i: int) -> list[Any]:  # in_dims of an argument that is no tensor is no number
        return [x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(args, in_dims)]

    calls = [function.apply(*at(i)) for i in range(size)]
    outputs = tuple(None if each[0] is None else torch.stack(each) for each in zip(*calls))
    return outputs, tuple(None if each is None else 0 for each in outputs)
