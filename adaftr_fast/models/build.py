"""Builds a model from its configuration."""

from collections.abc import Callable, Sequence
from functools import partial

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.adaftr import AdaFTR
from adaftr_fast.models.autoheri import AutoHERI
from adaftr_fast.models.base import Backbone, MultiTaskModel
from adaftr_fast.models.cross_stitch import CrossStitch
from adaftr_fast.models.dcmt import DCMT
from adaftr_fast.models.escm2 import ESCM2
from adaftr_fast.models.esmm import ESMM
from adaftr_fast.models.mmoe import MMoE
from adaftr_fast.models.own import find_class
from adaftr_fast.models.ple import PLE
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.models.single_dnn import SingleDNN
from adaftr_fast.nn.dense import NumericEncoding

BACKBONES: dict[str, type[Backbone]] = {
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
}
"""The choices of ``ModelConfig.backbone``."""
ENTIRE_SPACE: dict[str, Callable[..., MultiTaskModel]] = {
    "esmm": ESMM,
    "escm2_ips": partial(ESCM2, imputation=False),
    "escm2_dr": partial(ESCM2, imputation=True),
    "dcmt": DCMT,
}
"""The choices of ``ModelConfig.name`` whose tasks must be the stages of a funnel, in order."""
MODELS: dict[str, Callable[..., MultiTaskModel]] = {
    **BACKBONES,
    **ENTIRE_SPACE,
    "single_dnn": SingleDNN,
    "cross_stitch": CrossStitch,
    "autoheri": AutoHERI,
}
"""The choices of ``ModelConfig.name``, but for adaftr."""


def build_model(
    config: ModelConfig,
    num_embeddings: Sequence[int],
    task_names: Sequence[str],
    field_names: Sequence[str] | None = None,
    dense: Sequence[NumericEncoding] = (),
) -> MultiTaskModel:
    """Builds the model ``config.name``. If that is a class of the user's own, its module is imported.

    Args:
        config: the settings of the model.
        num_embeddings: number of rows of each field, F numbers.
        task_names: T names, in the order of the columns of the labels.
        field_names: F names, which ``config.embedding_dims`` and ``config.attention`` refer to; needed only if they
            name any.
        dense: encodings of the dense fields, if there are any.

    Raises:
        ValueError: sizes or options that make no model, or a width for a field that is not there.
        ConfigError: as ``find_class``.
    """
    data = (num_embeddings, task_names, config, field_names, dense)
    if config.is_own:
        return find_class(config.name)(*data)
    if config.name == "adaftr":
        return AdaFTR(BACKBONES[config.backbone](*data), config)
    return MODELS[config.name](*data)
