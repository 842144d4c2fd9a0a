"""Parameters whose rows have missed steps of their optimizer, and what makes the rows current.

R rows, E width.

adaftr_fast.optim.Adam defers the steps of rows that a batch does not look up. From such a step on,
until the rows are current again, the parameter's class is ``DeferredParameter``, by which the
functions of torch recognize it wherever it is held. To make rows current where a module returns its
parameters would cost a pass over the table in each step that calls ``zero_grad()`` or clips
gradients, and would miss those who hold a parameter from before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch._guards import CompileContext
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map_only

import adaftr_fast.ops.embedding.bags  # noqa: F401  # defines the look-ups


class Steps(Protocol):
    """The steps that rows of a parameter have missed, kept by its optimizer.

    Attributes:
        tensors: what look-ups take as ``state``.
        seen: the version of the parameter's memory that the steps belong to.
        lock: is held by a thread that reads, adds or applies steps, and may be taken by it again.
    """

    tensors: list[Tensor]
    seen: int
    lock: threading.RLock

    def apply(self, weight: Tensor) -> None:
        """Makes every row of ``weight`` current."""


def _of_current_rows(name: str) -> Any:
    """Returns a method that makes the rows current and then calls nn.Parameter's, which torch does
    not dispatch.
    """

    def method(self: DeferredParameter, *args: Any) -> Any:
        flush(self)
        return getattr(self, name)(*args)

    return method


class DeferredParameter(nn.Parameter):
    """A parameter [R, E] whose rows have missed steps.

    A function of torch that takes it makes its rows current first, which turns it into an
    nn.Parameter. Functions that read no rows, and look-ups that take the missed steps as well,
    leave it as it is.

    Attributes:
        missed: the missed steps.
    """

    missed: Steps

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> nn.Parameter:  # type: ignore[misc]
        """Returns an nn.Parameter: what code makes by ``type(parameter)(data)`` has missed no
        steps.
        """
        return nn.Parameter(data, requires_grad)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READ_NO_ROWS or _takes_steps(func, args, kwargs) or _is_being_compiled():
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _DIFFERENTIATE and not kwargs.get("materialize_grads"):
            args, kwargs = tree_map_only(DeferredParameter, _edge, (args, kwargs))
        for each in tree_leaves((args, kwargs)):
            flush(each)
        return func(*args, **kwargs)

    __reduce_ex__ = _of_current_rows("__reduce_ex__")
    as_subclass = _of_current_rows("as_subclass")
    set_ = _of_current_rows("set_")


_ATTRIBUTES = (
    "_backward_hooks", "_version", "device", "dtype", "grad", "grad_dtype", "grad_fn", "is_cpu", "is_cuda", "is_leaf",
    "is_meta", "is_nested", "is_quantized", "is_sparse", "is_sparse_csr", "itemsize", "layout", "nbytes", "ndim",
    "requires_grad", "retains_grad", "shape",
)  # fmt: skip
_METHODS = (
    "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point", "is_inference",
    "is_pinned", "is_shared", "nelement", "new_empty", "numel", "register_hook", "register_post_accumulate_grad_hook",
    "requires_grad_", "retain_grad", "size", "storage_offset", "stride",
)  # fmt: skip
_FUNCTIONS = ("empty_like", "is_complex", "is_floating_point", "numel", "result_type", "zeros_like")
_SET = (("grad", "__set__"), ("grad", "__delete__"), ("requires_grad", "__set__"))
_READ_NO_ROWS = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
        *(getattr(getattr(Tensor, name), how) for name, how in _SET),
        *(getattr(Tensor, name) for name in _METHODS),
        *(getattr(torch, name) for name in _FUNCTIONS),
    ]
)
_DIFFERENTIATE = (torch.autograd.grad, torch.autograd.backward)
_ops = torch.ops.adaftr_fast
_LOOK_UPS = frozenset(
    each
    for op in (_ops.fused_embedding, _ops.embedding_and_squares, _ops.embedding_bags)
    for each in (op, op.default)  # as torch.compile, and as eager code calls it
)


def _takes_steps(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> bool:
    return func in _LOOK_UPS and len(kwargs["state"] if "state" in kwargs else args[-1]) > 0


def _edge(weight: Tensor) -> GradientEdge:
    """Returns what stands for ``weight`` in autograd, so that hooks of the backward pass still see
    current rows.
    """
    with torch._C.DisableTorchFunctionSubclass():
        return get_gradient_edge(weight)


def _is_being_compiled() -> bool:
    """Returns whether torch.compile inspects a tensor. Where the program that it traces asks, it
    breaks the graph.
    """
    return CompileContext.current_compile_id() is not None


def defer(weight: Tensor, steps: Steps) -> None:
    """Notes that rows of ``weight`` have missed ``steps``, whose lock the caller holds."""
    if isinstance(weight, FakeTensor):  # it has no values that could miss a step
        return
    steps.seen = _version(weight)
    cast(DeferredParameter, weight).missed = steps
    weight.__class__ = DeferredParameter


def held(weight: Tensor) -> AbstractContextManager[Steps | None]:
    """Returns a context of the steps that rows of ``weight`` have missed; None where every row is
    current.

    No other thread adds or applies steps meanwhile. What torch.compile makes of this holds nothing
    and checks nothing.

    Raises:
        RuntimeError: since then a value was written through another tensor that shares the memory.
    """
    return nullcontext() if _noted(weight) is None else _held(weight)


@contextmanager
def _held(weight: Tensor) -> Iterator[Steps | None]:
    if torch.compiler.is_compiling():
        yield _noted(weight)
        return
    while (steps := _noted(weight)) is not None:
        with steps.lock:
            if _noted(weight) is steps:  # no other thread has applied them meanwhile
                _check_version(weight, steps)
                yield steps
                return
    yield None


def missed_steps(weight: Tensor) -> Steps | None:
    """Returns what ``held`` yields, and raises like it."""
    with held(weight) as steps:
        return steps


def _noted(weight: Tensor) -> Steps | None:
    return getattr(weight, "missed", None) if type(weight) is DeferredParameter else None


def _check_version(weight: Tensor, steps: Steps) -> None:
    if _version(weight) != steps.seen:
        raise RuntimeError(
            f"a table {list(weight.shape)} was written through a view that was made before the "
            "last step, or by a "
            "program of torch.compile, while rows had missed steps of their optimizer: write to "
            "the parameter itself "
            "in eager mode, or call flush() of the module before; the rows are lost, so load a "
            "checkpoint into a new "
            "module"
        )


def _version(weight: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return weight._version


@_disable_dynamo
def flush(weight: Any) -> None:
    """Makes every row of ``weight`` current. Raises RuntimeError like ``held``."""
    with held(weight) as steps:
        if steps is None:
            return
        # A mode such as FakeTensorMode would otherwise take the update in place of the table.
        with (
            torch.no_grad(),
            torch._C.DisableTorchFunctionSubclass(),
            torch._C._DisableTorchDispatch(),
        ):
            steps.apply(weight)
        weight.__class__ = nn.Parameter
        del weight.missed


def stored(weight: Tensor) -> Tensor:
    """Returns what the memory of ``weight`` holds, without the steps that rows have missed, as
    ``weight.detach()``.
    """
    with torch._C.DisableTorchFunctionSubclass():
        return weight.detach()
