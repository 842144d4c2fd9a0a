"""The constructor of the ops that return the gradients of a loss with it.

The schema of such an op says by names what its arguments and outputs are:

    x             an input that the loss is differentiable in: every argument with an output ``d_x``
    d_x           the gradient of ``loss`` in x, in the accumulation type
    need_d_x      whether to compute d_x, which is empty otherwise; without this argument it is always computed
    loss          0-dim
    row_loss, scale
                  [B] each, both or neither, with ``loss = sum_r scale_r row_loss_r``
    need_stats    whether to compute ``top1`` and ``entropy``, which are empty otherwise
    ieee          whether products of float32 are IEEE, whatever ``torch.set_float32_matmul_precision`` says. It is an
                  argument because that setting belongs to the process: other threads would see it
                  change, and backward runs later.

All other arguments are constants, and all other outputs are statistics, [B].

Backward only multiplies d_x by the upstream scalar. When it receives a gradient of ``row_loss``
(reduction="none"), or needs a gradient that is empty, it calls the op again with the upstream
gradient as the scale. The second derivatives differentiate the closed form of the gradients in
plain PyTorch.

In eager mode a kernel runs below autograd, and csrc/autograd/loss.cpp attaches the same formula to
its results. A Triton kernel is called without the dispatcher, whose ways from Python to C++ and
back take longer than the launches. Without that library, and where something traces, transforms or
counts ops, the op is called, whose formula is here.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._extension import differentiable_loss, is_built, set_rare_gradients
from adaftr_fast.ops.flops import define_flops
from adaftr_fast.ops.infonce.reference import weighted
from adaftr_fast.ops.library import is_unwatched, library, under_torch_func

Results = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]
HAS_TRITON = importlib.util.find_spec("triton") is not None
STATISTICS = ("top1", "entropy")  # those that need_stats asks for
# of the similarities that plain PyTorch stores at a time: they stay in cache
CHUNK_ELEMENTS = 1 << 19


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64 and float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunks_of_rows(rows: int, columns: int) -> list[slice]:
    """Returns the rows whose similarities with ``columns`` candidates plain PyTorch stores at a
    time.
    """
    height = max(1, CHUNK_ELEMENTS // max(1, columns))
    return [slice(first, first + height) for first in range(0, max(1, rows), height)]


def runs_triton(anchors: Tensor) -> bool:
    """Returns whether the kernels of the ops are those of Triton for ``anchors``."""
    return HAS_TRITON and anchors.is_cuda


def triton_kernel(name: str) -> Callable[..., Any]:
    """Returns the function of this name of ``adaftr_fast.kernels.infonce``."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(_kernels(), name)(*arguments, **options)

    return call


@cache  # an import statement takes microseconds each time
def _kernels() -> Any:
    # imports triton, which CPU users may not have installed
    from adaftr_fast.kernels import infonce

    return infonce


_OPS: dict[str, "DifferentiableOp"] = {}


class DifferentiableOp:
    """Defines ``torch.ops.adaftr_fast.<name>``, ``<name>_reference`` and ``<name>_triton``.

    The dispatcher selects the kernel of ``<name>``: C++ on CPU, Triton on CUDA and the reference
    elsewhere.

    Args:
        name: the name of the op.
        schema: its arguments and outputs.
        closed_form: computes d_x of all x in plain PyTorch, given all x, ``scale`` and the
            constants by name. For an op without a scale, ``scale`` is a factor of the loss, 0-dim.
        rows: computes ``row_loss`` as ``loss``, and the statistics, given all x and the constants
            by name.
        checked: checks the arguments, given by name, for plain PyTorch, and returns those to
            compute with.
        reference: computes the outputs in plain PyTorch by name, given the arguments by name. It
            may compute more than is needed, in any type. Default: by ``checked``, ``rows`` and
            ``closed_form``.
        triton: computes the outputs by a Triton kernel, given the arguments of the op, where there
            are a row and a candidate. Default: the kernel of the same name.
        cpu: computes the outputs on CPU, given the arguments of the op. Default: C++ registers the
            kernel.
        needs_sm_80: whether plain PyTorch takes the place of Triton on GPUs below compute
            capability 8.0.
        pairs: whether there are as many candidates as anchors.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        closed_form: Callable[..., Results],
        rows: Callable[..., Any] | None = None,
        checked: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        reference: Callable[..., dict[str, Tensor]] | None = None,
        triton: Callable[..., Any] | None = None,
        cpu: Callable[..., Any] | None = None,
        needs_sm_80: bool = False,
        pairs: bool = False,
    ) -> None:
        _OPS[name] = self
        self.name = name
        self.closed_form = closed_form
        self.rows: Any = rows
        parsed = torch._C.parse_schema(name + schema)
        self.arguments = tuple(each.name for each in parsed.arguments)
        self.positional = tuple(each.name for each in parsed.arguments if not each.kwarg_only)
        self.outputs = tuple(each.name for each in parsed.returns)
        self.defaults = {
            each.name: each.default_value for each in parsed.arguments if each.has_default_value()
        }
        self.inputs = tuple(x for x in self.arguments if f"d_{x}" in self.outputs)
        self.needs = {f"need_d_{x}": x for x in self.inputs if f"need_d_{x}" in self.arguments}
        self.differentiable = tuple(x for x in self.arguments if x in (*self.inputs, "scale"))
        self.optional = tuple(x.name for x in parsed.arguments if "Optional[Tensor]" in str(x.type))
        self.tensors = (*self.differentiable, *self.optional)
        self.numbers = tuple(x for x in self.arguments if x not in self.tensors)
        self.constants = set(self.arguments) - {
            *self.differentiable,
            *self.needs,
            "need_stats",
            "ieee",
        }
        self.losses = tuple(x for x in self.outputs if x in ("loss", "row_loss"))
        # What backward multiplies by the gradient of the loss, for each of ``differentiable``.
        self.results = tuple("row_loss" if x == "scale" else f"d_{x}" for x in self.differentiable)
        self.checked = checked
        self.compute = reference or self._compute
        triton = triton or triton_kernel(name)

        def by_triton(*arguments: Any, **options: Any) -> Any:
            # len() takes four times as long
            a = arguments[0].shape
            b = arguments[1].shape
            if a[1] != b[1] or (pairs and a != b) or arguments[0].dtype != arguments[1].dtype:
                raise ValueError(
                    f"{name}: expected anchors [B, d] and candidates [{'B' if pairs else 'N'}, d] "
                    f"of one type, got {arguments[0].dtype} {list(a)} and {arguments[1].dtype} "
                    f"{list(b)}"
                )
            empty = a[0] == 0 or b[0] == 0
            return (self.reference if empty else triton)(*arguments, **options)

        def on_cuda(*arguments: Any, **options: Any) -> Any:
            old = needs_sm_80 and torch.cuda.get_device_capability(arguments[0].device) < (8, 0)
            return (self.reference if old else by_triton)(*arguments, **options)

        self.on_cuda = on_cuda
        self.triton = by_triton
        kernels = {
            name: self.reference,
            f"{name}_reference": self.reference,
            f"{name}_triton": by_triton,
        }
        self.ops: dict[str, Callable[..., Results]] = {}
        for each, kernel in kernels.items():
            library.define(each + schema)
            library.impl(each, kernel, "CompositeExplicitAutograd")
            full_name = f"adaftr_fast::{each}"
            torch.library.register_fake(full_name, self._fake, lib=library)
            backward = partial(self.backward, each)
            torch.library.register_autograd(
                full_name, backward, setup_context=self.setup_context, lib=library
            )
            define_flops(each, self.flops)
            self.ops[each] = getattr(torch.ops.adaftr_fast, each).default
            torch.library.register_vmap(full_name, partial(_loop, self.ops[each]), lib=library)
        if cpu is not None and is_built():
            library.impl(name, cpu, "CPU")
        if HAS_TRITON:
            library.impl(name, on_cuda, "CUDA")

    def named(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments by name; the dispatcher drops those that equal their default."""
        return {**self.defaults, **dict(zip(self.arguments, arguments)), **options}

    def call(
        self, name: str, given: Mapping[str, Any], with_gradients: bool = True
    ) -> dict[str, Tensor]:
        """Calls op ``name`` with what it takes of ``given``, by name, and returns its outputs by
        name.

        It computes the gradients of what requires one, unless ``with_gradients`` is False.
        """
        with_gradients = with_gradients and torch.is_grad_enabled()
        given = {
            **given,
            **{need: with_gradients and given[x].requires_grad for need, x in self.needs.items()},
        }
        # by position and without defaults, which takes less time
        values = [given[x] for x in self.positional]
        options = {"ieee": True} if given.get("ieee", False) else {}
        if differentiable_loss is not None and is_unwatched(values):
            return self._call_kernel(name, given, values, options)
        if under_torch_func():
            outputs = _Functional.apply(*values, self, name, options)
        else:
            outputs = self.ops[name](*values, **options)
        return dict(zip(self.outputs, outputs))

    def _call_kernel(
        self, name: str, given: Mapping[str, Any], values: list[Any], options: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Returns the outputs of op ``name``, whose losses C++ differentiates."""
        kernel = self.ops[name]
        if name == f"{self.name}_triton" and not given["anchors"].is_meta:
            kernel = self.triton
        elif name == self.name and runs_triton(given["anchors"]):
            kernel = self.on_cuda
        with torch._C._AutoDispatchBelowAutograd():
            found = dict(zip(self.outputs, kernel(*values, **options)))
        inputs, constants = (
            [given[x] for x in names] for names in (self.differentiable, self.optional)
        )
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            losses, factors = ([found[x] for x in names] for names in (self.losses, self.results))
            call = json.dumps((self.name, name, [given.get(x, False) for x in self.numbers]))
            found |= zip(self.losses, differentiable_loss(losses, inputs, constants, factors, call))
        return found

    def reference(self, *arguments: Any, **options: Any) -> Results:
        """Computes the op in plain PyTorch, without autocast, which would round the products of a
        call under it.
        """
        given = self.named(arguments, options)
        with torch.autocast(given["anchors"].device.type, enabled=False):
            found = self.compute(**given)
        outputs = dict(zip(self.outputs, self._fake(**given)))
        for name in outputs.keys() - self._unneeded(given):
            outputs[name] = found[name].to(outputs[name].dtype, copy=not name.startswith("d_"))
        return tuple(outputs.values())

    def _compute(self, **given: Any) -> dict[str, Tensor]:
        if self.checked is not None:
            given = self.checked(given)
        inputs = self.plain_inputs(given)
        rows = self.rows(**inputs)
        found = rows._asdict() | {
            "row_loss": rows.loss,
            "loss": weighted(rows.loss, given["scale"]).sum(),
        }
        if any(given[need] for need in self.needs):
            found |= zip(
                (f"d_{x}" for x in self.inputs), self.closed_form(**inputs, scale=given["scale"])
            )
        return found

    def plain_inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns all x and the constants for plain PyTorch, whose float32 products follow the
        settings.
        """
        dtype = (
            torch.float64
            if given.get("ieee", False)
            else accumulation_dtype(given["anchors"].dtype)
        )
        return {x: given[x] for x in self.constants} | {x: given[x].to(dtype) for x in self.inputs}

    def _unneeded(self, given: Mapping[str, Any]) -> set[str]:
        found = {need.removeprefix("need_") for need in self.needs if not given[need]}
        return found if given.get("need_stats", True) else {*found, *STATISTICS}

    def _fake(self, *arguments: Any, **options: Any) -> Results:
        """Returns empty outputs of the right shapes and types."""
        given = self.named(arguments, options)
        anchors = given["anchors"]
        acc = accumulation_dtype(anchors.dtype)
        shapes = dict.fromkeys(self.outputs, anchors.shape[:1]) | {"loss": ()}
        shapes |= {f"d_{x}": given[x].shape for x in self.inputs}
        shapes |= dict.fromkeys(self._unneeded(given), (0,))
        return tuple(
            anchors.new_empty(shapes[x], dtype=torch.bool if x == "top1" else acc)
            for x in self.outputs
        )

    def flops(self, *arguments: Any, out_shape: Any = None, **options: Any) -> int:
        """Counts the products of all pairs, for the similarities and for each gradient, by the
        shapes of tensors.

        Kernels that compute the similarities again execute more.
        """
        given = self.named(arguments, options)
        (rows, width), (columns, _) = given["anchors"], given["candidates"]
        block = min(given.get("block", columns), columns)
        pairs = (
            rows * block
            if columns % max(block, 1) == 0
            else rows // block * block**2 + (rows % block) ** 2
        )
        gradients = sum(given.get(f"need_d_{x}", False) for x in ("anchors", "candidates"))
        return int(2 * pairs * width * (1 + gradients))

    def setup_context(
        self,
        ctx: Any,
        inputs: tuple[Any, ...],
        output: Results,
        keyword_only_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves what the backward pass needs."""
        given = self.named(inputs, keyword_only_inputs or {})
        found = dict(zip(self.outputs, output))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(x for name, x in found.items() if name not in ("loss", "row_loss"))
        )
        ctx.numbers = {x: given[x] for x in self.numbers}
        ctx.save_for_backward(*(given[x] for x in self.tensors), *(found[x] for x in self.results))

    def backward(self, name: str, ctx: Any, *upstream: Tensor | None) -> Gradients:
        """Returns the gradients in the arguments of op ``name``; a recomputation calls
        the same op.
        """
        arguments = dict(zip(self.positional, ctx.needs_input_grad))
        given = dict(zip(self.outputs, upstream))
        wanted = {x for x, need in arguments.items() if need}
        call = _Call(self, name, ctx.numbers, wanted)
        found = call.gradients(given["loss"], given.get("row_loss"), *ctx.saved_tensors)
        return tuple(found.get(x) for x in arguments)


@dataclass(frozen=True)
class _Call:
    """What the backward pass of a call reads besides tensors."""

    op: DifferentiableOp
    name: str
    numbers: Mapping[str, Any]  # the arguments that are not tensors
    wanted: set[str]  # the arguments that need a gradient

    def gradients(
        self, g_loss: Tensor | None, g_row_loss: Tensor | None, *saved: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Returns the gradients in the differentiable arguments; None where not needed."""
        if g_loss is None and g_row_loss is None:
            return {}
        # With create_graph=True, and always under torch.func, the gradients are differentiable
        # themselves.
        gradients = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward
        return dict(zip(self.op.differentiable, gradients(self, g_loss, g_row_loss, *saved)))


def _rare_gradients(
    call: str,
    needs: list[bool],
    g_loss: Tensor | None,
    g_row_loss: Tensor | None,
    saved: list[Tensor | None],
) -> Gradients:
    """Returns the gradients in the differentiable arguments for the cases that C++ leaves to
    Python.
    """
    op_name, name, numbers = json.loads(call)  # what _call_kernel has written
    op = _OPS[op_name]
    wanted = {x for x, need in zip(op.differentiable, needs) if need}
    found = _Call(op, name, dict(zip(op.numbers, numbers)), wanted).gradients(
        g_loss, g_row_loss, *saved
    )
    return tuple(found.values())


if set_rare_gradients is not None:
    set_rare_gradients(_rare_gradients)


def _upstream_scale(given: Mapping[str, Any]) -> Any:
    """Returns the scale with which the op's gradients are those of backward."""
    scale, g_loss, g_row_loss = (given.get(name) for name in ("scale", "g_loss", "g_row_loss"))
    if scale is None:
        return g_loss
    if g_loss is None:
        return g_row_loss
    return scale * g_loss if g_row_loss is None else scale * g_loss + g_row_loss


class _Gradients(torch.autograd.Function):
    """The gradients in the differentiable arguments; None where not needed.

    ``saved`` holds the op's tensors and those of its results that backward reads. The gradients'
    own derivatives differentiate plain PyTorch.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        call: _Call, g_loss: Tensor | None, g_row_loss: Tensor | None, *saved: Tensor | None
    ) -> Gradients:
        op = call.op
        given = {**call.numbers, **dict(zip((*op.tensors, *op.results), saved))}
        upstream = g_loss
        complete = all(given[need] for need, x in op.needs.items() if x in call.wanted)
        if g_row_loss is not None or not complete:
            again = {
                x: x.removeprefix("need_d_") in call.wanted if x.startswith("need_") else given[x]
                for x in op.arguments
            }
            if "scale" in again:
                again["scale"] = _upstream_scale(
                    given | {"g_loss": g_loss, "g_row_loss": g_row_loss}
                )
                upstream = None
            found = getattr(torch.ops.adaftr_fast, call.name)(**again)
            given |= {x: d for x, d in zip(op.outputs, found) if x.startswith("d_")}

        def gradient(x: str) -> Tensor | None:
            if x not in call.wanted:
                return None
            if x == "scale":
                return None if g_loss is None else g_loss * given["row_loss"]
            d = given[f"d_{x}"] if upstream is None else given[f"d_{x}"] * upstream
            return d.to(given[x].device, given[x].dtype)

        return tuple(gradient(x) for x in op.differentiable)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        ctx.call, g_loss, g_row_loss, *saved = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g_loss, g_row_loss, *saved[: len(ctx.call.op.tensors)])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Gradients:
        call: _Call = ctx.call
        op = call.op
        names = ("g_loss", "g_row_loss", *op.tensors)
        given = {**call.numbers, **dict(zip(names, ctx.saved_tensors))}

        def closed_form(x: dict[str, Tensor]) -> dict[str, Tensor]:
            """The gradients as functions of the upstream gradients and of the differentiable
            arguments.
            """
            inputs = op.plain_inputs(given | x)
            found = dict(zip(op.inputs, op.closed_form(**inputs, scale=_upstream_scale(x))))
            if op.rows is not None and "g_loss" in x:
                found["scale"] = x["g_loss"] * op.rows(**inputs).loss
            return found

        x = {
            name: given[name]
            for name in ("g_loss", "g_row_loss", *op.differentiable)
            if given[name] is not None
        }
        values, pull = torch.func.vjp(closed_form, x)[:2]  # mypy: it may return three
        sent: dict[str, Any] = dict(zip(op.differentiable, upstream))
        for name, value in values.items():
            sent[name] = torch.zeros_like(value) if sent[name] is None else sent[name].to(value)
        (found,) = pull({name: sent[name] for name in values})
        return None, *(found.get(name) for name in (*names, *op.results))


def _loop(
    op: Callable[..., Results],
    info: Any,
    in_dims: tuple[int | None, ...],
    *arguments: Any,
    **options: Any,
) -> tuple[Results, tuple[int, ...]]:
    """Calls an op once per element of vmap's dimension."""
    calls = []
    for i in range(info.batch_size):
        chosen = (x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims))
        calls.append(op(*chosen, **options))
    results = tuple(torch.stack(each) for each in zip(*calls))
    return results, (0,) * len(results)


class _Functional(torch.autograd.Function):
    """An op for torch.func, which refuses the functions of ``torch.library.register_autograd``.

    ``apply`` takes the op's positional arguments, the op, the name that it is called by, and the
    other arguments.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Results:
        *values, _, name, options = inputs
        return getattr(torch.ops.adaftr_fast, name)(*values, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        *values, ctx.op, ctx.name, options = inputs
        ctx.op.setup_context(ctx, tuple(values), output, options)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Gradients:
        return *ctx.op.backward(ctx.name, ctx, *upstream), None, None, None
