"""Published in-batch losses as modules over :func:`adaftr_fast.adaptive_infonce` and
:func:`adaftr_fast.sigmoid_contrast`, which store no similarity matrix.

Shapes: B rows (pairs), d width of a representation, k hard negatives per row, W ranks.
docs/recipes.md compares them with the losses of other libraries.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from adaftr_fast.distributed.gather import gather_numbers, gather_rows
from adaftr_fast.ops.infonce.api import adaptive_infonce
from adaftr_fast.ops.infonce.reference import IGNORE
from adaftr_fast.ops.infonce.sigmoid import sigmoid_contrast


class NTXentLoss(nn.Module):
    """Computes the normalized temperature-scaled cross entropy of SimCLR (Chen et al., 2020, Eq.
    1).

    Each of the 2B views is contrasted with the other view of its image against the remaining 2B - 2
    views.

    Args:
        temperature: the temperature, > 0.
        process_group: if given, the views of all ranks are negatives; see
            :func:`adaftr_fast.adaptive_infonce`.

    Shape:
        - z_0, z_1: [B, d], the two views; normalized here
        - Output: 0-dim, the mean over the 2B views

    Raises:
        ValueError: the two views differ in shape.

    Example:
        >>> loss = adaftr_fast.nn.losses.NTXentLoss()(torch.randn(256, 128), torch.randn(256, 128))
    """

    def __init__(
        self, temperature: float = 0.5, *, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.process_group = process_group

    def forward(self, z_0: Tensor, z_1: Tensor) -> Tensor:
        """Computes the loss between the views z_0 and z_1, both [B, d]."""
        _check_pairs("NTXentLoss", "z_0", z_0, "z_1", z_1)
        z = F.normalize(torch.cat((z_0, z_1)), dim=1)
        return adaptive_infonce(
            z,
            z,
            self.temperature,
            positive_index=torch.arange(len(z), device=z.device).roll(len(z_0)),
            row_group=_own_ids(z, self.process_group),  # a view is not a negative of itself
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class SupConLoss(nn.Module):
    """Computes the supervised contrastive loss (Khosla et al., 2020, Eq. 2, L_out).

    With the rows P(r) that share the label of row r, r itself left out, the loss of row r is

        L_r = logsumexp_{j != r}(z_r . z_j / temperature) - mean_{p in P(r)} z_r . z_p / temperature

    Rows without another row of their label have no loss. V views of each row are B * V rows.

    Args:
        temperature: the temperature, > 0.
        process_group: if given, the rows of all ranks are one batch; see
            :func:`adaftr_fast.adaptive_infonce`.

    Shape:
        - features: [B, d], or [B, V, d]; normalized here
        - labels: [B] int64; None with V views, where each row is a label of its own
        - Output: 0-dim, the mean over the rows that have a positive; 0 if there are none

    Raises:
        ValueError: ``features`` or ``labels`` has the wrong shape.

    Example:
        >>> loss = adaftr_fast.nn.losses.SupConLoss()(torch.randn(256, 128), torch.randint(10, (256,)))
    """

    def __init__(
        self, temperature: float = 0.1, *, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.process_group = process_group

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Computes the loss of features [B, d] or [B, V, d] with labels [B]."""
        if features.dim() not in (2, 3):
            raise ValueError(
                f"SupConLoss: features must be [B, d] or [B, V, d], got {list(features.shape)}"
            )
        if labels is None and features.dim() == 3:
            labels = _own_ids(features, self.process_group)
        if labels is None or tuple(labels.shape) != (len(features),):
            got = None if labels is None else tuple(labels.shape)
            raise ValueError(f"SupConLoss: labels must have shape ({len(features)},), got {got}")
        views = features.shape[1] if features.dim() == 3 else 1
        z = F.normalize(features.reshape(-1, features.shape[-1]), dim=1)
        labels = labels.repeat_interleave(views)
        known, counts = self._everywhere(labels).unique(return_counts=True)
        label = torch.searchsorted(known, labels)  # IGNORE may be a label
        label = torch.where(counts[label] > 1, label, IGNORE)
        return adaptive_infonce(
            z,
            z,
            self.temperature,
            positive_group=label,
            row_group=_own_ids(z, self.process_group),  # a row is not a candidate of its own
            process_group=self.process_group,
        )

    def _everywhere(self, labels: Tensor) -> Tensor:
        """Returns the labels of all ranks."""
        if self.process_group is None:
            return labels
        sizes = gather_numbers(labels.new_tensor([len(labels)]), self.process_group)
        return gather_rows(labels, sizes.flatten().tolist(), self.process_group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class CLIPLoss(nn.Module):
    """Computes the loss of CLIP (Radford et al., 2021) with its learned logit scale.

    The loss is the mean of the cross entropies image -> text and text -> image, whose logits are
    cosines times exp(``logit_scale``). ``forward`` takes what ``ClipLoss`` of open_clip takes as
    well.

    Args:
        init_scale: initial value of exp(``logit_scale``).
        max_scale: upper bound of exp(``logit_scale``). In training ``forward`` sets a larger
            parameter to the bound, in place, from where it can come back.
        process_group: if given, the pairs of all ranks are one batch; see
            :func:`adaftr_fast.adaptive_infonce`.

    Shape:
        - image_features, text_features: [B, d]; normalized here
        - Output: 0-dim

    Raises:
        ValueError: ``init_scale`` is not positive or exceeds ``max_scale``, or the features differ
            in shape.

    Example:
        >>> clip = adaftr_fast.nn.losses.CLIPLoss()
        >>> loss = clip(torch.randn(256, 512), torch.randn(256, 512))
    """

    def __init__(
        self,
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        *,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not 0 < init_scale <= max_scale:
            raise ValueError(
                f"CLIPLoss: expected 0 < init_scale <= max_scale, got {init_scale} and {max_scale}"
            )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        self.max_scale = max_scale
        self.process_group = process_group

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Computes the loss between image_features and text_features, both [B, d].

        Args:
            image_features: the images [B, d].
            text_features: the texts [B, d].
            logit_scale: factor of the similarities, > 0, in place of exp(``self.logit_scale``), as
                the model of open_clip returns it; ``max_scale`` does not bound it.
            output_dict: if True, returns {"contrastive_loss": loss}.
        """
        _check_pairs("CLIPLoss", "image_features", image_features, "text_features", text_features)
        tau = (-self._bounded_scale()).exp() if logit_scale is None else 1 / logit_scale
        image = F.normalize(image_features, dim=1)
        text = F.normalize(text_features, dim=1)
        loss = adaptive_infonce(image, text, tau, symmetric=True, process_group=self.process_group)
        return {"contrastive_loss": loss} if output_dict else loss

    def _bounded_scale(self) -> Tensor:
        bound = math.log(self.max_scale)
        if not self.training:
            return self.logit_scale.clamp(max=bound)
        # ``data``, so that autograd does not see the parameter change between two calls of forward
        # and backward
        self.logit_scale.data.clamp_(max=bound)
        return self.logit_scale

    def extra_repr(self) -> str:
        return f"max_scale={self.max_scale}"


class SigLIPLoss(nn.Module):
    """Computes the sigmoid loss of SigLIP (Zhai et al., 2023, Eq. 1).

    ``forward`` takes what ``SigLipLoss`` of open_clip takes.

    Args:
        process_group: if given, the texts of all ranks are candidates; see
            :func:`adaftr_fast.sigmoid_contrast`.

    Shape:
        - image_features, text_features: [B, d], taken as they are: SigLIP normalizes them before
        - logit_scale, logit_bias: 0-dim
        - Output: 0-dim, the sum over all pairs divided by B

    Raises:
        ValueError: the features differ in shape.

    Example:
        >>> image, text = (torch.nn.functional.normalize(torch.randn(256, 512), dim=1) for _ in range(2))
        >>> loss = adaftr_fast.nn.losses.SigLIPLoss()(image, text, logit_scale=10.0, logit_bias=-10.0)
    """

    def __init__(self, *, process_group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.process_group = process_group

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Computes the loss between image_features and text_features, both [B, d].

        Args:
            image_features: the anchors [B, d].
            text_features: the candidates [B, d].
            logit_scale: factor of the similarities, > 0: the exponential of SigLIP's parameter.
            logit_bias: added to the logits; None for 0.
            output_dict: if True, returns {"contrastive_loss": loss}.
        """
        _check_pairs("SigLIPLoss", "image_features", image_features, "text_features", text_features)
        bias = 0.0 if logit_bias is None else logit_bias
        loss = sigmoid_contrast(
            image_features, text_features, logit_scale, bias, process_group=self.process_group
        )
        return {"contrastive_loss": loss} if output_dict else loss


class MultipleNegativesRankingLoss(nn.Module):
    """Computes the in-batch softmax with hard negatives (Henderson et al., 2017) as
    sentence-transformers does.

    The candidates of each anchor are all positives and all hard negatives of the batch. ``forward``
    takes what ``compute_loss_from_embeddings`` of sentence-transformers takes.

    Args:
        scale: factor of the similarities, > 0; the inverse of the temperature.
        symmetric: if True, averages the loss with that of positive -> anchors, whose candidates are
            all anchors.
        normalize: if True, the similarities are cosines, otherwise dot products.
        process_group: if given, candidates are those of all ranks; see
            :func:`adaftr_fast.adaptive_infonce`.

    Shape:
        - embeddings: [anchors, positives, negatives_1, ..., negatives_k], each [B, d]
        - Output: 0-dim

    Raises:
        ValueError: there are fewer than two embeddings, or they differ in shape.

    Example:
        >>> mnrl = adaftr_fast.nn.losses.MultipleNegativesRankingLoss()
        >>> loss = mnrl([torch.randn(64, 384), torch.randn(64, 384), torch.randn(64, 384)])
    """

    def __init__(
        self,
        scale: float = 20.0,
        *,
        symmetric: bool = False,
        normalize: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.symmetric = symmetric
        self.normalize = normalize
        self.process_group = process_group

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """Computes the loss of a list of embeddings [B, d]; ``labels`` are accepted and
        not used.
        """
        if len(embeddings) < 2:
            raise ValueError(
                "MultipleNegativesRankingLoss: expected at least 2 embeddings, got "
                f"{len(embeddings)}"
            )
        for number, other in enumerate(embeddings[1:], 1):
            _check_pairs(
                "MultipleNegativesRankingLoss",
                "embeddings[0]",
                embeddings[0],
                f"embeddings[{number}]",
                other,
            )
        anchors = embeddings[0]
        candidates = torch.cat(list(embeddings[1:]))
        if self.normalize:
            anchors = F.normalize(anchors, dim=1)
            candidates = F.normalize(candidates, dim=1)
        return adaptive_infonce(
            anchors,
            candidates,
            1 / self.scale,
            symmetric=self.symmetric,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return f"scale={self.scale}, symmetric={self.symmetric}, normalize={self.normalize}"


def _own_ids(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Returns a number for each row of x [n, ...] that no other row has, on this rank or another:
    int64 [n].
    """
    first = 0 if group is None else dist.get_rank(group) << 32
    return torch.arange(first, first + len(x), device=x.device)


def _check_pairs(loss: str, first: str, x: Tensor, second: str, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"{loss}: {second} must have the shape of {first}, {tuple(x.shape)}, got "
            f"{tuple(y.shape)}"
        )
