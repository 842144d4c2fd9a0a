"""Adam on tables: LazyAdam on the rows of the batch, and dense Adam and AdamW at sparse cost.

Dense Adam updates every row in every step, by momentum and weight decay, including the rows that
the batch did not look up. Here such a row is deferred: it stores the step it is current to, a
look-up computes its present value, and the next step that updates it, or ``flush()``, applies the
missed steps, in closed form where that is exact to rounding (csrc/cpu/embedding/optim/adam.h has
the formulas). The trajectory is that of torch.optim.Adam.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import adaftr_fast.ops.embedding.optim  # noqa: F401  # defines the ops
from adaftr_fast.nn.deferred import DeferredParameter, defer, flush, missed_steps
from adaftr_fast.nn.embedding_table import insert_rows
from adaftr_fast.ops.embedding.lookup import empty_table, runs_cuda_kernels
from adaftr_fast.ops.embedding.reference.optim import POWERS
from adaftr_fast.optim.base import Parameters, RowOptimizer, check_at_least_0, state_table
from adaftr_fast.optim.dense import DenseAdam

_STEP, _HORIZON, _BASE = 0, 6, 7  # places in the clock
_NAMES = ("moments", "current", "series", "schedule", "powers", "clock")  # of the tensors
_OTHERS = "others"  # begins the names of the state of parameters that are not tables, in a snapshot


class _RuleOfAdam(RowOptimizer):
    """Holds the options of Adam, and names the moments of a table as torch.optim does."""

    _twin: ClassVar[type[torch.optim.Optimizer]] = DenseAdam

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        check_at_least_0(name, lr=lr, eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{name}: betas must be in [0, 1), got {betas}")
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, options
        )

    def _new_state(self, weight: nn.Parameter) -> TableState:
        return TableState(weight, Moments(weight))

    def _grow(self, weight: nn.Parameter, at: int, rows: int) -> None:
        self.state[weight].grow(weight, at, rows)


class Moments:
    """Holds the moments of a table.

    Attributes:
        moments: [R, 2, E], m and v.
        steps: steps taken so far.

    Args:
        weight: the table [R, E].
    """

    def __init__(self, weight: Tensor) -> None:
        rows, width = weight.shape
        self.moments = state_table(weight, rows, 2, width)
        self.steps = 0

    def grow(self, at: int, rows: int) -> None:
        """Inserts new rows before row ``at``; every row must be current."""
        fresh = self.moments.new_zeros(rows, *self.moments.shape[1:])
        self.moments = insert_rows(self.moments, at, fresh)

    def resume_at(self, step: int) -> None:
        """Sets the number of steps; every row must be current."""
        self.steps = step


class TableState:
    """The state of a table as ``optimizer.state`` shows it, by the names of torch.optim.Adam: the
    number of steps, "step", and "exp_avg" and "exp_avg_sq" [R, E].

    To read one makes every row current. The moments are views, which lag behind after the next
    step. A value that is set is copied.

    It has the methods of a dictionary, but is no Mapping: libraries that move the state of
    optimizers to another device make another object of each Mapping, as Lightning does.

    Attributes:
        own: what the optimizer keeps of the table.
    """

    _PLACES: ClassVar[dict[str, int]] = {"exp_avg": 0, "exp_avg_sq": 1}

    def __init__(self, weight: nn.Parameter, own: Moments) -> None:
        self._weight = weight
        self.own = own

    def __getitem__(self, name: str) -> Tensor:
        flush(self._weight)
        if name == "step":
            return torch.tensor(float(self.own.steps), dtype=torch.float32)
        return self.own.moments[:, self._PLACES[name]]

    @torch.no_grad()
    def __setitem__(self, name: str, value: Tensor) -> None:
        kept = self[name]
        if name == "step":
            self.own.resume_at(int(value))
        else:
            kept.copy_(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> list[str]:
        return ["step", *self._PLACES]

    def values(self) -> list[Tensor]:
        return [self[name] for name in self.keys()]

    def items(self) -> list[tuple[str, Tensor]]:
        return [(name, self[name]) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.items()).get(name, default)

    def grow(self, weight: nn.Parameter, at: int, rows: int) -> None:
        """Follows the table to a new parameter, which has new rows before row ``at``."""
        self._weight = weight
        self.own.grow(at, rows)

    def __getstate__(self) -> dict[str, Any]:
        flush(self._weight)
        return vars(self)


class LazyAdam(_RuleOfAdam):
    """Computes Adam on the rows with a gradient, and leaves the moments of other rows. Equals
    torch.optim.SparseAdam.

    The result is not that of dense Adam, which :class:`adaftr_fast.optim.Adam` computes. Parameters
    that are not tables take the steps of torch.optim.Adam.

    Args:
        params: see :class:`RowOptimizer`.
        lr: learning rate >= 0.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: ε >= 0.
        weight_decay: λ >= 0, with g + λ w in place of g.
        options: see :class:`RowOptimizer`.
    """

    def _update(
        self, weight: nn.Parameter, rows: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        own = self._state_of(weight).own
        beta1, beta2 = group["betas"]
        own.steps += 1
        step_size = float(group["lr"]) * (1 - beta2**own.steps) ** 0.5 / (1 - beta1**own.steps)
        torch.ops.adaftr_fast.embedding_lazy_adam_(
            weight,
            own.moments,
            rows,
            grad,
            step_size,
            group["weight_decay"],
            group["eps"],
            beta1,
            beta2,
        )

    def _whole(self, weight: nn.Parameter, state: TableState) -> dict[str, Any]:
        # SparseAdam computes with a number
        return {**super()._whole(weight, state), "step": state.own.steps}


class DeferredAdam(Moments):
    """Holds the moments, the step that each row is current to, and what the ops need to apply
    missed steps.

    Attributes:
        tensors: the state that the ops take; adaftr_fast/ops/embedding/reference/optim.py describes
            it.
        moments: the first of ``tensors``.
        seen, lock: see adaftr_fast.nn.deferred.Steps.

    Args:
        weight: the table [R, E].
        decoupled: whether weight decay is AdamW's.
    """

    def __init__(self, weight: Tensor, decoupled: bool) -> None:
        super().__init__(weight)
        device = weight.device
        dtype = self.moments.dtype
        current = empty_table(len(weight), device=device, dtype=torch.int32).zero_()
        # A CUDA graph keeps the addresses of what it reads, so there the tensors are large from the
        # start, and a full series is flushed rather than grown.
        self._grows = not runs_cuda_kernels(weight)
        steps = 64 if self._grows else 1 << 16
        series = torch.zeros(steps, 8, device=device, dtype=dtype)
        schedule = torch.zeros(steps, 8, device=device, dtype=torch.float64)
        powers = torch.zeros(2, POWERS, device=device, dtype=dtype)
        self._clock = torch.zeros(8, device=device, dtype=torch.float64)
        self.tensors: list[Tensor] = [self.moments, current, series, schedule, powers, self._clock]
        self._decoupled = decoupled
        self._options: tuple[float, ...] | None = None
        self._changed_at: int | None = None  # the steps taken when options last changed
        self._base = 0
        self.seen = 0
        self.lock = threading.RLock()

    def configure(
        self, weight: Tensor, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """Sets the options of the next steps."""
        options = (*betas, eps, weight_decay)
        if options == self._options:
            return
        if self._options is not None:
            if self._changed_at == self.steps - 1:
                _warn_of_changes()
            self._changed_at = self.steps
        flush(weight)  # the missed steps were taken under the old options
        self._options = options
        decoupled = float(self._decoupled)
        horizon = self._horizon(*betas)
        self._clock[1:_BASE] = self._clock.new_tensor([*options, decoupled, horizon])
        powers = self.tensors[4]
        keep1 = 1 - self._rounded(1 - betas[0])  # what m <- m + (1 - β1) (g - m) keeps
        keep = torch.stack([keep1, self._rounded(betas[1])])
        powers.copy_(keep[:, None] ** torch.arange(POWERS, device=keep.device))

    def step(self, weight: Tensor, rows: Tensor, grad: Tensor, lr: float) -> None:
        """Takes one step on rows [U] with gradients grad [U, E]."""
        if missed_steps(weight) is not self:
            flush(weight)  # another optimizer of the same parameter may have deferred steps
        if self.steps + 1 - self._base >= len(self.tensors[2]):
            self._make_room(weight)
        with torch._C.DisableTorchFunctionSubclass():
            torch.ops.adaftr_fast.embedding_adam_(weight, self.tensors, rows, grad, lr)
        self.steps += 1
        defer(weight, self)

    def _make_room(self, weight: Tensor) -> None:
        if self._grows:
            self.tensors[2:4] = [
                torch.cat([each, torch.zeros_like(each)]) for each in self.tensors[2:4]
            ]
        else:
            flush(weight)

    def apply(self, weight: Tensor) -> None:
        """Makes every row current; called by ``flush``, which also notes it."""
        torch.ops.adaftr_fast.embedding_adam_flush_(weight, self.tensors)
        self._base = self.steps

    def grow(self, at: int, rows: int) -> None:
        super().grow(at, rows)
        current = self.tensors[1]
        self.tensors[:2] = [
            self.moments,
            insert_rows(current, at, current.new_full((rows,), self.steps)),
        ]

    def snapshot(self, weight: Tensor) -> dict[str, Tensor]:
        """Returns the state by name, with rows that have missed steps as they are; the tensors are
        not copied.
        """
        counts = torch.tensor(
            [self.steps, self._base, missed_steps(weight) is self, self._options is not None]
        )
        return dict(zip(_NAMES, self.tensors)) | {"counts": counts}

    def check(self, saved: dict[str, Tensor]) -> None:
        """Checks what ``snapshot`` returned: its shapes, and the counters by which ops index.

        Raises:
            ValueError: a tensor is missing, has another shape, or a counter is out of range.
        """
        rows, steps = len(self.moments), len(saved.get("schedule", ()))
        shapes = ([*self.moments.shape], [rows], [steps, 8], [steps, 8], [2, POWERS], [8], [4])
        for name, shape in zip((*_NAMES, "counts"), shapes, strict=True):
            found = list(saved[name].shape) if name in saved else None
            if found != shape:
                raise ValueError(f"{name} must be {shape}, got {found}")
        counts = saved["counts"].tolist()
        clock = saved["clock"].tolist()
        step, base = clock[_STEP], clock[_BASE]
        if [step, base] != counts[:2] or not 0 <= base <= step < min(base + steps, 2**31 - 1):
            raise ValueError(
                f"counts and clock must hold one step within the {steps} of the schedule, got "
                f"steps {counts[0]} and {step:g} of schedules from {counts[1]} and {base:g} on"
            )
        if clock[_HORIZON] not in range(POWERS):
            raise ValueError(
                f"the clock's horizon must be in 0 to {POWERS - 1}, got {clock[_HORIZON]:g}"
            )
        current = saved["current"]
        if rows and not base <= int(current.min()) <= int(current.max()) <= step:
            raise ValueError(
                f"current must be in {base:g} to {step:g}, got {int(current.min())} to "
                f"{int(current.max())}"
            )

    def restore(self, weight: Tensor, saved: dict[str, Tensor]) -> None:
        """Restores what ``snapshot`` returned and ``check`` took; with the values of the table,
        training continues bit by bit.
        """
        flush(weight)  # which changes what is replaced here
        for place, name in enumerate(_NAMES):
            if len(self.tensors[place]) >= len(saved[name]):  # series and schedule grow
                self.tensors[place][: len(saved[name])] = saved[name]
            else:
                self.tensors[place] = saved[name].to(self.tensors[place])
        self.steps, self._base, stale, configured = saved["counts"].tolist()
        self._options = tuple(self._clock[1:5].tolist()) if configured else None
        if stale:
            defer(weight, self)

    def resume_at(self, step: int) -> None:
        super().resume_at(step)
        self._base = step
        self._clock[_STEP] = step
        self._clock[_BASE] = step
        self.tensors[1].fill_(step)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.RLock()

    def _rounded(self, value: float) -> Tensor:
        """Returns the value that the kernels compute with."""
        return self.tensors[4].new_tensor(value).double()

    def _horizon(self, beta1: float, beta2: float) -> int:
        """Returns the missed steps after which the momentum left is below half a unit in the last
        place; 0: never.
        """
        bits = 60 if self.moments.dtype == torch.float64 else 28
        ratio = beta1 / math.sqrt(beta2) if beta2 > 0 else math.inf
        if ratio >= 1:  # v dies out faster than m
            return 0
        horizon = math.ceil(bits * math.log(2) / -math.log(ratio)) if ratio > 0 else 1
        return horizon if horizon < POWERS else 0


class Adam(_RuleOfAdam):
    """Computes torch.optim.Adam on the dense tables, and touches only the rows of the batch.

    ``weight_decay`` is L2 on all rows. It gives every row a gradient in every step, so missed steps
    are replayed one by one: this is exact, but takes as much arithmetic as the dense step. Prefer
    :class:`AdamW`, or a penalty on the looked-up rows in the loss.

    A look-up computes present values, and so does that of any other module that holds the
    parameter. A function of torch that is called in Python with the parameter, whether taken from
    the module now or kept from before, first makes all rows current, in a pass over the table.
    Functions that read no rows, such as clipping, do not.

    What runs below Python does not: it takes the parameter as it is in memory. These are
    TorchScript, the transforms of torch.func, constructors that copy or wrap (``torch.tensor``,
    ``tensor.new_tensor``, ``torch.DoubleTensor``, ``torch.sparse_coo_tensor``,
    ``torch.nested.nested_tensor``), ``tensor.data = parameter`` and
    ``torch.utils.dlpack.to_dlpack``. ``nn.Parameter(parameter)``, ``nn.Embedding(...,
    _weight=parameter)`` and ``nn.Embedding.from_pretrained(parameter)`` raise RuntimeError. So does
    ``torch.compile(fullgraph=True)`` of a program that reads the parameter other than by look-ups.
    Call ``flush()`` of the module or the optimizer before.

    Views, arrays and DLPack capsules made before the last step lag behind: make them anew. A write
    through a view of ``parameter.detach()`` raises RuntimeError at the next use of the parameter in
    eager mode; a compiled look-up before that does not notice it, nor a pass in another thread. A
    write through ``parameter.data`` or an array is moved by the missed steps.

    Args:
        params: see :class:`RowOptimizer`.
        lr: learning rate >= 0; it may change between steps. A change of the other options takes a
            pass over each table, so give OneCycleLR ``cycle_momentum=False``.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: ε >= 0.
        weight_decay: λ >= 0.
        options: see :class:`RowOptimizer`.

    Raises:
        TypeError: the class of a table's parameter is a subclass of nn.Parameter.
    """

    _decoupled = False

    def _check_table(self, weight: nn.Parameter) -> None:
        super()._check_table(weight)
        if type(weight) not in (nn.Parameter, DeferredParameter) and not isinstance(
            weight, FakeTensor
        ):
            raise TypeError(
                f"{type(self).__name__}: a table must be a plain nn.Parameter, whose class changes "
                "while its rows have "
                f"missed steps, got a {type(weight).__name__}; take LazyAdam, or make the "
                "parameter an nn.Parameter"
            )

    def _new_state(self, weight: nn.Parameter) -> TableState:
        return TableState(weight, DeferredAdam(weight, self._decoupled))

    def _update(
        self, weight: nn.Parameter, rows: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        state = self._state_of(weight).own
        with state.lock:
            state.configure(weight, group["betas"], group["eps"], group["weight_decay"])
            state.step(weight, rows, grad, float(group["lr"]))

    def flush(self) -> None:
        """Makes every row of every table current."""
        for weight in self._table_of:
            flush(weight)

    def snapshot(self) -> dict[str, Tensor]:
        """Returns the state by name, without making rows of the tables current; the tensors are not
        copied.

        Unlike ``state_dict()`` it changes nothing, so it can be taken between any two steps. It
        belongs to the values that the parameters have in memory at that moment, without missed
        steps.
        """
        saved: dict[str, Tensor] = {}
        for number, weight in enumerate(self._weights()):
            if self.state.get(weight):
                state = self.state[weight].own.snapshot(weight)
                saved |= {f"{number}.{name}": value for name, value in state.items()}
        others = self._other_parameters()
        if others:
            # tells no state yet from a snapshot of the tables alone
            saved[_OTHERS] = torch.tensor(len(others))
        for number, (other, _) in enumerate(others):
            saved |= {
                f"{_OTHERS}.{number}.{name}": value
                for name, value in self.state.get(other, {}).items()
            }
        return saved

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Restores what ``snapshot`` returned, after the caller has copied the raw values back into
        the parameters.

        A snapshot of the tables alone leaves the state of other parameters as it is.

        Raises:
            ValueError: the snapshot is of another number of rows, or of parameters that are not
                tables, or a counter is out of range; nothing is restored then.
        """
        others = self._other_parameters() if _OTHERS in saved else []
        if _OTHERS in saved and len(others) != saved[_OTHERS]:
            raise ValueError(
                f"{type(self).__name__}.restore: saved must hold {len(others)} parameters that are "
                "not tables, "
                f"got {int(saved[_OTHERS])}"
            )
        of_tables = [
            (weight, _below(f"{number}.", saved)) for number, weight in enumerate(self._weights())
        ]
        states: dict[nn.Parameter, Any] = {}
        for weight, entry in of_tables:
            if not entry:
                continue
            states[weight] = self.state.get(weight) or self._new_state(weight)
            try:
                states[weight].own.check(entry)
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}.restore: saved: {error}") from None
        for weight, entry in of_tables:
            if entry:
                self.state[weight] = states[weight]
                states[weight].own.restore(weight, entry)
            else:  # saved before the first step
                flush(weight)
                self.state.pop(weight, None)
        for number, (other, group) in enumerate(others):
            entry = _below(f"{_OTHERS}.{number}.", saved)
            step_device = other.device if group.get("capturable") or group.get("fused") else "cpu"
            self.state[other] = {
                name: value.to(step_device, copy=True)
                if name == "step"
                else torch.empty_like(other).copy_(value)
                for name, value in entry.items()
            }

    def _other_parameters(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        """Returns the parameters that are not tables, and their groups."""
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        return [(parameter, group) for parameter, group in pairs if parameter not in self._table_of]


class AdamW(Adam):
    """Computes torch.optim.AdamW on the dense tables: w <- (1 - lr λ) w before each step of Adam.

    Args: those of :class:`Adam`.
    """

    _decoupled = True
    _twin = torch.optim.AdamW

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)


@functools.cache
def _warn_of_changes() -> None:
    """Warns that options change in every step: once per process."""
    warnings.warn(
        "adaftr_fast.optim.Adam and AdamW: betas, eps or weight_decay changed in two steps in a "
        "row, and each change takes a pass over the whole table; give OneCycleLR and CyclicLR "
        "cycle_momentum=False, or use LazyAdam",
        stacklevel=8,  # the call of step, which the scheduler has wrapped
    )


def _below(prefix: str, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with ``prefix``, by the rest of their names."""
    return {
        name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)
    }
