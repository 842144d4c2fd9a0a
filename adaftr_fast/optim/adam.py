"""Dense Adam and AdamW at sparse cost.

Dense Adam updates every row in every step, by momentum and weight decay, including the rows that
the batch did not look up. Here such a row is deferred: it stores the step it is current to, a
look-up computes its present value, and the next step that updates it, or ``flush()``, applies the
missed steps, in closed form where that is exact to rounding (csrc/cpu/embedding/optim/adam.h has
the formulas). The trajectory is that of torch.optim.Adam.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from adaftr_fast.nn.deferred import DeferredParameter, flush
from adaftr_fast.optim.base import Parameters, RowOptimizer, check_at_least
from adaftr_fast.optim.deferred import DeferredAdam
from adaftr_fast.optim.dense import DenseAdam
from adaftr_fast.optim.rows import check_betas, moments_entry, restore_moments

_OTHERS = "others"  # begins the names of the state of parameters that are not tables, in a snapshot


class Adam(RowOptimizer):
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
        lr: learning rate >= 0; it may change between steps.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: ε >= 0.
        weight_decay: λ >= 0.
        options: see :class:`RowOptimizer`.

    Raises:
        TypeError: the class of a table's parameter is a subclass of nn.Parameter.
    """

    _decoupled = False
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
        check_at_least(type(self).__name__, 0, lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(type(self).__name__, betas)
        self._deferred: dict[nn.Parameter, DeferredAdam] = {}
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, options
        )

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

    def _new_state(self, weight: nn.Parameter) -> dict[str, Any]:
        self._deferred[weight] = DeferredAdam(weight, self._decoupled)
        return {}

    def _update(
        self, weight: nn.Parameter, rows: Tensor, grad: Tensor, group: dict[str, Any]
    ) -> None:
        state = self._deferred[weight]
        with state.lock:
            state.configure(weight, group["betas"], group["eps"], group["weight_decay"])
            state.step(weight, rows, grad, float(group["lr"]))

    def _grow(self, old: nn.Parameter, new: nn.Parameter, at: int, rows: int) -> None:
        self._deferred[new] = self._deferred.pop(old)
        self._deferred[new].grow(at, rows)

    def flush(self) -> None:
        """Makes every row of every table current."""
        for weight in self._deferred:
            flush(weight)

    def snapshot(self) -> dict[str, Tensor]:
        """Returns the state by name, without making rows of the tables current; the tensors are not
        copied.

        Unlike ``state_dict()`` it changes nothing, so it can be taken between any two steps. It
        belongs to the values that the parameters have in memory at that moment, without missed
        steps.
        """
        states = [self._deferred[weight].snapshot(weight) for weight in self._weights()]
        saved = {
            f"{number}.{name}": value
            for number, each in enumerate(states)
            for name, value in each.items()
        }
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
            ValueError: the snapshot is of another number of parameters that are not tables; nothing
                is restored then.
        """
        others = self._other_parameters() if _OTHERS in saved else []
        if _OTHERS in saved and len(others) != saved[_OTHERS]:
            raise ValueError(
                f"{type(self).__name__}.restore: saved must hold {len(others)} parameters that are "
                "not tables, "
                f"got {int(saved[_OTHERS])}"
            )
        for number, weight in enumerate(self._weights()):
            self._deferred[weight].restore(weight, _below(f"{number}.", saved))
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
        return [(parameter, group) for parameter, group in pairs if parameter not in self._deferred]

    def _entry(self, weight: nn.Parameter) -> dict[str, Any]:
        flush(weight)
        state = self._deferred[weight]
        return moments_entry(state.steps, state.moments)

    def _restore(self, weight: nn.Parameter, entry: dict[str, Any]) -> None:
        flush(weight)
        state = self._deferred[weight]
        restore_moments(state.moments, entry)
        state.resume_at(int(entry["step"]))


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


def _below(prefix: str, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with ``prefix``, by the rest of their names."""
    return {
        name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)
    }
