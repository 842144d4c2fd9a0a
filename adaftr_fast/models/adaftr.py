"""AdaFTR: a multi-task backbone with an adaptive contrastive loss between the tasks' towers (the paper)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from adaftr_fast.models.base import Backbone, MultiTaskModel, Representations, check_weight
from adaftr_fast.nn.contrast import ALIGNMENTS, AdaptiveInfoNCE
from adaftr_fast.nn.relatedness import RelatednessNetwork, relatedness_loss, weighted_mean

if TYPE_CHECKING:
    from adaftr_fast.data.dataset.batch import Batch


class AdaFTR(MultiTaskModel):
    """Trains a backbone with the objective of Eq. 14: the task losses, the relatedness loss and the contrastive loss.

        L = sum_t L_t + alpha L_rel + beta L_cl + L2      (Eq. 14)

    L_cl contrasts the tower layers h of two tasks by InfoNCE (Eq. 13). Its temperature is a function of the tasks'
    predicted relatedness for the instance (Eqs. 8, 9, 12), which L_rel trains (Eqs. 10, 11). Every pair of tasks has
    its own relatedness network Omega (Section 3.3.4); click and conversion are the paper's one pair.

    By default, gradients flow as in Algorithm 1. L_rel updates Omega only, because v^rel is detached. L_cl does not
    update Omega, because the temperature is detached.

    ``forward`` computes the backbone only, so serving needs no Omega. The model has an Omega only if its output sets a
    temperature (contrast "infonce" with tau "adaptive"). With contrast "none", the model trains like its backbone.

    Args:
        backbone: the model that computes the task inputs v (Eq. 3), the tower layers h and the logits.
        relatedness_hidden: widths of the layers of Omega (Eq. 9).
        contrast: "infonce" (Eq. 13), "positive" (Eq. 7), "alignment" (Eq. 7 without its negative), "mse" or "mae"
            (Eq. 5), or "none".
        contrast_layer: index of the tower layer h, counted from 1.
        pairs: the pairs of tasks to align, as "anchor-other". Default: the first task with each other task.
        alpha: weight of L_rel (Eq. 14).
        beta: weight of L_cl (Eq. 14).
        tau: "adaptive" (Eq. 12), "scalar" (one learned temperature per pair) or "fixed" (``tau_fixed``).
        tau_min: lower end of the temperature's range (Eq. 12), 0 < tau_min <= tau_max.
        tau_max: upper end of the temperature's range.
        tau_fixed: the temperature with tau "fixed".
        relatedness_updates: the parameters that L_rel updates: "omega", or "all" (Omega and what it reads, Eq. 14).
        contrast_updates: the parameters that L_cl updates: "all" of Theta, or the "towers" only (Section 2.4.1).
        temperature_updates: the parameters that L_cl updates through tau: "none", or "omega" (Section 2.4.1).

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Raises:
        ValueError: there are fewer than two tasks, an option or pair is unknown, ``contrast_layer`` is not a tower
            layer, an option applies to a loss that the model does not have, or a weight is negative or not finite.

    Example:
        >>> backbone = MMoE(num_embeddings=[1000, 50], embedding_dim=8, task_names=["click", "conversion"])
        >>> model = AdaFTR(backbone, beta=0.01)
        >>> logits = model(torch.randint(0, 50, (32, 2)))  # [32, 2]
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        relatedness_hidden: Sequence[int] = (64, 32),
        contrast: Literal["infonce", "positive", "alignment", "mse", "mae", "none"] = "infonce",
        contrast_layer: int = 1,
        pairs: Sequence[str] = (),
        alpha: float = 1.0,
        beta: float = 0.01,
        tau: Literal["adaptive", "scalar", "fixed"] = "adaptive",
        tau_min: float = 0.05,
        tau_max: float = 1.0,
        tau_fixed: float = 0.05,
        relatedness_updates: Literal["omega", "all"] = "omega",
        contrast_updates: Literal["all", "towers"] = "all",
        temperature_updates: Literal["none", "omega"] = "none",
    ) -> None:
        super().__init__(backbone.task_names)
        first, layers = backbone.towers[0].mlp.layers[0], len(backbone.towers[0].mlp.layers)
        _check("contrast", contrast, ("infonce", *ALIGNMENTS, "none"))
        _check("contrast_layer", contrast_layer, range(1, layers + 1))
        _check("tau", tau, ("adaptive", "scalar", "fixed"))
        _check("relatedness_updates", relatedness_updates, ("omega", "all"))
        _check("contrast_updates", contrast_updates, ("all", "towers"))
        _check("temperature_updates", temperature_updates, ("none", "omega"))
        check_weight("AdaFTR", "alpha", alpha)
        check_weight("AdaFTR", "beta", beta)
        adaptive = contrast == "infonce" and tau == "adaptive"
        if not adaptive and (relatedness_updates, temperature_updates) != ("omega", "none"):
            raise ValueError(
                "AdaFTR: relatedness_updates and temperature_updates need contrast 'infonce' and tau 'adaptive', got "
                f"{contrast!r} and {tau!r}"
            )
        self.backbone = backbone
        self.pairs = resolve_pairs(pairs, self.task_names)
        self.contrast, self.contrast_layer, self.alpha, self.beta = contrast, contrast_layer, alpha, beta
        self.relatedness_updates, self.contrast_updates = relatedness_updates, contrast_updates
        self.temperature_updates = temperature_updates
        related, contrasted = (self.pairs if adaptive else [], self.pairs if contrast == "infonce" else [])
        self.relatedness = nn.ModuleList(RelatednessNetwork(first.in_features, relatedness_hidden) for _ in related)
        temperature = tau_fixed if tau == "fixed" else tau
        self.contrasts = nn.ModuleList(AdaptiveInfoNCE(tau_min, tau_max, tau=temperature) for _ in contrasted)

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        return self.backbone(ids, offsets)

    def served(self) -> MultiTaskModel:
        return self.backbone

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        seen = self.backbone.represent(*batch.features)
        losses = self.backbone.task_losses(seen, batch)
        logits = self._relatedness_logits(seen, detach=self.relatedness_updates == "omega")
        if logits:
            weights = (batch.weight, batch.weight_mean)
            y = batch.labels.unbind(1)
            each = [relatedness_loss(x, y[a], y[b], *weights) for x, (a, b) in zip(logits, self.pairs)]
            losses["relatedness"] = self.alpha * sum(each)
        if self.contrast != "none":
            h = self._contrasted(seen)
            related = self._relatedness_for_tau(seen, logits)
            losses["contrast"] = self.beta * sum(self._contrast_losses(h, related, batch))
        return losses

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Returns ``tau/<anchor>-<other>``, the temperature of every instance [B], for each learned temperature."""
        logits = self._relatedness_logits(self.backbone.represent(*batch.features), detach=True)
        names = [f"tau/{self.task_names[a]}-{self.task_names[b]}" for a, b in self.pairs]
        if logits:
            return {n: c.temperature(x.sigmoid()) for n, c, x in zip(names, self.contrasts, logits)}
        learned = {n: c.temperature() for n, c in zip(names, self.contrasts) if c.tau == "scalar"}
        return {name: tau.expand(len(batch)) for name, tau in learned.items()}

    def _relatedness_logits(self, seen: Representations, *, detach: bool) -> list[Tensor]:
        """Computes Eq. 9 before the sigmoid, [B] per pair; an empty list without relatedness networks."""
        v = [x.detach() for x in seen.inputs] if detach else seen.inputs
        return [network(v[a], v[b]) for network, (a, b) in zip(self.relatedness, self.pairs)]

    def _contrasted(self, seen: Representations) -> list[Tensor]:
        """Returns h of every task [B, h], detached from the parameters that L_cl does not update."""
        hidden = seen.hidden
        if self.contrast_updates == "towers":
            hidden = self.backbone.read_towers([v.detach() for v in seen.inputs])[0]
        return [layers[self.contrast_layer - 1] for layers in hidden]

    def _relatedness_for_tau(self, seen: Representations, logits: list[Tensor]) -> list[Tensor | None]:
        """Returns y_rel (Eq. 9) of every pair [B], detached from what L_cl does not update; None without networks."""
        if not logits:
            return [None] * len(self.pairs)
        if self.temperature_updates == "omega":  # detached below Omega, whatever L_rel updates
            return [logit.sigmoid() for logit in self._relatedness_logits(seen, detach=True)]
        return [logit.detach().sigmoid() for logit in logits]

    def _contrast_losses(self, h: list[Tensor], related: list[Tensor | None], batch: Batch) -> list[Tensor]:
        """Computes L_cl (Eq. 13), or the loss that replaces it, per pair."""
        if self.contrast != "infonce":
            align = ALIGNMENTS[self.contrast]
            return [weighted_mean(align(h[a], h[b]), batch.weight, batch.weight_mean) for a, b in self.pairs]
        return [
            contrast(h[a], h[b], y_rel, row_weight=batch.weight)
            for contrast, (a, b), y_rel in zip(self.contrasts, self.pairs, related)
        ]


def _check(option: str, value: object, choices: Collection[object]) -> None:
    if value not in choices:
        raise ValueError(f"AdaFTR: {option} must be one of {', '.join(map(str, choices))}, got {value!r}")


def resolve_pairs(pairs: Sequence[str], tasks: Sequence[str]) -> list[list[int]]:
    """Returns both tasks' positions in ``tasks`` for each "anchor-other". Default: the first task with each other task.

    Raises:
        ValueError: there are fewer than two tasks, or a pair is unknown, ambiguous or repeated.
    """
    if len(tasks) < 2:
        raise ValueError(f"AdaFTR: task_names must name at least two tasks, got {list(tasks)}")
    if not pairs:
        return [[0, t] for t in range(1, len(tasks))]
    resolved = []
    for name in pairs:
        found = [[a, b] for a, b in permutations(range(len(tasks)), 2) if f"{tasks[a]}-{tasks[b]}" == name]
        if len(found) != 1 or found[0] in resolved:
            known = ", ".join(f"{a}-{b}" for a, b in permutations(tasks, 2))
            raise ValueError(f"AdaFTR: pairs must be distinct and among {known}, got {list(pairs)}")
        resolved += found
    return resolved
