"""The op namespace ``torch.ops.adaftr_fast``.

Each op file defines its schema in this library. It registers the plain-PyTorch reference as the fallback for every
device (CompositeExplicitAutograd), a fake implementation (shapes only, for torch.compile) and the autograd formula. The
C++ extension and the Triton kernels register under the CPU and CUDA keys, so PyTorch's dispatcher selects the backend.
"""

import torch

import adaftr_fast._extension  # noqa: F401  # loads the C++ implementations

library = torch.library.Library("adaftr_fast", "DEF")
