"""What a model is built from. Defaults: the paper's Table 3 at Ali-CCP scale; where it is silent, docs/decisions.md."""

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
