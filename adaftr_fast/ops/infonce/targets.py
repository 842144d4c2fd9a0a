"""Rows with several targets: their loss and gradients from those of rows with one, without another sweep.

    L_r  = logsumexp_j z_rj - sum_j q_rj z_rj = L'_r + (a_r . delta_r) / tau_r
    delta_r = b_{y_r} - sum_j q_rj b_j

where L'_r is the loss with the target y_r alone, which the sweep computes, and q_rj are the weights of reference.py.
They are constant within groups and labels, so delta and its transpose are sums over these, in O((B + N) d). The sums
are formed in float64, in which a row's own candidate can be subtracted from the sum of its label.

Shapes: B rows, N candidates, d hidden width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.reference import IGNORE

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
NO_POSITIVE = -1  # the index of a row whose label no candidate carries


class Matching(NamedTuple):
    """Which candidates carry the key of each row."""

    row: Tensor  # [B] a number in [0, size) per key
    column: Tensor  # [N]
    size: int

    @staticmethod
    def of(row_key: Tensor, column_key: Tensor) -> "Matching":
        """Numbers the keys in sorted order, with shapes that do not depend on values."""
        keys, order = torch.cat((row_key, column_key)).sort()
        new = torch.cat((keys.new_zeros(1), (keys[1:] != keys[:-1]).long()))[: len(keys)]
        number = torch.empty_like(keys).scatter(0, order, new.cumsum(0))
        return Matching(number[: len(row_key)], number[len(row_key) :], len(keys))

    @staticmethod
    def all(row: Tensor, column: Tensor) -> "Matching":
        """Every candidate matches every row; ``row`` and ``column`` give the numbers of them."""
        return Matching(torch.zeros_like(row), torch.zeros_like(column), 1)

    def also(self, other: "Matching") -> "Matching":
        """Returns the candidates that match in both."""
        return Matching.of(self.row * other.size + other.row, self.column * other.size + other.column)

    def matches(self) -> Tensor:
        """Returns how many candidates match each row, [B] in float64."""
        ones = torch.ones(len(self.column), 1, dtype=torch.float64, device=self.column.device)
        return self.sums(ones).squeeze(1)

    def sums(self, x: Tensor) -> Tensor:
        """Sums x [N, d] over the candidates that match each row, [B, d]."""
        return self._sums(x, self.column)[self.row]

    def transposed(self, u: Tensor) -> Tensor:
        """Sums u [B, d] over the rows that match each candidate, [N, d]."""
        return self._sums(u, self.row)[self.column]

    def _sums(self, x: Tensor, number: Tensor) -> Tensor:
        if self.size == 1:
            return x.sum(0, keepdim=True)
        return x.new_zeros(self.size, x.shape[1]).index_add(0, number, x)


def choose_positive(
    row_label: Tensor, column_label: Tensor, row_group: Tensor | None, column_group: Tensor | None
) -> Tensor:
    """Returns a candidate of each row's label that is not of its group [B].

    IGNORE for a row whose label is IGNORE, NO_POSITIVE where there is none. The candidates of a label take turns:
    the gradient of a candidate that is many rows' choice would lose digits when the other targets are added.
    """
    columns = len(column_label)
    found = torch.full_like(row_label, NO_POSITIVE)
    if columns == 0 or len(row_label) == 0:
        return torch.where(row_label == IGNORE, IGNORE, found)
    label = Matching.of(row_label, column_label)
    by_label, turn = label.column.argsort(stable=True), _rank(label.row, label.size)
    count = _counts(label.column, label.size)
    first, count = (count.cumsum(0) - count)[label.row], count[label.row]
    choices = [by_label[(first + (turn + step) % count.clamp(min=1)).clamp(max=columns - 1)] for step in (0, 1)]
    if row_group is None or column_group is None:
        found = torch.where(count > 0, choices[0], found)
        return torch.where(row_label == IGNORE, IGNORE, found)
    # If any candidate of a label is of another group than the row, the one with the smallest or the largest group is.
    group = Matching.of(row_group, column_group)
    key = group.column * columns + torch.arange(columns, device=column_label.device)
    for reduce in ("amin", "amax"):
        extreme = key.new_zeros(label.size).scatter_reduce(0, label.column, key, reduce, include_self=False)
        choices.append(extreme[label.row] % columns)
    for choice in reversed(choices):
        found = torch.where((count > 0) & (group.column[choice] != group.row), choice, found)
    return torch.where(row_label == IGNORE, IGNORE, found)


def _counts(number: Tensor, size: int) -> Tensor:
    """Counts each number in [0, size)."""
    return number.new_zeros(size).index_add(0, number, torch.ones_like(number))


def _rank(number: Tensor, size: int) -> Tensor:
    """Returns how many equal numbers come before each."""
    order, count = number.argsort(stable=True), _counts(number, size)
    position = torch.arange(len(number), device=number.device)
    return torch.empty_like(number).scatter(0, order, position - (count.cumsum(0) - count)[number[order]])


def check_positives(positive: Tensor) -> None:
    """Refuses rows without a candidate of their label."""
    if (positive == NO_POSITIVE).any():
        row = int((positive == NO_POSITIVE).nonzero()[0])
        raise RuntimeError(
            f"adaptive_infonce: positive_group must give every row a positive, or {IGNORE}, but no candidate of row "
            f"{row} is of its positive group"
        )


class _Weights(NamedTuple):
    """delta_r = own_r b_{y_r} - sum_k share_kr (sum of the candidates that match row r in matching k)."""

    own: Tensor  # [B]
    shares: list[tuple[Matching, Tensor]]  # [B] each

    def delta(self, b: Tensor, positive: Tensor) -> Tensor:
        """Returns delta [B, d]."""
        result = self.own[:, None] * b[positive]
        for matching, share in self.shares:
            result -= share[:, None] * matching.sums(b)
        return result

    def transposed(self, u: Tensor, positive: Tensor, columns: int) -> Tensor:
        """Returns the gradient in b [N, d] for a gradient u of delta [B, d]."""
        result = u.new_zeros(columns, u.shape[1]).index_add(0, positive, self.own[:, None] * u)
        for matching, share in self.shares:
            result -= matching.transposed(share[:, None] * u)
        return result

    def of_positive(self, positive: Tensor) -> Tensor:
        """Returns the weight of b_{y_r} in delta_r, [B]."""
        matches = (share * (each.row == each.column[positive]) for each, share in self.shares)
        return self.own - sum(matches, torch.zeros_like(self.own))


def _weights(
    positive: Tensor,
    columns: int,
    row_group: Tensor | None,
    column_group: Tensor | None,
    label_smoothing: float,
    row_label: Tensor | None,
    column_label: Tensor | None,
) -> _Weights:
    """Computes the weights of the targets of rows whose positives [B] are in [0, N)."""
    own = torch.full_like(positive, label_smoothing, dtype=torch.float64)
    shares = []
    group = None if row_group is None or column_group is None else Matching.of(row_group, column_group)
    if row_label is not None and column_label is not None:
        label = Matching.of(row_label, column_label)
        shares += _spread(1 - label_smoothing, label, None if group is None else label.also(group))
        own = torch.ones_like(own)
    if label_smoothing > 0:
        # A row's positive is a candidate also if it is of the row's group.
        inside = torch.zeros_like(own) if group is None else (group.row == group.column[positive]).double()
        everyone = Matching.all(positive, positive.new_empty(columns))
        shares += _spread(label_smoothing, everyone, group, inside)
        own = own - inside * shares[-1][1].abs()
    return _Weights(own, shares)


def _spread(
    weight: float, within: Matching, without: Matching | None, extra: Tensor | float = 0.0
) -> list[tuple[Matching, Tensor]]:
    """Spreads a weight evenly over the candidates that match in ``within`` and not in ``without``, and ``extra``."""
    count = within.matches() + extra - (0.0 if without is None else without.matches())
    share = weight / count.clamp(min=1)  # an ignored row may match none
    return [(within, share)] if without is None else [(within, share), (without, -share)]


def with_targets(
    op: Callable[..., Outputs],
    op_with_margin: Callable[..., Outputs],
    anchors: Tensor,
    candidates: Tensor,
    tau: Tensor,
    positive: Tensor | None,
    row_group: Tensor | None,
    column_group: Tensor | None,
    scale: Tensor,
    need_d_anchors: bool,
    need_d_candidates: bool,
    need_d_tau: bool,
    need_stats: bool,
    ignore_above: float | None = None,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    row_label: Tensor | None = None,
    column_label: Tensor | None = None,
) -> Outputs:
    """Calls an op of the arguments of ``infonce``, and adds what the other targets change in the loss and gradients."""
    if row_label is not None and positive is not None and anchors.device.type == "cpu":
        check_positives(positive)
    needs = (need_d_anchors, need_d_candidates, need_d_tau)
    masks = (positive, row_group, column_group)
    inputs = (anchors, candidates, tau, *masks, scale, *needs, need_stats, ignore_above)
    outputs = op(*inputs) if margin == 0 else op_with_margin(*inputs, margin)
    columns = len(candidates)
    if columns == 0 or (label_smoothing == 0 and row_label is None):  # columns == 0: every row is ignored
        return outputs
    positive = torch.arange(len(anchors), device=anchors.device) if positive is None else positive
    valid, target = positive != IGNORE, positive.clamp(0, columns - 1)
    weights = _weights(target, columns, row_group, column_group, label_smoothing, row_label, column_label)
    delta = weights.delta(candidates.double(), target)  # [B, d]
    tau = tau.double()
    similarity = (anchors.double() * delta).sum(1)
    if margin != 0:
        similarity -= margin * weights.of_positive(target)
    term = torch.where(valid, similarity / tau, 0.0)

    _, row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau = outputs
    row_loss = (row_loss + term).to(row_loss.dtype)
    grad_scale = torch.where(valid, scale.double() / tau, 0.0)
    used = (grad_scale != 0)[:, None]  # a row that weighs nothing has no gradient, whatever it holds
    if need_d_anchors:
        d_anchors += torch.where(used, grad_scale[:, None] * delta, 0.0)
    if need_d_candidates:
        d_candidates += weights.transposed(torch.where(used, grad_scale[:, None] * anchors, 0.0), target, columns)
    if need_d_tau:
        d_tau -= torch.where(used[:, 0], grad_scale * term, 0.0)
    return (scale * row_loss).sum(), row_loss, lse, logit, top1, entropy, d_anchors, d_candidates, d_tau


def with_margin(op: Callable[..., Outputs], margin: float, *arguments: Any) -> Outputs:
    """Calls ``op``, which has no margin, with the arguments of ``infonce``; with gradients, twice.

    The margin multiplies the negatives' part of the softmax against the positive's, exp(L) - 1, by exp(margin / tau).

    Raises:
        NotImplementedError: the statistics are needed.
    """
    *inputs, scale, need_d_anchors, need_d_candidates, need_d_tau, need_stats, ignore_above = arguments
    if need_stats:
        raise NotImplementedError("adaptive_infonce: the Triton backend has no statistics with a margin")
    needs = (need_d_anchors, need_d_candidates, need_d_tau)
    tau, positive = inputs[2].double(), inputs[3]
    _, plain, _, logit, top1, entropy, *_ = op(*inputs, scale, False, False, False, False, ignore_above)
    shift = margin / tau if positive is None else torch.where(positive == IGNORE, 0.0, margin / tau)
    loss = plain.double()
    log_odds = loss + (-torch.expm1(-loss)).log() + shift
    p_negative = log_odds.sigmoid()
    factor = torch.where(loss == 0, 0.0, p_negative / -torch.expm1(-loss))  # of the gradient in all but the margin
    *_, d_anchors, d_candidates, d_tau = op(*inputs, (scale * factor).to(plain.dtype), *needs, False, ignore_above)
    if need_d_tau:
        d_tau -= torch.where(scale == 0, 0.0, scale * p_negative * shift / tau)
    row_loss = torch.logaddexp(log_odds, torch.zeros_like(loss)).to(plain.dtype)
    logit = (logit - shift).to(plain.dtype)
    return (scale * row_loss).sum(), row_loss, row_loss + logit, logit, top1, entropy, d_anchors, d_candidates, d_tau
