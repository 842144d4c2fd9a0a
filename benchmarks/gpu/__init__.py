"""Times the package on a GPU, in stages that can be interrupted and resumed.

``python -m benchmarks.gpu --help`` lists the stages; docs/gpu.md says what each of them shows.
"""

STAGES = ("loss", "embedding", "training")
