"""Calls of ops on memory beside protected pages, where a read or a write one element too far ends
the process.
"""

import contextlib
import ctypes
import math
import mmap

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WRONG = 2  # calls with a wrong argument before each call
COUNTS = (-1, 0, 1, 2**62, -(2**63))
NUMBERS = (float("nan"), float("inf"), -1.0, -1e15, 1e300, 0.5)
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.bool)
_PAGE = mmap.PAGESIZE
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_NO_ACCESS = 0  # PROT_NONE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _elements(dtype, count, side):
    """Returns ``count`` elements that begin behind a protected page, or end before one."""
    pages = 1 + count * dtype.itemsize // _PAGE
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = (pages + 1) * _PAGE
    offset = _PAGE if side == "before" and count else end - count * dtype.itemsize
    found = torch.frombuffer(memory, dtype=dtype, count=max(count, 1), offset=offset)
    for page in (first, first + end):
        if _libc.mprotect(page, _PAGE, _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    return found[:count]


def _flat(x):
    """Returns the memory of a tensor, from its first element to its last."""
    count = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride())) if x.numel() else 0
    return x.as_strided((count,), (1,))


def guarded(x, side):
    """Returns a copy of a tensor, with its strides, beside a protected page."""
    memory = _flat(x)
    found = _elements(x.dtype, len(memory), side).copy_(memory)
    return found.as_strided(x.shape, x.stride(), found.storage_offset())


class Guarded(TorchDispatchMode):
    """Gives our ops copies of their tensors beside protected pages.

    Before each call, the op is called with a wrong argument. It may raise an error, or return: what
    is looked for is a crash.

    Args:
        side: whether the page is "before" or "after" the tensors.
        random: draws the wrong arguments.

    Attributes:
        called: the names of the ops that have been called.
    """

    def __init__(self, side, random):
        super().__init__()
        self.side = side
        self.random = random
        self.called = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != "adaftr_fast":
            return func(*args, **kwargs)
        self.called.add(func.__name__.partition(".")[0])
        with torch._C.DisableTorchFunctionSubclass():
            for _ in range(WRONG):
                self._call_wrongly(func, list(args), kwargs)
            copies, options = self._copied((args, kwargs))
            with self:  # for the ops that this one calls
                result = func.redispatch(_CPU, *copies, **options)
            for argument, given, copy in zip(func._schema.arguments, args, copies):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for x, written in zip(tree_leaves(given), tree_leaves(copy), strict=True):
                        _flat(x).copy_(_flat(written))
            return result

    def _copied(self, arguments):
        return tree_map_only(Tensor, lambda x: guarded(x, self.side), arguments)

    def _call_wrongly(self, func, args, kwargs):
        place = self.random.randrange(len(args))
        args[place] = self._wrong(args[place])
        if not any(isinstance(x, Tensor) for x in tree_leaves(args)):
            return
        copies, options = self._copied((args, kwargs))
        with contextlib.suppress(Exception):
            func(*copies, **options)

    def _wrong(self, value):
        """Returns something else than ``value``, of its type as a rule."""
        if isinstance(value, Tensor):
            return self._wrong_tensor(value)
        if isinstance(value, list | tuple) and value and self.random.random() < 0.7:
            value = list(value)
            place = self.random.randrange(len(value))
            value[place] = self._wrong(value[place])
            return value
        if isinstance(value, list | tuple):
            return self.random.choice(([], value[:-1], [*value, *value[-1:]]))
        if isinstance(value, bool) or value is None:
            return value if value is None else not value
        if isinstance(value, int):
            return self.random.choice((*COUNTS, min(value, 2**62) + 1))
        return self.random.choice(NUMBERS)

    def _wrong_tensor(self, x):
        kind = self.random.choice(("value", "value", "shape", "shape", "shape", "type"))
        if kind == "type":
            return x.to(self.random.choice(TYPES))
        if kind == "value" and x.dtype == torch.bool:
            return ~x
        if kind == "value" and x.numel():
            x = x.clone(memory_format=torch.contiguous_format)
            number = self.random.choice(NUMBERS if x.is_floating_point() else COUNTS)
            if math.isfinite(number):
                limits = (torch.finfo if x.is_floating_point() else torch.iinfo)(x.dtype)
                number = max(limits.min, min(number, limits.max))
            x.view(-1)[self.random.randrange(x.numel())] = number
            return x
        if not x.dim():
            return x.expand(2)
        dim = self.random.randrange(x.dim())
        last = x.narrow(dim, max(0, x.shape[dim] - 1), min(1, x.shape[dim]))
        return self.random.choice(
            (
                x.narrow(dim, 0, max(0, x.shape[dim] - 1)),
                torch.cat([x, last], dim),
                x.transpose(0, dim),
                x.flatten(),
                x[None],
                x[:1],
                x.new_empty(0),
            )
        )
