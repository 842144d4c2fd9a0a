"""Joint click/conversion models with adaptive task relatedness (AdaFTR, KDD'23) on custom kernels."""

from adaftr_fast._extension import build_info, cpu_capability, set_cpu_capability

__all__ = ["build_info", "cpu_capability", "set_cpu_capability"]
