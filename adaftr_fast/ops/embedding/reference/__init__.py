"""The embedding ops in plain PyTorch: the truth the kernels are tested against."""
