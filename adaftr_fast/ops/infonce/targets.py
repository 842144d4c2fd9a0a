"""Rows with several targets: their loss and gradients from those of rows with one, without another
sweep.

    L_r  = logsumexp_j z_rj - sum_j q_rj z_rj = L'_r + (1 - w_r) z_{r, y_r} + (a_r . delta_r) / tau_r
    w_r  = q_{r, y_r},  delta_r = -sum_{j != y_r} q_rj b_j

where L'_r is the loss with the target y_r alone, and q_rj are the weights of reference.py. The
sweep computes L', and the gradients of L'_r + (1 - w_r) z_{r, y_r}: those of L' alone subtract 1
from the probability of y_r, and a sweep in a half type, or a float32 sum over the rows, errs by a
part of that 1 where w_r is a hundredth.

The q_rj are constant within groups and labels, so delta and its transpose are sums over these, in
O((B + N) d). The sums are formed in float64, in which a row's own candidate can be subtracted from
the sum of its label.

Shapes: B rows, N candidates, d hidden width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.reference import IGNORE, weighted

NO_POSITIVE = -1  # the index of a row whose label no candidate carries


class Outputs(NamedTuple):
    """The outputs of the ops of one direction (op.py)."""

    loss: Tensor
    row_loss: Tensor
    lse: Tensor
    positive_logit: Tensor
    top1: Tensor
    entropy: Tensor
    d_anchors: Tensor
    d_candidates: Tensor
    d_tau: Tensor


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
        return Matching.of(
            self.row * other.size + other.row, self.column * other.size + other.column
        )

    def matches(self) -> Tensor:
        """Returns how many candidates match each row, [B] in float64."""
        return _counts(self.column, self.size)[self.row].double()

    def match(self, column: Tensor) -> Tensor:
        """Returns 1 where candidate ``column[r]`` matches row r and 0 elsewhere, [B] in float64."""
        return (self.row == self.column[column]).double()

    def sums(self, x: Tensor) -> Tensor:
        """Sums x [N, d] over the candidates that match each row, [B, d]."""
        return sum_by(self.column, x, self.size)[self.row]

    def transposed(self, u: Tensor) -> Tensor:
        """Sums u [B, d] over the rows that match each candidate, [N, d]."""
        return sum_by(self.row, u, self.size)[self.column]


def sum_by(number: Tensor, x: Tensor, size: int) -> Tensor:
    """Sums the rows of x [n, d] by their numbers [n] in [0, size): [size, d], in an order that the
    inputs fix.
    """
    if size == 1:
        return x.sum(0, keepdim=True)
    if x.is_cuda:  # where index_add adds in any order
        return scan_by(number, x, size)
    return x.new_zeros(size, x.shape[1]).index_add(0, number, x)


def scan_by(number: Tensor, x: Tensor, size: int) -> Tensor:
    """Does what ``sum_by`` does in log2(n) passes over all rows, which nothing orders but their
    indices.
    """
    number, order = number.sort(stable=True)
    x = x[order]
    step = 1
    while step < len(x):  # row i holds the sum over the rows of its number among the last ``step``
        before = torch.where((number[step:] == number[:-step])[:, None], x[:-step], 0.0)
        x = torch.cat((x[:step], x[step:] + before))
        step *= 2
    count = _counts(number, size)
    last = torch.where(count > 0, count.cumsum(0) - 1, len(x))
    return torch.cat((x, x.new_zeros(1, x.shape[1])))[last]


def choose_positive(
    row_label: Tensor, column_label: Tensor, row_group: Tensor | None, column_group: Tensor | None
) -> Tensor:
    """Returns a candidate of each row's label that is not of its group [B].

    IGNORE for a row whose label is IGNORE, NO_POSITIVE where there is none. The candidates of a
    label take turns: the gradient of a candidate that is many rows' choice would lose digits when
    the other targets are added.
    """
    columns = len(column_label)
    found = torch.full_like(row_label, NO_POSITIVE)
    if columns == 0 or len(row_label) == 0:
        return torch.where(row_label == IGNORE, IGNORE, found)
    label = Matching.of(row_label, column_label)
    by_label = label.column.argsort(stable=True)
    turn = _rank(label.row, label.size)
    count = _counts(label.column, label.size)
    first = (count.cumsum(0) - count)[label.row]
    count = count[label.row]
    choices = [
        by_label[(first + (turn + step) % count.clamp(min=1)).clamp(max=columns - 1)]
        for step in (0, 1)
    ]
    if row_group is None or column_group is None:
        found = torch.where(count > 0, choices[0], found)
        return torch.where(row_label == IGNORE, IGNORE, found)
    # If any candidate of a label is of another group than the row, the one with the smallest or the
    # largest group is.
    group = Matching.of(row_group, column_group)
    key = group.column * columns + torch.arange(columns, device=column_label.device)
    for reduce in ("amin", "amax"):
        extreme = key.new_zeros(label.size).scatter_reduce(
            0, label.column, key, reduce, include_self=False
        )
        choices.append(extreme[label.row] % columns)
    for choice in reversed(choices):
        found = torch.where((count > 0) & (group.column[choice] != group.row), choice, found)
    return torch.where(row_label == IGNORE, IGNORE, found)


def _counts(number: Tensor, size: int) -> Tensor:
    """Counts each number in [0, size)."""
    return number.new_zeros(size).index_add(0, number, torch.ones_like(number))


def _rank(number: Tensor, size: int) -> Tensor:
    """Returns how many equal numbers come before each."""
    order = number.argsort(stable=True)
    count = _counts(number, size)
    position = torch.arange(len(number), device=number.device)
    return torch.empty_like(number).scatter(
        0, order, position - (count.cumsum(0) - count)[number[order]]
    )


def check_positives(positive: Tensor) -> None:
    """Refuses rows without a candidate of their label."""
    if (positive == NO_POSITIVE).any():
        row = int((positive == NO_POSITIVE).nonzero()[0])
        raise RuntimeError(
            f"adaptive_infonce: positive_group must give every row a positive, or {IGNORE}, but no "
            "candidate of row "
            f"{row} is of its positive group"
        )


class _Weights(NamedTuple):
    """The weights q of the targets; delta_r is own_r b_{y_r} - sum_k share_kr (sum of the matches
    of row r in k).
    """

    positive: Tensor  # [B] w
    own: Tensor  # [B] what the shares hold of it
    shares: list[tuple[Matching, Tensor]]  # [B] each

    def delta(self, b: Tensor, positive: Tensor) -> Tensor:
        """Returns delta [B, d]."""
        result = self.own[:, None] * b[positive]
        for matching, share in self.shares:
            result -= share[:, None] * matching.sums(b)
        return result

    def transposed(self, u: Tensor, positive: Tensor, columns: int) -> Tensor:
        """Returns the gradient in b [N, d] for a gradient u of delta [B, d]."""
        result = sum_by(positive, self.own[:, None] * u, columns)
        for matching, share in self.shares:
            result -= matching.transposed(share[:, None] * u)
        return result


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
    apart = torch.zeros_like(positive, dtype=torch.float64)  # what the shares do not hold of w
    shares = []
    group = (
        None if row_group is None or column_group is None else Matching.of(row_group, column_group)
    )
    if row_label is not None and column_label is not None:
        label = Matching.of(row_label, column_label)
        shares += _spread(1 - label_smoothing, label, None if group is None else label.also(group))
    else:
        apart += 1 - label_smoothing
    if label_smoothing > 0:
        # A row's positive is a candidate also if it is of the row's group.
        inside = torch.zeros_like(apart) if group is None else group.match(positive)
        everyone = Matching.all(positive, positive.new_empty(columns))
        shares += _spread(label_smoothing, everyone, group, inside)
        apart += inside * shares[-1][1].abs()
    own = sum((share * each.match(positive) for each, share in shares), torch.zeros_like(apart))
    return _Weights(own + apart, own, shares)


def _spread(
    weight: float, within: Matching, without: Matching | None, extra: Tensor | float = 0.0
) -> list[tuple[Matching, Tensor]]:
    """Spreads a weight evenly over the candidates that match in ``within`` and not in ``without``,
    and ``extra``.
    """
    count = within.matches() + extra - (0.0 if without is None else without.matches())
    share = weight / count.clamp(min=1)  # an ignored row may match none
    return [(within, share)] if without is None else [(within, share), (without, -share)]


def with_targets(
    sweep: Callable[..., tuple[Tensor, ...]],
    *,
    label_smoothing: float,
    row_label: Tensor | None,
    column_label: Tensor | None,
    **given: Any,
) -> Outputs:
    """Calls an op of the arguments of ``infonce_sweep``, and adds the other targets to the loss and
    gradients.
    """
    anchors = given["anchors"]
    candidates = given["candidates"]
    tau = given["tau"]
    positive = given["positive"]
    if row_label is not None and positive is not None and anchors.device.type == "cpu":
        check_positives(positive)
    columns = len(candidates)
    # columns == 0: every row is ignored
    if columns == 0 or (label_smoothing == 0 and row_label is None):
        return Outputs(*sweep(**given))
    positive = torch.arange(len(anchors), device=anchors.device) if positive is None else positive
    valid = positive != IGNORE
    target = positive.clamp(0, columns - 1)
    groups = (given["row_group"], given["column_group"])
    weights = _weights(target, columns, *groups, label_smoothing, row_label, column_label)
    found = Outputs(*sweep(**given, positive_weight=weights.positive))

    a = anchors.double()
    b = candidates.double()
    tau = tau.double()
    delta = weights.delta(b, target)  # [B, d]
    rest = 1 - weights.positive  # [B]
    of_others = (a * delta).sum(1) / tau
    of_positive = ((a * (rest[:, None] * b[target])).sum(1) - given["margin"] * rest) / tau
    row_loss = (found.row_loss + torch.where(valid, of_others + of_positive, 0.0)).to(
        found.row_loss.dtype
    )
    grad_scale = torch.where(valid, given["scale"].double() / tau, 0.0)
    # a row that weighs nothing has no gradient, whatever it holds
    used = (grad_scale != 0)[:, None]
    if given["need_d_anchors"]:
        found.d_anchors.add_(torch.where(used, grad_scale[:, None] * delta, 0.0))
    if given["need_d_candidates"]:
        d_delta = torch.where(used, grad_scale[:, None] * a, 0.0)
        found.d_candidates.add_(weights.transposed(d_delta, target, columns))
    if given["need_d_tau"]:
        found.d_tau.sub_(torch.where(used[:, 0], grad_scale * of_others, 0.0))
    return found._replace(loss=weighted(row_loss, given["scale"]).sum(), row_loss=row_loss)
