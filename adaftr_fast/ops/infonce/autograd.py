"""The autograd formula of the ops that return the gradients of an InfoNCE loss with it.

Such an op has n differentiable inputs x_i and computes a loss for each of B rows:

    op(x_1, ..., x_n, *masks, scale, need_1, ..., need_n, [need_stats], *options, ieee=False)
        -> (loss, row_loss, *statistics, d_1, ..., d_n)

with ``loss = sum_r scale_r row_loss_r`` and its gradients d_i in x_i, which are empty unless need_i. Backward only
multiplies them by the upstream scalar. When it receives a gradient of ``row_loss`` (reduction="none"), or needs a
gradient that is empty, it calls the op again with the upstream gradient as the scale.

With ``ieee``, products of float32 are IEEE, whatever ``torch.set_float32_matmul_precision`` says. It is an argument
because that setting belongs to the process: other threads would see it change, and backward runs later.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.ops.library import define, library

Gradients = tuple[Tensor | None, ...]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64 and float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_dtype(dtype: torch.dtype, ieee: bool) -> torch.dtype:
    """Returns the type in which plain PyTorch computes. Its float32 products follow the settings, float64's do not."""
    return torch.float64 if ieee else accumulation_dtype(dtype)


def in_its_types(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Returns plain PyTorch without autocast, which would round the products of an op that is called under it."""

    @wraps(reference)
    def compute(anchors: Tensor, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(anchors.device.type, enabled=False):
            return reference(anchors, *arguments, **options)

    return compute


@dataclass(frozen=True)
class Formula:
    """What distinguishes the ops, and plain PyTorch that their second derivatives differentiate."""

    inputs: int  # n
    masks: int
    has_stats: bool  # whether the op takes need_stats
    row_loss: Callable[..., Tensor]  # of (*x, *masks, *options)
    gradients: Callable[..., tuple[Tensor, ...]]  # d_1 to d_n, of (*x, scale, *masks, *options)

    def define(self, name: str, schema: str, fake: Callable[..., Any]) -> None:
        """Defines an op with this formula."""
        define(name, schema, fake, self.setup_context, self.backward_of)

    def define_gradients(self, name: str, option: str) -> None:
        """Defines ``_<name>_gradients`` for the backward pass in C++ of an op of one option, which is no tensor."""
        options_at = self.inputs + self.masks + 1

        def gradients(
            needs: list[bool],
            computed: list[bool],
            number: Any,
            g_loss: Tensor | None,
            g_row_loss: Tensor | None,
            saved: list[Tensor | None],
            ieee: bool = False,
        ) -> Gradients:
            with_option = (*saved[:options_at], None, *saved[options_at:])
            settings = (tuple(needs), tuple(computed), (number,), ieee)
            return self.gradients_by_op(name, *settings, g_loss, g_row_loss, *with_option)

        library.define(
            f"_{name}_gradients(bool[] needs, bool[] computed, {option}, Tensor? g_loss, Tensor? g_row_loss,"
            " Tensor?[] saved, bool ieee=False) -> (Tensor, Tensor, Tensor, Tensor)"
        )
        library.impl(f"_{name}_gradients", gradients, "CompositeImplicitAutograd")

    def functional(self, ieee: bool) -> type[torch.autograd.Function]:
        """Returns the function of the ops with this formula for torch.func."""
        setup_context = partial(self.setup_context, keyword_only_inputs={"ieee": ieee})
        return functional(setup_context, self.backward_of, ieee=ieee)

    def setup_context(
        self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], keyword_only_inputs: dict[str, bool]
    ) -> None:
        """Saves what the backward pass needs."""
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        first_need = self.inputs + self.masks + 1
        options = inputs[first_need + self.inputs + self.has_stats :]
        tensors = (x if isinstance(x, Tensor) else None for x in options)
        ctx.numbers = tuple(None if isinstance(x, Tensor) else x for x in options)
        ctx.ieee = keyword_only_inputs["ieee"]
        ctx.arguments = len(inputs)
        ctx.computed = inputs[first_need : first_need + self.inputs]
        ctx.save_for_backward(*inputs[:first_need], *tensors, output[1], *output[-self.inputs :])

    def backward_of(self, name: str) -> Callable[..., Gradients]:
        """Returns the backward pass of op ``name``; a recomputation calls the same op."""
        before_scale = self.inputs + self.masks

        def backward(ctx: Any, g_loss: Tensor | None, g_row_loss: Tensor | None, *_: Tensor | None) -> Gradients:
            if g_loss is None and g_row_loss is None:
                return (None,) * ctx.arguments
            needs = (*ctx.needs_input_grad[: self.inputs], ctx.needs_input_grad[before_scale])
            settings = (ctx.numbers, ctx.ieee)
            upstream = (g_loss, g_row_loss)
            *d, d_scale = self.gradients_by_op(name, needs, ctx.computed, *settings, *upstream, *ctx.saved_tensors)
            return *d, *(None,) * self.masks, d_scale, *(None,) * (ctx.arguments - before_scale - 1)

        return backward

    def gradients_by_op(self, *arguments: Any) -> Gradients:
        """Returns the gradients in x_1 to x_n and scale, by the arguments of :class:`_Gradients` but the first."""
        # With create_graph=True, and always under torch.func, the gradients are differentiable themselves.
        gradients = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward
        found: Gradients = gradients(self, *arguments)
        return found


class _Gradients(torch.autograd.Function):
    """The gradients by the op, in x_1 to x_n and scale; None where not needed.

    ``saved`` holds x_1 to x_n, the masks, scale, those of the options that are tensors (None in place of the numbers,
    which are in ``numbers``), row_loss and d_1 to d_n. The gradients' own derivatives differentiate plain PyTorch.
    """

    @staticmethod
    def forward(
        formula: Formula,
        name: str,
        needs: tuple[bool, ...],
        computed: tuple[bool, ...],
        numbers: tuple[Any, ...],
        ieee: bool,
        g_loss: Tensor | None,
        g_row_loss: Tensor | None,
        *saved: Any,
    ) -> Gradients:
        n = formula.inputs
        inputs = saved[: -n - 1]
        row_loss = saved[-n - 1]
        gradients = saved[-n:]
        wanted = needs[:-1]
        upstream = g_loss
        if g_row_loss is not None or any(w and not c for w, c in zip(wanted, computed)):
            x, masks, scale, options = _split(formula, inputs, numbers)
            factor = scale * g_loss if g_loss is not None else torch.zeros_like(scale)
            factor = factor if g_row_loss is None else factor + g_row_loss
            without_stats = (False,) * formula.has_stats
            op = getattr(torch.ops.adaftr_fast, name)
            gradients = op(*x, *masks, factor, *wanted, *without_stats, *options, ieee=ieee)[-n:]
            upstream = None
        scaled = (g if upstream is None else g * upstream for g in gradients)
        cast = [g.to(x.dtype) if w else None for g, x, w in zip(scaled, inputs, wanted)]
        return (*cast, g_loss * row_loss if needs[-1] and g_loss is not None else None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        ctx.formula, _, _, _, ctx.numbers, ctx.ieee, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: -ctx.formula.inputs - 1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Gradients:
        formula: Formula = ctx.formula
        g_loss, g_row_loss, *inputs = ctx.saved_tensors
        x, masks, scale, options = _split(formula, inputs, ctx.numbers)

        def closed_form(g_loss: Tensor, g_row_loss: Tensor, scale: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
            """The gradients as functions of the upstream gradients, scale and x_1 to x_n."""
            wide = [each.to(reference_dtype(each.dtype, ctx.ieee)) for each in x]
            first = formula.gradients(*wide, scale * g_loss + g_row_loss, *masks, *options)
            return *first, g_loss * formula.row_loss(*wide, *masks, *options)

        g_loss = scale.new_zeros(()) if g_loss is None else g_loss
        g_row_loss = torch.zeros_like(scale) if g_row_loss is None else g_row_loss
        values, pull = torch.func.vjp(closed_form, g_loss, g_row_loss, scale, *x)[:2]  # mypy: it may return three
        d = pull(tuple(torch.zeros_like(v) if g is None else g.to(v.dtype) for g, v in zip(upstream, values)))
        d_upstream = d[:2]
        d_scale = d[2]
        d_x = d[3:]
        found = (*d_upstream, *d_x, *(None,) * len(masks), d_scale, *(None,) * (len(options) + 1 + len(x)))
        needed = (g if need else None for g, need in zip(found, ctx.needs_input_grad[6:]))
        return *(None,) * 6, *needed

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Gradients, tuple[int | None, ...]]:
        return loop(_Gradients, info.batch_size, in_dims, args)


def _split(formula: Formula, inputs: Any, numbers: tuple[Any, ...]) -> tuple[Any, Any, Tensor, list[Any]]:
    """Returns x_1 to x_n, the masks, scale and the options from what is saved of them."""
    masks_end = formula.inputs + formula.masks
    options = [number if tensor is None else tensor for number, tensor in zip(numbers, inputs[masks_end + 1 :])]
    return inputs[: formula.inputs], inputs[formula.inputs : masks_end], inputs[masks_end], options


def functional(
    setup_context: Callable[..., None], backward_of: Callable[[str], Callable[..., Gradients]], **keywords: Any
) -> type[torch.autograd.Function]:
    """Returns a function that calls an op of ``torch.ops.adaftr_fast``, differentiated by the formula of the op.

    It serves torch.func, which refuses the functions of ``torch.library.register_autograd``. ``apply`` takes the op's
    arguments but ``keywords``, and its name.
    """

    class Functional(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            *inputs, name = args
            outputs: tuple[Tensor, ...] = getattr(torch.ops.adaftr_fast, name)(*inputs, **keywords)
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
