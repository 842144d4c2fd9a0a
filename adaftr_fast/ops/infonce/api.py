"""The public loss :func:`adaptive_infonce` (paper, Eq. 13).

Shapes: B rows (anchors), N candidates, d hidden width, W ranks.
"""

from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from adaftr_fast.ops.infonce.arguments import (
    Labels,
    Tau,
    append_bias,
    check_bias_is_finite,
    check_block,
    check_combinations,
    check_ignore_above,
    check_mask,
    check_no_tangents,
    check_representations,
    check_targets,
    check_vectors,
    expand_tau,
    labels_of,
    op_name,
    product_dtype,
    reverse,
    row_scale,
    split_tau,
    with_ignore_index,
)
from adaftr_fast.ops.infonce.autograd import DifferentiableOp
from adaftr_fast.ops.infonce.blocks import BLOCKS
from adaftr_fast.ops.infonce.candidates import Direction, across_ranks
from adaftr_fast.ops.infonce.op import INFONCE, MASKED, SYMMETRIC, TARGETS
from adaftr_fast.ops.infonce.reference import IGNORE, weighted
from adaftr_fast.ops.infonce.targets import choose_positive

Backend = Literal["auto", "reference", "cpu", "triton"]
Reduction = Literal["mean", "sum", "none"]
Precision = Literal["auto", "float32", "bfloat16"]


class InfoNCEStats(NamedTuple):
    """Statistics of each row's softmax over its candidates, all [B] and detached; 0 (False) for
    ignored rows.
    """

    lse: Tensor  # logsumexp over the row's candidates, the positive included
    positive_logit: Tensor  # (a_r . b_{y_r} - margin) / tau_r + the bias of y_r
    top1: Tensor  # bool: the positive's logit is strictly greater than every negative's
    entropy: Tensor  # of the softmax, in nats


class InfoNCEOptions(TypedDict, total=False):
    """The keyword arguments of :func:`adaptive_infonce` besides ``return_stats``, which decides the
    result's type.
    """

    positive_index: Tensor | None
    row_group: Tensor | None
    column_group: Tensor | None
    row_weight: Tensor | None
    column_bias: Tensor | None
    candidate_mask: Tensor | None
    ignore_index: int
    ignore_above: float | None
    positive_group: Tensor | Labels | None
    label_smoothing: float
    margin: float
    symmetric: bool
    block: int | None
    reduction: Reduction
    precision: Precision
    backend: Backend
    process_group: ProcessGroup | None


@overload
def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[InfoNCEOptions],
) -> Tensor: ...


@overload
def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    return_stats: Literal[True],
    **options: Unpack[InfoNCEOptions],
) -> tuple[Tensor, InfoNCEStats]: ...


def adaptive_infonce(
    h_ctr: Tensor,
    h_cvr: Tensor,
    tau: Tau | tuple[Tau, Tau],
    *,
    positive_index: Tensor | None = None,
    row_group: Tensor | None = None,
    column_group: Tensor | None = None,
    row_weight: Tensor | None = None,
    column_bias: Tensor | None = None,
    candidate_mask: Tensor | None = None,
    ignore_index: int = IGNORE,
    ignore_above: float | None = None,
    positive_group: Tensor | Labels | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    symmetric: bool = False,
    block: int | None = None,
    reduction: Reduction = "mean",
    return_stats: bool = False,
    precision: Precision = "auto",
    backend: Backend = "auto",
    process_group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """Computes InfoNCE between two tasks' representations with a temperature per row (paper, Eq.
    13).

    With anchors a = ``h_ctr`` and candidates b = ``h_cvr``, the loss of row r is

        L_r = logsumexp_j(a_r . b_j / tau_r) - a_r . b_{y_r} / tau_r

    where y_r is the index of the row's positive. The B x N similarities are never stored.

    ``positive_group``, ``label_smoothing`` and ``margin`` change the target.

    The loss is differentiable in ``h_ctr``, ``h_cvr``, ``tau``, ``row_weight`` and ``column_bias``.
    It can be differentiated twice; the second derivative is computed by the plain-PyTorch
    reference, which stores the B x N similarities. Sums are accumulated in float32, or in float64
    for float64 inputs. The CPU kernel flushes denormals to zero. From 256 rows a thread on, the
    last bits of its gradient of ``h_cvr`` may depend on the number of threads.

    ``torch.func.grad`` and ``vjp`` are supported outside ``torch.compile``; ``vmap`` and ``jacrev``
    call the loss in a loop.

    By default, float32 products follow ``torch.set_float32_matmul_precision``; ``precision``
    overrides it:

    - "highest": IEEE float32.
    - "high": on GPUs of compute capability 9.0, and on CPUs with AMX, three bfloat16 products of
      operands split in two; the error of a gradient is about 1e-4 of its largest value. TF32 on
      other GPUs.
    - "medium": TF32 on CUDA. On CPUs with AMX, AVX512-BF16 or ARM's FEAT_BF16, one bfloat16
      product; the error is about 2e-2.

    The newer settings choose likewise. CUDA reads ``torch.backends.cuda.matmul.fp32_precision``,
    where "tf32" is TF32, and the CPU ``torch.backends.mkldnn.matmul.fp32_precision``, where "tf32"
    is as "high" and "bf16" as "medium". Both inherit from ``torch.backends.fp32_precision`` until
    ``torch.set_float32_matmul_precision`` is called. On CUDA, both at "tf32" are "high", unless the
    inherited setting is "tf32", which stays TF32.

    Timings: benchmarks/README.md.

    Range of inputs. Logits are a_r . b_j / tau_r. No backend divides a representation by tau, so
    h_ctr / tau may overflow where the logits do not. Results are finite and accurate where, in
    every row, all sums of |a_rk b_jk| and all logits are finite in float32 (float64 for float64
    inputs), as they are for the reference, with these limits:

    - C++: denormals count as zero. For float32, a tau below 1e-30 thus loses digits.
    - Triton: logits up to 1e8 in magnitude, or 1e7 for float16 inputs, and representations up to
      1e30.

    A row with a logit out of range has a loss that is inf or NaN, or the right value where the
    backend can form it. The losses of other rows and their gradients in h_ctr and tau are not
    affected. The gradient in h_cvr sums over all rows, so it is inf or NaN too, as the mean or sum
    of the losses is. The trainer raises an error on a loss that is not finite. What holds for
    inputs that are NaN or infinite is written in ``adaftr_fast.reference``.

    Args:
        h_ctr: anchors [B, d]; float32, bfloat16, float16 or float64, any strides.
        h_cvr: candidates [N, d], of the same types. If the two types differ, both are converted as
            by ``torch.promote_types``: bfloat16 and float16 become float32.
        tau: temperature > 0: [B], [B, 1], [1], 0-dim, or a number. ``torch.compile`` treats a
            number as a constant, so pass a temperature that changes as a 0-dim tensor. With
            ``symmetric``, also a pair (per row, per column), whose second element is [N], [N, 1],
            [1], 0-dim or a number. A single [B] or [B, 1] there is also the temperature of the
            candidates, which requires N = B.
        positive_index: [B] int64, the index of each row's positive among the candidates.
            ``ignore_index`` ignores the row. Default: ``arange(B)``, which requires N >= B.
        row_group: [B] int64. A candidate with the same group id as the row is not a negative of the
            row, unless it is its positive.
        column_group: [N] int64, the group ids of the candidates. Default: ``row_group``, which
            requires N = B.
        row_weight: [B] weights of the rows' losses, floating point. An anchor of weight 0 adds
            nothing to the loss and has no gradient, even if it holds NaN or an infinity, except in
            the Triton kernels, which multiply by 0.
        column_bias: [N] finite numbers added to the candidates' logits, floating point; in sampled
            softmax, minus the logarithm of the probability to be drawn. To exclude candidates, use
            the groups. The bias is appended to ``h_cvr``, and tau to ``h_ctr``, as one more
            dimension of the dot product, or as three in the half types, which copies both. At
            reduced float32 precision the bias is thus rounded to the type of the products, and in
            float16 a bias / tau beyond 65504 makes the gradient in tau NaN. Differentiable. Not
            supported with ``symmetric``.
        candidate_mask: [B, N] bool. Where it is False, the candidate is not a negative of the row,
            unless it is its positive. No other tensor of B x N elements is stored, but plain
            PyTorch computes the loss on every device, some rows at a time, which takes longer than
            the kernels: groups say the same faster where they can. With ``symmetric``, the
            candidates of the other direction are those of its transpose. Not supported with
            ``process_group``, nor with ``symmetric`` and ``positive_index`` at once.
        ignore_index: the number that ignores a row, as ``positive_index`` or ``positive_group``.
        ignore_above: if given, a candidate whose similarity to the row exceeds that of the row's
            positive by more than this finite number is not a negative of the row, as it may be a
            positive that is not labeled. The similarity is the logit times tau: a_r . b_j, plus tau
            times the ``column_bias``. Derivatives take the set of negatives as constant. The
            similarities are those of the backend, so rounding decides on a candidate whose
            similarity is within rounding error of the bound. ``torch.compile`` treats the number as
            a constant.
        positive_group: several positives per row: the ids of the rows' groups of positives, [B]
            int64, and those of the candidates, if they are others, as a pair ([B], [N]). Every
            candidate with the id of the row is its positive unless ``row_group`` excludes it, and
            the loss of the row is the mean of its losses over the positives P, L_r =
            logsumexp_j(z_rj) - mean_{p in P} z_rp (SupCon, Khosla et al., 2020, Eq. 2). The
            positives remain candidates of the softmax. ``ignore_index`` ignores the row. With
            ``symmetric``, the anchors of the other direction are the first B candidates. Not
            supported with ``positive_index``, ``candidate_mask``, ``ignore_above``, ``margin`` and
            ``return_stats``. Accuracy with many positives: docs/recipes.md.
        label_smoothing: s in [0, 1): the weight 1 - s of the target is that of the positives, and s
            is spread evenly over all candidates that are not excluded, as in
            ``torch.nn.functional.cross_entropy``. Candidates that ``row_group`` excludes must be
            finite. Not supported with ``ignore_above``.
        margin: m >= 0, subtracted from the similarity of the positive, before it is divided by tau
            (CosFace, Wang et al., 2018, Eq. 4): the logit of the positive is (a_r . b_{y_r} - m) /
            tau_r, also in the statistics. Not supported with ``positive_group``: with several
            positives, eps-SupInfoNCE (Barbano et al., 2023) divides the term of each positive by a
            sum of its own, and the sweep forms one sum per row.
        symmetric: if True, averages the loss with that of the cvr -> ctr direction. There the
            anchor of row r is h_cvr[y_r], with its own temperature, and its candidates are all rows
            of h_ctr. An ignored row has no loss in either direction, but remains a candidate in
            this one unless the groups exclude it. Both share the similarities if N = B, without
            ``positive_index``, ``candidate_mask``, ``ignore_above``, other targets, ``block``,
            ``return_stats`` and ``process_group``. On CPU, the last bits of all results then depend on the number of
            threads; products of bfloat16, and rows whose scale / tau differ widely, take a sweep
            for each direction. On CUDA, both share them in the half types up to d = 256, for most
            inputs (docs/gpu.md, "Both directions at once").
        block: k >= 1: the candidates of row r are the rows of its block of k consecutive rows, from
            k (r // k) on; the last block may be smaller. A row alone in its block has loss 0 and no
            gradient. The cost is that of B k logits in place of B^2. On CPU, blocks of up to 64
            rows are computed in the accumulation type, whatever the float32 precision, and no bit
            depends on the number of threads. On CUDA, blocks beyond 32 rows are computed in plain
            PyTorch. With ``process_group``, the rows of a block are of one rank, and no candidate
            is gathered; only the mean is over all ranks. Requires N = B. Not supported with
            ``positive_index``, groups, ``column_bias``, ``candidate_mask``, ``ignore_above`` and
            other targets. Default: all rows are one block.
        reduction: "mean" (the weighted mean over the rows that are not ignored; 0 if there are
            none, or all weigh 0), "sum", or "none" ([B]; 0 for an ignored row).
        return_stats: if True, also returns the :class:`InfoNCEStats` of the ctr -> cvr direction.
        precision: of the products, on every device. "auto": that of the type of the
            representations, and in float32 that of the settings above. "float32": IEEE float32
            whatever the settings; bfloat16 and float16 are converted to float32 first, and float64
            stays. Where plain PyTorch computes (the reference, second derivatives, and on CUDA
            blocks beyond 32 rows), it then does so in float64. "bfloat16": the representations are
            rounded to bfloat16, whatever their type, and the sums are float32. Their gradients are
            rounded to bfloat16 too, by PyTorch's conversion.
        backend: "auto" selects C++ on CPU and Triton on CUDA, and the reference where they are not
            installed and on other devices. "reference", "cpu" and "triton" select one backend.
            Triton needs compute capability 8.0, except with ``block``. "triton" accepts CPU tensors
            only under TRITON_INTERPRET=1.
        process_group: if given, the candidates of every row are the ``h_cvr`` of all ranks, as if
            the ranks' rows were one batch. The ranks may have different B and N, including 0.
            ``positive_index`` counts this rank's candidates, and the statistics are of this rank's
            rows. All ranks must call the function, and either all or none must run backward. The
            gradient is that of the sum of the ranks' losses. With "mean", a rank's loss is W times
            its share of the mean over all ranks' rows, so that the mean of the ranks' losses, and
            of their gradients under DistributedDataParallel, equals that of one process. With "sum"
            and "none", sum the ranks' gradients instead. Not supported within ``torch.compile``.

    Shape:
        - h_ctr: [B, d]
        - h_cvr: [N, d]
        - tau: [B], [B, 1], [1] or 0-dim
        - Output: 0-dim, or [B] with reduction "none"; float32, or float64 for float64 inputs unless
          ``precision`` is "bfloat16"

    Returns:
        The loss, or (loss, :class:`InfoNCEStats`) if ``return_stats`` is True.

    Raises:
        TypeError: an argument has the wrong dtype, or an option the wrong type.
        ValueError: an argument has the wrong shape, device or value, or differs between ranks where
            it must not; a representation is no tensor; or tau is neither a tensor nor a number that
            is positive and finite.
        NotImplementedError: an input carries a forward-mode tangent.
        RuntimeError: ``backend`` "cpu" without the C++ extension; or on CPU, a tensor tau that is
            not positive and finite (in C++ also one that is subnormal), a column_bias that is not
            finite, a positive_index out of range, or a row without a positive of its
            positive_group. On CUDA the values are not checked, because that would wait for the
            device; such rows give NaN. Row weights that cancel have no mean: under "mean" the loss
            is then not finite.

    Example:
        >>> h_ctr = torch.randn(1024, 64, requires_grad=True)
        >>> h_cvr = torch.randn(1024, 64, requires_grad=True)
        >>> tau = torch.rand(1024) + 0.05
        >>> loss = adaftr_fast.adaptive_infonce(h_ctr, h_cvr, tau)
        >>> loss.backward()
        >>> loss, stats = adaftr_fast.adaptive_infonce(h_ctr, h_cvr, tau, return_stats=True)
        >>> accuracy = stats.top1.float().mean()  # positive_ranks gives recall@k
    """
    check_representations("adaptive_infonce", h_ctr, h_cvr)
    taus = tau if isinstance(tau, tuple) else (tau,)
    check_no_tangents("adaptive_infonce", h_ctr, h_cvr, *taus, row_weight, column_bias)
    tau_row, tau_column = split_tau(tau, symmetric)
    dtype = product_dtype(h_ctr, h_cvr, precision)
    h_ctr = h_ctr if h_ctr.dtype == dtype else h_ctr.to(dtype)
    h_cvr = h_cvr if h_cvr.dtype == dtype else h_cvr.to(dtype)
    labels = labels_of(positive_group, h_ctr, h_cvr)
    labeled = positive_group is not None
    # the positive, or the partner, of row r is candidate r by default
    pairs = symmetric or not labeled
    vectors = {
        "positive_index": positive_index,
        "row_group": row_group,
        "column_group": column_group,
        "row_weight": row_weight,
        "column_bias": column_bias,
    }
    check_vectors("adaptive_infonce", h_ctr, h_cvr, pairs, **vectors)
    check_ignore_above(ignore_above)
    has_targets = labeled or label_smoothing != 0 or margin != 0
    local = block is not None  # whether the candidates of a row are of its rank
    if local or labeled:
        options = {
            "block": block,
            "ignore_above": ignore_above,
            "positive_group": positive_group,
            "label_smoothing": label_smoothing or None,
            "margin": margin or None,
            "return_stats": return_stats or None,
            "candidate_mask": candidate_mask,
        }
        check_combinations(vectors | options)
    if block is not None:
        check_block(block, h_ctr, h_cvr)
        block = block if block < len(h_ctr) else None
    if has_targets:
        check_targets(label_smoothing, margin, ignore_above)
    if candidate_mask is not None:
        other_pairs = symmetric and positive_index is not None
        check_mask(candidate_mask, h_ctr, h_cvr, other_pairs, process_group)
    positive_index, labels = with_ignore_index(ignore_index, positive_index, labels, h_cvr.shape[0])
    row_label, column_label = labels
    column_group = row_group if column_group is None else column_group
    tau_row = expand_tau(tau_row, h_ctr, "tau")  # [B]
    if column_bias is not None:
        if symmetric:
            raise ValueError("adaptive_infonce: column_bias requires symmetric=False, got True")
        check_bias_is_finite(column_bias)
        h_ctr, h_cvr = append_bias(h_ctr, h_cvr, tau_row, column_bias)

    op = TARGETS if has_targets else INFONCE
    if candidate_mask is not None:
        op = MASKED
    if block is not None:
        op = BLOCKS
    name = op_name("adaptive_infonce", op.name, backend, h_ctr)
    decisive = row_label if labeled else positive_index  # IGNORE for rows without a loss
    batch = None
    if process_group is not None:
        grad = torch.is_grad_enabled()
        must_agree = {
            "symmetric": symmetric,
            "whether block is given": local,
            "whether reduction is 'mean'": reduction == "mean",
            "whether row_group is given": row_group is not None,
            "whether positive_group is given": labeled,
            "whether row_weight or positive_index is given": row_weight is not None
            or decisive is not None,
            "whether h_cvr needs a gradient": grad and h_cvr.requires_grad,
            "whether h_ctr needs a gradient": grad and h_ctr.requires_grad and symmetric,
            "whether row_weight needs a gradient": grad
            and row_weight is not None
            and row_weight.requires_grad,
        }
        batch = across_ranks("adaptive_infonce", process_group, h_ctr, h_cvr, must_agree)
    scale = row_scale(h_ctr, decisive, row_weight, reduction, batch)  # [B]
    if local:
        batch = None  # nothing more is exchanged
    forth = Direction(
        anchors=h_ctr,
        candidates=h_cvr,
        positive=positive_index,
        tau=tau_row,
        row_group=row_group,
        column_group=column_group,
        row_label=row_label,
        column_label=column_label,
        candidate_mask=candidate_mask,
    )
    common: dict[str, Any] = {
        "scale": scale,
        "ieee": precision == "float32",
        "ignore_above": ignore_above,
        "margin": margin,
        "label_smoothing": label_smoothing,
        "block": block,
        "need_stats": return_stats,
    }
    paired = positive_index is None and h_ctr.shape[0] == h_cvr.shape[0]
    if (
        symmetric
        and paired
        and op is INFONCE
        and batch is None
        and ignore_above is None
        and not return_stats
    ):
        name = op_name("adaptive_infonce", SYMMETRIC.name, backend, h_ctr)
        tau_column = (
            expand_tau(tau_column, h_cvr, "tau (per column)") if isinstance(tau, tuple) else tau_row
        )
        given = common | forth._asdict() | {"tau_row": tau_row, "tau_column": tau_column}
        return _call(SYMMETRIC, name, reduction, given)["loss"]
    gathered = forth if batch is None else batch.gather(forth, batch.columns)
    found = _direction(op, name, reduction, gathered, common)
    loss = found["loss"]
    if symmetric:
        back = reverse(forth, expand_tau(tau_column, h_cvr, "tau (per column)"))
        if batch is not None:
            back = batch.gather(back, batch.rows)
        other = _direction(op, name, reduction, back, common | {"need_stats": False})
        loss = (loss + other["loss"]) / 2
    if not return_stats:
        return loss
    return loss, InfoNCEStats(*(found[x].detach() for x in InfoNCEStats._fields))


def _direction(
    op: DifferentiableOp, name: str, reduction: str, direction: Direction, common: dict[str, Any]
) -> dict[str, Tensor]:
    """Returns the outputs of one direction as ``_call`` does."""
    given = common | direction._asdict()
    row = direction.row_label
    column = direction.column_label
    if row is not None and column is not None:
        groups = direction.row_group, direction.column_group
        given["positive"] = choose_positive(row, column, *groups)
    return _call(op, name, reduction, given)


def _call(
    op: DifferentiableOp, name: str, reduction: str, given: dict[str, Any]
) -> dict[str, Tensor]:
    """Returns the outputs of an op by name, with the loss of the reduction as "loss".

    With reduction "none" the gradients depend on the upstream gradient, so backward computes them.
    """
    found = op.call(name, given, with_gradients=reduction != "none")
    if reduction == "none":
        found["loss"] = weighted(found["row_loss"], given["scale"])
    return found
