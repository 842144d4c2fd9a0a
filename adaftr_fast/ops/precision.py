"""The types of arithmetic."""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64 and float32 for every narrower type."""
    return torch.float64 if dtype == torch.float64 else torch.float32
