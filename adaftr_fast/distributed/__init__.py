"""Training by several processes, on torch.distributed: the ranks of a process group, one process each."""
