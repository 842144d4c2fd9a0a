"""What the benchmark of the embedding compares, and the memory traffic it cannot avoid."""
