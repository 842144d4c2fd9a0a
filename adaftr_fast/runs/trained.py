"""The trained model of a run, and the prepared data it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaftr_fast._files import AnyPath
from adaftr_fast._publish import read_published
from adaftr_fast._tensor_file import SavedTensors
from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import CheckpointError, ConfigError, DataError
from adaftr_fast.models import MultiTaskModel, build_model
from adaftr_fast.models.own import ModelClass, class_name, find_class
from adaftr_fast.nn.embedding_table import tables_elsewhere
from adaftr_fast.training.checkpoint.files import check_seen, read_local_rows
from adaftr_fast.training.checkpoint.state import sharded_weights
from adaftr_fast.training.checkpoint.weights import (
    FILE,
    Description,
    load_checkpoint,
    load_weights,
    open_on_all_ranks,
    read_description,
    weights_of,
)
from adaftr_fast.training.files import BEST
from adaftr_fast.training.sharding import check_tables, shard_tables

UNUSED = 4096  # largest size that an option which the model does not use may have beyond the number of weights


@dataclass(frozen=True)
class TrainedModel:
    """A model with its best weights, on the CPU and in evaluation mode.

    Attributes:
        folder: the folder of the checkpoint.
        model: the model.
        about: the description in the checkpoint.
    """

    folder: Path
    model: MultiTaskModel
    about: Description

    def check_data(self, data: PreparedData) -> None:
        """Raises CheckpointError if the ids or tasks of ``data`` have another meaning."""
        if self.about.fingerprint != data.manifest.fingerprint:
            raise CheckpointError(f"{self.folder}: trained on other data than {data.folder}: their ids or tasks differ")

    def data(self, folder: AnyPath | None = None) -> PreparedData:
        """Opens the prepared folder that the model was trained on.

        Args:
            folder: the folder, if it has moved. None uses its path at training time.

        Raises:
            CheckpointError: the folder is missing, or contains other data.
        """
        try:
            data = PreparedData(folder or self.about.config.data.folder)
        except DataError as error:
            raise CheckpointError(f"{self.folder}: the training data are required: {error}") from error
        self.check_data(data)
        return data


def load_trained(run: Path, model_class: ModelClass | None = None) -> TrainedModel:
    """Loads the model of a run with its best weights, also while the run goes on and replaces them.

    A checkpoint names the class of a model of one's own, but it is the caller who says which code runs: without
    ``model_class``, no module is imported.

    Args:
        run: the run folder.
        model_class: the class of a model of one's own, or its name, which need not be the recorded one.

    Raises:
        CheckpointError: the run has no checkpoint, it is damaged, or it needs ``model_class``.
        ConfigError: the run's model is a built-in one and ``model_class`` is given, or as ``find_class``.
        BusyError: the checkpoint was replaced during each of many attempts.
    """
    folder, weights, about = _read(run)
    if model_class is not None and not about.config.model.is_own:
        name = class_name(model_class)
        raise ConfigError(f"{folder}: its model is {about.config.model.name}, got the class {name}; leave it out")
    return _trained(folder, weights, about, model_class)


def load_earlier(run: Path, name: str) -> TrainedModel:
    """Loads the run that a new one continues. Its class may be imported if it is that of the new run.

    Args:
        run: the run folder.
        name: ``model.name`` of the new run.

    Raises:
        CheckpointError, ConfigError, BusyError: as ``load_trained``.
    """
    folder, weights, about = _read(run)
    return _trained(folder, weights, about, name if name == about.config.model.name else None)


def open_earlier(run: Path, name: str, ranks: Ranks) -> tuple[SavedTensors, Callable[[], TrainedModel]]:
    """Opens the run that a new one with sharded tables continues, of which no rank reads all tables.

    All ranks must call it. Each verifies a part of the files.

    Args:
        run: the run folder.
        name: as of ``load_earlier``.
        ranks: the ranks.

    Returns:
        The weights, which are read on access, and a function that builds the model. Its tables have no memory.

    Raises:
        CheckpointError: as ``load_trained``, or a rank does not see the run.
    """
    folder = run / BEST
    check_seen(folder, (folder / FILE).exists(), ranks, "each rank reads the rows that it needs")
    saved = open_on_all_ranks(folder, ranks)

    def build() -> TrainedModel:
        about = read_description(folder)
        elements = sum(math.prod(saved.shape(each)) for each in saved)
        with tables_elsewhere():
            model = _built(folder, elements, about, name if name == about.config.model.name else None)
        held = {key: value.is_meta for key, value in weights_of(model).items()}
        of_tables = {key: torch.empty(saved.shape(key), device="meta") for key in saved if held.get(key, False)}
        load_weights(model, {key: of_tables[key] if key in of_tables else saved[key] for key in saved}, str(folder))
        return TrainedModel(folder, model.eval(), about)

    return saved, build


def load_sharded(run: Path, config: RunConfig, ranks: Ranks) -> TrainedModel:
    """Loads the run that a new one continues, on the new run's device and with its sharding. All ranks must call it.

    Args:
        run: the run folder, which all ranks see. Its tables may have been sharded or not.
        config: the configuration of the new run, with sharded tables.
        ranks: the ranks.

    Raises:
        CheckpointError: as ``open_earlier``.
        TrainingError: the model of the run has tables that cannot be sharded.
    """
    saved, build = open_earlier(run, config.model.name, ranks)
    trained = build()
    check_tables(trained.about.config.model, config.training)
    shard_tables(trained.model, config.optimizer, config.training, ranks, fills=False)
    read_local_rows(saved, sharded_weights(trained.model))
    trained.model.to(config.training.device).eval()
    return trained


def _read(run: Path) -> tuple[Path, dict[str, Tensor], Description]:
    folder = run / BEST
    return folder, *read_published(folder / FILE, lambda _: load_checkpoint(folder))


def _trained(
    folder: Path, weights: dict[str, Tensor], about: Description, model_class: ModelClass | None
) -> TrainedModel:
    model = _built(folder, sum(each.numel() for each in weights.values()), about, model_class)
    load_weights(model, weights, str(folder))
    return TrainedModel(folder, model.eval(), about)


def _built(folder: Path, elements: int, about: Description, model_class: ModelClass | None) -> MultiTaskModel:
    """Builds the model of a checkpoint that holds ``elements`` numbers, without its weights."""
    config = about.config.model
    names = about.field_names or None
    if config.is_own:
        if model_class is not None:
            return find_class(model_class)(about.num_embeddings, about.tasks, config, names, about.dense)
        raise CheckpointError(
            f"{folder}: its model is the class {config.name}, whose module is imported only if you name it: "
            f"--model.class {config.name}, or model_class={config.name!r} in Python"
        )
    _check_sizes(folder, about, elements)
    try:
        return build_model(config, about.num_embeddings, about.tasks, names, about.dense)
    except (ValueError, TypeError, RuntimeError) as error:  # sizes or options that do not go together, or no memory
        raise CheckpointError(f"{folder}: damaged: no model has the recorded sizes: {error}") from error


def _check_sizes(folder: Path, about: Description, elements: int) -> None:
    """Raises CheckpointError if a size is larger than the number of weights; it would take all time or memory."""
    model = about.config.model
    named = dict(enumerate(about.field_names))
    experts = max(model.num_experts, model.shared_experts or 0) + model.task_experts
    sizes = {
        "num_embeddings": sum(n for f, n in enumerate(about.num_embeddings) if named.get(f) not in model.attention),
        "experts and layers": experts * model.extraction_layers,
        "embedding_dim": max(model.embedding_dim, *model.embedding_dims.values(), 0),
        "layer widths": max(
            *model.expert_hidden, *model.tower_hidden, *model.relatedness_hidden, *model.attention_hidden
        ),
    }
    for name, size in sizes.items():
        if size > max(elements, UNUSED):
            raise CheckpointError(f"{folder}: damaged: {name} of {size:,}, but {elements:,} weights")
