"""AdaFTR with other adaptive contrasts, as models of one's own; ``model.options`` select the contrast.

Each variant changes one thing of the recommended setting (a fixed tau, beta falling to 0 over two epochs). Weights of
rows have the mean 1 in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models import AdaFTR
from adaftr_fast.models.base import Representations
from adaftr_fast.models.build import BACKBONES
from adaftr_fast.nn.dense import NumericEncoding
from adaftr_fast.nn.relatedness import RelatednessNetwork, relatedness_loss, temperature
from adaftr_fast.ops.infonce.api import adaptive_infonce


def related(y_rel: Tensor, y_1: Tensor, y_2: Tensor) -> Tensor:
    """Weighs a row by its predicted relatedness (Eq. 9)."""
    return y_rel


def unrelated(y_rel: Tensor, y_1: Tensor, y_2: Tensor) -> Tensor:
    """Weighs a row by one minus its predicted relatedness."""
    return 1 - y_rel


def balanced(y_rel: Tensor, y_1: Tensor, y_2: Tensor) -> Tensor:
    """Gives the rows with a positive label and those without equal totals."""
    positive = (y_1 + y_2 > 0).to(y_rel)
    share = positive.mean().clamp(1e-3, 1 - 1e-3)
    return positive / share + (1 - positive) / (1 - share)


def positives(y_rel: Tensor, y_1: Tensor, y_2: Tensor) -> Tensor:
    """Contrasts the rows with a positive label only."""
    return (y_1 + y_2 > 0).to(y_rel)


WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "related": related,
    "unrelated": unrelated,
    "balanced": balanced,
    "positives": positives,
}


class Adaptive(AdaFTR):
    """AdaFTR with options of the study.

    - weights: a name of ``WEIGHTS``, by which the rows of a contrast with the fixed tau are weighted.
    - cosine: "fixed" or "adaptive". Cosines replace dot products, so that a temperature in [0.05, 1] does not saturate
      the softmax; tau is ``tau_fixed``, or Eq. 12 with weights proportional to tau, which make the gradients of all
      rows equally large.
    - ratio: beta is set in every step such that the norm of L_cl's gradient at the towers' inputs v is this multiple of
      that of the task losses, times the factor by which ``contrast_epochs`` lets beta fall.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
        dense: Sequence[NumericEncoding] = (),
    ) -> None:
        backbone = BACKBONES[config.backbone](num_embeddings, task_names, config, field_names, dense)
        super().__init__(backbone, config)
        first = backbone.towers[0].mlp.layers[0]
        self.omega = RelatednessNetwork(first.in_features, config.relatedness_hidden)
        self.options = config.options

    def loss(self, batch: Batch, process_group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """Computes the terms of Eq. 14 for the first pair of tasks; see ``AdaFTR.loss``."""
        seen = self.backbone.represent(*batch.features)
        losses = self.backbone.task_losses(seen, batch)
        (a, b), y = self.pairs[0], batch.labels.unbind(1)
        logit = self.omega(seen.inputs[a].detach(), seen.inputs[b].detach())
        losses["relatedness"] = self.config.alpha * relatedness_loss(logit, y[a], y[b])
        if self.is_contrasting:
            losses["contrast"] = self._contrast(seen, losses, logit.detach().sigmoid(), y[a], y[b])
        return losses

    def _contrast(
        self, seen: Representations, losses: dict[str, Tensor], y_rel: Tensor, y_1: Tensor, y_2: Tensor
    ) -> Tensor:
        a, b = self.pairs[0]
        h = [seen.hidden[task][self.config.contrast_layer - 1] for task in (a, b)]
        beta = self.beta.to(h[0].dtype)
        tau: Tensor | float = self.config.tau_fixed
        weight = WEIGHTS[self.options["weights"]](y_rel, y_1, y_2) if "weights" in self.options else None
        if cosine := self.options.get("cosine"):
            h = [F.normalize(each, dim=1) for each in h]
            if cosine == "adaptive":
                tau = temperature(y_rel, self.config.tau_min, self.config.tau_max)
                weight = tau
        weight = None if weight is None else weight / weight.mean()
        loss = adaptive_infonce(h[0], h[1], tau, row_weight=weight)
        if ratio := self.options.get("ratio"):
            tasks = losses[self.task_names[a]] + losses[self.task_names[b]]
            shared = [seen.inputs[a], seen.inputs[b]]
            norms = [_norm(torch.autograd.grad(each, shared, retain_graph=True)) for each in (tasks, loss)]
            beta = beta / self.config.beta * ratio * norms[0] / norms[1].clamp_min(1e-12)
        return beta * loss


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in gradients]).norm()
