"""A model as a program that needs no code of its own: torch.export, AOTInductor, ONNX. B rows, F fields, T tasks.

Every program takes ids int32 [B, F], for any B >= 1, to probabilities float32 [B, T]. One over multi-valued fields
takes ids [N], row after row and field after field, and int64 [B, F], where those of each row and field begin.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import adaftr_fast.ops.embedding.lookup  # noqa: F401  # defines the op of PLAIN
from adaftr_fast.errors import ServingError
from adaftr_fast.models.base import MultiTaskModel


class Probabilities(nn.Module):
    """sigmoid of what a model serves; AdaFTR's relatedness network is not part of it.

    Args:
        model: on the CPU; embedding rows that an optimizer left behind are made current.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model.served()
        self.eval()

    def forward(self, ids: Tensor, starts: Tensor | None = None) -> Tensor:
        """ids [B, F], or [N] and starts [B, F] -> [B, T]."""
        if starts is None:
            return self.model(ids).sigmoid()
        offsets = torch.cat([starts.flatten(), starts.new_full((1,), ids.shape[0])])
        return self.model(ids, offsets).sigmoid()


def plain_lookup(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """``fused_embedding`` in PyTorch's own ops.

    It cannot raise, so an id out of its field's range reads row 0, "unknown", instead.
    """
    ids = torch.where((ids < 0) | (ids >= offsets.diff()), 0, ids)
    return nn.functional.embedding(ids + offsets[:-1], weight).flatten(1)


PLAIN: dict[torch._ops.OperatorBase, Callable[..., Any]] = {
    torch.ops.adaftr_fast.fused_embedding.default: plain_lookup,
}
"""What an op of ours is made of."""


def export_program(
    served: Probabilities, fields: int, *, multiple: bool = False, plain: bool = False
) -> ExportedProgram:
    """The program of a model over ``fields`` fields.

    Args:
        multiple: whether any field is multi-valued.
        plain: made of PyTorch's own ops alone; otherwise look-ups are ops of adaftr_fast, which check ids and are there
            where it has been imported.

    Raises:
        ServingError: ``plain`` and ``multiple``: bags have no such form.
    """
    if plain and multiple:
        raise ServingError("multi-valued fields have no program of PyTorch's own ops, so neither AOTInductor nor ONNX")
    batch = Dim("batch", min=1)
    if multiple:
        example = (torch.zeros(2 * fields, dtype=torch.int32), torch.arange(2 * fields).view(2, fields))
        shapes = ({0: Dim("ids", min=0)}, {0: batch})
    else:
        example, shapes = (torch.zeros(2, fields, dtype=torch.int32),), ({0: batch},)  # one row would be a constant
    with torch.no_grad(), _quiet():
        program = torch.export.export(served, example, dynamic_shapes=shapes)
        return program.run_decompositions(PLAIN) if plain else program


def save_torch(program: ExportedProgram, path: Path) -> None:
    """Writes a file for ``torch.export.load``."""
    with _quiet():
        torch.export.save(program, path)


def save_aot(program: ExportedProgram, path: Path) -> None:
    """Compiles a plain program to a package for ``torch._inductor.aoti_load_package``.

    Raises:
        ServingError: there is no C++ compiler, or it fails.
    """
    try:
        with torch.no_grad(), _quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # of the compiler, the linker and Inductor itself: no common class
        raise ServingError(f"the AOTInductor package cannot be compiled: {type(error).__name__}: {error}") from error


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Writes a plain program as ONNX, its input ``ids`` and its output ``probabilities``.

    Raises:
        ServingError: ONNX is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ServingError("ONNX is not installed: pip install adaftr-fast[onnx]")
    names = {"input_names": ["ids"], "output_names": ["probabilities"]}
    with torch.no_grad(), _quiet():
        torch.onnx.export(program, dynamo=True, verbose=False, **names).save(path)


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """What ``save_onnx`` wrote, evaluated by numpy: to compare, not to serve."""
    import onnx.reference

    evaluator = onnx.reference.ReferenceEvaluator(onnx.load(path))
    return lambda ids: torch.from_numpy(evaluator.run(None, {"ids": ids.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch about its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
