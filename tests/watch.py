"""Counts ops, and finds those that make the host wait for the device."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "argwhere",
    "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive",
    "bincount", "_assert_async",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Counts the ops, and lists those whose result the host must know: a value, or the shape of a
    tensor.
    """

    def __init__(self):
        super().__init__()
        self.ops = Counter()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        self.ops[name] += 1
        if (
            name in READING
            or self._has_unknown_shape(name, args, kwargs)
            or self._crosses(name, args, kwargs)
        ):
            self.reads.append(str(func))
        return func(*args, **kwargs)

    @staticmethod
    def _has_unknown_shape(name, args, kwargs):
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(
                each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
            )
        of_counts = name == "repeat_interleave" and (
            len(args) < 2 or isinstance(args[1], torch.Tensor)
        )
        return of_counts and kwargs.get("output_size") is None

    @staticmethod
    def _crosses(name, args, kwargs):
        """Whether a tensor is copied between host and device. A read waits, and so does a copy of
        unpinned memory.
        """
        if name == "copy_":
            return args[0].device.type != args[1].device.type
        device = kwargs.get("device")
        return (
            name in ("_to_copy", "_pin_memory")
            and device is not None
            and device.type != args[0].device.type
        )
