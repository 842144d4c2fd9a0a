"""The state of a run: all tensors that training changes, by name.

Unlike ``model.state_dict()``, capturing the state does not apply the deferred updates of embedding
rows. It therefore changes nothing, and the bits of a run do not depend on how often its state is
saved. Sharded and replicated tables have the same names, so a run can resume on another number of
ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.errors import CheckpointError
from adaftr_fast.nn.deferred import stored
from adaftr_fast.optim import Adam
from adaftr_fast.optim.tables import sharded_tables, tables_of

RNG = "rng/cpu"
CUDA_RNG = "rng/cuda"


def capture(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Returns the parameters, buffers, optimizer states and states of the random generators,
    without copying them.

    ``sharded_state`` returns the sharded tables and the state of their optimizer.
    """
    tensors = {f"model/{name}": stored(value) for name, value in _held(model)}
    for number, optimizer in _own(model, optimizers):
        for name, value in _optimizer_state(optimizer):
            tensors[f"optimizer/{number}/{name}"] = value
    tensors[RNG] = torch.get_rng_state()
    for gpu in _gpus(model):
        tensors[CUDA_RNG] = torch.cuda.get_rng_state(gpu)
    return tensors


@torch.no_grad()
def restore(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Restores the tensors that ``capture`` returned; others are ignored.

    Raises:
        CheckpointError: a parameter or buffer is missing or has another shape, or the state of an
            optimizer does not fit. A buffer that ``model.state_dict()`` leaves out may be missing:
            it follows from how the model was made, and sharded tables have others.
    """
    derived = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for name, value in _held(model):
        saved = tensors.get(f"model/{name}")
        if saved is None and name in derived:
            continue
        if saved is None or saved.shape != value.shape:
            found = None if saved is None else tuple(saved.shape)
            raise CheckpointError(
                f"saved state: {name}: expected shape {tuple(value.shape)}, got {found}"
            )
        value.copy_(saved)
    for number, optimizer in _own(model, optimizers):
        prefix = f"optimizer/{number}/"
        own = [name for name in tensors if name.startswith(prefix)]
        saved_state = {name.removeprefix(prefix): tensors[name] for name in own}
        try:
            _restore_optimizer(optimizer, saved_state)
        except ValueError as error:
            raise CheckpointError(f"saved state: optimizer {number}: {error}") from error
    torch.set_rng_state(tensors[RNG])
    for gpu in _gpus(model) if CUDA_RNG in tensors else ():
        torch.cuda.set_rng_state(tensors[CUDA_RNG], gpu)


def sharded_state(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, ShardedRows]:
    """Returns the sharded tables and the state of their optimizer; empty if the tables are
    replicated.
    """
    rows = {}
    for name, tables in sharded_tables(model).items():
        number = optimizers.index(tables.optimizer)
        rows[f"model/{name}.weight"] = tables.weight
        rows |= {f"optimizer/{number}/0.{key}": value for key, value in tables.state().items()}
    return rows


def sharded_weights(model: nn.Module) -> dict[str, ShardedRows]:
    """Returns the entries of sharded tables that ``model.state_dict()`` lacks; empty if the tables
    are replicated.
    """
    return {
        f"{name}.weight.{field}": rows
        for name, tables in sharded_tables(model).items()
        for field, rows in tables.field_weights().items()
    }


def _own(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Yields the optimizers without those of sharded tables, with their indices among all
    optimizers.
    """
    others = tables_of(model).optimizers
    for number, each in enumerate(optimizers):
        if each not in others:
            yield number, each


def _gpus(model: nn.Module) -> set[torch.device]:
    """Returns the GPU that the model is on, if any. A run on the CPU uses no GPU, not even its
    random generator.
    """
    return {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    if isinstance(optimizer, Adam):
        yield from optimizer.snapshot().items()
        return
    for number, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            yield f"{number}.{key}", value


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    if isinstance(optimizer, Adam):
        optimizer.restore(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
