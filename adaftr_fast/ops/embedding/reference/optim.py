"""Optimizer steps on the rows of a batch in plain PyTorch: the ground truth that the kernels are
tested against.

Shapes: R rows of the table, E width, U distinct rows of the batch. The steps update their arguments
in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _widen(rows: Tensor) -> Tensor:
    """Converts half precision, which is for storage only, to float32."""
    return rows if rows.dtype == torch.float64 else rows.float()


def sgd_(weight: Tensor, rows: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
    """Takes a step of SGD: w <- w - lr (g + λ w)."""
    w = _widen(weight[rows])
    weight[rows] = (w - lr * (_widen(grad) + weight_decay * w)).to(weight.dtype)


def adagrad_(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    grad: Tensor,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Takes a step of Adagrad: G <- G + g², w <- w - lr g / (sqrt(G) + ε), with G = ``total``
    [R, E].
    """
    w = _widen(weight[rows])
    g = _widen(grad) + weight_decay * w
    total[rows] += g * g
    weight[rows] = (w - lr * g / (total[rows].sqrt() + eps)).to(weight.dtype)


def rowwise_adagrad_(
    weight: Tensor,
    total: Tensor,
    rows: Tensor,
    grad: Tensor,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Takes a step of row-wise Adagrad, whose sum G = ``total`` [R] is one number per row.

    G <- G + mean over E of g², w <- w - lr g / (sqrt(G) + ε).
    """
    w = _widen(weight[rows])
    g = _widen(grad) + weight_decay * w
    total[rows] += (g * g).mean(1)
    weight[rows] = (w - lr * g / (total[rows, None].sqrt() + eps)).to(weight.dtype)


def lazy_adam_(
    weight: Tensor,
    moments: Tensor,
    rows: Tensor,
    grad: Tensor,
    step_size: float,
    weight_decay: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> None:
    """Takes a step of lazy Adam, which updates the rows of the batch only.

    m <- β1 m + (1 - β1) g, v <- β2 v + (1 - β2) g², w <- w - step_size m / (sqrt(v) + ε).
    ``moments`` [R, 2, E] holds m and v.
    """
    w = _widen(weight[rows])
    g = _widen(grad) + weight_decay * w
    m, v = moments[rows].unbind(1)
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g  # v + (1 - beta2) (g * g - v) would lose a small g * g
    moments[rows] = torch.stack([m, v], 1)
    weight[rows] = (w - step_size * m / (v.sqrt() + eps)).to(weight.dtype)


# Deferred Adam: a row without gradient skips its steps until it is next read or updated. The state
# is a list of tensors:
#   moments [R, 2, E]  m and v
#   current [R] int32  the last step applied to each row
#   series [S, 8]      for each step since `base`: five sums that only the kernels use, then c_k, r_k, d_k
#   schedule [S, 8]    float64; column 6 is the sum of log d_i over i <= k, the kernels use the others
#   powers [2, POWERS] used by the kernels
#   clock [8] float64  step, β1, β2, ε, λ, decoupled, horizon, base
# with c_k = lr_k / (1 - β1^k), r_k = 1 / sqrt(1 - β2^k), and d_k = 1 - lr_k λ for decoupled weight
# decay, else 1.
POWERS = 4096  # csrc/cpu/embedding/optim/adam.h has the same number
_LAST = 2**31 - 1  # the largest step, an int32


def _dense_step(
    w: Tensor, m: Tensor, v: Tensor, g: Tensor | float, scalars: Sequence[float], clock: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns w, m and v after one step of dense Adam with gradient g; scalars are c_k,
    r_k, d_k.
    """
    _, beta1, beta2, eps, weight_decay, decoupled, _, _ = clock.tolist()
    step_size, inverse_bias2, decay = scalars
    w = w * decay
    g = g + (0.0 if decoupled else weight_decay) * w
    m = m + (1 - beta1) * (g - m)
    v = v * beta2 + (1 - beta2) * g * g
    return w - step_size * m / (v.sqrt() * inverse_bias2 + eps), m, v


def _check_clock(op: str, state: Sequence[Tensor]) -> None:
    """Checks what indexes the schedule: the steps of the clock, and the horizon."""
    step, *_, horizon, base = state[5].tolist()
    steps = len(state[2])
    if not (_is_count(step, _LAST) and _is_count(base, _LAST) and _is_count(step - base, steps)):
        raise RuntimeError(
            f"{op}: the clock must be within the {steps} steps of the schedule, got step {step:g} "
            f"of a schedule from step {base:g} on"
        )
    if not _is_count(horizon, POWERS):
        raise RuntimeError(
            f"{op}: the horizon must be a whole number from 0 to {POWERS - 1}, got {horizon:g}"
        )


def _is_count(x: float, end: int) -> bool:
    return 0 <= x < end and x == int(x)


def caught_up(
    op: str, weight: Tensor, state: Sequence[Tensor], rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns w, m and v of rows [U] at the current step, by replaying the steps that each row
    skipped.

    Raises:
        RuntimeError: the clock, or the step of a row, lies outside of the schedule; the message
            names ``op``.
    """
    _check_clock(op, state)
    moments, current, series, _, _, clock = state
    now = int(clock[0])
    base = int(clock[7])
    w = _widen(weight[rows])
    m, v = moments[rows].unbind(1)
    since = current[rows]
    if (since < base).any():
        raise RuntimeError(
            f"{op}: state tensor 1 must hold steps from {base} on, where the schedule begins, got "
            "a smaller one"
        )
    first = int(since.min()) if len(rows) else now
    for k in range(first + 1, now + 1):
        behind = (since < k)[:, None]
        stepped = _dense_step(w, m, v, 0.0, series[k - base, 5:].tolist(), clock)
        w, m, v = (
            torch.where(behind, new, old) for new, old in zip(stepped, (w, m, v), strict=True)
        )
    return w, m, v


def adam_(weight: Tensor, state: Sequence[Tensor], rows: Tensor, grad: Tensor, lr: float) -> None:
    """Takes a step of dense Adam or AdamW; the step of the rows without gradient is deferred."""
    moments, current, series, schedule, _, clock = state
    before = caught_up("embedding_adam_", weight, state, rows)
    step, beta1, beta2, _, weight_decay, decoupled, _, base = clock.tolist()
    step, at = int(step) + 1, int(step) + 1 - int(base)
    decay = 1 - lr * weight_decay if decoupled else 1.0
    scalars = (lr / (1 - beta1**step), (1 - beta2**step) ** -0.5, decay)
    w, m, v = _dense_step(*before, _widen(grad), scalars, clock)
    weight[rows] = w.to(weight.dtype)
    moments[rows] = torch.stack([m, v], 1)
    current[rows] = step
    series[at, 5:] = series.new_tensor(scalars)
    schedule[at, 6] = schedule[at - 1, 6] + torch.tensor(decay, dtype=torch.float64).log()
    clock[0] = step


def dense_adam_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Takes a step of Adam on dense weights, with the state of torch.optim.Adam."""
    for w, g, m, v, step in zip(weights, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        step += 1
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (v / (1 - beta2 ** step.item())).sqrt_().add_(eps)
        w.addcdiv_(m, denominator, value=-lr / (1 - beta1 ** step.item()))


def adam_flush_(weight: Tensor, state: Sequence[Tensor]) -> None:
    """Applies the deferred steps of all rows."""
    moments, current, series, schedule, _, clock = state
    rows = torch.arange(len(weight), device=weight.device)
    w, m, v = caught_up("embedding_adam_flush_", weight, state, rows)
    weight.copy_(w)
    moments.copy_(torch.stack([m, v], 1))
    current.fill_(int(clock[0]))
    series[0] = 0
    schedule[0] = 0
    clock[7] = clock[0]
