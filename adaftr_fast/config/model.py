"""The model section of a run. Defaults are those of the paper (Section 3.1.4, Table 3) on Ali-CCP,
or of docs/decisions.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from adaftr_fast.config.options import AT_LEAST_0, AT_LEAST_1, WEIGHT, Range, Section, option
from adaftr_fast.errors import ConfigError


@dataclass(frozen=True)
class KnownModel:
    """A model of this package.

    Attributes:
        title: its name in tables and figures.
        place: what builds it, as ``module:name`` within ``adaftr_fast.models``.
        needs_funnel: whether its tasks must be the stages of a funnel, in order.
    """

    title: str
    place: str
    needs_funnel: bool = False


MODELS = {
    "single_dnn": KnownModel("Single-DNN", "single_dnn:SingleDNN"),
    "shared_bottom": KnownModel("Shared-Bottom", "shared_bottom:SharedBottom"),
    "cross_stitch": KnownModel("Cross-Stitch", "cross_stitch:CrossStitch"),
    "mmoe": KnownModel("MMoE", "mmoe:MMoE"),
    "ple": KnownModel("PLE", "ple:PLE"),
    "autoheri": KnownModel("AutoHERI", "autoheri:AutoHERI"),
    "esmm": KnownModel("ESMM", "esmm:ESMM", needs_funnel=True),
    "escm2_ips": KnownModel("ESCM2-IPS", "escm2:inverse_propensities", needs_funnel=True),
    "escm2_dr": KnownModel("ESCM2-DR", "escm2:doubly_robust", needs_funnel=True),
    "dcmt": KnownModel("DCMT", "dcmt:DCMT", needs_funnel=True),
    "linear": KnownModel("Linear", "linear:Linear"),
    "adaftr": KnownModel("AdaFTR", "adaftr:AdaFTR"),
}
"""The choices of ``ModelConfig.name``. Those of Table 4 have the order of its rows. The classes are
named and not imported, so that options are checked and shown without torch.
"""
CLASS = re.compile(r"{0}(\.{0})*:{0}(\.{0})*".format(r"[^\W\d]\w*"))  # module:Class
TEMPERATURE = Range(0, above=True, noun="temperature")


@dataclass
class ModelConfig(Section):
    """The model options. A model ignores the options that it does not use, so one file configures a
    comparison.
    """

    section = "model"

    name: str = option("adaftr")
    """Model: single_dnn, shared_bottom, cross_stitch, mmoe, ple, autoheri or adaftr (Table 4;
    adaftr is built over backbone); esmm, escm2_ips, escm2_dr or dcmt for the entire space of a
    funnel; linear, a logistic regression over the same ids and numbers; or a class of your own,
    module:Class.
    """
    backbone: Literal["shared_bottom", "mmoe", "ple"] = option("mmoe")
    """Backbone of AdaFTR (Table 6)."""
    embedding_dim: int = option(8, within=AT_LEAST_1)
    """Embedding width of every field, E (Table 3)."""
    embedding_dims: dict[str, int] = option(factory=dict, within=AT_LEAST_1, omit_default=True)
    """Embedding widths of fields by name, which override embedding_dim, such as {"user": 16}."""
    attention: dict[str, str] = option(factory=dict, omit_default=True)
    """Fields that are pooled by target attention, each with its target, such as {"history": "item"}
    (DIN; see docs/data.md); other multi-valued fields are averaged. A field and its target have one
    vocabulary and one table.
    """
    attention_hidden: list[int] = option(factory=lambda: [36], within=AT_LEAST_1, omit_default=True)
    """Layer widths of the activation unit of target attention, a of DIN's Eq. 3 (Fig. 2)."""
    num_experts: int = option(3, within=AT_LEAST_1)
    """Number of experts of MMoE, and of shared experts of PLE unless shared_experts is given; k of
    Eq. 3. With equal_budget it also decides on the widths of models without experts.
    """
    shared_experts: int | None = option(None, within=AT_LEAST_1, omit_default=True)
    """Number of PLE's shared experts (null: num_experts)."""
    task_experts: int = option(1, within=AT_LEAST_1)
    """Number of PLE's experts per task."""
    extraction_layers: int = option(2, within=AT_LEAST_1)
    """Number of PLE's extraction layers; 1 is CGC."""
    expert_hidden: list[int] = option(factory=lambda: [64], within=AT_LEAST_1)
    """Layer widths of each expert, g_i of Eq. 3, or of the bottom in models without experts."""
    equal_budget: bool = option(True)
    """Choose the first width of bottoms and of PLE's experts so that each model has about as many
    weights as MMoE with num_experts experts of expert_hidden; otherwise each has the widths
    expert_hidden.
    """
    tower_hidden: list[int] = option(factory=lambda: [64, 32, 16], within=AT_LEAST_1)
    """Layer widths of each task's tower before the logit, f of Eq. 2."""
    relatedness_hidden: list[int] = option(factory=lambda: [64, 32], within=AT_LEAST_1)
    """Layer widths of the relatedness network, MLP of Eq. 9."""
    contrast: Literal["infonce", "positive", "alignment", "mse", "mae", "none"] = option("infonce")
    """Loss by which AdaFTR aligns two tasks: a contrast with other rows (infonce; L_cl, Eq. 13) or
    with one (positive; L_scl, Eq. 7), without a negative (alignment), a regression (mse or mae;
    L_reg, Eq. 5), or none.
    """
    contrast_layer: int = option(1, within=AT_LEAST_1)
    """Tower layer, counted from 1, whose output after ReLU is contrasted, h (Section 3.1.4, Fig.
    3).
    """
    contrast_rows: int = option(0, within=AT_LEAST_0, omit_default=True)
    """Number of rows that the contrast (infonce) compares with each other: the batch is divided
    into blocks of so many consecutive rows, which are random as the batch is shuffled. 0 contrasts
    the whole batch, as in Eq. 13.
    """
    contrast_precision: Literal["auto", "float32", "bfloat16"] = option("auto", omit_default=True)
    """Precision of the products of the contrast (infonce): IEEE float32, bfloat16 with float32
    sums, or that of the representations, and of torch.set_float32_matmul_precision where these are
    float32 (auto). training.precision sets the precision of all other layers.
    """
    pairs: list[str] = option(factory=list)
    """Pairs of tasks that AdaFTR aligns, anchor first, such as ["click-view"]; default: the first
    task with each other task (Section 3.3.4).
    """
    tau: Literal["adaptive", "scalar", "fixed"] = option("adaptive")
    """Temperature of the contrast, tau of Eq. 13: a function of each instance's relatedness
    (adaptive, Eq. 12), one learned number (scalar), or tau_fixed (fixed) (Table 5).
    """
    tau_min: float = option(0.05, within=TEMPERATURE)
    """Lower bound of an adaptive or scalar temperature, tau^L of Eq. 12."""
    tau_max: float = option(1.0, within=TEMPERATURE)
    """Upper bound of an adaptive or scalar temperature, tau^U of Eq. 12."""
    tau_fixed: float = option(0.05, within=TEMPERATURE)
    """Value of a fixed temperature (Eq. 6; Table 5, "w/o learnable tau")."""
    relatedness_updates: Literal["omega", "all"] = option("omega")
    """Parameters that the relatedness loss (L_rel, Eq. 11) updates: the relatedness network Omega
    (Algorithm 1, line 10), or also the experts and embeddings below it (Eq. 14, with
    temperature_updates all).
    """
    contrast_updates: Literal["all", "towers"] = option("all")
    """Parameters that the contrast (L_cl, Eq. 13) updates: all of Theta (Algorithm 1, line 17), or
    only the towers up to h (Section 2.4.1).
    """
    temperature_updates: Literal["none", "omega", "all"] = option("none")
    """Parameters that the contrast updates through its temperature (Eq. 12): none (Algorithm 1),
    the relatedness network Omega (Section 2.4.1), or also the experts and embeddings below it (Eq.
    14, with relatedness_updates all).
    """
    alpha: float = option(1.0, within=WEIGHT)
    """Weight of the relatedness loss (Eq. 14); with the default relatedness_updates,
    temperature_updates and clip_norm, Adam makes it almost irrelevant.
    """
    beta: float = option(0.01, within=WEIGHT)
    """Weight of the contrastive loss (Eq. 14), a mean over the batch."""
    contrast_epochs: float = option(0.0, within=WEIGHT, omit_default=True)
    """Number of epochs over which beta falls linearly to 0; from then on no contrastive loss is
    computed. 0 keeps beta constant, as in the paper.
    """
    counterfactual_weight: float = option(0.1, within=WEIGHT, omit_default=True)
    """Weight of the risk of p_cvr, lambda_c of ESCM2 and w_cvr of DCMT."""
    ctcvr_weight: float = option(1.0, within=WEIGHT, omit_default=True)
    """Weight of the loss of p_ctcvr, lambda_g of ESCM2 and w_ctcvr of DCMT."""
    propensity_min: float = option(
        0.01, within=Range(0, 1, above=True, noun="probability"), omit_default=True
    )
    """Smallest p_ctr that ESCM2 and DCMT divide by, and smallest 1 - p_ctr that DCMT divides by."""
    constraint_weight: float = option(0.001, within=WEIGHT, omit_default=True)
    """Weight of |1 - (p + p*)| within the risk of p_cvr, lambda of DCMT."""
    l2: float = option(1e-6, within=WEIGHT)
    """Weight of the L2 term of the dense weights and of the embeddings e_r, lambda of Eq. 14; 1 in
    Table 3, for the norm of all parameters (docs/decisions.md).
    """
    l2_form: Literal["squared", "norm"] = option("squared", omit_default=True)
    """L2 term: the squared norm of these weights, or the norm itself, as Eq. 14 prints it."""
    wide: bool = option(False, omit_default=True)
    """Add the logits of a model linear to those of the towers (Cheng et al., DLRS'16, "Wide &
    Deep"), and predict the mean of these and of the logits of a second one, which is trained by
    itself. single_dnn and the models of an entire space have neither.
    """
    start_at_rates: bool = option(False, omit_default=True)
    """Start the output biases at the log-odds of the training split's rates, so that a model is
    calibrated from its first step.
    """
    options: dict[str, Any] = option(factory=dict, omit_default=True)
    """Options of a class of your own, such as {"width": 64}; it reads them from config.options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in MODELS and not self.is_own:
            raise self.error(
                "name", f"one of {', '.join(MODELS)}, or a class as module:Class", self.name
            )
        if self.tau_min > self.tau_max:
            raise self.error("tau_min", f"at most tau_max = {self.tau_max}", self.tau_min)
        if self.contrast_rows == 1:
            raise self.error(
                "contrast_rows", "0, or at least 2 rows to contrast", self.contrast_rows
            )

    @property
    def is_own(self) -> bool:
        """Whether ``name`` is a class of the user's own."""
        return CLASS.fullmatch(self.name) is not None


PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {"tau": "fixed", "tau_fixed": 0.05, "contrast_epochs": 2.0, "contrast_rows": 2},
    "ecomm_ads": {"expert_hidden": [128], "tower_hidden": [128, 64, 32]},
}
"""Options of ``ModelConfig`` by the name of a preset.

- recommended: a contrast within pairs of rows, whose temperature is constant and whose weight
  falls to 0 over two epochs (docs/results.md).
- ecomm_ads: the layer widths of the paper on Ecomm-Ads, d of Table 3 and the towers of Section
  3.1.4. The defaults are those on Ali-CCP.
"""


def preset(name: Any) -> dict[str, Any]:
    """Returns the options of a preset. Raises ConfigError if there is none of that name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"model.preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return {
        key: list(value) if isinstance(value, list) else value
        for key, value in PRESETS[name].items()
    }
