"""Training on a GPU without waiting for it.

- Batches are copied while the batch before trains (``feed``).
- Forward and backward are replayed as a CUDA graph (``BackwardGraph``).
- A lack of memory is reported with what to change (``memory_errors``).

Losses and flagged ids are read every ``training.sync_steps`` steps, by the trainer.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import TrainingError, first_line
from adaftr_fast.nn.deferred import missed_steps
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.nn.embedding_table import trained_by
from adaftr_fast.optim import Adam


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Returns the batches on a device, on a GPU without their groups, which only evaluation reads,
    on the host.
    """
    if device.type == "cpu":
        return batches
    if device.type == "cuda":
        return feed((replace(batch, group=None) for batch in batches), device)
    return (batch.map(lambda part: part.to(device)) for batch in batches)


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches on a GPU, whose copies a stream of their own makes while the batch before
    trains.

    The allocators of torch keep the memory of a copy until both streams are done with it. The host
    stays at most two steps ahead of the device, so that few batches are in memory.
    """
    copying = torch.cuda.Stream(device)
    training = torch.cuda.current_stream(device)
    pending: tuple[Batch, torch.cuda.Event] | None = None
    trained = deque([training.record_event()] * 2)

    def received(batch: Batch, copied: torch.cuda.Event) -> Batch:
        training.wait_event(copied)
        for part in _parts(batch).values():
            part.record_stream(training)
        return batch

    for batch in batches:
        with torch.cuda.stream(copying):
            # pinned in the context of this device; another would make one on the current GPU
            sent = batch.map(lambda part: part.pin_memory().to(device, non_blocking=True))
            copied = copying.record_event()
        if pending is not None:
            yield received(*pending)
            trained.popleft().synchronize()
            trained.append(training.record_event(torch.cuda.Event(blocking=True)))
        pending = (sent, copied)
    if pending is not None:
        yield received(*pending)


T = TypeVar("T")
Backward = Callable[[Batch], dict[str, Tensor]]
"""Computes the gradients of the parameters, which have none before, and returns the loss terms."""
WARM_UP = 3  # steps before the capture, as torch's notes on CUDA graphs advise


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

    A step runs eagerly if its kernels may differ from the captured ones: its batch has another
    shape or multi-valued fields, or the look-ups do not apply deferred updates because all rows are
    current. The graph is captured anew when the optimizer replaces a tensor that it reads. If a
    capture fails, a warning says why, and all steps run eagerly.

    Args:
        model: the model whose gradients are computed.
        rows: rows of the batches that are captured.
        captures: how to capture.
    """

    def __init__(self, model: nn.Module, rows: int, captures: CudaCaptures) -> None:
        self.rows = rows
        self.captures = captures
        self.parameters = list(model.parameters())
        self.tables = list(tables_of([model]))
        self._steps = 0
        self._failed = False
        self._graph: _Graph | None = None

    def run(self, backward: Backward, batch: Batch) -> dict[str, Tensor]:
        """Computes the gradients of a batch as ``backward``, the same one in each call; returns the
        loss terms.
        """
        if not self._is_regular(batch):
            return backward(batch)
        if self._steps < WARM_UP:
            self._steps += 1
            return self.captures.aside(lambda: backward(batch))
        if self._graph is None or _addresses(self._graph.state) != _addresses(self._state()):
            self._graph = None  # the new graph may have the memory of its tensors
            self._graph = self._captured(backward, batch)
        if self._graph is None or self._graph.signature != _signature(batch):
            return backward(batch)
        return self._replayed(self._graph, batch)

    def discard(self) -> None:
        """Drops the graph: the next step that can be captured is, since ``backward`` runs other ops
        from now on.
        """
        self._graph = None

    def _is_regular(self, batch: Batch) -> bool:
        """Returns whether a batch has the shape, and the tables have the deferred updates, of most
        steps.
        """
        deferring = [weight for weight in self.tables if isinstance(trained_by(weight), Adam)]
        regular = (
            len(batch) == self.rows and batch.offsets is None and all(map(missed_steps, deferring))
        )
        return regular and not self._failed

    def _state(self) -> list[Tensor]:
        steps = [missed for weight in self.tables if (missed := missed_steps(weight)) is not None]
        return [each for missed in steps for each in missed.tensors]

    def _captured(self, backward: Backward, batch: Batch) -> _Graph | None:
        """Returns the graph for batches like ``batch``; None, after a warning, if the capture
        fails.
        """
        inputs = batch.map(torch.clone)
        state = self._state()
        try:
            replay, terms = self.captures.capture(lambda: backward(inputs))
            gradients = [(parameter, parameter.grad) for parameter in self.parameters]
        # of any kind: the eager step shows whether the model is at fault
        except Exception as error:
            self._failed = True
            warnings.warn(
                "training.graph: steps run eagerly, because the capture failed: "
                f"{first_line(_first(error))}",
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
        # copied: a replay overwrites them
        return dict(zip(graph.terms, torch.stack(tuple(graph.terms.values()))))


def depends_on_tensors_alone(model: nn.Module) -> bool:
    """Returns whether all modules are of this package or of torch, whose kernels follow from their
    inputs' shapes.

    The loss of another module may use numbers that change from step to step, which a graph would
    keep.
    """
    return all(
        type(module).__module__.partition(".")[0] in ("adaftr_fast", "torch")
        for module in model.modules()
    )


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _parts(batch: Batch) -> dict[str, Tensor]:
    return {
        each.name: part for each in fields(batch) if (part := getattr(batch, each.name)) is not None
    }


def _signature(batch: Batch) -> dict[str, Any]:
    return {name: (part.shape, part.dtype) for name, part in _parts(batch).items()}


def _first(error: BaseException) -> BaseException:
    """Returns what ended a capture; its end then raises an error of its own, which says less."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class CudaCaptures:
    """Captures work in CUDA graphs, one after another, in one memory pool.

    The work before a capture runs on the stream of the captures, so that the libraries have their
    handles and workspaces for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        # kept until the next is captured, or the pool would end before
        self._graph: torch.cuda.CUDAGraph | None = None

    def aside(self, work: Callable[[], T]) -> T:
        """Runs ``work`` on the stream of the captures, in the order of the current stream."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = work()
        here.wait_stream(self.stream)
        return result

    def capture(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Records the kernels that ``work`` launches, without running them. Then the graph of the
        last capture ends.

        Calls of other threads, such as the wait of the one that writes snapshots, do not disturb
        the capture.

        Returns:
            A function that runs the kernels on the current stream, and the result of ``work``,
            which they write.

        Raises:
            Exception: ``work`` failed, or did what cannot be recorded.
        """
        here = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # graphs of autograd that are still alive would keep their nodes' streams
        with torch.cuda.device(self.device):
            try:
                with torch.cuda.graph(
                    graph, self.pool, self.stream, capture_error_mode="thread_local"
                ):
                    result = work()
            except BaseException:
                # torch.cuda.graph leaves its own where the end of a capture fails
                torch.cuda.set_stream(here)
                self._end_allocations()
                raise
            finally:
                # also where the capture failed: the allocator of pinned memory still refers to it
                self._graph = graph
        return graph.replay, result

    def _end_allocations(self) -> None:
        """Ends the allocations for a capture that has failed, and its share of the pool.

        torch 2.11 leaves the allocator as within the capture. It would free no memory from then on.
        """
        index = torch.cuda.current_device()
        with suppress(RuntimeError):  # they have ended: torch 2.12 does so itself
            torch._C._cuda_endAllocateToPool(index, self.pool)
            torch._C._cuda_releasePool(index, self.pool)


TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextmanager
def memory_errors(device: torch.device, remedy: str) -> Iterator[None]:
    """Within the block, turns a lack of memory on ``device`` into a TrainingError that ends with
    ``remedy``.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory on {device}{_usage(device)}: {remedy}") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an allocation on a GPU or on the CPU failed."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in TEXTS)


def _usage(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    allocated = torch.cuda.memory_allocated(device)
    total = torch.cuda.mem_get_info(device)[1]
    return f" ({allocated / 2**30:.1f} GiB allocated, {total / 2**30:.1f} GiB in all)"
