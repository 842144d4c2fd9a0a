"""One training step: forward, backward, clipping and the optimizers' updates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add, is_not
from types import MethodType

import torch
from torch import Tensor, nn

from adaftr_fast._extension import has_cuda_kernels
from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.distributed.ranks import ALONE, Ranks, is_of_a_collective
from adaftr_fast.errors import DivergedError, TrainingError, first_line
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.nn.attention import FieldAttention
from adaftr_fast.nn.contrast import AdaptiveInfoNCE
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim.tables import tables_of
from adaftr_fast.training.balance import (
    NAME,
    GradientBalance,
    UncertaintyWeights,
    build_balance,
)
from adaftr_fast.training.device import (
    BackwardGraph,
    CpuCaptures,
    CudaCaptures,
    depends_on_tensors_alone,
    is_out_of_memory,
    memory_errors,
)
from adaftr_fast.training.gradients import average_gradients
from adaftr_fast.training.optimizers import build_optimizers, learning_rate
from adaftr_fast.training.sharding import shard_tables

MORE_MEMORY = "lower training.batch_size or raise training.accumulate"
LESS_GRAPH = "or set training.graph = off, which frees the graph's own memory"
SMALLER_MODEL = "lower model.embedding_dim, or choose optimizer.tables with a smaller state"


class Stepper:
    """Updates a model's parameters, one batch per step.

    On the CPU each step checks its losses before it updates anything. On a GPU a step reads nothing
    from the device, so the caller checks the losses every ``config.sync_steps`` steps. Forward and
    backward are replayed if possible. A balance that combines gradients compares the rows of
    tables, which waits for a GPU.

    Args:
        model: the model. It is moved to ``config.device``, and its tables are sharded if
            ``config.tables`` is "torchrec". With ``config.balance`` it gets the child ``balance``.
        optimizer: the optimizer options.
        config: the training options.
        ranks: the ranks that train together. Each steps on its part of a batch, and replicated
            parameters stay equal.

    Raises:
        TrainingError: the device is not available, or the model has an attribute ``balance`` of its
            own.
        RankError, ValueError: the tables cannot be sharded.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        optimizer: OptimizerConfig,
        config: TrainingConfig,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.settings = optimizer
        self.config = config
        self.ranks = ranks
        self.device = _device(config.device)
        self.reads_losses = reads_losses(self.device)
        if config.tables == "torchrec":
            shard_tables(model, optimizer, config, ranks)
        self.balance = build_balance(config, model)
        if self.balance is not None:
            model.add_module(NAME, self.balance)
        with memory_errors(self.device, SMALLER_MODEL):
            model.to(self.device)
            self.optimizers = build_optimizers(model, optimizer)
        self.tables = tables_of(model)
        self.embeddings = [each for each in model.modules() if isinstance(each, FusedEmbedding)]
        contrasts = any(isinstance(module, AdaptiveInfoNCE) for module in model.modules())
        self.contrasts_over_ranks = (
            not ranks.is_alone and config.contrast_over == "all" and contrasts
        )
        self.loss: Callable[..., dict[str, Tensor]] = model.loss
        if config.compile:
            if self.device.type == "cpu":
                warnings.warn(
                    "training.compile: on the CPU a compiled step takes longer than one that is "
                    "not, which runs kernels of this package in place of PyTorch's",
                    RuntimeWarning,
                    stacklevel=3,
                )
            self.loss = _compiled_loss(model, eager_contrast=self.contrasts_over_ranks)
        self._find_parameters()

    def _find_parameters(self) -> None:
        """Lists the parameters, of which ``FusedEmbedding.grow`` makes new ones, and starts a graph
        that reads them.
        """
        self.parameters = list(self.model.parameters())
        self.table_weights = self._table_weights()
        learned = set() if self.balance is None else set(self.balance.parameters())
        self.clipped = [parameter for parameter in self.parameters if parameter not in learned]
        self.graph: BackwardGraph | None = None
        if self._replays(self.config):
            on_gpu = self.device.type == "cuda"
            captures = CudaCaptures(self.device) if on_gpu else CpuCaptures()
            self.graph = BackwardGraph(self.model, self.config.batch_size, captures)

    def _table_weights(self) -> list[nn.Parameter]:
        return [weight for each in self.embeddings for weight in each.table_weights()]

    def _replays(self, config: TrainingConfig) -> bool:
        """Returns whether forward and backward are replayed: by one rank, in one backward, not
        compiled.

        Without the CUDA kernels look-ups read from the device, which cannot be captured.
        """
        has_kernels = self.device.type == "cpu" or (
            self.device.type == "cuda" and has_cuda_kernels()
        )
        in_one_backward = config.accumulate == 1 and not isinstance(self.balance, GradientBalance)
        wanted = config.graph == "auto" and not config.compile
        possible = has_kernels and self.ranks.is_alone and in_one_backward and wanted
        return possible and depends_on_tensors_alone(self.model)

    def step(self, batch: Batch, number: int, epochs: float = 0.0) -> dict[str, Tensor]:
        """Updates every parameter once.

        Args:
            batch: the rows, on the device; of several ranks this rank's rows, of the same number on
                all ranks.
            number: the number of the step, counted from 1 over all epochs. It sets the learning
                rate.
            epochs: the number of epochs before the step, a fraction within one, for the model's
                ``set_epoch``.

        Returns:
            The loss terms, detached, each a mean over the batch, and the weights of the tasks,
            ``weight/<task>``, if ``config.balance`` learns them.

        Raises:
            DivergedError: on the CPU, the loss, a parameter or a logit is not finite; no parameter
                has been updated.
            TrainingError: the memory does not suffice.
        """
        if any(map(is_not, self._table_weights(), self.table_weights)):
            self._find_parameters()
        changed = hasattr(self.model, "set_epoch") and self.model.set_epoch(epochs)
        if changed and self.graph is not None:
            self.graph.discard()
        remedy = MORE_MEMORY if self.graph is None else f"{MORE_MEMORY}, {LESS_GRAPH}"
        with memory_errors(self.device, remedy):
            return self._step(batch, number)

    def _step(self, batch: Batch, number: int) -> dict[str, Tensor]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.settings, number, group["initial_lr"])
        for parameter in self.parameters:
            parameter.grad = None
        with self.tables.begin(batch.ids, batch.offsets):
            terms = self._gradients(batch, number)
            if self.settings.clip_norm:
                self.tables.clip(self.clipped, self.settings.clip_norm)
            self.tables.update()
        if self.balance is not None:
            terms = terms | self.balance.named_weights()  # of this step
        for optimizer in self.optimizers:
            optimizer.step()
        if self.balance is not None:
            self.balance.after_update()
        return terms

    def _gradients(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """Computes the gradients of a batch, over all ranks; returns the loss terms."""
        in_parts = self.config.accumulate > 1 or not self.ranks.is_alone
        if batch.weight is not None and in_parts:
            batch = replace(batch, weight_mean=self.ranks.mean(batch.weight.mean()))
        if isinstance(self.balance, GradientBalance):
            terms = self._terms(batch)
            self._check(terms)
            return self.balance.backward(terms, self.parameters, number, self._averaged)
        if self.graph is not None:
            terms = self.graph.run(self._backward, batch)
        elif self.config.accumulate == 1:
            terms = self._backward(batch)
        else:
            terms = self._accumulated(batch)
        self._check(terms)
        if self.ranks.is_alone:
            return terms
        return dict(zip(terms, self._averaged(torch.stack(tuple(terms.values())))))

    def _averaged(self, values: Tensor) -> Tensor:
        """Averages the gradients, and ``values`` [k], over the ranks; returns the values."""
        if self.ranks.is_alone:
            return values
        return average_gradients(self.parameters, values, self.ranks.group)

    def _accumulated(self, batch: Batch) -> dict[str, Tensor]:
        rows = len(batch) // self.config.accumulate
        parts = []
        for start in range(0, len(batch), rows):
            part = slice(start, start + rows)
            self.tables.read_part(part)
            parts.append(self._backward(batch[part]))
        return {name: reduce(add, (part[name] for part in parts)) for name in parts[0]}

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulates the gradients of a part of the batch; returns its share of the loss terms."""
        terms = self._terms(batch)
        if self.config.accumulate > 1:
            terms = {name: term / self.config.accumulate for name, term in terms.items()}
        values = torch.stack(tuple(terms.values()))
        if isinstance(self.balance, UncertaintyWeights):
            self.balance.total(terms, 1 / self.config.accumulate).backward()
        else:  # of the sum; ones that depend on no tensor are folded in a program (program.py)
            values.backward(torch.ones(len(terms), dtype=values.dtype, device=values.device))
        return dict(zip(terms, values.detach()))

    def _check(self, terms: dict[str, Tensor]) -> None:
        """On the CPU, raises DivergedError if the sum of the terms is not finite."""
        if not self.reads_losses:
            return
        values = {name: term.item() for name, term in terms.items()}
        if not math.isfinite(sum(values.values())):
            raise not_finite(values)

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the loss terms of a part of the batch."""
        reduced = self.config.precision == "bfloat16"
        # Read at each step: the group's threads end with its last reference, before the interpreter
        # does.
        context = {"process_group": self.ranks.group} if self.contrasts_over_ranks else {}
        # a graph must not read weights that were cast outside it
        cache = None if self.device.type == "cpu" else False
        try:
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=reduced, cache_enabled=cache
            ):
                return self.loss(batch, **context)
        except RuntimeError as error:
            # of a GPU, of the memory or of another rank: no value of a tensor is its cause
            if not self.reads_losses or is_out_of_memory(error) or is_of_a_collective(error):
                raise
            diverged = self._not_finite(batch)
            if diverged is None:
                raise
            raise DivergedError(f"{diverged} is not finite; lower optimizer.lr") from error

    @torch.no_grad()
    def _not_finite(self, batch: Batch) -> str | None:
        """Returns the name of a parameter, logit or diagnostic that is not finite, to explain an
        op's error.
        """
        values = dict(self.model.named_parameters()) | {"a logit": self.model(*batch.features)}
        if hasattr(self.model, "diagnostics"):
            values |= self.model.diagnostics(batch)
        return next((name for name, value in values.items() if not value.isfinite().all()), None)


def reads_losses(device: torch.device) -> bool:
    """Returns whether steps read their losses: on the CPU they are at hand, elsewhere the host
    would wait for them.
    """
    return device.type == "cpu"


def not_finite(losses: dict[str, float]) -> DivergedError:
    """Returns the error for losses of which one is not finite."""
    shown = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    return DivergedError(f"the loss is not finite ({shown}); lower optimizer.lr")


def _compiled_loss(
    model: MultiTaskModel, *, eager_contrast: bool
) -> Callable[..., dict[str, Tensor]]:
    """Compiles ``model.loss``, except for the modules that must run eagerly.

    Embedding look-ups run eagerly, since rows with deferred updates change their ops, and so does
    attention, since the number of ids changes. Collectives cannot be compiled.
    """
    eager = (FusedEmbedding, FieldAttention, *((AdaptiveInfoNCE,) if eager_contrast else ()))
    for module in model.modules():
        if isinstance(module, eager):
            # A method, not a closure: a deep copy rebinds it to the copied module.
            method = MethodType(torch.compiler.disable(type(module).forward), module)
            module.forward = method  # of this module only, not of its class
    return torch.compile(model.loss, dynamic=False)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # raised by torch for an unknown and for an unavailable device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"training.device: {name!r} cannot be used: {first_line(error)}"
        ) from error
    return device
