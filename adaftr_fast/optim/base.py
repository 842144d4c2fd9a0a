"""The base class of the row optimizers: finds the tables, reads their merged gradients, saves and
loads state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer
from torch.utils._pytree import tree_map_only

from adaftr_fast.nn.deferred import flush
from adaftr_fast.nn.embedding import living_embeddings, tables_of
from adaftr_fast.nn.embedding_table import EmbeddingTable, insert_rows, train_by, trained_by
from adaftr_fast.ops.embedding.lookup import coalesce_unless_on_cuda, empty_table
from adaftr_fast.ops.library import check_local

Entry = nn.Module | nn.Parameter | tuple[str, nn.Parameter]
Parameters = nn.Module | Iterable[Entry] | Iterable[dict[str, Any]]
# Keys of a group with tables, but not options of their update: those of torch's groups and
# learning-rate schedulers, and those that choose an implementation without changing the result.
_WITHOUT_EFFECT = {"params", "param_names", "initial_lr", "foreach", "fused", "capturable"}


def split(
    params: Entry | Iterable[Entry],
) -> tuple[dict[nn.Parameter, EmbeddingTable], dict[nn.Parameter, Entry]]:
    """Splits modules, parameters and named parameters into the tables of FusedEmbedding modules and
    all others.

    Returns the table of each table's parameter, and every parameter as it was given, with its name
    if it had one.
    """
    listed: list[Any] = [params] if isinstance(params, nn.Module | Tensor) else list(params)
    modules = [entry for entry in listed if isinstance(entry, nn.Module)]
    entries: dict[nn.Parameter, Entry] = {}
    for entry in listed:
        if isinstance(entry, nn.Module):
            entries |= {parameter: parameter for parameter in entry.parameters()}
        else:
            entries[entry[1] if isinstance(entry, tuple) else entry] = entry
    known = tables_of([*modules, *living_embeddings()])
    return {parameter: known[parameter] for parameter in entries if parameter in known}, entries


def check_at_least_0(name: str, **values: float) -> None:
    """Raises ValueError for the first value below 0."""
    for key, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}: {key} must be >= 0, got {value}")


def state_table(weight: Tensor, *size: int) -> Tensor:
    """Returns zeros for optimizer state: float64 beside float64 weights, float32 beside
    all others.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return empty_table(*size, device=weight.device, dtype=dtype).zero_()


def row_gradient(weight: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Returns the rows [U] with a gradient, in ascending order, and their gradients [U, E]. Those of
    a dense gradient are the rows that are not zeros.

    On CUDA, rows come in any order and may repeat, for the update to merge.
    """
    coalesce_unless_on_cuda(weight)  # does nothing if the gradient is dense, or coalesced already
    grad = weight.grad
    if grad is None:
        raise ValueError("row_gradient: weight must have a gradient, got None")
    if not grad.is_sparse:
        rows = grad.ne(0).any(1).nonzero()[:, 0]
        return rows, grad[rows]
    return grad._indices().select(0, 0), grad._values()


def records_where_wanted(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the ``step`` of an optimizer as ``profile_hook_step`` of torch.optim, but records only
    for a profiler.

    The record takes a tenth of the time of a step of 20,000 look-ups.
    """
    recorded = torch.optim.Optimizer.profile_hook_step(func)

    @functools.wraps(func)
    def step(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        is_wanted = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch._C._autograd._profiler_enabled()
        )
        return (recorded if is_wanted else func)(self, *args, **kwargs)

    return step


def fit_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives the loaded state the strides of its parameters: fused ops read both in the order of
    memory.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name == "step":
                    state[name] = torch.as_tensor(value, dtype=torch.float32)  # or a number
                elif isinstance(value, Tensor):
                    state[name] = torch.empty_like(parameter).copy_(value)


class RowOptimizer(torch.optim.Optimizer):
    """Updates the rows of ``FusedEmbedding`` tables that have a gradient, and other parameters as
    torch.optim does.

    One torch.optim optimizer takes the steps of the others. Its groups have the options of this
    one's groups, and it shares the state. A group may hold both kinds, so schedulers see the groups
    that were given.

    Args:
        params: a module or several, ``module.parameters()``, ``module.named_parameters()``, or
            parameter groups whose "params" are such. All parameters of a module are taken, those of
            its FusedEmbedding modules as tables.
        defaults: options of the parameter groups that do not set their own.
        options: further options of torch.optim's optimizer. A group with tables takes those that
            choose an implementation (``foreach``, ``fused``, ``capturable``), and all others at
            torch.optim's default.

    Raises:
        TypeError: torch.optim's optimizer has no such option.
        ValueError: a group with tables has an option that their rule does not have.
    """

    # takes the steps of the parameters that are not tables
    _twin: ClassVar[type[torch.optim.Optimizer]]
    # takes the step of a table, its state, the rows and gradients, lr and the scalars
    _op: ClassVar[Any]
    _scalars: ClassVar[tuple[str, ...]]  # options of a group
    _initial = 0.0  # the state of a new row
    profile_hook_step = staticmethod(records_where_wanted)

    def __init__(
        self, params: Parameters, defaults: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._table_of: dict[nn.Parameter, EmbeddingTable] = {}
        # of the tables' rule; torch adds to ``defaults`` when a state is loaded
        self._options = dict(defaults)
        self._others = self._twin([{"params": []}], **self._twin_options(defaults))
        self._others.param_groups.clear()
        for key in options:
            if key not in self._others.defaults:
                raise TypeError(
                    f"{type(self).__name__}.__init__() got an unexpected keyword argument {key!r}"
                )
        listed: Any = [params] if isinstance(params, nn.Module) else params
        super().__init__(listed, defaults | options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group as torch.optim does.

        Raises:
            TypeError: exact Adam is given a table whose class is not nn.Parameter.
            ValueError: the group holds tables, and has an option that their rule does not have,
                such as momentum, at another value than torch.optim's default.
        """
        tables, entries = split(param_group["params"])
        if tables:
            self._check_options(self.defaults | param_group)
        for weight in tables:
            self._check_table(weight)
        super().add_param_group(param_group | {"params": list(entries.values())})
        self._table_of |= tables
        for weight in tables:
            flush(weight)  # an optimizer before this one may have deferred steps
            train_by(weight, self)
        others = [entry for each, entry in entries.items() if each not in tables]
        # which may begin its state
        made = self._twin([param_group | {"params": others}], **self._twin_options(self.defaults))
        self._others.param_groups += made.param_groups
        self.state.update(made.state)
        self._others.state = self.state

    def _check_options(self, group: dict[str, Any]) -> None:
        """Refuses options of a group with tables that would reach its other parameters alone."""
        name = type(self).__name__
        allowed = self._others.defaults
        for key, value in group.items():
            if key in self._options or key in _WITHOUT_EFFECT:
                continue
            if key not in allowed:
                raise ValueError(
                    f"{name}: a group with tables takes {', '.join(self._options)}, got "
                    f"{key}={value!r}"
                )
            if value != allowed[key]:
                raise ValueError(
                    f"{name}: a group with tables must have {key}={allowed[key]!r}, got {value!r}"
                )

    def _check_table(self, weight: nn.Parameter) -> None:
        """Refuses a table that the rule cannot train."""
        advice = "leave the tables out of fully_shard, and replicate them (docs/frameworks.md)"
        check_local(type(self).__name__, "a table", weight, advice)

    def _twin_options(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of ``_twin``."""
        return defaults

    def _new_state(self, weight: nn.Parameter) -> Any:
        """Returns the state of one table before its first step, by the names of torch.optim:
        tensors with a row for each row of the table, and scalars.
        """
        raise NotImplementedError

    def _state_of(self, weight: nn.Parameter) -> Any:
        """Returns the state of one table, which begins here where it has none."""
        state = self.state.get(weight)
        if not state:
            state = self._new_state(weight)
            if state:
                self.state[weight] = state
        return state

    def _update(
        self, weight: nn.Parameter, rows: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        """Takes one step on rows [U] with gradients [U, E]."""
        scalars = [group[name] for name in self._scalars]
        state = self._state_of(weight).values()
        self._op(weight, *state, rows, grad, float(group["lr"]), *scalars)

    def grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None:
        """Moves the state of a table to a new parameter, which has ``rows`` new rows before row
        ``at``.
        """
        for group in self.param_groups:
            group["params"] = [new if weight is old else weight for weight in group["params"]]
        self._table_of[new] = self._table_of.pop(old)
        train_by(new, self)
        if old in self.state:
            self.state[new] = self.state.pop(old)
            self._grow(new, at, rows)

    def _grow(self, weight: nn.Parameter, at: int, rows: int) -> None:
        """Inserts the initial state of new rows of ``weight``."""
        state = self.state[weight]
        for key, value in state.items():
            fresh = value.new_full((rows, *value.shape[1:]), self._initial)
            state[key] = insert_rows(value, at, fresh)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; ``closure`` may compute it and return the
        loss.

        Raises:
            RuntimeError: a CUDA graph is being captured.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight in self._table_of:
                    self._step_table(weight, group)
        if any(group["params"] for group in self._others.param_groups):
            for group, own in zip(self.param_groups, self._others.param_groups, strict=True):
                own.update({**group, "params": own["params"]})
            self._others.step()
        return loss

    def _step_table(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        # reads attributes in a fifth of the time of a DeferredParameter
        with torch._C.DisableTorchFunctionSubclass():
            if weight.grad is None:
                return
            if (
                torch.cuda.is_initialized()
                and weight.is_cuda
                and torch.cuda.is_current_stream_capturing()
            ):
                raise RuntimeError(
                    f"{type(self).__name__}.step: cannot be captured in a CUDA graph, because the "
                    "learning rate and the step come from the host: capture forward and backward, "
                    "and call step() after each replay"
                )
            rows, grad = row_gradient(weight)
        self._update(weight, rows, grad, group)

    def _parameters(self) -> list[tuple[int, nn.Parameter]]:
        """Returns all parameters and their numbers."""
        return list(enumerate(each for group in self.param_groups for each in group["params"]))

    def _numbered(self) -> list[tuple[int, nn.Parameter]]:
        """Returns the tables' parameters, and their numbers among all parameters."""
        return [(number, each) for number, each in self._parameters() if each in self._table_of]

    def _weights(self) -> list[nn.Parameter]:
        return [weight for _, weight in self._numbered()]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim, without its record for profilers."""
        if not set_to_none:
            return super().zero_grad(False)
        with torch._C.DisableTorchFunctionSubclass():  # as in _step_table
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _by_field(self, weight: nn.Parameter, state: Any) -> dict[str, Tensor]:
        """Returns the state of one table as ``<name>.<field name>`` per field, views, and scalars
        as ``<name>``.
        """
        table = self._table_of[weight]
        found: dict[str, Tensor] = {}
        for key, value in state.items():
            if value.dim() == 0:
                found[key] = value
            else:
                parts = value.split(table.num_embeddings)
                found |= {
                    f"{key}.{name}": part
                    for name, part in zip(table.field_names, parts, strict=True)
                }
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Returns what copies and pickles have, as torch.optim: no hooks."""
        names = ("_table_of", "_options", "_others", "_initial")
        return super().__getstate__() | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._others.state = self.state
        for weight in self._table_of:
            if trained_by(weight) is None:  # a copy of the table
                train_by(weight, self)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Returns ``{"state": {parameter number: tensors}, "param_groups": options}``, as
        torch.optim.

        The tensors of a table are ``<name>.<field name>`` [rows of the field, ...], with the names
        of torch.optim ("exp_avg", "exp_avg_sq", "sum"), and the scalar "step". Those of other
        parameters are torch.optim's.
        """
        return self._packed(self._by_field)

    @torch.no_grad()
    def torch_state_dict(self) -> dict[str, Any]:
        """Returns the state as torch.optim's optimizer of the same rule has it, which loads it and
        goes on: a tensor for all rows of a table, and all options.

        LazyAdam's is that of torch.optim.SparseAdam, which takes tables alone.
        """
        packed = self._packed(self._whole)
        for group, options in zip(packed["param_groups"], self._others.param_groups, strict=True):
            for key, value in options.items():
                group.setdefault(key, value)
        return packed

    def _whole(self, weight: nn.Parameter, state: Any) -> dict[str, Any]:
        """Returns the state of one table as torch.optim has it."""
        return dict(state.items())

    def _packed(self, form: Callable[[nn.Parameter, Any], dict[str, Any]]) -> dict[str, Any]:
        """Returns the state with the tables' in a form, which the hooks of the user get as well."""

        def give_form(_: torch.optim.Optimizer, packed: dict[str, Any]) -> None:
            states = packed["state"]
            for number, weight in self._numbered():
                if number in states:
                    tensors = form(weight, states[number])
                    states[number] = tree_map_only(Tensor, Tensor.contiguous, tensors)

        hook = self.register_state_dict_post_hook(give_form, prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned; the state keeps its own precision, whatever that of
        the table.

        The state that torch.optim's optimizer of the same rule has of a table, a tensor for all its
        rows, is taken as well. Options that a group lacks, as in a state of another version of
        torch, become the defaults.

        Raises:
            ValueError: the parameter groups, their options or the state of a table do not fit;
                nothing is loaded then.
        """
        found: dict[nn.Parameter, tuple[Any, dict[str, Tensor]]] = {}

        def take_tables(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            self._check_groups(given["param_groups"])
            saved = dict(given["state"])
            # numbers, or the names of a distributed checkpoint
            keys = [key for group in given["param_groups"] for key in group["params"]]
            for key, (number, weight) in zip(keys, self._parameters()):
                if weight in self._table_of and (tensors := saved.pop(key, None)):
                    state = self.state.get(weight) or self._new_state(weight)
                    found[weight] = state, self._fitting(number, weight, state, tensors)
            return {**given, "state": saved}

        def restore_tables(_: torch.optim.Optimizer) -> None:
            for group in self.param_groups:
                for key, value in self._options.items():
                    group.setdefault(key, value)
            fit_state(self._others)
            for weight, (state, tensors) in found.items():
                self.state[weight] = state
                for key, view in self._by_field(weight, state).items():
                    if view.dim():
                        view.copy_(tensors[key])
                    else:
                        state[key] = tensors[key]

        last = self.register_load_state_dict_pre_hook(take_tables)
        first = self.register_load_state_dict_post_hook(restore_tables, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
            first.remove()

    def _check_groups(self, groups: list[dict[str, Any]]) -> None:
        """Checks the options that are loaded into groups with tables."""
        for group, given in zip(self.param_groups, groups):  # torch checks their number
            if not self._table_of.keys().isdisjoint(group["params"]):
                known = self._others.defaults  # schedulers add keys of their own
                self._check_options({key: value for key, value in given.items() if key in known})

    def _fitting(
        self, number: int, weight: nn.Parameter, state: Any, saved: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Returns saved tensors as ``_by_field`` names them. Takes tensors of whole tables and a
        "step" too many, as torch.optim has them, and names in parts, as flattened distributed
        checkpoints have them.

        Raises:
            ValueError: there is another tensor too many, one is missing or of another size, or the
                step is out of range.
        """
        given = dict(_flattened("", saved))
        if "step" not in state:
            given.pop("step", None)
        for key, value in state.items():
            if key in given and given[key].shape == value.shape:  # of the whole table
                given |= self._by_field(weight, {key: given.pop(key)})
        expected, found = (
            {key: list(value.shape) for key, value in each.items()}
            for each in (self._by_field(weight, state), given)
        )
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict: table {number}: {key} must be "
                    f"{expected.get(key)}, got {found.get(key)}"
                )
        step = float(given["step"]) if "step" in state else 0.0
        if not (0 <= step < 2**31 - 1 and step == int(step)):  # an int32 for each row
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: table {number}: step must be a whole "
                f"number from 0 to {2**31 - 2}, got {step:g}"
            )
        return given


def _flattened(prefix: str, saved: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yields the values of nested dictionaries as tensors, by their names joined with dots."""
    for key, value in saved.items():
        if isinstance(value, dict):
            yield from _flattened(f"{prefix}{key}.", value)
        elif value is not None:
            yield f"{prefix}{key}", torch.as_tensor(value)
