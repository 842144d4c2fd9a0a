"""Triton kernels, installed as ``adaftr_fast.kernels``."""

if __name__ != "adaftr_fast.kernels":
    # Run from the repository root this folder would shadow the unrelated package "kernels".
    raise ImportError("import adaftr_fast.kernels, not kernels")
