"""Replays forward and backward as a CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import first_line
from adaftr_fast.nn.deferred import missed_steps
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.nn.embedding_table import trained_by
from adaftr_fast.optim import Adam

T = TypeVar("T")
Backward = Callable[[Batch], dict[str, Tensor]]
"""Computes the gradients of the parameters, which have none before, and returns the loss terms."""
WARM_UP = 3  # steps before the capture, as torch's notes on CUDA graphs advise


class Captures(Protocol):
    """Captures work in graphs (``CudaCaptures``)."""

    def aside(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on the stream of the captures."""

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Records ``work`` without running it; returns what runs it, and its result."""


@dataclass
class _Graph:
    """A captured ``Backward``.

    Attributes:
        inputs: the batch that it reads.
        signature: the shapes and dtypes of the batch.
        state: the tensors of deferred updates that it reads, besides the parameters.
        replay: runs it.
        gradients: the gradients that it writes, by parameter.
        terms: the loss terms that it writes.
    """

    inputs: Batch
    signature: dict[str, Any]
    state: list[Tensor]  # held, so that their memory has no other use while the graph may read it
    replay: Callable[[], None]
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    terms: dict[str, Tensor]


class BackwardGraph:
    """Captures a ``Backward`` after some steps and replays it from then on.

    A step runs eagerly if its kernels may differ from the captured ones: its batch has another shape or multi-valued
    fields, or the look-ups do not apply deferred updates because all rows are current. The graph is captured anew when
    the optimizer replaces a tensor that it reads. If a capture fails, a warning says why, and all steps run eagerly.

    Args:
        model: the model whose gradients are computed.
        rows: rows of the batches that are captured.
        captures: how to capture.
    """

    def __init__(self, model: nn.Module, rows: int, captures: Captures) -> None:
        self.rows = rows
        self.captures = captures
        self.parameters = list(model.parameters())
        self.tables = list(tables_of([model]))
        self._steps = 0
        self._failed = False
        self._graph: _Graph | None = None

    def run(self, backward: Backward, batch: Batch) -> dict[str, Tensor]:
        """Computes the gradients of a batch as ``backward``, the same one in each call; returns the loss terms."""
        if not self._is_regular(batch):
            return backward(batch)
        if self._steps < WARM_UP:
            self._steps += 1
            return self.captures.aside(lambda: backward(batch))
        if self._graph is None or _addresses(self._graph.state) != _addresses(self._state()):
            self._graph = None  # the new graph may have its memory
            self._graph = self._captured(backward, batch)
        if self._graph is None or self._graph.signature != _signature(batch):
            return backward(batch)
        return self._replayed(self._graph, batch)

    def discard(self) -> None:
        """Drops the graph: the next step that can be captured is, since ``backward`` runs other ops from now on."""
        self._graph = None

    def _is_regular(self, batch: Batch) -> bool:
        """Returns whether a batch has the shape, and the tables have the deferred updates, of most steps."""
        deferring = [weight for weight in self.tables if isinstance(trained_by(weight), Adam)]
        regular = len(batch) == self.rows and batch.offsets is None and all(map(missed_steps, deferring))
        return regular and not self._failed

    def _state(self) -> list[Tensor]:
        steps = [missed for weight in self.tables if (missed := missed_steps(weight)) is not None]
        return [each for missed in steps for each in missed.tensors]

    def _captured(self, backward: Backward, batch: Batch) -> _Graph | None:
        """Returns the graph for batches like ``batch``; None, after a warning, if the capture fails."""
        inputs = batch.map(torch.clone)
        state = self._state()
        try:
            replay, terms = self.captures.capture(lambda: backward(inputs))
            gradients = [(parameter, parameter.grad) for parameter in self.parameters]
        except Exception as error:  # of any kind: the eager step shows whether the model is at fault
            self._failed = True
            warnings.warn(
                f"training.graph: steps run eagerly, because the capture failed: {first_line(_first(error))}",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        return _Graph(inputs, _signature(inputs), state, replay, gradients, terms)

    def _replayed(self, graph: _Graph, batch: Batch) -> dict[str, Tensor]:
        for name, part in _parts(graph.inputs).items():
            part.copy_(getattr(batch, name))
        graph.replay()
        for parameter, gradient in graph.gradients:
            parameter.grad = gradient
        return dict(zip(graph.terms, torch.stack(tuple(graph.terms.values()))))  # copied: a replay overwrites them


def depends_on_tensors_alone(model: nn.Module) -> bool:
    """Returns whether all modules are of this package or of torch, whose kernels follow from their inputs' shapes.

    The loss of another module may use numbers that change from step to step, which a graph would keep.
    """
    return all(type(module).__module__.partition(".")[0] in ("adaftr_fast", "torch") for module in model.modules())


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _parts(batch: Batch) -> dict[str, Tensor]:
    return {each.name: part for each in fields(batch) if (part := getattr(batch, each.name)) is not None}


def _signature(batch: Batch) -> dict[str, Any]:
    return {name: (part.shape, part.dtype) for name, part in _parts(batch).items()}


def _first(error: BaseException) -> BaseException:
    """Returns what ended a capture; its end then raises an error of its own, which says less."""
    while error.__context__ is not None:
        error = error.__context__
    return error
