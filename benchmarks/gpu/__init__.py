"""Builds, checks, times and profiles the package on a GPU, in stages that can be interrupted and resumed.

``python -m benchmarks.gpu --help`` lists the stages; docs/gpu.md says what each of them shows.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = Path(os.environ.get("ADAFTR_FAST_GPU_WORK", ROOT / "build/gpu"))
"""What a run installs, generates and caches on the machine. The results stand in the folder that ``--out`` names."""
STAGES = {"build": 150, "correctness": 150, "loss": 240, "embedding": 180, "training": 180, "profile": 60}
"""The stages in order, and the seconds of each in one call. They stand here because the supervisor imports no stage: it
runs before the packages are installed that the stages need."""
