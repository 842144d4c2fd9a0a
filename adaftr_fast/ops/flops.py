"""Formulas by which ``torch.utils.flop_counter.FlopCounterMode`` counts the ops of the losses.

They are registered when that module is imported, which takes half a second, and not before.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

MODULE = "torch.utils.flop_counter"
_formulas: dict[Any, Callable[..., int]] = {}


def define_flops(name: str, formula: Callable[..., int]) -> None:
    """Defines the number of floating point operations of the op ``name``.

    Args:
        name: the name in ``torch.ops.adaftr_fast``.
        formula: takes the op's arguments, shapes in place of tensors, and ``out_shape``.
    """
    op = getattr(torch.ops.adaftr_fast, name)
    if MODULE in sys.modules:
        sys.modules[MODULE].register_flop_formula(op)(formula)
    else:
        _formulas[op] = formula


class _Formulas(MetaPathFinder, Loader):
    """Finds the module where Python does, once, and registers the formulas after it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        place = sys.meta_path.index(self)
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(place, self)  # whoever asked may only have looked
        if spec is None or spec.loader is None:
            return spec
        self.loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        sys.meta_path.remove(self)
        for op, formula in _formulas.items():
            module.register_flop_formula(op)(formula)


if MODULE not in sys.modules:
    sys.meta_path.insert(0, _Formulas())
