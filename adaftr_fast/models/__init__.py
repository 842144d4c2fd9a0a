"""The models by name."""

from collections.abc import Sequence

from adaftr_fast.models.adaftr import AdaFTR
from adaftr_fast.models.base import Backbone, MultiTaskModel, Representations
from adaftr_fast.models.config import ModelConfig
from adaftr_fast.models.mmoe import MMoE

__all__ = ["AdaFTR", "Backbone", "MMoE", "ModelConfig", "MultiTaskModel", "Representations", "build_model"]


def build_model(config: ModelConfig, num_embeddings: Sequence[int], task_names: Sequence[str]) -> MultiTaskModel:
    """The model ``config`` names, over fields with ``num_embeddings`` rows each and the tasks ``task_names``.

    Raises:
        ValueError: an unknown name, or sizes that make no model.
    """
    if config.name not in ("mmoe", "adaftr"):
        raise ValueError(f"build_model: name must be mmoe or adaftr, got {config.name!r}")
    backbone = MMoE(
        num_embeddings,
        config.embedding_dim,
        task_names,
        num_experts=config.num_experts,
        expert_hidden=config.expert_hidden,
        tower_hidden=config.tower_hidden,
        l2=config.l2,
    )
    if config.name == "mmoe":
        return backbone
    return AdaFTR(
        backbone,
        relatedness_hidden=config.relatedness_hidden,
        contrast_layer=config.contrast_layer,
        alpha=config.alpha,
        beta=config.beta,
        tau_min=config.tau_min,
        tau_max=config.tau_max,
    )
