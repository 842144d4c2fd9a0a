"""AdaFTR: a backbone whose towers are aligned by contrast at a temperature learned per instance (the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from adaftr_fast.models.base import Backbone, MultiTaskModel, Representations
from adaftr_fast.nn.contrast import AdaptiveInfoNCE
from adaftr_fast.nn.relatedness import RelatednessNetwork, relatedness_loss

if TYPE_CHECKING:
    from adaftr_fast.data.batch import Batch


class AdaFTR(MultiTaskModel):
    """The objective of Eq. 14 over any backbone: task losses + alpha L_rel + beta L_cl + L2.

    The first task is contrasted with each other task (Section 3.3.4), every pair with a relatedness network of its
    own; for click and conversion that is the paper's one pair. Gradients go as in Algorithm 1: the relatedness
    network Omega moves by L_rel alone and L_rel moves nothing else, so v^rel enters it detached, and the temperature
    enters the contrast detached. Serving needs the backbone alone: ``forward`` never touches Omega.

    Args:
        backbone: gives task inputs v (Eq. 3) and tower layers h.
        relatedness_hidden: widths of the relatedness network's layers (Eq. 9).
        contrast_layer: which tower layer is h, counted from 1.
        alpha, beta: weights of L_rel and of L_cl (Eq. 14).
        tau_min, tau_max: range of the temperature (Eq. 12), 0 < tau_min <= tau_max.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        relatedness_hidden: Sequence[int] = (64, 32),
        contrast_layer: int = 1,
        alpha: float = 1.0,
        beta: float = 0.01,
        tau_min: float = 0.05,
        tau_max: float = 1.0,
    ) -> None:
        super().__init__()
        if len(backbone.task_names) < 2:
            raise ValueError(f"AdaFTR: needs at least two tasks to relate, got {backbone.task_names}")
        layers = len(backbone.towers[0].mlp.layers)
        if not 1 <= contrast_layer <= layers:
            raise ValueError(f"AdaFTR: contrast_layer must be in 1..{layers}, got {contrast_layer}")
        self.backbone = backbone
        self.task_names = backbone.task_names
        width = backbone.towers[0].mlp.layers[0].in_features
        self.relatedness = nn.ModuleList(RelatednessNetwork(width, relatedness_hidden) for _ in self.task_names[1:])
        self.contrast_layer = contrast_layer
        self.alpha, self.beta = alpha, beta
        self.contrast = AdaptiveInfoNCE(tau_min, tau_max)

    def forward(self, ids: Tensor) -> Tensor:
        return self.backbone(ids)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        seen = self.backbone.represent(batch.ids)
        losses = self.backbone.task_losses(seen, batch)
        h = [layers[self.contrast_layer - 1] for layers in seen.hidden]  # per task [B, h]
        logits = self._relatedness_logits(seen)
        pairs = range(1, len(self.task_names))
        y = batch.labels
        losses["relatedness"] = self.alpha * sum(
            relatedness_loss(logits[t - 1], y[:, 0], y[:, t], batch.weight) for t in pairs
        )
        losses["contrast"] = self.beta * sum(
            self.contrast(h[0], h[t], logits[t - 1].detach().sigmoid(), row_weight=batch.weight) for t in pairs
        )
        return losses

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """``tau/<task 0>-<task t>``: the temperature of every instance, [B]."""
        logits = self._relatedness_logits(self.backbone.represent(batch.ids))
        return {
            f"tau/{self.task_names[0]}-{task}": self.contrast.temperature(logit.sigmoid())
            for task, logit in zip(self.task_names[1:], logits)
        }

    def _relatedness_logits(self, seen: Representations) -> list[Tensor]:
        """Eq. 9 before the sigmoid, per pair [B]; v^rel is detached (Algorithm 1)."""
        v = [x.detach() for x in seen.inputs]
        return [network(v[0], v[t]) for t, network in enumerate(self.relatedness, start=1)]
