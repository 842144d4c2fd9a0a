"""Reports a lack of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaftr_fast.errors import TrainingError

TEXTS = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def memory_errors(device: torch.device, remedy: str) -> Iterator[None]:
    """Within the block, turns a lack of memory on ``device`` into a TrainingError that ends with ``remedy``."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory on {device}{_usage(device)}: {remedy}") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an allocation on a GPU or on the CPU failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in TEXTS)


def _usage(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    allocated = torch.cuda.memory_allocated(device)
    total = torch.cuda.mem_get_info(device)[1]
    return f" ({allocated / 2**30:.1f} GiB allocated, {total / 2**30:.1f} GiB in all)"
