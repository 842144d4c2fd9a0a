"""The models by name."""

from collections.abc import Callable, Sequence
from typing import Any

from adaftr_fast.models.adaftr import AdaFTR
from adaftr_fast.models.autoheri import AutoHERI
from adaftr_fast.models.base import Backbone, MultiTaskModel, Representations
from adaftr_fast.models.config import ModelConfig
from adaftr_fast.models.cross_stitch import CrossStitch
from adaftr_fast.models.mmoe import MMoE
from adaftr_fast.models.ple import PLE
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.models.single_dnn import SingleDNN

__all__ = [
    "PLE",
    "AdaFTR",
    "AutoHERI",
    "Backbone",
    "CrossStitch",
    "MMoE",
    "ModelConfig",
    "MultiTaskModel",
    "Representations",
    "SharedBottom",
    "SingleDNN",
    "build_model",
]

BOTTOM_MODELS = {
    "single_dnn": SingleDNN,
    "shared_bottom": SharedBottom,
    "cross_stitch": CrossStitch,
    "autoheri": AutoHERI,
}


def build_model(config: ModelConfig, num_embeddings: Sequence[int], task_names: Sequence[str]) -> MultiTaskModel:
    """The model ``config`` names, over fields with ``num_embeddings`` rows each and the tasks ``task_names``.

    Raises:
        ValueError: sizes or options that make no model.
    """
    if config.name != "adaftr":
        return _build(config.name, config, num_embeddings, task_names)
    return AdaFTR(
        _build(config.backbone, config, num_embeddings, task_names),
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


def _build(name: str, config: ModelConfig, num_embeddings: Sequence[int], task_names: Sequence[str]) -> Any:
    fields, tasks = len(num_embeddings), len(task_names)
    make: Callable[..., MultiTaskModel]
    if name == "mmoe":
        make, networks = MMoE, config.num_experts
        options = {"num_experts": config.num_experts}
    elif name == "ple":
        make, networks = PLE, config.num_experts + tasks * config.task_experts
        options = {
            "shared_experts": config.num_experts,
            "task_experts": config.task_experts,
            "extraction_layers": config.extraction_layers,
        }
    else:
        make, networks, options = BOTTOM_MODELS[name], tasks if name == "single_dnn" else 1, {}
    widths = "expert_hidden" if name in ("mmoe", "ple") else "bottom_hidden"
    options[widths] = shared_widths(config, fields * config.embedding_dim, tasks, networks)
    return make(
        num_embeddings, config.embedding_dim, task_names, tower_hidden=config.tower_hidden, l2=config.l2, **options
    )


def shared_widths(config: ModelConfig, embedded: int, tasks: int, networks: int) -> list[int]:
    """Widths of each of ``networks`` experts or bottoms that read the embeddings [B, embedded].

    With ``equal_budget`` the first width is such that its weights, to and from, are as many as MMoE's: n of width w
    have w (n embedded + r), where r is what reads them: T towers, or each network's own second layer.
    """
    first, *rest = config.expert_hidden
    if not config.equal_budget:
        return [first, *rest]

    def weights_per_unit(n: int) -> int:
        return n * embedded + (n * rest[0] if rest else tasks * config.tower_hidden[0])

    return [max(1, round(first * weights_per_unit(config.num_experts) / weights_per_unit(networks))), *rest]
