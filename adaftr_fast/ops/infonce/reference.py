"""Adaptive InfoNCE in plain PyTorch: the ground truth that every backend is tested against (paper,
Eq. 13).

    z_rj = a_r . b_j / tau_r                     over the candidates j of row r
    L_r  = logsumexp_j z_rj - z_{r, y_r}         y_r: the index of the row's positive

Shapes: B rows (anchors a_r), N candidates b_j, d hidden width.

With ``label_smoothing`` s or labels, the targets of a row are several candidates:

    L_r  = logsumexp_j z_rj - sum_j q_rj z_rj
    q_rj = (1 - s) [j in P_r] / |P_r| + s [j in C_r] / |C_r|

where C_r are the candidates that are not excluded and P_r = {y_r}, or those of them that carry the
row's label. A ``margin`` m is subtracted from the similarity of the positive: z_{r, y_r} = (a_r .
b_{y_r} - m) / tau_r.

Candidate j is excluded from row r if j is not y_r and both carry the same group id, or
``candidate_mask`` is False there, or a_r . b_j exceeds a_r . b_{y_r} by more than ``ignore_above``.
Whether it is excluded counts as a constant in
every derivative. A row whose positive is IGNORE has loss 0 and no gradient. The loss is computed as
L_r = log(1 + sum_{j != y_r} exp(z_rj - z_{r, y_r})), which stays accurate when the positive's
probability is near 1; the difference of two large numbers would not.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100


def weighted(row_loss: Tensor, scale: Tensor) -> Tensor:
    """Returns ``scale_r L_r`` [B]: 0 for a row that weighs nothing, also where its loss is not
    finite.

    The derivative in ``scale`` is the loss wherever that is finite, and else NaN for such a row.
    """
    return torch.where((scale != 0) | row_loss.isfinite(), row_loss * scale, 0.0)


def check_positive_range(op: str, positive: Tensor, columns: int, ignore: int = IGNORE) -> None:
    """Checks that the positives are candidates or ``ignore``."""
    outside = (positive != ignore) & ((positive < 0) | (positive >= columns))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise RuntimeError(
            f"{op}: positive_index must be in [0, {columns}) or {ignore}, "
            f"got positive_index[{row}] = {positive[row].item()}"
        )


class InfoNCERows(NamedTuple):
    """Per-row results, all [B]; ignored rows hold zeros (and False)."""

    loss: Tensor
    lse: Tensor  # logsumexp over the candidates, positive included
    positive_logit: Tensor  # z_{r, y_r}
    top1: Tensor  # bool: the positive's logit is strictly greater than every negative's
    entropy: Tensor  # of the softmax over the candidates, in nats


class Logits(NamedTuple):
    """The logits of all pairs, and the targets of each row."""

    z: Tensor  # [B, N]
    valid: Tensor  # [B] bool: the rows that are not ignored
    target: Tensor  # [B, 1] the positive of each row
    negative: Tensor  # [B, N] bool
    other: Tensor | None = None  # [B, N] as of _other_targets


def infonce_logits(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    positive: Tensor | None = None,  # [B] int64, default arange(B)
    row_group: Tensor | None = None,  # [B] int64
    column_group: Tensor | None = None,  # [N] int64
    ignore_above: float | None = None,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    row_label: Tensor | None = None,  # [B] int64; positive is then one of P_r
    column_label: Tensor | None = None,  # [N] int64
    candidate_mask: Tensor | None = None,  # [B, N] bool
) -> Logits:
    """Computes the logits of all pairs, and the targets of each row."""
    if positive is None:
        positive = torch.arange(anchors.shape[0], device=anchors.device)
    valid = positive != IGNORE
    target = torch.where(valid, positive, 0)[:, None]
    s = anchors @ candidates.T
    z = s / tau[:, None]
    z = torch.where(valid[:, None], z, 0)  # an ignored row must not leak a NaN
    negative = torch.arange(candidates.shape[0], device=z.device) != target
    if row_group is not None and column_group is not None:
        negative = negative & (row_group[:, None] != column_group[None, :])
    if candidate_mask is not None:
        negative = negative & candidate_mask
    if candidates.shape[0] == 0:
        return Logits(z, valid, target, negative)
    if ignore_above is not None:
        negative = negative & ~(s > s.gather(1, target) + ignore_above)  # a NaN stays
    if margin != 0:
        z = z.scatter_add(1, target, torch.where(valid, -margin / tau, 0)[:, None])
    other = _other_targets(target, negative, label_smoothing, row_label, column_label)
    return Logits(z, valid, target, negative, other)


def _other_targets(
    target: Tensor,
    negative: Tensor,
    label_smoothing: float,
    row_label: Tensor | None,
    column_label: Tensor | None,
) -> Tensor | None:
    """Returns [j = y_r] - q_rj [B, N], which is not needed in the accurate terms of the positive;
    None for zeros.
    """
    if label_smoothing == 0 and row_label is None:
        return None
    own = torch.zeros_like(negative).scatter(1, target, True)
    candidate = negative | own
    positive = own
    if row_label is not None and column_label is not None:
        positive = candidate & (row_label[:, None] == column_label)
    shares = [x.double() / x.sum(1, keepdim=True).clamp(min=1) for x in (positive, candidate)]
    return own.double() - (1 - label_smoothing) * shares[0] - label_smoothing * shares[1]


def infonce_rows(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    *targets: Any,
    **options: Any,
) -> InfoNCERows:
    """Computes the loss and statistics of every row, differentiable in ``anchors``, ``candidates``
    and ``tau``.

    The further arguments are those of ``infonce_logits``.

    Gradients without margin, smoothing and labels, of which ``similarity_gradients`` has the
    general form (p: softmax over the candidates, g: upstream):
        dL/da_r   = g_r / tau_r (sum_j p_rj b_j - b_{y_r})
        dL/db_j   = sum_r g_r / tau_r p_rj a_r - sum_{r: y_r = j} g_r / tau_r a_r
        dL/dtau_r = -(a_r . dL/da_r) / tau_r
    """
    logits = infonce_logits(anchors, candidates, tau, *targets, **options)
    if candidates.shape[0] == 0:  # then every row is ignored
        # an ignored row must not leak a NaN
        zeros = torch.where(logits.valid, anchors.sum(1) + tau, 0.0)
        return InfoNCERows(zeros, zeros, zeros, logits.valid, zeros)
    return rows_of_logits(logits)


def rows_of_logits(logits: Logits) -> InfoNCERows:
    """Computes the loss and statistics of every row."""
    z, valid, target, negative, other = logits
    has_negative = negative.any(1)  # [B]
    z_positive = z.gather(1, target).squeeze(1)  # [B]
    lowest = torch.where(has_negative, -torch.inf, 0.0).to(z)[:, None]
    lse_negative = torch.where(negative, z, lowest).logsumexp(1)  # [B], finite
    gap = torch.where(has_negative, lse_negative - z_positive, 0.0)
    loss = torch.where(has_negative & valid, torch.logaddexp(gap, torch.zeros_like(gap)), 0.0)
    if other is not None:
        loss = loss + torch.where(valid[:, None] & (other != 0), other.to(z.dtype) * z, 0.0).sum(1)

    with torch.no_grad():
        lse = torch.where(has_negative, torch.logaddexp(lse_negative, z_positive), z_positive)
        top1 = (torch.where(negative, z, -torch.inf).amax(1) < z_positive) & valid
        # [B, N]
        log_p = torch.where(negative.scatter(1, target, True), z - lse[:, None], -torch.inf)
        entropy = -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(1)
        lse, z_positive = (torch.where(valid, x, 0.0) for x in (lse, z_positive))
        entropy = torch.where(valid, entropy, 0.0)
    return InfoNCERows(loss, lse, z_positive.detach(), top1, entropy)


def similarity_gradients(
    logits: Logits, scale: Tensor, tau: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients in the similarities [B, N] and in tau [B], and the rows that have any
    [B].

    The softmax gives dL_r / dz_rj = p_rj - q_rj. With a constant margin, dz_rj / dtau_r = -z_rj /
    tau_r, as z_rj is a similarity, less the margin, over tau_r. So d_tau_r = -scale_r / tau_r sum_j
    (p_rj - q_rj) z_rj. Without a margin this is -(a_r . d_anchors_r) / tau_r.

    ``scale`` and ``tau`` are [B].
    """
    z, valid, target, negative, other = logits
    # A row that weighs nothing is as if ignored where it is not finite; elsewhere its scale has
    # derivatives.
    valid = valid & ((scale != 0) | z.isfinite().all(1))
    z = torch.where(valid[:, None], z, 0)
    p = torch.where(negative.scatter(1, target, True), z, -torch.inf).softmax(1)
    p_negative = torch.where(negative, p, 0)
    # p - 1 at the positive
    residual = p_negative.scatter(1, target, -p_negative.sum(1, keepdim=True))
    if other is not None:
        residual = residual + other.to(z.dtype)
    grad_scale = torch.where(valid, scale / tau, 0)  # [B]
    d_similarities = residual * grad_scale[:, None]
    z = z.masked_fill((residual == 0) & ~z.isfinite(), 0.0)  # p z -> 0, as in the entropy
    return d_similarities, -(d_similarities * z).sum(1), valid


def infonce_gradients(
    anchors: Tensor,  # [B, d]
    candidates: Tensor,  # [N, d]
    tau: Tensor,  # [B]
    scale: Tensor,  # [B], multiplies each row's loss
    *targets: Any,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of ``sum_r scale_r L_r`` in closed form: [B, d], [N, d], [B].

    The further arguments are those of ``infonce_logits``. The positive's entry of p - 1 is computed
    as minus the sum of the negatives' p, which stays accurate near p = 1.
    """
    logits = infonce_logits(anchors, candidates, tau, *targets, **options)
    if candidates.shape[0] == 0:
        return torch.zeros_like(anchors), torch.zeros_like(candidates), torch.zeros_like(tau)
    d_similarities, d_tau, valid = similarity_gradients(logits, scale, tau)
    anchors = torch.where(valid[:, None], anchors, 0)
    d_anchors = torch.where(valid[:, None], d_similarities @ candidates, 0)
    return d_anchors, d_similarities.T @ anchors, d_tau
