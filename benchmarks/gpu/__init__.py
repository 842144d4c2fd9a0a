"""Builds, checks, times and profiles the package on a GPU, in stages that can be interrupted and
resumed.

``python -m benchmarks.gpu --help`` lists the stages; docs/gpu.md says what each of them shows.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = Path(os.environ.get("ADAFTR_FAST_GPU_WORK", ROOT / "build/gpu"))
"""What a run installs, generates and caches on the machine. The results stand in the folder that
``--out`` names.
"""
STAGES = {
    "build": 190,
    "correctness": 260,
    "headline": 120,
    "graphs": 70,
    "sanitizer": 180,
    "loss": 300,
    "embedding": 300,
    "training": 240,
    "profile": 120,
}
"""The stages in order, and the seconds of each in one call: those of its plan, and of one cell that
hangs. They stand here because the supervisor imports no stage: it runs before the packages are
installed that the stages need.
"""
