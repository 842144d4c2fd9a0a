"""Adaptive InfoNCE in Triton. Needs triton, unlike the package above it."""

from adaftr_fast.kernels.infonce.launch import infonce

__all__ = ["infonce"]
