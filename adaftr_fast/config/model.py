"""What a model is built from. Defaults: the paper's Table 3 at Ali-CCP scale; where it is silent, docs/decisions.md."""

from dataclasses import dataclass
from typing import Literal

from adaftr_fast.config.options import AT_LEAST_1, WEIGHT, Range, Section, option

TEMPERATURE = Range(0, above=True, noun="temperature")


@dataclass
class ModelConfig(Section):
    """The model and the weights of its loss terms.

    Fields that ``name`` does not use are ignored, so that one file of settings serves every model of a comparison.
    """

    section = "model"

    name: Literal["single_dnn", "shared_bottom", "cross_stitch", "mmoe", "ple", "autoheri", "adaftr"] = option("adaftr")
    """Which model (Table 4); adaftr stands over ``backbone``."""
    backbone: Literal["shared_bottom", "mmoe", "ple"] = option("mmoe")
    """What AdaFTR stands over (Table 6)."""
    embedding_dim: int = option(8, within=AT_LEAST_1)
    """E, width of the embeddings (Table 3)."""
    embedding_dims: dict[str, int] = option(factory=dict, within=AT_LEAST_1, omit_default=True)
    """Width of the embeddings of single fields, by name, where it is not ``embedding_dim``: {"user": 16}."""
    num_experts: int = option(3, within=AT_LEAST_1)
    """k of Eq. 3: MMoE's experts, and PLE's shared ones."""
    task_experts: int = option(1, within=AT_LEAST_1)
    """PLE's experts for each task."""
    extraction_layers: int = option(2, within=AT_LEAST_1)
    """PLE's extraction layers; one makes it CGC."""
    expert_hidden: list[int] = option(factory=lambda: [64], within=AT_LEAST_1)
    """Widths of each expert's layers, g_i of Eq. 3; of a shared bottom's or a column's in models without experts."""
    equal_budget: bool = option(True)
    """Whether to divide the width of MMoE's first layer, num_experts * expert_hidden[0], among the experts, bottoms or
    columns of any other model, so that all have about as many weights; otherwise each is expert_hidden wide."""
    tower_hidden: list[int] = option(factory=lambda: [64, 32, 16], within=AT_LEAST_1)
    """Widths of each task's layers, f of Eq. 2, before its logit."""
    relatedness_hidden: list[int] = option(factory=lambda: [64, 32], within=AT_LEAST_1)
    """Widths of the relatedness network's layers, MLP of Eq. 9."""
    contrast: Literal["infonce", "positive", "alignment", "mse", "mae", "none"] = option("infonce")
    """How AdaFTR aligns the tasks: L_cl (Eq. 13); L_scl with its one negative (Eq. 7, the paper's "w/o negative"); the
    same without any negative, as the paper's prose has it; L_reg (Eq. 5) as MSE or MAE; not at all."""
    contrast_layer: int = option(1, within=AT_LEAST_1)
    """Which tower layer's output (after ReLU, counted from 1) is contrasted as h (Section 3.1.4: the first; Fig. 3)."""
    pairs: list[str] = option(factory=list)
    """Which tasks AdaFTR aligns, anchor first, such as ["click-view"]; none named: the first task with each other
    (Section 3.3.4)."""
    tau: Literal["adaptive", "scalar", "fixed"] = option("adaptive")
    """tau of Eq. 13: set for each instance by its relatedness (Eq. 12), one learned number, or ``tau_fixed``
    (Table 5)."""
    tau_min: float = option(0.05, within=TEMPERATURE)
    """tau^L of Eq. 12, also a lower bound of a scalar tau."""
    tau_max: float = option(1.0, within=TEMPERATURE)
    """tau^U of Eq. 12, also an upper bound of a scalar tau."""
    tau_fixed: float = option(0.05, within=TEMPERATURE)
    """The fixed tau (Eq. 6; Table 5, "w/o learnable tau")."""
    relatedness_updates: Literal["omega", "all"] = option("omega")
    """What L_rel (Eq. 11) moves: the relatedness network Omega (Algorithm 1, line 10), or also the experts and
    embeddings below it (the joint sum of Eq. 14)."""
    contrast_updates: Literal["all", "towers"] = option("all")
    """What L_cl (Eq. 13) moves: all of Theta (Algorithm 1, line 17), or "the parameters for each task" only
    (Section 2.4.1), that is the towers up to h."""
    temperature_updates: Literal["none", "omega"] = option("none")
    """What L_cl moves through tau (Eq. 12): nothing (Algorithm 1), or the relatedness network Omega (Section 2.4.1)."""
    alpha: float = option(1.0, within=WEIGHT)
    """Weight of the relatedness loss (Eq. 14). Where it alone moves Omega (the default) Adam makes it all but
    irrelevant: it counts with relatedness_updates "all", temperature_updates "omega" or clipping."""
    beta: float = option(0.01, within=WEIGHT)
    """Weight of the contrastive loss (Eq. 14), which is a mean over the batch as the task losses are."""
    l2: float = option(1e-6, within=WEIGHT)
    """Weight of the squared L2 norm of the dense weights and of the looked-up rows, for every model alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_min > self.tau_max:
            raise self.error("tau_min", f"at most tau_max = {self.tau_max}", self.tau_min)
