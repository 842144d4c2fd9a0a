"""Where the time of a training step goes, by torch.profiler: an operation's time without that of those it calls."""

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

PARTS = {  # parts of the names of operations
    "dense layers, forward": ("adaftr_fast::mlp",),
    "dense layers, backward": ("adaftr_fast::mlp_backward",),
    "mixtures": ("adaftr_fast::mixture", "adaftr_fast::mixture_backward"),
    "contrastive loss": ("infonce",),
    "look-up": (
        "adaftr_fast::fused_embedding",
        "adaftr_fast::deferred_embedding",
        "adaftr_fast::embedding_and_squares",
    ),
    "merge of the look-ups' gradients": (
        "adaftr_fast::fused_embedding_backward",
        "adaftr_fast::embedding_and_squares_backward",
    ),
    "update of the tables": ("adaftr_fast::embedding_adam_",),
    "update of the dense weights": ("aten::_fused_adam_",),
    "penalty, and gradients scaled": ("adaftr_fast::squared_norm", "adaftr_fast::scaled"),
}
OTHERS, PYTHON = "other operations and autograd", "Python, and the loader's waits"


def part_of(name: str) -> str:
    """Returns the part with the longest name in an operation's name."""
    found = [(len(each), part) for part, names in PARTS.items() for each in names if each in name]
    return max(found)[1] if found else OTHERS


def parts(run: Callable[[], object], steps: int) -> dict[str, float]:
    """Returns the milliseconds of a step in each part, of ``run``, which takes ``steps`` steps.

    The profiler lengthens small operations; "whole step" is measured without it.
    """
    run()  # warms
    start = time.perf_counter()
    run()
    whole = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        run()
        profiled = time.perf_counter() - start
    sums = dict.fromkeys([*PARTS, OTHERS], 0.0)
    for event in profiler.key_averages():
        sums[part_of(event.key)] += event.self_cpu_time_total / 1e3
    sums[PYTHON] = 1e3 * profiled - sum(sums.values())
    return {part: each / steps for part, each in sums.items()} | {"whole step": 1e3 * whole / steps}
