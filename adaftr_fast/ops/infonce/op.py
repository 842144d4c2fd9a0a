"""The ops of adaptive InfoNCE, which compute the loss and its gradients in one pass over the
similarities.

Shapes: B rows (anchors a_r), N candidates b_j, d hidden width. Besides the loss,
``torch.ops.adaftr_fast.infonce`` returns the gradients of ``loss = sum_r scale_r L_r``, because
every backend can compute them while a similarity is in cache:

    d_anchors_r    = scale_r / tau_r (sum_j p_rj b_j - b_{y_r})
    d_candidates_j = sum_r scale_r / tau_r p_rj a_r - sum_{r: y_r = j} scale_r / tau_r a_r
    d_tau_r        = -(a_r . d_anchors_r) / tau_r

The gradients keep the accumulation type (float32, or float64), so that a loss scale applied
upstream still acts on their small values. autograd.py has the backward pass.

The ops ``infonce_targets...`` take a margin and several targets besides, by targets.py. They are
ops of their own because every argument of an op costs microseconds. ``infonce_sweep``, in C++
alone, is ``infonce`` without autograd and with what targets.py asks of a sweep: a margin, and a
weight w_r of the positive, whose gradients are those of L_r + (1 - w_r) z_{r, y_r}.

The ops ``infonce_masked...`` take a mask [B, N] of the candidates besides. They are plain PyTorch on
every device, for a chunk of the rows at a time, so the mask is all that is stored of the size B x N.

``infonce_symmetric`` is of both directions, which share the similarities. Row r and candidate r are
each other's positive. With the loss L_r of row r over the candidates and the loss L'_r of candidate
r over the rows, each with temperatures of its own, it returns ``row_loss_r = (L_r + L'_r) / 2`` and
the gradients of ``loss = sum_r scale_r row_loss_r``:

    W_rj           = scale_r / (2 tau_r) (p_rj - [j = r]) + scale_j / (2 tau'_j) (p'_jr - [j = r])
    d_anchors_r    = sum_j W_rj b_j
    d_candidates_j = sum_r W_rj a_r
    d_tau_row_r    = -scale_r / (2 tau_r^2) sum_j (p_rj - [j = r]) a_r . b_j, and d_tau_column likewise
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.ops.infonce.autograd import DifferentiableOp, chunks_of_rows, triton_kernel
from adaftr_fast.ops.infonce.reference import (
    IGNORE,
    InfoNCERows,
    check_positive_range,
    infonce_gradients,
    infonce_rows,
)
from adaftr_fast.ops.infonce.targets import Outputs, check_positives, with_targets
from adaftr_fast.ops.library import library

SCHEMA = (
    "(Tensor anchors, Tensor candidates, Tensor tau, Tensor? positive, Tensor? row_group, Tensor? "
    "column_group,"
    " Tensor scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau, bool need_stats,"
    " float? ignore_above=None, *, bool ieee=False) -> (Tensor loss, Tensor row_loss, Tensor lse,"
    " Tensor positive_logit, Tensor top1, Tensor entropy, Tensor d_anchors, Tensor d_candidates, "
    "Tensor d_tau)"
)
SCHEMA_OF_SWEEP = SCHEMA.replace(
    "ignore_above=None", "ignore_above=None, float margin=0.0, Tensor? positive_weight=None"
)
SCHEMA_OF_TARGETS = SCHEMA.replace(
    "ignore_above=None",
    "ignore_above=None, float margin=0.0, float label_smoothing=0.0, Tensor? row_label=None, "
    "Tensor? column_label=None",
)
SCHEMA_OF_MASKED = SCHEMA_OF_TARGETS.replace(
    "Tensor? column_label=None", "Tensor? column_label=None, Tensor? candidate_mask=None"
)
SCHEMA_OF_BOTH = (
    "(Tensor anchors, Tensor candidates, Tensor tau_row, Tensor tau_column, Tensor? row_group, "
    "Tensor? column_group,"
    " Tensor scale, bool need_d_anchors, bool need_d_candidates, bool need_d_tau_row, bool "
    "need_d_tau_column,"
    " *, bool ieee=False)"
    " -> (Tensor loss, Tensor row_loss, Tensor d_anchors, Tensor d_candidates, Tensor d_tau_row, "
    "Tensor d_tau_column)"
)
FORTH = {
    "anchors": "anchors",
    "candidates": "candidates",
    "tau": "tau_row",
    "row_group": "row_group",
    "column_group": "column_group",
}
BACK = {
    "anchors": "candidates",
    "candidates": "anchors",
    "tau": "tau_column",
    "row_group": "column_group",
    "column_group": "row_group",
}
"""The arguments of ``infonce`` by those of ``infonce_symmetric``, of which it is half."""

OF_ROWS = ("anchors", "tau", "positive", "row_group", "row_label", "scale", "candidate_mask")
"""The arguments of ``infonce``, ``infonce_targets`` and ``infonce_masked`` that have an entry per row."""


def _checked_one(given: dict[str, Any]) -> dict[str, Any]:
    """Checks the values of tau and positive, as the C++ kernel does."""
    positive = given["positive"]
    if given["anchors"].device.type != "cpu":  # reading the values would wait for the device
        return given
    if positive is None:
        check_tau(given["tau"])
        return given
    if given.get("row_label") is not None:
        check_positives(positive)
    check_tau(given["tau"], positive != IGNORE)
    check_positive_range("adaptive_infonce", positive, len(given["candidates"]))
    return given


def check_tau(tau: Tensor, used: Tensor | bool = True, of: str = "") -> None:
    """Checks the temperatures of the rows that are used."""
    bad = ~((tau > 0) & tau.isfinite()) & used
    if bad.any():
        row = int(bad.nonzero()[0])
        raise RuntimeError(
            f"adaptive_infonce: tau{of} must be positive and finite, got tau[{row}] = "
            f"{tau[row].item()}"
        )


def _targets_by(sweep: Callable[..., Any]) -> Callable[..., Outputs]:
    """Returns the kernel of ``infonce_targets`` that calls a kernel of ``infonce_sweep``."""

    def kernel(*arguments: Any, **options: Any) -> Outputs:
        return with_targets(sweep, **TARGETS.named(arguments, options))

    return kernel


def _masked_on_cuda(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    return MASKED.reference(*arguments, **options)


def _chunks(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the arguments of the reference for a chunk of the rows at a time."""
    anchors = given["anchors"]
    chunks = chunks_of_rows(len(anchors), len(given["candidates"]))
    if given.get("positive") is None and len(chunks) > 1:
        given = {**given, "positive": torch.arange(len(anchors), device=anchors.device)}
    of_rows = [name for name in OF_ROWS if given.get(name) is not None]
    for rows in chunks:
        yield {**given, **{name: given[name][rows] for name in of_rows}}


def _rows(**given: Any) -> InfoNCERows:
    """Computes the results of the rows by the reference, chunk by chunk."""
    return InfoNCERows(*map(torch.cat, zip(*(infonce_rows(**chunk) for chunk in _chunks(given)))))


def _gradients(**given: Any) -> tuple[Tensor, ...]:
    """Computes the gradients of ``sum_r scale_r L_r`` by the reference, chunk by chunk."""
    d_anchors: list[Tensor] = []
    d_tau: list[Tensor] = []
    d_candidates = torch.zeros_like(given["candidates"])
    for chunk in _chunks(given):
        d_a, d_b, d_t = infonce_gradients(**chunk)
        d_anchors.append(d_a)
        d_candidates = d_candidates + d_b
        d_tau.append(d_t)
    return torch.cat(d_anchors), d_candidates, torch.cat(d_tau)


def _both(function: Callable[..., Any], given: Mapping[str, Any], **common: Any) -> list[Any]:
    """Calls a function of one direction for both."""
    results = []
    for names in (FORTH, BACK):
        arguments = {name: given[own] for name, own in names.items()}
        needs = {
            f"need_d_{name}": given[f"need_d_{own}"]
            for name, own in names.items()
            if f"need_d_{own}" in given
        }
        results.append(function(**arguments, **needs, **common))
    return results


def _rows_of_both(**given: Any) -> InfoNCERows:
    """Computes the results of the rows by the reference, with the mean of both
    directions' losses.
    """
    rows, columns = _both(_rows, given)
    return rows._replace(loss=(rows.loss + columns.loss) / 2)


def _gradients_of_both(scale: Tensor, **given: Any) -> tuple[Tensor, ...]:
    """Computes the gradients of ``sum_r scale_r row_loss_r`` by the reference."""
    (d_a, d_b, d_tau_row), (e_b, e_a, d_tau_column) = _both(_gradients, given, scale=scale / 2)
    return d_a + e_a, d_b + e_b, d_tau_row, d_tau_column


def _checked_both(given: dict[str, Any]) -> dict[str, Any]:
    """Checks the values of both temperatures, as the C++ kernel does."""
    # on other devices, reading the values would wait for the device
    if given["anchors"].device.type == "cpu":
        check_tau(given["tau_row"])
        check_tau(given["tau_column"], of=" (per column)")
    return given


def two_sweeps(infonce: Callable[..., tuple[Tensor, ...]], **given: Any) -> tuple[Tensor, ...]:
    """Computes ``infonce_symmetric`` by two calls of one with the arguments of ``infonce``."""
    common = {
        "positive": None,
        "scale": given["scale"] / 2,
        "need_stats": False,
        "ieee": given["ieee"],
    }
    forth, back = (Outputs(*found) for found in _both(infonce, given, **common))
    d_anchors = forth.d_anchors + back.d_candidates
    d_candidates = forth.d_candidates + back.d_anchors
    row_loss = (forth.row_loss + back.row_loss) / 2
    return forth.loss + back.loss, row_loss, d_anchors, d_candidates, forth.d_tau, back.d_tau


def _both_by_triton(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    from adaftr_fast.kernels.infonce import infonce_symmetric, serves_symmetric  # imports triton

    given = SYMMETRIC.named(arguments, options)
    if not serves_symmetric(
        given["anchors"], given["tau_row"], given["tau_column"], given["row_group"]
    ):
        return two_sweeps(triton_kernel("infonce"), **given)
    # of half types, for which ieee means nothing
    return infonce_symmetric(*arguments)


library.define("infonce_sweep" + SCHEMA_OF_SWEEP)
_plain: dict[str, Any] = {"closed_form": _gradients, "rows": _rows, "checked": _checked_one}
INFONCE = DifferentiableOp("infonce", SCHEMA, **_plain)
TARGETS = DifferentiableOp(
    "infonce_targets",
    SCHEMA_OF_TARGETS,
    triton=_targets_by(triton_kernel("infonce")),
    cpu=_targets_by(torch.ops.adaftr_fast.infonce_sweep),
    **_plain,
)
MASKED = DifferentiableOp("infonce_masked", SCHEMA_OF_MASKED, triton=_masked_on_cuda, **_plain)
SYMMETRIC = DifferentiableOp(
    "infonce_symmetric",
    SCHEMA_OF_BOTH,
    closed_form=_gradients_of_both,
    rows=_rows_of_both,
    checked=_checked_both,
    triton=_both_by_triton,
    pairs=True,
)
