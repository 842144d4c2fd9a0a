"""Joint click/conversion models with adaptive task relatedness (AdaFTR, KDD'23) on custom kernels.

The loss, the embedding and its optimizers are imported at once, which registers their ops. The
functions of the road from raw logs to scores are imported when they are used, since they need
packages of the extra "train". In the command line, everything is imported when it is used:
``--help`` is fast, and OpenMP is set up before torch loads it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from adaftr_fast._startup import bound_spinning, end_with_launcher, is_command
from adaftr_fast.errors import UserError, extras_needed

if is_command():
    bound_spinning()
    end_with_launcher()  # importing torch takes seconds
else:
    from adaftr_fast import optim
    from adaftr_fast._extension import build_info, cpu_capability, set_cpu_capability
    from adaftr_fast.nn.contrast import AdaptiveInfoNCE
    from adaftr_fast.nn.embedding import FusedEmbedding
    from adaftr_fast.nn.embedding_int8 import QuantizedEmbedding
    from adaftr_fast.ops.infonce.api import InfoNCEStats, adaptive_infonce
    from adaftr_fast.ops.infonce.ranks import positive_ranks
    from adaftr_fast.ops.infonce.sigmoid import sigmoid_contrast

if TYPE_CHECKING:
    from adaftr_fast.api.compare import compare
    from adaftr_fast.api.prepare import prepare
    from adaftr_fast.api.run import evaluate, load_run, train
    from adaftr_fast.api.serve import export, predict
    from adaftr_fast.config import RunConfig
    from adaftr_fast.ops.embedding.plain import plain_decompositions
    from adaftr_fast.serving.scorer import load_scorer

__all__ = [
    "AdaptiveInfoNCE",
    "FusedEmbedding",
    "InfoNCEStats",
    "QuantizedEmbedding",
    "RunConfig",
    "UserError",
    "adaptive_infonce",
    "build_info",
    "compare",
    "cpu_capability",
    "evaluate",
    "export",
    "load_run",
    "load_scorer",
    "optim",
    "plain_decompositions",
    "positive_ranks",
    "predict",
    "prepare",
    "set_cpu_capability",
    "sigmoid_contrast",
    "train",
]

_LAZY = {
    "AdaptiveInfoNCE": "adaftr_fast.nn.contrast",
    "FusedEmbedding": "adaftr_fast.nn.embedding",
    "InfoNCEStats": "adaftr_fast.ops.infonce.api",
    "QuantizedEmbedding": "adaftr_fast.nn.embedding_int8",
    "RunConfig": "adaftr_fast.config",
    "adaptive_infonce": "adaftr_fast.ops.infonce.api",
    "build_info": "adaftr_fast._extension",
    "compare": "adaftr_fast.api.compare",
    "cpu_capability": "adaftr_fast._extension",
    "evaluate": "adaftr_fast.api.run",
    "export": "adaftr_fast.api.serve",
    "load_run": "adaftr_fast.api.run",
    "load_scorer": "adaftr_fast.serving.scorer",
    "plain_decompositions": "adaftr_fast.ops.embedding.plain",
    "positive_ranks": "adaftr_fast.ops.infonce.ranks",
    "predict": "adaftr_fast.api.serve",
    "prepare": "adaftr_fast.api.prepare",
    "set_cpu_capability": "adaftr_fast._extension",
    "sigmoid_contrast": "adaftr_fast.ops.infonce.sigmoid",
    "train": "adaftr_fast.api.run",
}


if not TYPE_CHECKING:  # type checkers would take every name for one of Any

    def __getattr__(name: str) -> Any:
        if name == "optim":
            return importlib.import_module("adaftr_fast.optim")
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with extras_needed(f"adaftr_fast.{name}: "):
            value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
