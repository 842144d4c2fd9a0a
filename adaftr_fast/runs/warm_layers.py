"""Which weights of two models have the same meaning, and the copy of their dense layers in a warm
start.

A Single-DNN has a network of one task per task, and other models share all but their towers. A
weight of one is found in the other by the task it belongs to: towers by the name of their task,
shared weights in the network of one chosen task. Models that both share their weights, or both do
not, have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaftr_fast.models import Backbone, MultiTaskModel
from adaftr_fast.nn.dense import DenseFields
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim.tables import ShardedTables

BACKBONE = "backbone."
ATTENTION = "attention.units."
RELATEDNESS = ("relatedness.", "contrasts.")
# Experts has a list of weights and one of biases
EXPERT_LAYER = re.compile(r"(.*)\.(?:weights|biases)\.(\d+)")
Table = FusedEmbedding | ShardedTables
CONDITIONAL = "one of the two is a rate given the stage before"


@dataclass(frozen=True)
class Pair:
    """A new model and the one that it starts from.

    Attributes:
        model: the new model.
        old: the model of the other run.
        task: the task whose network of a Single-DNN the shared weights of ``model`` come from; ""
            if there is none.
    """

    model: MultiTaskModel
    old: MultiTaskModel
    task: str = ""

    @property
    def by_task(self) -> bool:
        """Whether a weight is found by its task, because a model has a network per task."""
        return not (self.model.shares_weights and self.old.shares_weights)

    def sources(
        self, names: Mapping[str, object], old_names: Mapping[str, object]
    ) -> dict[str, str]:
        """Returns the old name of each new name that has one."""
        if not self.by_task:
            return {name: name for name in names if name in old_names}
        places = {self.old.place_of(name): name for name in old_names}
        found = {}
        for name in names:
            place, task = self.model.place_of(name)  # the towers of other models have a task, too
            if source := places.get((place, task or self.task)) or places.get((place, "")):
                found[name] = source
        return found

    def why_missing(self, name: str) -> str:
        """Returns why the old model does not have a weight."""
        _, task = self.model.place_of(name)
        lacks = self.by_task and task and task not in self.old.task_names
        return (
            f"the run does not have the task {task}"
            if lacks
            else "the run does not have the weight"
        )

    def is_conditional(self, name: str) -> bool:
        """Returns whether a weight is of a tower whose logit is a conditional rate in one of the
        models alone.
        """
        place, task = self.model.place_of(name)
        differ = self.model.is_conditional(task) != self.old.is_conditional(task)
        return differ and place.startswith("towers.")


def tables(model: MultiTaskModel) -> dict[str, Any]:
    """Returns the tables of a model, each a ``Table``, by name."""
    return {
        name: module for name, module in model.served().named_modules() if isinstance(module, Table)
    }


def backbone(model: MultiTaskModel) -> Backbone | None:
    """Returns the first backbone of a model, if it has any."""
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)


def layer_of(name: str) -> str:
    """Returns the name of the layer of a weight, such as ``towers.0.logit`` of
    ``towers.0.logit.bias``.
    """
    found = EXPERT_LAYER.fullmatch(name)
    return f"{found[1]}.{found[2]}" if found else name.rpartition(".")[0] or name


@torch.no_grad()
def take_layers(
    pair: Pair, same_tasks: bool, same_fields: bool, same_ids: bool
) -> tuple[list[str], dict[str, str]]:
    """Copies the dense layers whose weights all fit: each as a whole or not at all.

    Args:
        pair: the models.
        same_tasks: whether both have the same tasks in the same order.
        same_fields: whether both read the same fields, widths and encodings in the same order.
        same_ids: whether both have the same fields, and a new id has the value of the old one. If
            not, no table of torch is copied.

    Returns:
        The names of the copied weights, and the reason for each of the others.
    """
    ours = _dense(pair.model)
    theirs = _dense(pair.old)
    sources = pair.sources(ours, theirs)
    unrelated = _why_unrelated(pair, ours, theirs)
    widths = _embedded_widths(pair.model)
    of_torch = {
        parameter
        for module in pair.model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters()
    }

    def why_not(name: str, value: Tensor) -> str | None:
        if unrelated is not None and name.startswith(RELATEDNESS):
            return unrelated
        if name not in sources:
            return pair.why_missing(name)
        if theirs[sources[name]].shape != value.shape:
            return "the shapes differ"
        if not (same_tasks or pair.by_task):
            return "the tasks differ"
        if pair.is_conditional(name):
            return CONDITIONAL
        if value in of_torch:
            return None if same_ids else "the ids differ"
        reads_fields = ATTENTION in name or (
            value.dim() > 1 and (not widths or value.shape[-1] in widths)
        )
        return "the fields it reads differ" if reads_fields and not same_fields else None

    reasons: dict[str, str] = {}
    for name, value in ours.items():
        if (reason := why_not(name, value)) is not None:
            reasons.setdefault(layer_of(name), reason)
    fresh = {name: reasons[layer_of(name)] for name in ours if layer_of(name) in reasons}
    taken = [name for name in ours if name not in fresh]
    for name in taken:
        ours[name].copy_(theirs[sources[name]])
    return taken, fresh


def _why_unrelated(pair: Pair, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    """Returns why the relatedness networks are not copied, or None; they are copied as a whole or
    not at all.
    """
    names = [name for name in ours if name.startswith(RELATEDNESS)]
    if any(name not in theirs for name in names):
        return "the run does not have the same relatedness networks"
    if any(ours[name].shape != theirs[name].shape for name in names):
        return "the shapes of the relatedness networks differ"
    return "the pairs of tasks differ" if names and pair.model.pairs != pair.old.pairs else None


def _dense(model: MultiTaskModel) -> dict[str, Tensor]:
    """Returns the parameters without the tables, by name, without the prefix of a backbone."""
    in_tables = {parameter for table in tables(model).values() for parameter in table.parameters()}
    named = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter not in in_tables
    ]
    return {name.removeprefix(BACKBONE): parameter for name, parameter in named}


def _embedded_widths(model: MultiTaskModel) -> set[int]:
    """Returns the numbers of columns that a layer which reads the fields may have; empty if they
    are unknown.
    """
    if (found := backbone(model)) is not None:
        return {found.embedded_features}
    modules = list(model.modules())
    widths = [table.out_features for table in tables(model).values()]
    if not widths or any(isinstance(each, nn.Embedding | nn.EmbeddingBag) for each in modules):
        return set()
    encoded = next((each.out_features for each in modules if isinstance(each, DenseFields)), 0)
    return {width + more for width in (*widths, sum(widths)) for more in (0, encoded)}
