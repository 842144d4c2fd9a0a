"""A model from its settings, and how wide each may be so that all have about as many weights."""

from collections.abc import Sequence

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.adaftr import AdaFTR
from adaftr_fast.models.autoheri import AutoHERI
from adaftr_fast.models.base import Backbone, MultiTaskModel
from adaftr_fast.models.cross_stitch import CrossStitch
from adaftr_fast.models.mmoe import MMoE
from adaftr_fast.models.ple import PLE
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.models.single_dnn import SingleDNN

BOTTOM_MODELS = {"shared_bottom": SharedBottom, "cross_stitch": CrossStitch, "autoheri": AutoHERI}


def build_model(config: ModelConfig, num_embeddings: Sequence[int], task_names: Sequence[str]) -> MultiTaskModel:
    """The model ``config`` names, over fields with ``num_embeddings`` rows each and the tasks ``task_names``.

    Raises:
        ValueError: sizes or options that make no model.
    """
    if config.name == "single_dnn":
        return SingleDNN(
            num_embeddings,
            config.embedding_dim,
            task_names,
            bottom_hidden=first_widths(config, len(num_embeddings), len(task_names), networks=len(task_names)),
            tower_hidden=config.tower_hidden,
            l2=config.l2,
        )
    if config.name != "adaftr":
        return build_backbone(config.name, config, num_embeddings, task_names)
    return AdaFTR(
        build_backbone(config.backbone, config, num_embeddings, task_names),
        relatedness_hidden=config.relatedness_hidden,
        contrast=config.contrast,
        contrast_layer=config.contrast_layer,
        pairs=config.pairs,
        alpha=config.alpha,
        beta=config.beta,
        tau=config.tau,
        tau_min=config.tau_min,
        tau_max=config.tau_max,
        tau_fixed=config.tau_fixed,
        relatedness_updates=config.relatedness_updates,
        contrast_updates=config.contrast_updates,
        temperature_updates=config.temperature_updates,
    )


def build_backbone(
    name: str, config: ModelConfig, num_embeddings: Sequence[int], task_names: Sequence[str]
) -> Backbone:
    """The model ``name``, any but single_dnn and adaftr."""
    fields, tasks = len(num_embeddings), len(task_names)
    sizes = (num_embeddings, config.embedding_dim, task_names)
    if name == "mmoe":
        return MMoE(
            *sizes,
            num_experts=config.num_experts,
            expert_hidden=config.expert_hidden,
            tower_hidden=config.tower_hidden,
            l2=config.l2,
        )
    if name == "ple":
        networks = config.num_experts + tasks * config.task_experts
        return PLE(
            *sizes,
            shared_experts=config.num_experts,
            task_experts=config.task_experts,
            extraction_layers=config.extraction_layers,
            expert_hidden=first_widths(config, fields, tasks, networks),
            tower_hidden=config.tower_hidden,
            l2=config.l2,
        )
    bottom_hidden = first_widths(config, fields, tasks, networks=1)
    return BOTTOM_MODELS[name](*sizes, bottom_hidden=bottom_hidden, tower_hidden=config.tower_hidden, l2=config.l2)


def first_widths(config: ModelConfig, fields: int, tasks: int, networks: int) -> list[int]:
    """Widths of each of ``networks`` experts or bottoms, at ``equal_budget`` with as many weights as MMoE's have.

    A unit of a first layer has F E weights to read the embeddings, and is read by h weights of each tower or, where
    experts are deeper, by those of its own network's next layer. n networks of width w thus spend w (n F E + T h) or
    w n (F E + e_2). Only the first width is changed.
    """
    first, *rest = config.expert_hidden

    def weights_per_unit(n: int) -> int:
        return n * fields * config.embedding_dim + (n * rest[0] if rest else tasks * config.tower_hidden[0])

    if config.equal_budget:
        first = max(1, round(first * weights_per_unit(config.num_experts) / weights_per_unit(networks)))
    return [first, *rest]
