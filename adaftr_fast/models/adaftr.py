"""AdaFTR: a backbone whose towers are aligned by contrast at a temperature learned per instance (the paper)."""

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
    """The objective of Eq. 14 over any backbone: task losses + alpha L_rel + beta L_cl + L2.

    Every pair of tasks has a relatedness network of its own (Section 3.3.4); for click and conversion that is the
    paper's one pair. By default gradients go as in Algorithm 1: the relatedness network Omega moves by L_rel alone and
    L_rel moves nothing else, so v^rel enters it detached, and the temperature enters the contrast detached. Serving
    needs the backbone alone: ``forward`` never touches Omega. There is an Omega only where a temperature is made of its
    output (contrast "infonce" at tau "adaptive"); with contrast "none" the model trains as its backbone.

    Args:
        backbone: gives task inputs v (Eq. 3) and tower layers h.
        relatedness_hidden: widths of the relatedness network's layers (Eq. 9).
        contrast: "infonce" (Eq. 13), "positive" (Eq. 7), "alignment" (Eq. 7 without its negative), "mse" or "mae"
            (Eq. 5), or "none".
        contrast_layer: which tower layer is h, counted from 1.
        pairs: the tasks to align as "anchor-other"; none: the first task with each other.
        alpha, beta: weights of L_rel and of L_cl (Eq. 14).
        tau: "adaptive" (Eq. 12), "scalar" (one learned number a pair) or "fixed" (``tau_fixed``).
        tau_min, tau_max: range of the temperature (Eq. 12), 0 < tau_min <= tau_max.
        relatedness_updates: L_rel moves "omega" alone, or "all" below it too (Eq. 14).
        contrast_updates: L_cl moves "all" of Theta, or the "towers" alone (Section 2.4.1).
        temperature_updates: L_cl moves "none" through tau, or "omega" (Section 2.4.1).

    Raises:
        ValueError: fewer than two tasks, no such layer, pair or option, one that routes a loss there is not,
            or a weight that is negative or not finite.
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
        """``tau/<anchor>-<other>``: the temperature of every instance [B], where there is one that is learned."""
        logits = self._relatedness_logits(self.backbone.represent(*batch.features), detach=True)
        names = [f"tau/{self.task_names[a]}-{self.task_names[b]}" for a, b in self.pairs]
        if logits:
            return {n: c.temperature(x.sigmoid()) for n, c, x in zip(names, self.contrasts, logits)}
        learned = {n: c.temperature() for n, c in zip(names, self.contrasts) if c.tau == "scalar"}
        return {name: tau.expand(len(batch)) for name, tau in learned.items()}

    def _relatedness_logits(self, seen: Representations, *, detach: bool) -> list[Tensor]:
        """Eq. 9 before the sigmoid, per pair [B]; [] without relatedness networks."""
        v = [x.detach() for x in seen.inputs] if detach else seen.inputs
        return [network(v[a], v[b]) for network, (a, b) in zip(self.relatedness, self.pairs)]

    def _contrasted(self, seen: Representations) -> list[Tensor]:
        """h of every task [B, h], cut off from what L_cl may not move."""
        hidden = seen.hidden
        if self.contrast_updates == "towers":
            hidden = self.backbone.read_towers([v.detach() for v in seen.inputs])[0]
        return [layers[self.contrast_layer - 1] for layers in hidden]

    def _relatedness_for_tau(self, seen: Representations, logits: list[Tensor]) -> list[Tensor | None]:
        """y_rel (Eq. 9) of every pair [B], cut off from what L_cl may not move; None where tau is not made of it."""
        if not logits:
            return [None] * len(self.pairs)
        if self.temperature_updates == "omega":  # and nothing below it, whatever L_rel may move
            return [logit.sigmoid() for logit in self._relatedness_logits(seen, detach=True)]
        return [logit.detach().sigmoid() for logit in logits]

    def _contrast_losses(self, h: list[Tensor], related: list[Tensor | None], batch: Batch) -> list[Tensor]:
        """L_cl (Eq. 13) or what stands in its place, per pair."""
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
    """Both tasks' positions in ``tasks`` for each "anchor-other"; none named, the first with each other.

    Raises:
        ValueError: fewer than two tasks, or a name that is no pair, is ambiguous or comes twice.
    """
    if len(tasks) < 2:
        raise ValueError(f"AdaFTR: needs at least two tasks to relate, got {list(tasks)}")
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
