"""Exports a model as a program: torch.export, AOTInductor or ONNX.

Shapes: B rows, F fields, T tasks, N ids, D dense fields, E width, R rows of a table.

A program maps ids, int32 [B, F] with any B >= 1, to probabilities, float32 [B, T]. With multi-valued fields it takes
ids [N], row by row and field by field, and the start of each row's and field's ids, int64 [B, F]. With dense fields it
also takes the keyword ``dense``, their numbers, float32 [B, D], NaN = missing.

A program that runs without this package consists of PyTorch ops: ``PLAIN`` has the embedding's ops as such. They cannot
raise, so an id out of its field's range reads row 0 of the field, "unknown". Offsets must rise from 0 to N.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import adaftr_fast.ops.embedding.segments  # noqa: F401  # defines the ops of PLAIN
from adaftr_fast.data.dataset.batch import model_inputs
from adaftr_fast.errors import ServingError
from adaftr_fast.models.base import MultiTaskModel


def plain_lookup(weight: Tensor, ids: Tensor, field_offsets: Tensor, state: Sequence[Tensor]) -> Tensor:
    """Computes ``fused_embedding``; deferred updates have been applied, so ``state`` is empty."""
    ids = torch.where((ids < 0) | (ids >= field_offsets.diff()), 0, ids)
    return nn.functional.embedding(ids + field_offsets[:-1], weight).flatten(1)


def plain_bags(
    weight: Tensor,
    values: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    field_offsets: Tensor,
    mean: bool,
    state: Sequence[Tensor],
) -> Tensor:
    """Computes ``embedding_bags``; deferred updates have been applied, so ``state`` is empty."""
    fields = field_offsets.shape[0] - 1
    bag = _bag_of_id(offsets, values.shape[0])
    field = bag % fields
    ids = torch.where((values < 0) | (values >= field_offsets.diff()[field]), 0, values)
    vectors = nn.functional.embedding(ids + field_offsets[field], weight)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights[:, None]
    pooled = _summed(vectors, bag, offsets.shape[0] - 1)
    if mean:
        pooled = pooled / offsets.diff().clamp(min=1)[:, None]
    return pooled.view(-1, fields * weight.shape[1])


def plain_select(
    values: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, chosen: Sequence[int], fields: int
) -> tuple[Tensor, Tensor]:
    """Computes ``select_bags``, with N positions as on CUDA: those from the last offset on have no meaning.

    No size depends on a value, as AOTInductor requires.
    """
    chosen_fields = torch.cat([torch.full((1,), f in chosen) for f in range(fields)])
    keep = chosen_fields[_bag_of_id(offsets, values.shape[0]) % fields].long()
    place = torch.where(keep > 0, keep.cumsum(0) - 1, keep.sum() + (1 - keep).cumsum(0) - 1)  # the chosen ones first
    positions = torch.zeros_like(place).scatter(0, place, torch.arange(values.shape[0]))
    counts = offsets.diff().view(-1, fields).unbind(1)
    ends = torch.stack([counts[f] for f in chosen], 1).flatten().cumsum(0)
    return positions, torch.cat([ends.new_zeros(1), ends])


def plain_rows(ids: Tensor, first: int, rows: int) -> Tensor:
    """Computes ``rows_of_field``."""
    return torch.where((ids < 0) | (ids >= rows), 0, ids).long() + first


def plain_sum(vectors: Tensor, offsets: Tensor) -> Tensor:
    """Computes ``sum_bags``."""
    return _summed(vectors, _bag_of_id(offsets, vectors.shape[0]), offsets.shape[0] - 1)


def plain_repeat(vectors: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Computes ``repeat_by_bag``."""
    return vectors[_bag_of_id(offsets, size).clamp(max=vectors.shape[0] - 1)]


def _bag_of_id(offsets: Tensor, size: int) -> Tensor:
    """Returns the bag of each of ``size`` ids: the number of offsets up to it, less one; behind the last bag, B."""
    starts = offsets.new_zeros(size + 1).scatter_add(0, offsets, torch.ones_like(offsets))
    return starts[:-1].cumsum(0) - 1


def _summed(vectors: Tensor, bag: Tensor, bags: int) -> Tensor:
    index = bag[:, None].expand(-1, vectors.shape[1])
    summed = vectors.new_zeros(bags + 1, vectors.shape[1]).scatter_add(0, index, vectors)
    return summed[:-1]  # without what is behind the last bag


_OPS = torch.ops.adaftr_fast
PLAIN: dict[torch._ops.OperatorBase, Callable[..., Any]] = {
    _OPS.fused_embedding.default: plain_lookup,
    _OPS.embedding_bags.default: plain_bags,
    _OPS.select_bags.default: plain_select,
    _OPS.rows_of_field.default: plain_rows,
    _OPS.sum_bags.default: plain_sum,
    _OPS.repeat_by_bag.default: plain_repeat,
}
"""Decompositions of the ops of adaftr_fast into PyTorch ops."""


class Probabilities(nn.Module):
    """Computes the probabilities of a model's served part, which excludes networks that only the loss needs.

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

    def forward(self, ids: Tensor, starts: Tensor | None = None, dense: Tensor | None = None) -> Tensor:
        """Maps ids [B, F], or ids [N] and starts [B, F], and numbers [B, D], if any, to probabilities [B, T]."""
        offsets = None if starts is None else torch.cat([starts.flatten(), starts.new_full((1,), ids.shape[0])])
        return self.model(*model_inputs(ids, offsets, dense)).sigmoid()


def export_program(
    served: Probabilities, fields: int, *, multiple: bool = False, dense: int = 0, plain: bool = False
) -> ExportedProgram:
    """Exports a model over ``fields`` fields, besides dense ones.

    Args:
        served: the module to export.
        fields: the number of fields.
        multiple: whether any field is multi-valued.
        dense: the number of dense fields.
        plain: uses PyTorch ops only. Otherwise look-ups are ops of adaftr_fast, which check ids and require that the
            process imports adaftr_fast.
    """
    batch = Dim("batch", min=1)
    ids = torch.zeros(2, fields, dtype=torch.int32)  # 1 row would become a constant
    example: tuple[Tensor, ...] = (ids,)
    shapes = {"ids": {0: batch}}
    if multiple:
        example = (ids.flatten(), torch.arange(2 * fields).view(2, fields))
        shapes = {"ids": {0: Dim("ids", min=0)}, "starts": {0: batch}}
    named = {"dense": torch.zeros(2, dense)} if dense else {}
    shapes |= {name: {0: batch} for name in named}
    with torch.no_grad(), _quiet():
        program = torch.export.export(served, example, named, dynamic_shapes=shapes)
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
        raise ServingError(f"the AOTInductor package cannot be compiled: {type(error).__name__}: {error}") from error
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
        written = torch.onnx.export(program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
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
