"""What a model is built from. Defaults: the paper's Table 3 at Ali-CCP scale; where it is silent, docs/decisions.md."""

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelConfig:
    """The model and the weights of its loss terms."""

    name: Literal["mmoe", "adaftr"] = "adaftr"
    """Which model: the backbone alone, or AdaFTR over it."""
    embedding_dim: int = 8
    """E, width of every field's embedding (Table 3)."""
    num_experts: int = 3
    """k of Eq. 3."""
    expert_hidden: list[int] = field(default_factory=lambda: [64])
    """Widths of each expert's layers, g_i of Eq. 3."""
    tower_hidden: list[int] = field(default_factory=lambda: [64, 32, 16])
    """Widths of each task's layers, f of Eq. 2, before its logit."""
    relatedness_hidden: list[int] = field(default_factory=lambda: [64, 32])
    """Widths of the relatedness network's layers, MLP of Eq. 9."""
    contrast_layer: int = 1
    """Which tower layer's output (after ReLU, counted from 1) is contrasted as h (Section 3.1.4: the first)."""
    alpha: float = 1.0
    """Weight of the relatedness loss (Eq. 14)."""
    beta: float = 0.01
    """Weight of the contrastive loss (Eq. 14), which is a mean over the batch as the task losses are."""
    tau_min: float = 0.05
    """tau^L of Eq. 12."""
    tau_max: float = 1.0
    """tau^U of Eq. 12."""
    l2: float = 1e-6
    """Weight of the squared L2 norm of the dense weights and of the looked-up rows, for every model alike."""

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "num_experts", "contrast_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}: expected >= 1, got {getattr(self, name)}")
        for name in ("expert_hidden", "tower_hidden", "relatedness_hidden"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"model.{name}: expected one or more widths >= 1, got {widths}")
        for name in ("alpha", "beta", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"model.{name}: expected a finite weight >= 0, got {getattr(self, name)}")
        if not 0 < self.tau_min <= self.tau_max < math.inf:
            raise ValueError(f"model.tau_min: expected 0 < tau_min <= tau_max, got {self.tau_min} and {self.tau_max}")
