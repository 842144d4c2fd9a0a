"""Joint click/conversion models with adaptive task relatedness (AdaFTR, KDD'23) on custom kernels."""

from adaftr_fast import optim
from adaftr_fast._extension import build_info, cpu_capability, set_cpu_capability
from adaftr_fast.nn.contrast import AdaptiveInfoNCE
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.ops.infonce.api import InfoNCEStats, adaptive_infonce

__all__ = [
    "AdaptiveInfoNCE",
    "FusedEmbedding",
    "InfoNCEStats",
    "adaptive_infonce",
    "build_info",
    "cpu_capability",
    "optim",
    "set_cpu_capability",
]
