"""Training by several processes with torch.distributed, one process per rank."""
