"""Builds a model from its settings, with about as many weights as any other at ``equal_budget``."""

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


def build_model(
    config: ModelConfig,
    num_embeddings: Sequence[int],
    task_names: Sequence[str],
    field_names: Sequence[str] | None = None,
) -> MultiTaskModel:
    """Builds the model ``config.name``.

    Args:
        config: the settings of the model.
        num_embeddings: number of rows of each field, F numbers.
        task_names: T names, in the order of the columns of the labels.
        field_names: F names, which ``config.embedding_dims`` refers to; needed only if it names any.

    Raises:
        ValueError: sizes or options that make no model, or a width for a field that is not there.
    """
    widths = embedding_widths(config, len(num_embeddings), field_names)
    if config.name == "single_dnn":
        tasks = len(task_names)
        return SingleDNN(
            num_embeddings,
            widths,
            task_names,
            bottom_hidden=first_widths(config, sum(widths), tasks, networks=tasks),
            tower_hidden=config.tower_hidden,
            l2=config.l2,
        )
    if config.name != "adaftr":
        return build_backbone(config.name, config, num_embeddings, widths, task_names)
    return AdaFTR(
        build_backbone(config.backbone, config, num_embeddings, widths, task_names),
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


def embedding_widths(config: ModelConfig, fields: int, field_names: Sequence[str] | None) -> list[int]:
    """Returns the embedding width of each field.

    Raises:
        ConfigError: ``config.embedding_dims`` names a field that is not in ``field_names``.
        ValueError: ``field_names`` are needed and missing, or their number is not F.
    """
    if field_names is not None and len(field_names) != fields:
        raise ValueError(f"build_model: field_names must be {fields} names, one per field, got {list(field_names)}")
    if not config.embedding_dims:
        return [config.embedding_dim] * fields
    if field_names is None:
        raise ValueError(f"build_model: field_names are needed for embedding_dims = {config.embedding_dims}, got None")
    for name in config.embedding_dims:
        if name not in field_names:
            raise config.error("embedding_dims", f"names among {', '.join(field_names)}", name)
    return [config.embedding_dims.get(name, config.embedding_dim) for name in field_names]


def build_backbone(
    name: str, config: ModelConfig, num_embeddings: Sequence[int], widths: Sequence[int], task_names: Sequence[str]
) -> Backbone:
    """Builds the model ``name``, any but single_dnn and adaftr, over fields of the embedding widths ``widths``."""
    features, tasks = sum(widths), len(task_names)
    sizes = (num_embeddings, widths, task_names)
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
            expert_hidden=first_widths(config, features, tasks, networks),
            tower_hidden=config.tower_hidden,
            l2=config.l2,
        )
    bottom_hidden = first_widths(config, features, tasks, networks=1)
    return BOTTOM_MODELS[name](*sizes, bottom_hidden=bottom_hidden, tower_hidden=config.tower_hidden, l2=config.l2)


def first_widths(config: ModelConfig, features: int, tasks: int, networks: int) -> list[int]:
    """Returns the layer widths of each of ``networks`` experts or bottoms that read D = ``features`` embedded features.

    At ``equal_budget`` the first width is such that they have as many weights as the experts of MMoE. A unit of a first
    layer has D weights to read the embeddings, and is read by h weights of each tower or, where experts are deeper, by
    those of the next layer of its own network. n networks of width w thus have w (n D + T h) or w n (D + e_2) weights.
    """
    first, *rest = config.expert_hidden

    def weights_per_unit(n: int) -> int:
        return n * features + (n * rest[0] if rest else tasks * config.tower_hidden[0])

    if config.equal_budget:
        first = max(1, round(first * weights_per_unit(config.num_experts) / weights_per_unit(networks)))
    return [first, *rest]
