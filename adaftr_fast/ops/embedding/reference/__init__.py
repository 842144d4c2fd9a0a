"""The embedding ops in plain PyTorch: the ground truth that the kernels are tested against."""
