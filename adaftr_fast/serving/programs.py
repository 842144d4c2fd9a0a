"""Exports a model as a program: torch.export, AOTInductor or ONNX.

Shapes: B rows, F fields, T tasks, N ids, D dense fields, E width, R rows of a table.

A program maps ids, int32 [B, F] with any B >= 1, to probabilities, float32 [B, T]. With
multi-valued fields it takes ids [N], row by row and field by field, and the start of each row's and
field's ids, int64 [B, F]. With dense fields it also takes the keyword ``dense``, their numbers,
float32 [B, D], NaN = missing.

A program that runs without this package consists of PyTorch ops (``ops/embedding/plain.py``).
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from adaftr_fast.data.dataset.batch import Batch, model_inputs
from adaftr_fast.errors import ServingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.ops.embedding.plain import PLAIN


class Probabilities(nn.Module):
    """Computes the probabilities of a model's served part, which excludes networks that only the
    loss needs.

    Args:
        model: the model, on the CPU. Deferred updates of its embedding rows are applied.
        task: the one task to compute, without what only other tasks need. None computes all.

    Raises:
        ServingError: there is no such task, or its network needs those of other tasks.
    """

    def __init__(self, model: MultiTaskModel, task: str | None = None) -> None:
        super().__init__()
        self.model = model.served() if task is None else model.served().for_task(task)
        self.eval()

    def forward(
        self, ids: Tensor, starts: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        """Maps ids [B, F], or ids [N] and starts [B, F], and numbers [B, D], if any, to
        probabilities [B, T].
        """
        offsets = (
            None
            if starts is None
            else torch.cat([starts.flatten(), starts.new_full((1,), ids.shape[0])])
        )
        return self.model(*model_inputs(ids, offsets, dense)).sigmoid()


def program_inputs(rows: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Returns what a program takes of rows: ids and starts, and by its name ``dense``."""
    named = {} if rows.dense is None else {"dense": rows.dense}
    if rows.offsets is None:
        return (rows.ids,), named
    return (rows.ids, rows.offsets[:-1].view(len(rows), -1)), named


def apply_program(program: Callable[..., Tensor], rows: Batch) -> Tensor:
    """Returns what a program computes of rows, [B, T]."""
    inputs, named = program_inputs(rows)
    return program(*inputs, **named)


def export_program(
    served: Probabilities, example: Batch, *, plain: bool = False
) -> ExportedProgram:
    """Exports a model.

    Args:
        served: the module to export.
        example: some rows with its fields. One row, or one id of all bags, would become a constant.
        plain: uses PyTorch ops only. Otherwise look-ups are ops of adaftr_fast, which check ids and
            require that the process imports adaftr_fast.
    """
    inputs, named = program_inputs(example)
    rows = {0: Dim("batch", min=1)}
    shapes = dict.fromkeys(["ids", *named], rows)
    if example.offsets is not None:
        shapes |= {"ids": {0: Dim("ids", min=0)}, "starts": rows}
    with torch.no_grad(), _quiet():
        program = torch.export.export(served, inputs, named, dynamic_shapes=shapes)
        return program.run_decompositions(PLAIN) if plain else program


def save_torch(program: ExportedProgram, path: Path) -> None:
    """Saves a program for ``torch.export.load``.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # torch's writer of files ends the process if the disk is full
    with _quiet():
        torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def save_aot(program: ExportedProgram, path: Path) -> None:
    """Compiles a plain program to a package for ``torch._inductor.aoti_load_package``.

    Raises:
        ServingError: the C++ compiler is missing or fails.
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # as in ``save_torch``
    try:
        with torch.no_grad(), _quiet():
            torch._inductor.aoti_compile_and_package(program, package_path=content)
    except Exception as error:  # raised by compiler, linker or Inductor, without a common class
        raise ServingError(
            f"the AOTInductor package cannot be compiled: {type(error).__name__}: {error}"
        ) from error
    path.write_bytes(content.getbuffer())


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Writes a plain program as ONNX with the output ``probabilities``.

    Its inputs are ``ids``, with bags also ``starts``, and with dense fields ``dense``.

    Raises:
        ServingError: ONNX is not installed.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ServingError("ONNX is not installed: pip install adaftr-fast[onnx]")
    inputs = [*program.graph_signature.user_inputs]
    outputs = ["probabilities"]
    with torch.no_grad(), _quiet():
        written = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs
        )
        assert written is not None  # only dynamo=False returns None
        written.save(path)


def load_onnx(path: Path) -> Callable[..., Tensor]:
    """Loads an ONNX program that numpy evaluates, for comparison and not for serving."""
    import onnx.reference

    evaluator = onnx.reference.ReferenceEvaluator(onnx.load(path))

    def run(*features: Tensor, **others: Tensor) -> Tensor:
        inputs = dict(zip(("ids", "starts"), features)) | others
        outputs = evaluator.run(None, {name: each.numpy() for name, each in inputs.items()})
        assert isinstance(outputs, list)  # a dict only with intermediate=True
        return torch.from_numpy(outputs[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses torch's warnings about its internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
