"""What the benchmarks of the loss share, and a check that every tiling compiles."""
