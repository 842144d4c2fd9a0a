"""AdaFTR with other negatives, as a model of one's own; ``model.options`` select what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models import AdaFTR
from adaftr_fast.models.build import known_model
from adaftr_fast.nn.relatedness import relatedness_loss

NEGATIVES = {
    "debiased": {"prior": 0.1, "hardness": 0.0},
    "hard": {"prior": 0.1, "hardness": 1.0},
}


def reweighted(logits: Tensor, *, prior: float, hardness: float) -> Tensor:
    """Computes InfoNCE [B] of logits [B, B], where some negatives are positives and hard ones weigh
    more.

        L_r = log(1 + (B - 1) g_r)
        g_r = max((sum_j w_rj exp(z_rj - z_rr) - prior) / (1 - prior), exp(-z_rr))

    over the negatives j, with w_rj = softmax_j(hardness z_rj). The least logit is 0, as the
    representations are rectified.

    Args:
        prior: the share of candidates that are positives (Chuang et al., 2020, Eq. 8).
        hardness: 0 weighs all negatives alike (Robinson et al., 2021, Eq. 4).
    """
    z = logits.double()
    positive = z.diagonal()[:, None]
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    weights = (hardness * z).masked_fill(own, -torch.inf).softmax(1)
    seen = (weights * (z - positive).exp()).sum(1)
    g = torch.maximum((seen - prior) / (1 - prior), (-z.diagonal()).exp())
    return torch.log1p((len(z) - 1) * g).to(logits.dtype)


class Contrast(AdaFTR):
    """AdaFTR as printed, but for one of these options.

    - mask: "group" takes no negatives of the row's group; "above" none that are more similar than
      the positive.
    - order: "together" sorts the rows of a batch by their projection on its first principal
      direction of the anchors, so that similar rows are in one block of ``contrast_rows``; "apart"
      deals the sorted rows out to the blocks.
    - loss: "dot" takes the mean dot product of the two h of a row in place of L_cl, which keeps them
      apart. "debiased" and "hard" are L_cl with the negatives of ``reweighted``.
    - relatedness: "clicked" trains the relatedness network on rows with a click alone.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        *of_backbone: Any,
    ) -> None:
        backbone = known_model(config.backbone)
        super().__init__(backbone(num_embeddings, task_names, config, *of_backbone), config)
        self.options = config.options

    def loss(self, batch: Batch, process_group: ProcessGroup | None = None) -> dict[str, Tensor]:
        losses = super().loss(batch, process_group)
        if self.options.get("relatedness") == "clicked":
            a, b = self.pairs[0]
            y = batch.labels.unbind(1)
            logit = self._relatedness_logits(self.backbone.represent(*batch.features), detach=True)[
                0
            ]
            losses["relatedness"] = self.config.alpha * relatedness_loss(
                logit, y[a], y[b], y[a], y[a].mean()
            )
        return losses

    def _contrast_losses(
        self,
        h: list[Tensor],
        related: list[Tensor | None],
        batch: Batch,
        process_group: ProcessGroup | None,
    ) -> list[Tensor]:
        assert batch.weight is None  # no set of the study has weights
        if self.options.get("loss") == "dot":
            a, b = self.pairs[0]
            return [(h[a] * h[b]).sum(1).mean()]
        if self.options.get("loss") in NEGATIVES:
            a, b = self.pairs[0]
            logits = h[a] @ h[b].T / self.contrasts[0].temperature(related[0])[:, None]
            return [reweighted(logits, **NEGATIVES[self.options["loss"]]).mean()]
        mask = self.options.get("mask")
        order = self.options.get("order")
        if mask is not None:
            a, b = self.pairs[0]
            assert batch.group is not None or mask != "group"
            options = {"row_group": batch.group} if mask == "group" else {"ignore_above": 0.0}
            return [self.contrasts[0](h[a], h[b], related[0], **options)]
        if order is not None:
            rows = self._order(h[self.pairs[0][0]].detach(), apart=order == "apart")
            h = [x[rows] for x in h]
            related = [None if x is None else x[rows] for x in related]
        return super()._contrast_losses(h, related, batch, process_group)

    def _order(self, h: Tensor, apart: bool) -> Tensor:
        centered = (h - h.mean(0)).double()  # in float32 the eigenvectors do not always converge
        direction = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]
        rows = (centered @ direction).argsort()
        return rows.view(self.config.contrast_rows, -1).T.flatten() if apart else rows
