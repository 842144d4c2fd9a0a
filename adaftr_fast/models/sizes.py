"""Widths of embeddings and first layers, as a ``ModelConfig`` asks for them."""

from collections.abc import Sequence

from adaftr_fast.config import ModelConfig


def embedding_widths(
    config: ModelConfig, fields: int, field_names: Sequence[str] | None
) -> list[int]:
    """Returns the embedding width of each field.

    A field that is pooled by attention has the width of its target.

    Raises:
        ConfigError: ``config.embedding_dims`` names a field that is not in ``field_names``, or a
            field that is pooled by attention, with another width than its target.
        ValueError: ``field_names`` are needed and missing, or their number is not F.
    """
    if field_names is not None and len(field_names) != fields:
        raise ValueError(
            f"field_names must be {fields} names, one per field, got {list(field_names)}"
        )
    if not config.embedding_dims:
        return [config.embedding_dim] * fields
    if field_names is None:
        raise ValueError(
            f"field_names are needed for embedding_dims = {config.embedding_dims}, got None"
        )
    for name in config.embedding_dims:
        if name not in field_names:
            raise config.error("embedding_dims", f"names among {', '.join(field_names)}", name)
    widths = {name: config.embedding_dims.get(name, config.embedding_dim) for name in field_names}
    for name, target in config.attention.items():
        width = widths.get(target)
        if config.embedding_dims.get(name, width) != width:
            raise config.error(
                "embedding_dims", f"{width} for {name}, as for its target {target}", widths[name]
            )
    return [
        widths.get(config.attention.get(name, name), config.embedding_dim) for name in field_names
    ]


def attention_targets(
    config: ModelConfig, num_embeddings: Sequence[int], field_names: Sequence[str] | None
) -> dict[int, int]:
    """Returns the position of the target by that of each field that is pooled by attention.

    Raises:
        ConfigError: ``config.attention`` names a field that is not in ``field_names``, a target
            that is itself pooled by attention, or a field and a target with different numbers of
            ids.
        ValueError: ``field_names`` are needed and missing.
    """
    if not config.attention:
        return {}
    if field_names is None:
        raise ValueError(f"field_names are needed for attention = {config.attention}, got None")
    place = {name: f for f, name in enumerate(field_names)}
    for name, target in config.attention.items():
        for each in (name, target):
            if each not in place:
                raise config.error("attention", f"names among {', '.join(field_names)}", each)
        if target in config.attention:
            raise config.error(
                "attention", f"a target of {name} that is not pooled by attention itself", target
            )
        rows = num_embeddings[place[name]]
        of_target = num_embeddings[place[target]]
        if rows != of_target:
            raise config.error(
                "attention",
                f"a field with the {of_target} ids of its target {target}",
                f"{name}: {rows}",
            )
    return {place[name]: place[target] for name, target in config.attention.items()}


def first_widths(config: ModelConfig, features: int, tasks: int, networks: int) -> list[int]:
    """Returns the layer widths of each of ``networks`` experts or bottoms that read D =
    ``features`` embedded features.

    At ``equal_budget`` the first width is such that they have as many weights as the experts of
    MMoE. A unit of a first layer has D weights to read the embeddings, and is read by h weights of
    each tower or, where experts are deeper, by those of the next layer of its own network. n
    networks of width w thus have w (n D + T h) or w n (D + e_2) weights.
    """
    first, *rest = config.expert_hidden

    def weights_per_unit(n: int) -> int:
        return n * features + (n * rest[0] if rest else tasks * config.tower_hidden[0])

    if config.equal_budget:
        first = max(
            1, round(first * weights_per_unit(config.num_experts) / weights_per_unit(networks))
        )
    return [first, *rest]
