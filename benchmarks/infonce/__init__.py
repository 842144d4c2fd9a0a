"""What the benchmarks of the loss share, its benchmark on GPUs, and a check that every tiling compiles."""
