"""Base classes of the models: predictions for T tasks from F categorical fields, and the loss that
trains them.

Shapes: B batch, F fields, D sum of the embedding widths of the fields (F * E where all are E wide)
and the number of components of dense fields, T tasks, v width of the input of a tower, h width of a
layer of a tower, N ids of all bags together.
"""

from __future__ import annotations

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.errors import ServingError
from adaftr_fast.models.sizes import attention_targets, embedding_widths
from adaftr_fast.nn.attention import FieldAttention
from adaftr_fast.nn.dense import DenseFields
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.nn.log_loss import log_loss
from adaftr_fast.nn.mlp import Tower, run_towers
from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.ops.norms import squared_norm

# beside one per task
LOSS_TERMS = (
    "l2",
    "linear",
    "relatedness",
    "contrast",
    "counterfactual",
    "imputation",
    "constraint",
)


TOWER = re.compile(r"towers\.(\d+)\.")


class Representations(NamedTuple):
    """The intermediate results of a backbone, and its logits."""

    embedded: Tensor  # [B, D], e_r: the embeddings, then the components of dense fields
    inputs: list[Tensor]  # per task [B, v]: the input of its tower, v^ctr and v^cvr of Eq. 3
    hidden: list[list[Tensor]]  # per task, per tower layer [B, h], after ReLU
    logits: Tensor  # [B, T]
    # 0-dim, the sum of the squares of the embeddings, where the look-up computes it
    squares: Tensor | None = None
    # [B, T], of the model that is trained by itself beside the towers, where there is one
    linear: Tensor | None = None

    def predicted(self) -> Tensor:
        """Returns the logits [B, T] of the whole model."""
        return self.logits if self.linear is None else (self.logits + self.linear) / 2


class MultiTaskModel(nn.Module, ABC):
    """A model that computes its own losses: the trainer minimizes the sum of the terms that
    ``loss`` returns.

    Args:
        task_names: T names, in the order of the columns of the labels.

    Raises:
        ValueError: there is no task, a name occurs twice, or a name is that of another term of the
            loss.
    """

    shares_weights = True
    """Whether its tasks share weights; otherwise each has a network of its own."""

    def __init__(self, task_names: Sequence[str]) -> None:
        super().__init__()
        self.task_names = list(task_names)
        if not self.task_names:
            raise ValueError(f"{type(self).__name__}: task_names must name at least one task")
        if len(set(self.task_names)) < len(self.task_names) or set(self.task_names) & set(
            LOSS_TERMS
        ):
            raise ValueError(
                f"{type(self).__name__}: task_names must be distinct and none of "
                f"{', '.join(LOSS_TERMS)}, "
                f"got {self.task_names}"
            )

    def extra_repr(self) -> str:
        return f"tasks={self.task_names}"

    @abstractmethod
    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        """Computes the logits [B, T].

        Args:
            ids: [B, F], int32 or int64; with ``offsets`` [N], the ids of multi-valued fields.
            offsets: int64 [B * F + 1], where the ids of each row and field begin.
            dense: float32, the numbers of the dense fields, one column each, NaN = missing.
        """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the weighted terms of the objective (Eq. 14) by name, each 0-dim; by default
        ``log_losses``.

        A model with an ``AdaptiveInfoNCE`` also takes ``process_group``, the ranks that contrast
        their rows together.
        """
        return self.log_losses(self(*batch.features), batch)

    def log_losses(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Computes Eq. 4 per task (with the "1 -" that its second logarithm lacks in print) from
        logits [B, T].
        """
        self.check_labels(batch.labels)
        means = log_loss(logits, batch.labels, batch.weight, batch.weight_mean)
        return dict(zip(self.task_names, means.unbind(), strict=True))

    def set_epoch(self, epochs: float) -> bool:
        """Sets what changes in the course of training, before each step; by default nothing does.

        Args:
            epochs: the number of epochs trained so far, with the done part of the current one as a
                fraction.

        Returns:
            Whether ``loss`` runs other ops from now on, so that a captured graph of it is no longer
            valid.
        """
        return False

    def start_at(self, rates: Sequence[float]) -> None:
        """Sets the output biases so that an untrained model predicts about these rates; by default
        nothing is set.

        Args:
            rates: T shares of positive rows, in (0, 1).
        """

    def check_labels(self, labels: Tensor) -> None:
        """Raises ValueError unless labels are [B, T]."""
        if labels.dim() != 2 or labels.shape[1] != len(self.task_names):
            raise ValueError(
                f"{type(self).__name__}: labels must be [B, {len(self.task_names)}], a column for "
                "each of "
                f"{', '.join(self.task_names)}, got {list(labels.shape)}"
            )

    def diagnosed(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the logits [B, T] and ``diagnostics``."""
        return self(*batch.features), self.diagnostics(batch)

    def served(self) -> MultiTaskModel:
        """Returns the part of the model that computes the logits, without parts that only the loss
        needs.
        """
        return self

    def place_of(self, weight: str) -> tuple[str, str]:
        """Returns the name that a weight has in a model of one task, and its task, or "" if all
        tasks share it.

        A warm start matches the weights of two models by this where one of them has a network per
        task.
        """
        found = TOWER.match(weight)
        if found is None or int(found[1]) >= len(self.task_names):
            return weight, ""
        return f"towers.0.{weight[found.end() :]}", self.task_names[int(found[1])]

    def is_conditional(self, task: str) -> bool:
        """Returns whether the tower of a task computes a rate given the stage before."""
        return False

    def for_task(self, task: str) -> MultiTaskModel:
        """Returns a model of one task alone, without what only other tasks need, so that it costs
        O(L d) (Section 3.4).

        Its parameters are those of this model, or copies of a part of them.

        Raises:
            ServingError: there is no such task, or it has no network that runs without those of
                other tasks.
        """
        self.position(task)
        raise self.not_alone(task, f"{type(self).__name__} does not define for_task")

    def position(self, task: str) -> int:
        """Returns the position of a task. Raises ServingError if there is none of this name."""
        if task not in self.task_names:
            raise ServingError(f"task: expected one of {', '.join(self.task_names)}, got {task!r}")
        return self.task_names.index(task)

    def not_alone(self, task: str, reason: str) -> ServingError:
        """Returns the error for a task whose network does not run without those of other tasks."""
        return ServingError(
            f"the task {task} of {type(self).__name__} has no network that runs alone: {reason}"
        )

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Computes values per instance to report, each [B], such as the learned temperature; {} by
        default.
        """
        return {}


class PlainModule(MultiTaskModel):
    """A module of one's own that computes logits alone; it is trained with the log-loss of each
    task.

    Args:
        module: it is called with ids [B, F]; with multi-valued fields also with the keyword
            ``offsets``, and with dense fields with ``dense``, as ``MultiTaskModel.forward``. It
            returns logits [B, T], or an object with ``logits``.
        task_names: T names, in the order of the columns of the labels.
    """

    def __init__(self, module: nn.Module, task_names: Sequence[str]) -> None:
        super().__init__(task_names)
        self.module = module

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        parts = {"offsets": offsets, "dense": dense}
        given = {name: part for name, part in parts.items() if part is not None}
        found = self.module(ids, **given)
        logits = found if isinstance(found, Tensor) else getattr(found, "logits", None)
        tasks = len(self.task_names)
        if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] == tasks:
            return logits
        got = list(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
        raise TypeError(
            f"{type(self.module).__name__}: expected logits [B, {tasks}], or an object with them "
            f"as logits, got {got}"
        )


class Backbone(MultiTaskModel):
    """A model that exposes the inputs and layers of its towers, for AdaFTR to align.

    A subclass makes ``towers`` in ``make_layers`` or in its constructor, one :class:`Tower` per
    task, all of the same widths, as ``make_towers`` does, and implements ``task_inputs``. One whose
    towers exchange activations also overrides ``read_towers``.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the label columns.
        config: the settings; its subclasses say what they read.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any. Their components follow the
            embeddings.

    Attributes:
        embedding: the fields, named by their positions, but for those that are pooled by attention.
        attention: the units of the fields that are pooled by attention; None if there are none.
        wide: a model whose logits are added to those of the towers; None if there is none.
        linear_model: a model that is trained by its own log-losses. A prediction is the mean of its
            logits and those of the towers. None if there is none.
        widths: F widths.
        embedded_features: D.
    """

    towers: ModuleList[Tower]

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
        dense: Sequence[NumericEncoding] = (),
    ) -> None:
        super().__init__(task_names)
        self.wide: MultiTaskModel | None = None
        self.linear_model: MultiTaskModel | None = None
        self.l2 = config.l2
        self.l2_form = config.l2_form
        self.widths = embedding_widths(config, len(num_embeddings), field_names)
        targets = attention_targets(config, num_embeddings, field_names)
        own = [f for f in range(len(num_embeddings)) if f not in targets]
        rows = [num_embeddings[f] for f in own]
        widths = [self.widths[f] for f in own]
        self.embedding = FusedEmbedding(rows, widths, field_names=[str(f) for f in own])
        self.attention = (
            FieldAttention(targets, self.widths, config.attention_hidden) if targets else None
        )
        self.dense_fields = DenseFields(dense) if dense else None
        self.embedded_features = sum(self.widths) + (
            self.dense_fields.out_features if self.dense_fields else 0
        )
        self.make_layers(config)

    def make_layers(self, config: ModelConfig) -> None:
        """Makes the layers above the embeddings, ``towers`` among them, unless a subclass does so
        in ``__init__``.
        """

    @abstractmethod
    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        """Computes g of Eq. 2: embedded [B, D] -> the input of the tower of each task,
        T of [B, v].
        """

    def read_towers(self, inputs: list[Tensor]) -> tuple[list[list[Tensor]], Tensor]:
        """Computes f of Eq. 2: T of [B, v] -> (per task, per layer [B, h] after ReLU; logits
        [B, T]).
        """
        hidden, logits = run_towers(self.towers, inputs)
        return hidden, torch.cat(logits, 1)

    def start_at(self, rates: Sequence[float]) -> None:
        for tower, rate in zip(self.towers, rates, strict=True):
            nn.init.constant_(tower.logit.bias, log_odds(rate))
        if self.linear_model is not None:
            self.linear_model.start_at(rates)

    def for_task(self, task: str) -> MultiTaskModel:
        t = self.position(task)
        alone = copy.copy(self)  # with the same parameters
        alone._modules = dict(self._modules)
        alone.task_names = [task]
        alone.towers = ModuleList([self.towers[t]])
        if self.wide is not None:
            alone.wide = self.wide.for_task(task)
        if self.linear_model is not None:
            alone.linear_model = self.linear_model.for_task(task)
        alone.keep_task(t, self.task_names)
        return alone

    def keep_task(self, task: int, names: Sequence[str]) -> None:
        """Drops what only other tasks need from a copy, whose ``towers`` are that of one task
        alone.

        A subclass that overrides it supports ``for_task``. It replaces modules and changes none.

        Args:
            task: the position of the task.
            names: all T tasks.

        Raises:
            ServingError: the task does not run without the others.
        """
        raise self.not_alone(
            names[task], f"{type(self).__name__} does not define keep_task, which for_task needs"
        )

    def embed(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        """Computes e_r, [B, D]: embeddings, those of a bag pooled by the mean or by attention, and
        encoded numbers.

        Raises:
            ValueError: the model has dense fields and ``dense`` is None, or the reverse.
        """
        if (dense is None) != (self.dense_fields is None):
            expected = (
                f"float32 [B, {len(self.dense_fields.encodings)}]"
                if self.dense_fields
                else "None, without dense fields"
            )
            got = "None" if dense is None else f"{dense.dtype} {list(dense.shape)}"
            raise ValueError(f"{type(self).__name__}: dense must be {expected}, got {got}")
        embedded: Tensor
        if self.attention is None:
            embedded = self.embedding(ids, offsets)
        else:
            embedded = self.attention(self.embedding, ids, offsets)
        if self.dense_fields is None:
            return embedded
        return torch.cat([embedded, self.dense_fields(dense)], 1)

    def represent(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Representations:
        """Computes everything from the embeddings and numbers to the logits."""
        squares = None
        if self._sums_squares_at_look_up(offsets, dense):
            embedded, squares = self.embedding.with_squares(ids)
        else:
            embedded = self.embed(ids, offsets, dense)
        inputs = self.task_inputs(embedded)
        self.check_towers(inputs)
        hidden, logits = self.read_towers(inputs)
        if self.wide is not None:
            logits = logits + self.wide(ids, offsets, dense)
        linear = None if self.linear_model is None else self.linear_model(ids, offsets, dense)
        return Representations(embedded, inputs, hidden, logits, squares, linear)

    def _sums_squares_at_look_up(self, offsets: Tensor | None, dense: Tensor | None) -> bool:
        """Returns whether e_r is the result of one look-up, whose squares the penalty of a training
        step needs.
        """
        other_inputs = (offsets, dense, self.attention, self.dense_fields)
        plain = type(self).embed is Backbone.embed and type(self.embedding) is FusedEmbedding
        return (
            bool(self.l2)
            and all(each is None for each in other_inputs)
            and plain
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, dense: Tensor | None = None
    ) -> Tensor:
        return self.represent(ids, offsets, dense).predicted()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.task_losses(self.represent(*batch.features), batch)

    def task_losses(self, seen: Representations, batch: Batch) -> dict[str, Tensor]:
        """Computes ``log_losses``, those of ``linear_model`` as one term, and L2 of Eq. 14."""
        losses = self.log_losses(seen.logits, batch)
        if seen.linear is not None:
            losses["linear"] = torch.stack([*self.log_losses(seen.linear, batch).values()]).sum()
        if self.l2:
            losses["l2"] = self._penalty(seen)
        return losses

    def _penalty(self, seen: Representations) -> Tensor:
        """Computes l2 * S, or l2 * sqrt(S) with the ``l2_form`` "norm".

        S is the squared norm of the dense weights plus the mean over B of that of the embeddings
        e_r.
        """
        others = (self.embedding, self.wide, self.linear_model)
        parts = (module.parameters() for module in self.children() if module not in others)
        dense = [
            p for p in dict.fromkeys(chain(self.parameters(recurse=False), *parts)) if p.dim() > 1
        ]
        weight = self.l2 if self.l2_form == "squared" else 1.0
        weights = [weight] * len(dense)
        of_embedded = weight / len(seen.embedded)
        if seen.squares is None:
            looked_up = seen.embedded[:, : sum(self.widths)]  # without the numbers
            squares = squared_norm([*dense, looked_up], [*weights, of_embedded])
        else:
            squares = squared_norm(dense, weights) + seen.squares * of_embedded
        return squares if self.l2_form == "squared" else self.l2 * squares.sqrt()

    def check_towers(self, inputs: Sequence[Tensor] | None = None) -> None:
        """Raises TypeError unless there is a tower per task and, if ``inputs`` are given, an input
        for each.
        """
        tasks = len(self.task_names)
        towers = len(getattr(self, "towers", ()))
        if towers != tasks:
            raise TypeError(
                f"{type(self).__name__}: towers must be one Tower per task, {tasks}, got {towers}"
            )
        if inputs is not None and (isinstance(inputs, Tensor) or len(inputs) != tasks):
            got = "a tensor" if isinstance(inputs, Tensor) else len(inputs)
            raise TypeError(
                f"{type(self).__name__}: task_inputs must return a list of {tasks}, one per task, "
                f"got {got}"
            )

    def make_towers(self, in_features: int, hidden: Sequence[int]) -> ModuleList[Tower]:
        """Returns one tower per task, to be assigned to ``towers``.

        Args:
            in_features: v, the width of what ``task_inputs`` returns for each task.
            hidden: widths of the layers of a tower, such as ``config.tower_hidden``.
        """
        return ModuleList(Tower(in_features, hidden) for _ in self.task_names)


def log_odds(rate: float) -> float:
    """Returns the logit of a rate in (0, 1)."""
    return math.log(rate / (1 - rate))
