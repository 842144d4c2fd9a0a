"""Adam on the dense weights of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import adaftr_fast.ops.embedding.optim  # noqa: F401  # defines the ops
from adaftr_fast._extension import is_built
from adaftr_fast.optim.base import fit_state, records_where_wanted

_PLAIN = (Tensor, nn.Parameter)  # no subclasses, which have ops of their own
# The dtypes, devices and layouts that the op takes, each with plain contiguous weights.
_KINDS = tuple({(dtype, "cpu", torch.strided, True)} for dtype in (torch.float32, torch.float64))


class DenseAdam(torch.optim.Adam):
    """Computes torch.optim.Adam, and spends less around the update on the CPU, where one op updates
    all weights.

    A model has a few dozen dense weights, most of them small. torch.optim.Adam sorts them by device
    and dtype, counts the steps of each by an op, and starts its threads for each, which takes
    longer than the update. The results are equal to rounding, and the state is that of
    torch.optim.Adam.

    The first step of a weight, options that the op does not have, and other devices take torch's
    own step.
    """

    profile_hook_step = staticmethod(records_where_wanted)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state of a torch.optim.Adam."""
        super().load_state_dict(state_dict)
        fit_state(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; ``closure`` may compute it and return the
        loss.
        """
        groups = []
        for group in self.param_groups:
            having = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if having:
                groups.append((group, having))
        if closure is None and all(self._takes_one_op(*each) for each in groups):
            for each in groups:
                self._update(*each)
            return None
        for group, having in groups:
            if group["fused"]:
                _give_strides(having)
        step: Any = torch.optim.Adam.step
        if hasattr(step, "hooked"):  # by an earlier torch.optim.Adam; this step runs the hooks
            step = step.__wrapped__
        return step(self, closure)

    def _accelerator_graph_capture_health_check(self) -> None:
        """Asks the GPU whether it captures a graph, as torch 2.15 does, but for weights that are on
        one only.
        """
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            super()._accelerator_graph_capture_health_check()

    def _takes_one_op(self, group: dict[str, Any], having: list[tuple[Tensor, Tensor]]) -> bool:
        """Returns whether the group is plain Adam on contiguous CPU tensors of one dtype, and has
        its state.
        """
        plain = not any(
            group[option] for option in ("weight_decay", "amsgrad", "maximize", "differentiable")
        )
        # by a GradScaler
        scaled = any(getattr(self, name, None) is not None for name in ("grad_scale", "found_inf"))
        kinds = {
            (p.dtype, p.device.type, grad.layout, p.is_contiguous() and type(p) in _PLAIN)
            for p, grad in having
        }
        # torch takes a step for each time that p is listed
        once = len({id(p) for p, _ in having}) == len(having)
        fits = kinds in _KINDS and once and is_built()
        return plain and fits and not scaled and all(self.state.get(p) for p, _ in having)

    @torch.no_grad()
    def _update(self, group: dict[str, Any], having: list[tuple[Tensor, Tensor]]) -> None:
        states = [self.state[p] for p, _ in having]
        weights = [p for p, _ in having]
        torch.ops.adaftr_fast.dense_adam_(
            weights,
            [grad.contiguous() for _, grad in having],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            float(group["lr"]),
            *group["betas"],
            group["eps"],
        )
        torch.autograd.graph.increment_version(weights)  # for autograd's check of what it has saved


def _give_strides(having: list[tuple[Tensor, Tensor]]) -> None:
    """Gives gradients the strides of their parameters: fused Adam reads both in the order of
    memory.
    """
    for p, grad in having:
        if grad.layout == torch.strided and grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(grad)
