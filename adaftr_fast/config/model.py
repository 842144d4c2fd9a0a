"""What a model is built from. Defaults: the paper's Table 3 at Ali-CCP scale; where it is silent, docs/decisions.md."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin, get_type_hints


@dataclass
class ModelConfig:
    """The model and the weights of its loss terms.

    Fields that ``name`` does not use are ignored, so that one file of settings serves every model of a comparison.
    """

    name: Literal["single_dnn", "shared_bottom", "cross_stitch", "mmoe", "ple", "autoheri", "adaftr"] = "adaftr"
    """Which model (Table 4); adaftr stands over ``backbone``."""
    backbone: Literal["shared_bottom", "mmoe", "ple"] = "mmoe"
    """What AdaFTR stands over (Table 6)."""
    embedding_dim: int = 8
    """E, width of every field's embedding (Table 3)."""
    num_experts: int = 3
    """k of Eq. 3: MMoE's experts, and PLE's shared ones."""
    task_experts: int = 1
    """PLE's experts for each task."""
    extraction_layers: int = 2
    """PLE's extraction layers; one makes it CGC."""
    expert_hidden: list[int] = field(default_factory=lambda: [64])
    """Widths of each expert's layers, g_i of Eq. 3; of a shared bottom's or a column's in models without experts."""
    equal_budget: bool = True
    """Whether to divide the width of MMoE's first layer, num_experts * expert_hidden[0], among the experts, bottoms or
    columns of any other model, so that all have about as many weights; otherwise each is expert_hidden wide."""
    tower_hidden: list[int] = field(default_factory=lambda: [64, 32, 16])
    """Widths of each task's layers, f of Eq. 2, before its logit."""
    relatedness_hidden: list[int] = field(default_factory=lambda: [64, 32])
    """Widths of the relatedness network's layers, MLP of Eq. 9."""
    contrast: Literal["infonce", "positive", "alignment", "mse", "mae", "none"] = "infonce"
    """How AdaFTR aligns the tasks: L_cl (Eq. 13); L_scl with its one negative (Eq. 7, the paper's "w/o negative"); the
    same without any negative, as the paper's prose has it; L_reg (Eq. 5) as MSE or MAE; not at all."""
    contrast_layer: int = 1
    """Which tower layer's output (after ReLU, counted from 1) is contrasted as h (Section 3.1.4: the first; Fig. 3)."""
    pairs: list[str] = field(default_factory=list)
    """Which tasks AdaFTR aligns, anchor first, such as ["click-view"]; none named: the first task with each other
    (Section 3.3.4)."""
    tau: Literal["adaptive", "scalar", "fixed"] = "adaptive"
    """tau of Eq. 13: set for each instance by its relatedness (Eq. 12), one learned number, or ``tau_fixed``
    (Table 5)."""
    tau_min: float = 0.05
    """tau^L of Eq. 12, also a lower bound of a scalar tau."""
    tau_max: float = 1.0
    """tau^U of Eq. 12, also an upper bound of a scalar tau."""
    tau_fixed: float = 0.05
    """The fixed tau (Eq. 6; Table 5, "w/o learnable tau")."""
    relatedness_updates: Literal["omega", "all"] = "omega"
    """What L_rel (Eq. 11) moves: the relatedness network Omega (Algorithm 1, line 10), or also the experts and
    embeddings below it (the joint sum of Eq. 14)."""
    contrast_updates: Literal["all", "towers"] = "all"
    """What L_cl (Eq. 13) moves: all of Theta (Algorithm 1, line 17), or "the parameters for each task" only
    (Section 2.4.1), that is the towers up to h."""
    temperature_updates: Literal["none", "omega"] = "none"
    """What L_cl moves through tau (Eq. 12): nothing (Algorithm 1), or the relatedness network Omega (Section 2.4.1)."""
    alpha: float = 1.0
    """Weight of the relatedness loss (Eq. 14). Where it alone moves Omega (the default) Adam makes it all but
    irrelevant: it counts with relatedness_updates "all", temperature_updates "omega" or clipping."""
    beta: float = 0.01
    """Weight of the contrastive loss (Eq. 14), which is a mean over the batch as the task losses are."""
    l2: float = 1e-6
    """Weight of the squared L2 norm of the dense weights and of the looked-up rows, for every model alike."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(ModelConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                choices = ", ".join(get_args(hint))
                raise ValueError(f"model.{name}: expected one of {choices}, got {getattr(self, name)!r}")
        for name in ("embedding_dim", "num_experts", "task_experts", "extraction_layers", "contrast_layer"):
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
        if not 0 < self.tau_fixed < math.inf:
            raise ValueError(f"model.tau_fixed: expected a finite temperature > 0, got {self.tau_fixed}")
