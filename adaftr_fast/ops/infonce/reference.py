"""Adaptive InfoNCE in plain PyTorch: the truth that every backend is judged against (paper, Eq. 13).

    z_rj = a_r . b_j / tau_r                     over the candidates j of row r
    L_r  = logsumexp_j z_rj - z_{r, y_r}         y_r: the column of the row's positive

Shapes: B rows (anchors), N columns (candidates), d hidden width.

A column j is a candidate of row r unless both carry the same group id and j is not y_r. A row whose positive is
IGNORE has loss 0 and no gradient. Written so that L_r keeps its digits when the positive's probability is near 1:
L_r = log(1 + sum_{j != y_r} exp(z_rj - z_{r, y_r})), never as a difference of two large numbers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100


class InfoNCERows(NamedTuple):
    """Per-row results, all [B]; rows that are ignored hold zeros (and False)."""

    loss: Tensor
    lse: Tensor  # logsumexp over the candidates, positive included
    positive_logit: Tensor  # z_{r, y_r}
    top1: Tensor  # bool: the positive's logit lies strictly above every negative's
    entropy: Tensor  # of the softmax over the candidates, in nats


def _similarities(
    h_row: Tensor,
    h_column: Tensor,
    tau: Tensor,
    positive: Tensor | None,
    row_group: Tensor | None,
    column_group: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z [B, N], which rows are not ignored [B], their positives [B, 1], and who is whose negative [B, N]."""
    if positive is None:
        positive = torch.arange(h_row.shape[0], device=h_row.device)
    valid = positive != IGNORE
    target = torch.where(valid, positive, 0)[:, None]
    z = (h_row @ h_column.T) / tau[:, None]
    z = torch.where(valid[:, None], z, 0)  # an ignored row must not leak a NaN
    negative = torch.arange(h_column.shape[0], device=z.device) != target
    if row_group is not None and column_group is not None:
        negative = negative & (row_group[:, None] != column_group[None, :])
    return z, valid, target, negative


def infonce_rows(
    h_row: Tensor,  # [B, d]
    h_column: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    positive: Tensor | None = None,  # [B] int64, default arange(B)
    row_group: Tensor | None = None,  # [B] int64
    column_group: Tensor | None = None,  # [N] int64
) -> InfoNCERows:
    """Loss and statistics of every row, differentiable in ``h_row``, ``h_column`` and ``tau``.

    Gradients (p: softmax over the candidates, g: upstream):
        dL/da_r   = g_r / tau_r (sum_j p_rj b_j - b_{y_r})
        dL/db_j   = sum_r g_r / tau_r p_rj a_r - sum_{r: y_r = j} g_r / tau_r a_r
        dL/dtau_r = -(a_r . dL/da_r) / tau_r
    """
    z, valid, target, negative = _similarities(h_row, h_column, tau, positive, row_group, column_group)
    if h_column.shape[0] == 0:  # then every row is ignored
        nothing = h_row.sum(1) * 0 + tau * 0
        return InfoNCERows(nothing, nothing, nothing, valid, nothing)
    has_negative = negative.any(1)  # [B]

    z_positive = z.gather(1, target).squeeze(1)  # [B]
    floor = torch.where(has_negative, -torch.inf, 0.0).to(z)[:, None]
    lse_negative = torch.where(negative, z, floor).logsumexp(1)  # [B], finite
    gap = torch.where(has_negative, lse_negative - z_positive, 0.0)
    loss = torch.where(has_negative & valid, torch.logaddexp(gap, torch.zeros_like(gap)), 0.0)

    with torch.no_grad():
        lse = torch.where(has_negative, torch.logaddexp(lse_negative, z_positive), z_positive)
        top1 = (torch.where(negative, z, -torch.inf).amax(1) < z_positive) & valid
        log_p = torch.where(negative.scatter(1, target, True), z - lse[:, None], -torch.inf)  # [B, N]
        entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(1)
        lse, z_positive = (torch.where(valid, x, 0.0) for x in (lse, z_positive))
        entropy = torch.where(valid, entropy, 0.0)
    return InfoNCERows(loss, lse, z_positive.detach(), top1, entropy)


def infonce_gradients(
    h_row: Tensor,  # [B, d]
    h_column: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    coefficient: Tensor,  # [B], multiplies each row's loss
    positive: Tensor | None = None,
    row_group: Tensor | None = None,
    column_group: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``sum_r coefficient_r L_r`` in closed form: [B, d], [N, d], [B].

    The positive's entry of p - 1 is written as minus the sum of the others' p, which keeps its digits near p = 1.
    """
    z, valid, target, negative = _similarities(h_row, h_column, tau, positive, row_group, column_group)
    if h_column.shape[0] == 0:
        return torch.zeros_like(h_row), torch.zeros_like(h_column), torch.zeros_like(tau)
    p = torch.where(negative.scatter(1, target, True), z, -torch.inf).softmax(1)
    p_negative = torch.where(negative, p, 0)
    residual = p_negative.scatter(1, target, -p_negative.sum(1, keepdim=True))  # p - 1 at the positive
    slope = torch.where(valid, coefficient / tau, 0)  # [B]
    weighted = residual * slope[:, None]  # [B, N]
    h_row = torch.where(valid[:, None], h_row, 0)
    return weighted @ h_column, weighted.T @ h_row, -(weighted * z).sum(1)
