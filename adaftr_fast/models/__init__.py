"""The models, one file per paper, and :func:`build_model`, which builds a model from a
:class:`ModelConfig`.
"""

from adaftr_fast.config import ModelConfig
from adaftr_fast.models.adaftr import AdaFTR
from adaftr_fast.models.autoheri import AutoHERI
from adaftr_fast.models.base import Backbone, MultiTaskModel, Representations
from adaftr_fast.models.build import build_model
from adaftr_fast.models.cross_stitch import CrossStitch
from adaftr_fast.models.dcmt import DCMT
from adaftr_fast.models.escm2 import ESCM2
from adaftr_fast.models.esmm import ESMM
from adaftr_fast.models.linear import Linear
from adaftr_fast.models.mmoe import MMoE
from adaftr_fast.models.ple import PLE
from adaftr_fast.models.shared_bottom import SharedBottom
from adaftr_fast.models.single_dnn import SingleDNN

__all__ = [
    "DCMT",
    "ESCM2",
    "ESMM",
    "PLE",
    "AdaFTR",
    "AutoHERI",
    "Backbone",
    "CrossStitch",
    "Linear",
    "MMoE",
    "ModelConfig",
    "MultiTaskModel",
    "Representations",
    "SharedBottom",
    "SingleDNN",
    "build_model",
]
