"""Warm starts (Section 3.4): copies the weights of another run that have the same meaning in a new model.

Embedding rows of the same width are matched by field name and value, not by id. A bucket of a numeric field is matched
with the old bucket that contains its upper edge. Dense weights are matched by name and shape if the tasks are the same
in the same order; layers that read the embeddings also need the same fields and widths in the same order, and the same
encodings of dense fields. All other weights keep their initial values. Optimizer states are not copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.vocabulary import read_encoders
from adaftr_fast.data.encode.encoders import Buckets, Encoder, Vocabulary
from adaftr_fast.models import Backbone, MultiTaskModel
from adaftr_fast.nn.dense import DenseFields, NumericEncoding
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.runs.trained import load_earlier

FRESH = -1  # source of a row without a match
BACKBONE, ATTENTION, RELATEDNESS = "backbone.", "attention.units.", ("relatedness.", "contrasts.")


@dataclass
class WarmStart:
    """The result of a warm start.

    Attributes:
        rows: the number of copied embedding rows and of all rows, per field.
        taken: names of the copied dense weights.
        fresh: names of the other dense weights, with the reason.
    """

    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Formats the result for the user."""
        found, total = (sum(each) for each in zip(*self.rows.values()))
        new = ", ".join(f"{name} {rows - taken:,}" for name, (taken, rows) in self.rows.items() if taken < rows)
        lines = [f"{found:,} of {total:,} embedding rows copied" + (f"; new: {new}" if new else "")]
        lines.append(f"{len(self.taken)} of {len(self.taken) + len(self.fresh)} dense weights copied")
        names = {reason: [name for name, why in self.fresh.items() if why == reason] for reason in self.fresh.values()}
        lines += [f"not copied, because {reason}: {', '.join(of_reason)}" for reason, of_reason in names.items()]
        return "\n".join(lines)


@torch.no_grad()
def warm_start(model: MultiTaskModel, data: PreparedData, run: Path, name: str = "") -> WarmStart:
    """Copies the matching best weights of a run into a new model.

    Args:
        model: the new model.
        data: the prepared data of the new model.
        run: the folder of the other run.
        name: the name of the new model. If it is a class, the other run may have the same one.

    Raises:
        CheckpointError: the run has no intact checkpoint, or its prepared data are missing or changed.
        DataError: a vocabulary cannot be read.
    """
    old = load_earlier(run, name)
    report = WarmStart()
    old_data = old.data()
    sources = _source_rows(data, old_data)
    theirs = dict(_tables(old.model))
    for name, table in _tables(model):
        _take_rows(table, theirs.get(name), data, old_data, sources, report)
    same_tasks = data.manifest.tasks == old_data.manifest.tasks
    same_fields = _columns(model, data) == _columns(old.model, old_data)
    _take_dense(model, old.model, same_tasks, same_fields, report)
    return report


def _tables(model: MultiTaskModel) -> list[tuple[str, FusedEmbedding]]:
    modules = model.served().named_modules()
    return [(name, module) for name, module in modules if isinstance(module, FusedEmbedding)]


def _backbone(model: MultiTaskModel) -> Backbone | None:
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)


def _columns(model: MultiTaskModel, data: PreparedData) -> list[tuple[str, int, str | None] | NumericEncoding]:
    """What dense layers read, in order: names, widths and attention targets of the fields, and encodings of numbers."""
    names, backbone = [each.name for each in data.manifest.fields], _backbone(model)
    widths = _tables(model)[0][1].widths if backbone is None else backbone.widths
    targets = {} if backbone is None or backbone.attention is None else backbone.attention.targets
    of_target = [None if (target := targets.get(f)) is None else names[target] for f in range(len(names))]
    return [*zip(names, widths, of_target, strict=True), *data.manifest.dense]


def _source_rows(data: PreparedData, old: PreparedData) -> dict[str, np.ndarray]:
    """Returns the old row of every new row, int64 [rows], for each field that both have."""
    new_encoders, old_encoders = (read_encoders(each.folder, each.manifest) for each in (data, old))
    pairs = {name: (encoder, old_encoders[name]) for name, encoder in new_encoders.items() if name in old_encoders}
    return {name: _same_meaning(*pair) for name, pair in pairs.items()}


def _same_meaning(new: Encoder, old: Encoder) -> np.ndarray:
    rows = np.full(new.num_embeddings, FRESH)
    if type(new) is not type(old):
        return rows
    rows[0] = 0  # unknown
    if isinstance(new, Vocabulary):
        ids = old.encode(new.values).to_numpy()
        rows[1:] = np.where(ids > 0, ids, FRESH)
    elif isinstance(new, Buckets):
        ids = old.encode(pa.array(new.edges, pa.float64())).to_numpy()
        rows[1:] = [*ids, old.num_embeddings - 1]  # the last bucket in both
    elif new == old:  # hashed into the same number of ids
        rows = np.arange(new.num_embeddings)
    return rows


def _take_rows(
    table: FusedEmbedding,
    theirs: FusedEmbedding | None,
    data: PreparedData,
    old: PreparedData,
    sources: dict[str, np.ndarray],
    report: WarmStart,
) -> None:
    places = {each.name: place for place, each in enumerate(old.manifest.fields)}
    for place, each in enumerate(data.manifest.fields):
        if str(place) not in table.field_names:
            continue  # its vectors are in the table of its target
        rows = table.field_weight(str(place))  # a view
        taken = 0
        there = str(places.get(each.name))
        old_rows = theirs.field_weight(there) if theirs is not None and there in theirs.field_names else None
        if old_rows is not None and old_rows.shape[1] == rows.shape[1]:
            source = torch.from_numpy(sources[each.name])
            known = (source != FRESH).nonzero().flatten()
            rows[known.to(rows.device)] = old_rows[source[known]].to(rows.device)
            taken = len(known)
        before = report.rows.get(each.name, (0, 0))  # of the other tasks' tables, if every task has its own
        report.rows[each.name] = (before[0] + taken, before[1] + len(rows))


def _take_dense(
    model: MultiTaskModel, old: MultiTaskModel, same_tasks: bool, same_fields: bool, report: WarmStart
) -> None:
    ours, theirs, width = _dense(model), _dense(old), _embedded_width(model)
    related = {name for name in ours if name.startswith(RELATEDNESS)}
    why_unrelated = _why_unrelated(model, old, {name: (ours[name], theirs.get(name)) for name in related})
    for name, value in ours.items():
        if name in related and why_unrelated:
            report.fresh[name] = why_unrelated
        elif name not in theirs:
            report.fresh[name] = "the run does not have the weight"
        elif theirs[name].shape != value.shape:
            report.fresh[name] = "the shapes differ"
        elif not same_tasks:
            report.fresh[name] = "the tasks differ"
        elif not same_fields and (ATTENTION in name or (value.dim() > 1 and value.shape[-1] == width)):
            report.fresh[name] = "the fields it reads differ"
        else:
            value.copy_(theirs[name])
            report.taken.append(name)


def _why_unrelated(
    model: MultiTaskModel, old: MultiTaskModel, pairs: dict[str, tuple[Tensor, Tensor | None]]
) -> str | None:
    """Returns why the relatedness networks are not copied, or None; they are copied as a whole or not at all."""
    if any(theirs is None for _, theirs in pairs.values()):
        return "the run does not have the same relatedness networks"
    if any(theirs is not None and value.shape != theirs.shape for value, theirs in pairs.values()):
        return "the shapes of the relatedness networks differ"
    return "the pairs of tasks differ" if pairs and model.pairs != old.pairs else None


def _dense(model: MultiTaskModel) -> dict[str, Tensor]:
    """Returns the parameters without the tables, by name, without the prefix of a backbone."""
    tables = {parameter for _, table in _tables(model) for parameter in table.parameters()}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter not in tables]
    return {name.removeprefix(BACKBONE): parameter for name, parameter in named}


def _embedded_width(model: MultiTaskModel) -> int:
    if (backbone := _backbone(model)) is not None:
        return backbone.embedded_features
    encoded = next((module.out_features for module in model.modules() if isinstance(module, DenseFields)), 0)
    return next(table.out_features for _, table in _tables(model)) + encoded
