"""The base class of the row optimizers: finds the tables, reads their merged gradients, saves and loads state."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.embedding_table import EmbeddingTable, insert_rows
from adaftr_fast.ops.embedding.lookup import coalesce_unless_on_cuda

T = TypeVar("T")
Tables = nn.Module | Iterable[nn.Module] | Iterable[dict[str, Any]]


def tables_of(name: str, modules: nn.Module | Iterable[nn.Module]) -> dict[nn.Parameter, EmbeddingTable]:
    """Returns the tables of the FusedEmbedding modules in ``modules``, each once, by their parameters."""
    roots = [modules] if isinstance(modules, nn.Module) else list(modules)
    found = [module for root in roots for module in root.modules() if isinstance(module, FusedEmbedding)]
    if not found:
        raise ValueError(f"{name}: expected FusedEmbedding modules, or modules that hold some, got {roots}")
    pairs = (zip(module.table_weights(), module.by_width, strict=True) for module in found)
    return dict(pair for of_module in pairs for pair in of_module)


def check_at_least(name: str, low: float, **values: float) -> None:
    """Raises ValueError for the first value below ``low``."""
    for key, value in values.items():
        if not value >= low:
            raise ValueError(f"{name}: {key} must be >= {low}, got {value}")


def row_gradient(weight: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Returns the rows [U] with a gradient, in ascending order, and their gradients [U, E]; all rows if it is dense.

    On CUDA, rows come in any order and may repeat, for the update to merge.
    """
    coalesce_unless_on_cuda(weight)  # does nothing if the gradient is dense, or coalesced already
    grad = weight.grad
    if grad is None:
        raise ValueError("row_gradient: weight must have a gradient, got None")
    if not grad.is_sparse:
        return torch.arange(len(weight), device=weight.device), grad.contiguous()
    return grad._indices()[0], grad._values()


class RowOptimizer(torch.optim.Optimizer):
    """Updates the rows of ``FusedEmbedding`` tables that have a gradient.

    Args:
        tables: a FusedEmbedding, a module or several that hold some, or parameter groups whose "params" are such.
        defaults: options of the parameter groups that do not set their own.

    Raises:
        ValueError: there is no FusedEmbedding in ``tables``.
    """

    def __init__(self, tables: Tables, defaults: dict[str, Any]) -> None:
        name = type(self).__name__
        listed: list[Any] = [tables] if isinstance(tables, nn.Module) else list(tables)
        groups: list[dict[str, Any]] = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
        owners = [tables_of(name, group["params"]) for group in groups]
        self._table_of = {weight: table for owned in owners for weight, table in owned.items()}
        parameter_groups = [{**group, "params": list(owned)} for group, owned in zip(groups, owners, strict=True)]
        super().__init__(parameter_groups, defaults)
        for weight, table in self._table_of.items():
            table.flush(weight)  # an optimizer before this one may have deferred steps
            table.deferred, table.optimizer = None, weakref.ref(self)
            self._begin(weight, table)

    def _begin(self, weight: nn.Parameter, table: EmbeddingTable) -> None:
        """Makes the state of one table."""
        raise NotImplementedError

    def _update(self, weight: nn.Parameter, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Takes one step on rows [U] with gradients [U, E]."""
        raise NotImplementedError

    def _entry(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Returns the state of one table: tensors with a row for each row of the table, and scalars."""
        state: dict[str, Tensor] = self.state[weight]
        return state

    def _restore(self, weight: nn.Parameter, entry: dict[str, Tensor]) -> None:
        """Copies into the state what ``_entry`` returned."""
        for key, value in entry.items():
            self.state[weight][key].copy_(value)

    def grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None:
        """Moves the state of a table to a new parameter, which has ``rows`` new rows before row ``at``."""
        for group in self.param_groups:
            group["params"] = [new if weight is old else weight for weight in group["params"]]
        self.state[new] = self.state.pop(old, {})
        self._table_of[new] = self._table_of.pop(old)
        self._grow(old, new, at, rows)

    def _grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None:
        """Inserts the initial state of the new rows."""
        for key, value in self.state[new].items():
            if isinstance(value, Tensor):
                self.state[new][key] = insert_rows(value, at, value.new_zeros(rows, *value.shape[1:]))

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """As torch.optim, which wraps ``step`` with this, but records for profilers only where one runs.

        The record takes a tenth of the time of a step of 20,000 look-ups.
        """
        recorded = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: RowOptimizer, *args: Any, **kwargs: Any) -> Any:
            hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            hooks = hooks or torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks
            return (recorded if hooks or torch._C._autograd._profiler_enabled() else func)(self, *args, **kwargs)

        return step

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], T]) -> T: ...

    def step(self, closure: Callable[[], T] | None = None) -> T | None:
        """Updates every table that has a gradient; ``closure`` may compute it and return the loss.

        Raises:
            RuntimeError: a CUDA graph is being captured.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._check_capture(weight)
                    self._update(weight, *row_gradient(weight), group)
        return loss

    def _check_capture(self, weight: nn.Parameter) -> None:
        if torch.cuda.is_initialized() and weight.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self).__name__}.step: cannot be captured in a CUDA graph, because the learning rate and the "
                "step come from the host: capture forward and backward, and call step() after each replay"
            )

    def _weights(self) -> list[nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim, without its record for profilers."""
        if not set_to_none:
            return super().zero_grad(False)
        for weight in self._table_of:
            weight.grad = None

    def _by_field(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Returns the state of one table as ``<name>.<field name>`` per field, and scalars as ``<name>``."""
        table, entry = self._table_of[weight], {}
        for key, value in self._entry(weight).items():
            if value.dim() == 0:
                entry[key] = value
            else:
                parts = value.split(table.num_embeddings)
                entry |= {f"{key}.{name}": part for name, part in zip(table.field_names, parts, strict=True)}
        return entry

    def __getstate__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"{name}: cannot be copied or pickled, being tied to its tables: copy these, make a {name} of the copies "
            "and load this one's state_dict()"
        )

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Returns ``{"state": {table number: tensors}, "param_groups": options}``, as torch.optim, but field by field.

        The tensors of a table are ``<name>.<field name>`` [rows of the field, ...], with the names of torch.optim
        ("exp_avg", "exp_avg_sq", "sum"), and the scalar "step".
        """
        packed = super().state_dict()
        packed["state"] = {number: self._by_field(weight) for number, weight in enumerate(self._weights())}
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned; the state keeps its own precision, whatever that of the table.

        Raises:
            ValueError: the parameter groups or the state of a table do not fit; nothing is loaded then.
        """
        for number, weight in enumerate(self._weights()):
            self._check_entry(number, state_dict["state"].get(number, {}), self._by_field(weight))
        kept = dict(self.state)
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        self.state.update(kept)
        for number, weight in enumerate(self._weights()):
            self._restore(weight, self._joined(weight, state_dict["state"].get(number, {})))

    def _check_entry(self, number: int, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        for key in sorted(expected.keys() | found.keys()):
            want, got = (list(entry[key].shape) if key in entry else None for entry in (expected, found))
            if want != got:
                name = type(self).__name__
                raise ValueError(f"{name}.load_state_dict: table {number}: {key} must be {want}, got {got}")

    def _joined(self, weight: nn.Parameter, entry: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reverses ``_by_field``."""
        fields = self._table_of[weight].field_names
        return {
            key: entry[key] if whole.dim() == 0 else torch.cat([entry[f"{key}.{name}"] for name in fields])
            for key, whole in self._entry(weight).items()
        }
