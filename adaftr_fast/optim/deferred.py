"""The state of one table under deferred Adam."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

import adaftr_fast.ops.embedding.optim  # noqa: F401  # defines the ops
from adaftr_fast.nn.deferred import defer, flush, missed_steps
from adaftr_fast.nn.embedding_table import insert_rows
from adaftr_fast.ops.embedding.lookup import empty_table, runs_cuda_kernels

# β^j is tabulated for j below this; csrc/cpu/embedding/optim/adam.h has the same number
_POWERS = 4096
_STEP, _BASE = 0, 7  # places in the clock
_NAMES = ("moments", "current", "series", "schedule", "powers", "clock")  # of the tensors


class DeferredAdam:
    """Holds the moments, the step that each row is current to, and what the ops need to apply
    missed steps.

    Attributes:
        tensors: the state that the ops take; adaftr_fast/ops/embedding/reference/optim.py describes
            it.
        moments: [R, 2, E], the first of ``tensors``.
        steps: steps taken so far.
        seen, lock: see adaftr_fast.nn.deferred.Steps.

    Args:
        weight: the table [R, E].
        decoupled: whether weight decay is AdamW's.
    """

    def __init__(self, weight: Tensor, decoupled: bool) -> None:
        rows, width = weight.shape
        device = weight.device
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.moments = empty_table(rows, 2, width, device=device, dtype=dtype).zero_()
        current = empty_table(rows, device=device, dtype=torch.int32).zero_()
        # A CUDA graph keeps the addresses of what it reads, so there the tensors are large from the
        # start, and a full series is flushed rather than grown.
        self._grows = not runs_cuda_kernels(weight)
        steps = 64 if self._grows else 1 << 16
        series = torch.zeros(steps, 8, device=device, dtype=dtype)
        schedule = torch.zeros(steps, 8, device=device, dtype=torch.float64)
        powers = torch.zeros(2, _POWERS, device=device, dtype=dtype)
        self._clock = torch.zeros(8, device=device, dtype=torch.float64)
        self.tensors: list[Tensor] = [self.moments, current, series, schedule, powers, self._clock]
        self._decoupled = decoupled
        self._options: tuple[float, ...] | None = None
        self.steps = 0
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
        flush(weight)  # the missed steps were taken under the old options
        self._options = options
        decoupled = float(self._decoupled)
        horizon = self._horizon(*betas)
        self._clock[1:_BASE] = self._clock.new_tensor([*options, decoupled, horizon])
        powers = self.tensors[4]
        keep1 = 1 - self._rounded(1 - betas[0])  # what m <- m + (1 - β1) (g - m) keeps
        keep = torch.stack([keep1, self._rounded(betas[1])])
        powers.copy_(keep[:, None] ** torch.arange(_POWERS, device=keep.device))

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
        """Inserts new rows before row ``at``; every row must be current."""
        moments, current = self.tensors[:2]
        self.moments = insert_rows(moments, at, moments.new_zeros(rows, *moments.shape[1:]))
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

    def restore(self, weight: Tensor, saved: dict[str, Tensor]) -> None:
        """Restores what ``snapshot`` returned; with the values of the table, training continues bit
        by bit.
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
        """Marks every row, which must be current, as current to ``step``."""
        self.steps = step
        self._base = step
        self._clock[_STEP] = step
        self._clock[_BASE] = step
        self.tensors[1].fill_(step)

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
        return horizon if horizon < _POWERS else 0
