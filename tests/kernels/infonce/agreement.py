"""Calls of adaptive_infonce with the Triton kernels and with statistics, and their comparison with the reference."""

import adaftr_fast as af
from tests.ops.infonce import inputs as shared


def evaluate(tensors, dtype, device="cpu", **options):
    """Returns the loss, its gradients (None where frozen) and the statistics; on the CPU."""
    return shared.loss_and_gradients(
        af.adaptive_infonce, tensors, dtype, device=device, return_stats=True, **{"backend": "triton", **options}
    )


def assert_matches(tensors, dtype, device="cpu", **options):
    shared.assert_matches(tensors, dtype, backend="triton", device=device, return_stats=True, **options)
