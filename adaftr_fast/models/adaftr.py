"""AdaFTR: a multi-task backbone with an adaptive contrastive loss between the tasks' towers (the
paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import ConfigError
from adaftr_fast.models.base import Backbone, MultiTaskModel, Representations
from adaftr_fast.nn.contrast import ALIGNMENTS, AdaptiveInfoNCE
from adaftr_fast.nn.log_loss import weighted_mean
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.nn.relatedness import RelatednessNetwork, relatedness_loss


class AdaFTR(MultiTaskModel):
    """Trains a backbone with the objective of Eq. 14: the task losses, the relatedness loss and the
    contrastive loss.

        L = sum_t L_t + alpha L_rel + beta L_cl + L2      (Eq. 14)

    L_cl contrasts the tower layers h of two tasks by InfoNCE (Eq. 13). Its temperature is a
    function of the tasks' predicted relatedness for the instance (Eqs. 8, 9, 12), which L_rel
    trains (Eqs. 10, 11). Every pair of tasks has its own relatedness network Omega (Section 3.3.4);
    click and conversion are the paper's one pair.

    By default, gradients flow as in Algorithm 1. L_rel updates Omega only, because v^rel is
    detached. L_cl does not update Omega, because the temperature is detached. With
    ``relatedness_updates`` and ``temperature_updates`` "all", nothing is detached: the gradient is
    that of the joint sum of Eq. 14, in which L_cl also updates Omega and the layers below it
    through the temperature.

    ``forward`` computes the backbone only, so serving needs no Omega. The model has an Omega only
    if its output sets a temperature (contrast "infonce" with tau "adaptive"). With contrast "none",
    the model trains like its backbone.

    With ``contrast_rows``, L_cl contrasts each block of so many consecutive rows instead of the
    whole batch. The blocks are those of each part of a batch that a rank computes at once; the last
    one of a part may have fewer rows.

    With ``contrast_epochs``, beta falls linearly to 0 over so many epochs, which ``set_epoch``
    counts. From then on the loss has no term "contrast".

    Args:
        backbone: the model that computes the task inputs v (Eq. 3), the tower layers h and the
            logits.
        config: the settings. The model reads ``relatedness_hidden``, ``contrast``,
            ``contrast_layer``, ``contrast_rows``, ``contrast_precision``, ``pairs``, ``alpha``,
            ``beta``, ``contrast_epochs``, ``tau``, ``tau_min``, ``tau_max``, ``tau_fixed`` and the
            three ``..._updates``.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Raises:
        ValueError: there are fewer than two tasks, a pair is unknown, ``contrast_layer`` is not a
            tower layer, or ``relatedness_updates`` or ``temperature_updates`` is set without an
            adaptive temperature.

    Example:
        >>> config = ModelConfig(beta=0.01)
        >>> model = AdaFTR(MMoE([1000, 50], ["click", "conversion"], config), config)
        >>> logits = model(torch.randint(0, 50, (32, 2)))  # [32, 2]
    """

    beta: Tensor

    def __init__(self, backbone: Backbone, config: ModelConfig) -> None:
        super().__init__(backbone.task_names)
        backbone.check_towers()
        first = backbone.towers[0].mlp.layers[0]
        layers = len(backbone.towers[0].mlp.layers)
        if config.contrast_layer > layers:
            raise config.error(
                "contrast_layer", f"one of the {layers} layers of a tower", config.contrast_layer
            )
        adaptive = config.contrast == "infonce" and config.tau == "adaptive"
        if not adaptive and (config.relatedness_updates, config.temperature_updates) != (
            "omega",
            "none",
        ):
            raise ConfigError(
                "model: relatedness_updates and temperature_updates need contrast 'infonce' and "
                "tau 'adaptive', got "
                f"{config.contrast!r} and {config.tau!r}"
            )
        self.backbone = backbone
        self.config = config
        self.pairs = resolve_pairs(config.pairs, self.task_names)
        related = self.pairs if adaptive else []
        contrasted = self.pairs if config.contrast == "infonce" else []
        hidden = config.relatedness_hidden
        self.relatedness = ModuleList(
            RelatednessNetwork(first.in_features, hidden) for _ in related
        )
        tau = config.tau_fixed if config.tau == "fixed" else config.tau
        self.contrasts = ModuleList(
            AdaptiveInfoNCE(config.tau_min, config.tau_max, tau=tau) for _ in contrasted
        )
        # A buffer, so that compiled and captured steps read it; a value of the step, so no
        # checkpoint holds it.
        beta = torch.tensor(config.beta, dtype=torch.float64)
        self.register_buffer("beta", beta, persistent=False)
        self.is_contrasting = config.contrast != "none"

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        logits: Tensor = self.backbone(ids, offsets, dense)
        return logits

    def served(self) -> MultiTaskModel:
        return self.backbone.served()

    def start_at(self, rates: Sequence[float]) -> None:
        self.backbone.start_at(rates)

    def for_task(self, task: str) -> MultiTaskModel:
        return self.backbone.for_task(task)

    def loss(self, batch: Batch, process_group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """Computes the weighted terms of Eq. 14, each 0-dim.

        Args:
            batch: this rank's rows.
            process_group: the ranks whose rows are candidates of L_cl, see
                :func:`adaftr_fast.adaptive_infonce`. None contrasts the rows of the batch only.
        """
        seen = self.backbone.represent(*batch.features)
        losses = self.backbone.task_losses(seen, batch)
        logits = self._relatedness_logits(seen, detach=self.config.relatedness_updates == "omega")
        if logits:
            weights = (batch.weight, batch.weight_mean)
            y = batch.labels.unbind(1)
            each = [
                relatedness_loss(x, y[a], y[b], *weights) for x, (a, b) in zip(logits, self.pairs)
            ]
            losses["relatedness"] = self.config.alpha * _total(each)
        if self.is_contrasting:
            h = self._contrasted(seen)
            related = self._relatedness_for_tau(seen, logits)
            contrast = _total(self._contrast_losses(h, related, batch, process_group))
            losses["contrast"] = self.beta.to(contrast.dtype) * contrast
        return losses

    def set_epoch(self, epochs: float) -> bool:
        decay = self.config.contrast_epochs
        before = self.is_contrasting
        if self.config.contrast == "none" or not decay:
            return False
        left = max(0.0, 1 - epochs / decay)
        self.is_contrasting = left > 0
        if self.is_contrasting or before:
            self.beta.fill_(self.config.beta * left)
        return self.is_contrasting != before

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns ``tau/<anchor>-<other>``, the temperature of every instance [B], for each learned
        temperature.
        """
        return self.diagnosed(batch)[1]

    def diagnosed(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes both by one pass through the backbone, or by two if it has a ``forward`` of its
        own.
        """
        seen = self.backbone.represent(*batch.features)
        own = type(self.backbone).forward is not Backbone.forward
        predicted = self(*batch.features) if own else seen.predicted()
        logits = self._relatedness_logits(seen, detach=True)
        names = [f"tau/{self.task_names[a]}-{self.task_names[b]}" for a, b in self.pairs]
        if logits:
            each = zip(names, self.contrasts, logits)
            return predicted, {n: c.temperature(x.sigmoid()) for n, c, x in each}
        learned = [(n, c.temperature()) for n, c in zip(names, self.contrasts) if c.tau == "scalar"]
        scalars = {name: tau.expand(len(batch)) for name, tau in learned if isinstance(tau, Tensor)}
        return predicted, scalars

    def _relatedness_logits(self, seen: Representations, *, detach: bool) -> list[Tensor]:
        """Computes Eq. 9 before the sigmoid, [B] per pair; an empty list without relatedness
        networks.
        """
        v = [x.detach() for x in seen.inputs] if detach else seen.inputs
        return [network(v[a], v[b]) for network, (a, b) in zip(self.relatedness, self.pairs)]

    def _relatedness_for_tau(
        self, seen: Representations, logits: list[Tensor]
    ) -> list[Tensor | None]:
        """Returns y_rel (Eq. 9) of every pair [B], detached from what L_cl does not update; None
        without networks.
        """
        if not logits:
            return [None] * len(self.pairs)
        updates = self.config.temperature_updates
        if updates == "none":
            return [logit.detach().sigmoid() for logit in logits]
        # tau and L_rel pass gradients to different parameters
        if updates != self.config.relatedness_updates:
            logits = self._relatedness_logits(seen, detach=updates == "omega")
        return [logit.sigmoid() for logit in logits]

    def _contrasted(self, seen: Representations) -> list[Tensor]:
        """Returns h of every task [B, h], detached from the parameters that L_cl does not
        update.
        """
        hidden = seen.hidden
        if self.config.contrast_updates == "towers":
            hidden = self.backbone.read_towers([v.detach() for v in seen.inputs])[0]
        return [layers[self.config.contrast_layer - 1] for layers in hidden]

    def _contrast_losses(
        self,
        h: list[Tensor],
        related: list[Tensor | None],
        batch: Batch,
        process_group: ProcessGroup | None,
    ) -> list[Tensor]:
        """Computes L_cl (Eq. 13), or the loss that replaces it, per pair."""
        if self.config.contrast != "infonce":
            align = ALIGNMENTS[self.config.contrast]
            return [
                weighted_mean(align(h[a], h[b]), batch.weight, batch.weight_mean)
                for a, b in self.pairs
            ]
        options: dict[str, Any] = {
            "row_weight": batch.weight,
            "block": self.config.contrast_rows or None,
            "precision": self.config.contrast_precision,
            "process_group": process_group,
        }
        if batch.weight is not None and batch.weight_mean is not None:
            total = len(batch) * batch.weight_mean  # as in weighted_mean
            options |= {"row_weight": batch.weight / total, "reduction": "sum"}
        return [
            contrast(h[a], h[b], y_rel, **options)
            for contrast, (a, b), y_rel in zip(self.contrasts, self.pairs, related)
        ]


def _total(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])


def resolve_pairs(pairs: Sequence[str], tasks: Sequence[str]) -> list[list[int]]:
    """Returns both tasks' positions in ``tasks`` for each "anchor-other". Default: the first task
    with each other task.

    Raises:
        ValueError: there are fewer than two tasks, or a pair is unknown, ambiguous or repeated.
    """
    if len(tasks) < 2:
        raise ValueError(f"AdaFTR: task_names must name at least two tasks, got {list(tasks)}")
    if not pairs:
        return [[0, t] for t in range(1, len(tasks))]
    resolved = []
    for name in pairs:
        found = [
            [a, b]
            for a, b in permutations(range(len(tasks)), 2)
            if f"{tasks[a]}-{tasks[b]}" == name
        ]
        if len(found) != 1 or found[0] in resolved:
            known = ", ".join(f"{a}-{b}" for a, b in permutations(tasks, 2))
            raise ValueError(f"AdaFTR: pairs must be distinct and among {known}, got {list(pairs)}")
        resolved += found
    return resolved
