"""The op namespace ``torch.ops.adaftr_fast``.

Each op file defines its schema in this library. It registers the plain-PyTorch reference as the
fallback for every device (CompositeExplicitAutograd), a fake implementation (shapes only, for
torch.compile) and the autograd formula. The C++ extension and the Triton kernels register under the
CPU and CUDA keys, so PyTorch's dispatcher selects the backend.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

# loads the C++ implementations
from adaftr_fast._extension import has_cpp_gradients, is_built, warn_of_references


class _Library(torch.library.Library):
    """Warns once per process where a reference runs because no kernel is built."""

    def impl(
        self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", **options: Any
    ) -> None:
        if dispatch_key.startswith("Composite") and not is_built():
            fn = _warns_first(fn)
        super().impl(op_name, fn, dispatch_key, **options)


def _warns_first(reference: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(reference)
    def run(*arguments: Any, **options: Any) -> Any:
        warn_of_references()
        return reference(*arguments, **options)

    return run


library = _Library("adaftr_fast", "DEF")


def define(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    *,
    key: str = "CompositeExplicitAutograd",
) -> None:
    """Defines an op.

    Args:
        schema: its name, arguments and outputs.
        reference: computes it in plain PyTorch, on every device that has no kernel of its own.
        fake: returns empty outputs of the right shapes and types, for torch.compile.
        key: "CompositeImplicitAutograd" lets PyTorch differentiate the reference.
    """
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, reference, key)
    # else a kernel for the CPU would take its place
    if key == "CompositeImplicitAutograd" and is_built():
        library.impl(name, _where_differentiated(name, reference), "Autograd")
    if fake is not None:
        torch.library.register_fake(f"adaftr_fast::{name}", fake, lib=library)


def _where_differentiated(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an autograd kernel that runs the reference where gradients are wanted, and the op
    elsewhere.
    """

    def run(*arguments: Any, **options: Any) -> Any:
        tensors = [
            x for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor)
        ]
        if differentiates_references() or (
            torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        ):
            return reference(*arguments, **options)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.adaftr_fast, name)(*arguments, **options)

    return run


def key_of_cpp_gradient() -> str:
    """Returns the key of a reference whose gradient C++ registers; without that, PyTorch
    differentiates it.
    """
    return "CompositeExplicitAutograd" if has_cpp_gradients() else "CompositeImplicitAutograd"


def under_torch_func() -> bool:
    """Returns whether a transform of torch.func is active in eager mode."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def differentiates_references() -> bool:
    """Returns whether PyTorch differentiates a reference in an op's place: under torch.func and in
    forward mode.
    """
    return under_torch_func() or (
        not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0
    )


def check_local(op: str, name: str, x: Any, advice: str | None = None) -> None:
    """Refuses a DTensor, which PyTorch does not take beside the local tensors of an op, and a sparse
    or nested tensor; ``advice`` says what to do with a DTensor.
    """
    if isinstance(x, torch.Tensor) and (x.layout != torch.strided or x.is_nested):
        kind = "nested tensor" if x.is_nested else str(x.layout)
        raise TypeError(f"{op}: {name} must be a dense tensor, got a {kind}")
    if hasattr(type(x), "to_local"):
        raise TypeError(
            f"{op}: {name} must be a local tensor, got a DTensor; "
            f"{advice or f'pass {name}.to_local()'}"
        )


def is_eager() -> bool:
    """Returns whether C++ autograd functions may run: not traced by torch.compile, in torch.func or
    in forward mode.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return False
    return torch.autograd.forward_ad._current_level < 0


_PLAIN = frozenset([torch.Tensor, torch.nn.Parameter, type(None), bool, int, float])


def is_unwatched(arguments: Iterable[Any]) -> bool:
    """Returns whether a kernel may be called in an op's place: nothing traces, transforms, times or
    counts ops.
    """
    if (
        not is_eager()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    ):
        return False
    if torch._C._autograd._profiler_enabled():
        return False
    return _PLAIN.issuperset(map(type, arguments))
