"""Training on a GPU without waiting for it, and on both devices without the cost of dispatching ops.

- Batches are copied while the batch before trains (``feed``).
- Forward and backward are replayed (``BackwardGraph``): on a GPU as a CUDA graph, on the CPU as a
  program of the ops below autograd.
- A lack of memory is reported with what to change (``memory_errors``).

Losses and flagged ids are read every ``training.sync_steps`` steps, by the trainer.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import TrainingError, first_line
from adaftr_fast.nn.deferred import missed_steps
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.nn.embedding_table import trained_by
from adaftr_fast.optim import Adam
from adaftr_fast.training.program import shorten


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
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class _Graph:
    """A captured ``Backward``.

    Attributes:
        inputs: the batch that it reads; None if a replay reads the one it is given.
        signature: the shapes and dtypes of the batch.
        state: the tensors of deferred updates that it reads, besides the parameters.
        trained: which parameters get a gradient.
        replay: runs it on what it reads, and returns the loss terms and the gradients of the
            parameters.
    """

    inputs: Batch | None
    signature: dict[str, Any]
    state: list[Tensor]  # held, so that their memory has no other use while the graph may read it
    trained: list[bool]
    replay: Callable[[Sequence[Tensor]], tuple[dict[str, Tensor], list[Tensor | None]]]


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

    def __init__(self, model: nn.Module, rows: int, captures: CudaCaptures | CpuCaptures) -> None:
        self.model = model
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
        if self._steps < self.captures.warm_up:
            self._steps += 1
            return self.captures.aside(lambda: backward(batch))
        if self._graph is not None and (
            self._graph.trained != self._trained() or self._has_moved(self._graph)
        ):
            self._graph = None  # the new graph may have the memory of its tensors
        if self._graph is None:
            self._graph = self._captured(backward, batch)
        if self._graph is None or self._graph.signature != _signature(batch):
            return backward(batch)
        try:
            return self._replayed(self._graph, batch)
        except (IndexError, RuntimeError) as error:
            terms = backward(batch)  # names the field or the value at fault
            self._fail("a replay", error)
            return terms

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

    def _trained(self) -> list[bool]:
        """Returns which parameters get a gradient."""
        with torch._C.DisableTorchFunctionSubclass():  # which takes longer than to read it
            return [parameter.requires_grad for parameter in self.parameters]

    def _fail(self, what: str, error: BaseException) -> None:
        """Runs all steps eagerly from now on, and warns of what failed and of the reason."""
        self._graph = None
        self._failed = True
        warnings.warn(
            f"training.graph: steps run eagerly, because {what} failed: "
            f"{first_line(_first(error))}",
            RuntimeWarning,
            stacklevel=4,
        )

    def _has_moved(self, graph: _Graph) -> bool:
        """Returns whether the optimizer has replaced a tensor whose address the graph keeps."""
        return self.captures.keeps_addresses and (
            _addresses(graph.state) != _addresses(self._state())
        )

    def _reads(self, batch: Batch) -> list[Tensor]:
        return [*_parts(batch).values(), *self.parameters, *self._state()]

    def _state(self) -> list[Tensor]:
        steps = [missed for weight in self.tables if (missed := missed_steps(weight)) is not None]
        return [each for missed in steps for each in missed.tensors]

    def _captured(self, backward: Backward, batch: Batch) -> _Graph | None:
        """Returns the graph for batches like ``batch``; None if a hook was registered meanwhile, and,
        after a warning, if the capture fails.
        """
        if not depends_on_tensors_alone(self.model):
            self._failed = True
            return None
        inputs = batch.map(torch.clone)
        state = self._state()

        def work() -> tuple[dict[str, Tensor], list[Tensor | None]]:
            return backward(inputs), [parameter.grad for parameter in self.parameters]

        try:
            replay, _ = self.captures.capture(work, self._reads(inputs))
        # of any kind: the eager step shows whether the model is at fault
        except Exception as error:
            self._fail("the capture", error)
            return None
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        kept = inputs if self.captures.keeps_addresses else None
        return _Graph(kept, _signature(inputs), state, self._trained(), replay)

    def _replayed(self, graph: _Graph, batch: Batch) -> dict[str, Tensor]:
        if graph.inputs is not None:
            for name, part in _parts(graph.inputs).items():
                part.copy_(getattr(batch, name))
            batch = graph.inputs
        terms, gradients = graph.replay(self._reads(batch))
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        if not self.captures.keeps_addresses:
            return terms
        # copied: the next replay overwrites them
        return dict(zip(terms, torch.stack(tuple(terms.values()))))


def depends_on_tensors_alone(model: nn.Module) -> bool:
    """Returns whether all modules and hooks are of this package or of torch, whose kernels follow
    from their inputs' shapes.

    The loss of another module, and a hook, may use numbers that change from step to step, which a
    graph would keep.
    """
    hooks: list[Any] = []
    for module in model.modules():
        hooks += chain.from_iterable(getattr(module, name).values() for name in MODULE_HOOKS)
    with torch._C.DisableTorchFunctionSubclass():  # or rows that missed steps become current
        for parameter in model.parameters():
            hooks += (parameter._backward_hooks or {}).values()
            hooks += (parameter._post_accumulate_grad_hooks or {}).values()
    owners = {each.__module__.partition(".")[0] for each in (*map(type, model.modules()), *hooks)}
    return owners <= {"adaftr_fast", "torch"}


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

    warm_up = 3  # steps before the capture, as torch's notes on CUDA graphs advise
    keeps_addresses = True  # a replay reads the tensors of the capture, whatever it is given

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

    def capture(
        self, work: Callable[[], T], reads: Sequence[Tensor] = ()
    ) -> tuple[Callable[..., T], T]:
        """Records the kernels that ``work`` launches, without running them. Then the graph of the
        last capture ends.

        Calls of other threads, such as the wait of the one that writes snapshots, do not disturb
        the capture.

        Args:
            work: launches kernels.
            reads: not needed: a graph reads what is at the addresses of the capture.

        Returns:
            A function that runs the kernels on the current stream and returns the result of
            ``work``, which they write, and that result.

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

        def replay(_: Sequence[Tensor] = ()) -> T:
            graph.replay()
            return result

        return replay, result

    def _end_allocations(self) -> None:
        """Ends the allocations for a capture that has failed, and its share of the pool.

        torch 2.11 leaves the allocator as within the capture. It would free no memory from then on.
        """
        index = torch.cuda.current_device()
        with suppress(RuntimeError):  # they have ended: torch 2.12 does so itself
            torch._C._cuda_endAllocateToPool(index, self.pool)
            torch._C._cuda_releasePool(index, self.pool)


class CpuCaptures:
    """Captures work on the CPU as a program of torch.fx: the ops that it dispatches below autograd.

    A replay runs the kernels of an eager step in the same order, so it gives the same bits. It does
    without autograd and without the Python code of the model.
    """

    warm_up = 100  # a capture takes as long as some fifty steps, so that a short run does without
    keeps_addresses = False

    def aside(self, work: Callable[[], T]) -> T:
        """Runs ``work``."""
        return work()

    def capture(self, work: Callable[[], T], reads: Sequence[Tensor]) -> tuple[Callable[..., T], T]:
        """Records the ops that ``work`` runs.

        Args:
            work: computes tensors. What it computes must depend on values of tensors alone.
            reads: the tensors that it reads and that are not the same in each replay.

        Returns:
            A function that takes such tensors, runs the ops and returns the result of ``work``; and
            the result of this run.

        Raises:
            Exception: ``work`` failed, or reads the value of a tensor.
        """
        results: list[T] = []

        def traced(*_: Tensor) -> T:
            results.append(work())
            return results[0]

        with torch._C.DisableTorchFunctionSubclass():  # or rows that missed steps become current
            program = make_fx(traced)(*reads)
        shorten(program)

        def replay(reads: Sequence[Tensor]) -> T:
            # a look-up takes the missed steps of its table's rows, which another op would apply
            with torch._C.DisableTorchFunctionSubclass(), torch._C._AutoDispatchBelowAutograd():
                result: T = program.forward(*reads)
            return result

        return replay, results.pop()


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
