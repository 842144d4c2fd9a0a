"""Training on a GPU without waiting for it.

- Batches are packed into one buffer each and copied while the batch before trains (``feed``).
- Forward and backward are replayed as a CUDA graph (``BackwardGraph``).
- A lack of memory is reported with what to change (``memory_errors``).

All calls of ``torch.cuda`` that order streams stand in ``CudaCopies`` and ``CudaCaptures``, so that
the rest is tested without a GPU. No test without a GPU runs these two, so they make no decisions.
Losses and flagged ids are read every ``training.sync_steps`` steps, by the trainer.

Two slots take turns in ``feed``. Each has a staging buffer on the host and a buffer on the device:

    host      pack 0 | pack 1 | launch 0 | pack 2 | launch 1 | pack 3 | ...
    copies             copy 0 | copy 1              copy 2 (after train 0)
    training                    train 0             train 1

S bytes of a buffer.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import accumulate, cycle, pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import TrainingError, first_line
from adaftr_fast.nn.deferred import missed_steps
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.nn.embedding_table import trained_by
from adaftr_fast.optim import Adam

# bytes, as of memory from the CUDA allocator, so that kernels may load whole vectors
ALIGNMENT = 256
# what a loss reads; only evaluation reads groups, on the host
PACKED = ("ids", "labels", "weight", "offsets", "dense")


class Section(NamedTuple):
    """The place of a tensor in a buffer, in bytes."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The places of a batch's tensors in a buffer.

    Attributes:
        sections: one per tensor, each aligned to ``ALIGNMENT`` bytes.
        size: S, the bytes of all sections.
    """

    sections: tuple[Section, ...]
    size: int

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """Returns the layout of the tensors ``PACKED`` that a batch has."""
        parts = {name: part for name in PACKED if (part := getattr(batch, name)) is not None}
        ends = [0, *accumulate(-(-part.nbytes // ALIGNMENT) * ALIGNMENT for part in parts.values())]
        places = zip(parts.items(), pairwise(ends), strict=True)
        sections = (
            Section(name, x.dtype, x.shape, start, start + x.nbytes)
            for (name, x), (start, _) in places
        )
        return cls(tuple(sections), ends[-1])

    def views(self, buffer: Tensor) -> Batch:
        """Returns the batch that lies in a buffer, uint8 [>= S], without copying it."""
        parts = {
            s.name: buffer[s.start : s.stop].view(s.dtype).view(s.shape) for s in self.sections
        }
        return Batch(**parts)

    def pack(self, batch: Batch, buffer: Tensor) -> None:
        """Copies the tensors of a batch of this layout into a buffer on the CPU, uint8 [>= S]."""
        views = self.views(buffer)
        for section in self.sections:
            getattr(views, section.name).copy_(getattr(batch, section.name))


class Event(Protocol):
    """A point in the work that is queued on a stream (torch.cuda.Event)."""

    def synchronize(self) -> None:
        """Waits on the host until the work is done."""


E = TypeVar("E", bound=Event)


class Copies(Protocol[E]):
    """Copies beside the training (``CudaCopies``)."""

    def buffers(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns a staging buffer on the host and a buffer on the device, both uint8 [size]."""

    def send(self, staging: Tensor, buffer: Tensor, after: E) -> E:
        """Queues a copy that starts after ``after``; returns its end."""

    def wait(self, event: E) -> None:
        """Lets the work that is queued for training from now on start after ``event``."""

    def mark(self) -> E:
        """Returns the end of the work that is queued for training so far."""


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Returns the batches on a device: on a GPU without their groups, each valid until the next one
    is taken.
    """
    if device.type == "cuda":
        return feed(batches, CudaCopies(device))
    return (
        batches
        if device.type == "cpu"
        else (batch.map(lambda part: part.to(device)) for batch in batches)
    )


def feed(batches: Iterator[Batch], copies: Copies[E]) -> Iterator[Batch]:
    """Yields the batches on the device; the copy of the next one is queued before."""
    pending: _Slot[E] | None = None
    for batch, slot in zip(batches, cycle((_Slot(copies), _Slot(copies)))):
        slot.send(batch)
        if pending is not None:
            yield pending.batch()
            pending.release()
        pending = slot
    if pending is not None:
        yield pending.batch()


class _Slot(Generic[E]):
    """A staging buffer and a buffer on the device. They grow, because batches of multi-valued
    fields differ in size.
    """

    def __init__(self, copies: Copies[E]) -> None:
        self.copies = copies
        self.layout = Layout((), 0)
        self.staging = torch.empty(0, dtype=torch.uint8)
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.released = copies.mark()
        self.copied = self.released

    def send(self, batch: Batch) -> None:
        """Packs a batch and queues its copy."""
        self.layout = Layout.of(batch)
        # until then the staging buffer is read; in general that was a step ago
        self.copied.synchronize()
        if self.layout.size > len(self.staging):
            self.staging, self.buffer = self.copies.buffers(self.layout.size * 5 // 4)
            # the new memory may be that of tensors in queued work
            self.released = self.copies.mark()
        self.layout.pack(batch, self.staging)
        size = self.layout.size
        self.copied = self.copies.send(self.staging[:size], self.buffer[:size], self.released)

    def batch(self) -> Batch:
        """Returns the batch on the device, for work that is queued from now on."""
        self.copies.wait(self.copied)
        return self.layout.views(self.buffer)

    def release(self) -> None:
        """Lets the buffer be overwritten after the work that is queued so far."""
        self.released = self.copies.mark()


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

    A step runs eagerly if its kernels may differ from the captured ones: its batch has another
    shape or multi-valued fields, or the look-ups do not apply deferred updates because all rows are
    current. The graph is captured anew when the optimizer replaces a tensor that it reads. If a
    capture fails, a warning says why, and all steps run eagerly.

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


class CudaCopies:
    """Copies from the host to a GPU on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def buffers(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns a pinned staging buffer and a buffer on the GPU, both uint8 [size]."""
        # pinning needs a context, and would make one on the current GPU
        with torch.cuda.device(self.device):
            staging = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        buffer.record_stream(self.stream)  # its memory is not reused before the last copy ends
        return staging, buffer

    def send(self, staging: Tensor, buffer: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        """Queues a copy that starts after ``after``; returns its end."""
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            buffer.copy_(staging, non_blocking=True)
        # the host sleeps where it waits for it
        return self.stream.record_event(torch.cuda.Event(blocking=True))

    def wait(self, event: torch.cuda.Event) -> None:
        """Lets the current stream wait for ``event``."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def mark(self) -> torch.cuda.Event:
        """Returns the end of the work that is queued on the current stream."""
        return torch.cuda.current_stream(self.device).record_event()


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
