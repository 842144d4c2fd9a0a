"""Warm starts (Section 3.4): copies the weights of another run that have the same meaning in a new
model.

Embedding rows of the same width are matched by field name and value, not by id. A bucket of a
numeric field is matched with the old bucket that contains its upper edge. Dense layers are matched
by name and shape if the tasks are the same in the same order; layers that read the embeddings also
need the same fields and widths in the same order, and the same encodings of dense fields. From a
Single-DNN, which has tables and a network per task, towers are matched by task and shared weights
come from one task. A layer is copied as a whole or not at all. All other weights keep their initial
values. Optimizer states are not copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adaftr_fast.config import WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.encoders import Buckets, Encoder, Vocabulary
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.errors import CheckpointError
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.runs.warm_layers import Pair, backbone, layer_of, tables, take_layers
from adaftr_fast.training.trained import Trained, open_earlier

FRESH = -1  # source of a row without a match
NAMED_FIELDS = 12  # fields that an error names


@dataclass
class WarmStart:
    """The result of a warm start.

    Attributes:
        rows: the number of copied embedding rows and of all rows, per field.
        known: the number of copied rows of values; the others are those of unknown values.
        taken: names of the copied dense weights.
        fresh: names of the other dense weights, with the reason.
        task: the task of a Single-DNN whose tables were copied to shared tables; "" if there is
            none.
    """

    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    known: int = 0
    taken: list[str] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    task: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no value of a field and no layer was copied."""
        return not (self.known or self.taken)

    def layers(self) -> list[str]:
        """Returns the names of the copied dense layers."""
        return list(dict.fromkeys(map(layer_of, self.taken)))

    def summary(self) -> str:
        """Formats the result for the user."""
        found = sum(taken for taken, _ in self.rows.values())
        total = sum(rows for _, rows in self.rows.values())
        new = ", ".join(
            f"{name} {rows - taken:,}" for name, (taken, rows) in self.rows.items() if taken < rows
        )
        rows = f"{found:,} of {total:,} embedding rows copied" + (f"; new: {new}" if new else "")
        if not self.rows:
            rows = "no embedding rows copied, because no table is known to hold the fields"
        lines = [rows]
        lines.append(
            f"{len(self.taken)} of {len(self.taken) + len(self.fresh)} dense weights copied"
        )
        lines += [f"tables of the task {self.task} copied"] if self.task else []
        lines += [f"layers copied: {', '.join(self.layers())}"] if self.taken else []
        names = {
            reason: [name for name, why in self.fresh.items() if why == reason]
            for reason in self.fresh.values()
        }
        lines += [
            f"not copied, because {reason}: {', '.join(of_reason)}"
            for reason, of_reason in names.items()
        ]
        return "\n".join(lines)


@torch.no_grad()
def warm_start(
    model: MultiTaskModel,
    data: PreparedData,
    config: WarmStartConfig,
    name: str = "",
    ranks: Ranks = ALONE,
    output: Output = HERE,
) -> WarmStart | None:
    """Copies the matching best weights of a run into a new model.

    Rank 0 copies the dense layers to its model alone, and matches the values of the fields. Rows
    are read from the run's files. If tables are sharded, rank 0 sends the sources of a field's rows
    to the others, 8 bytes per row, one field at a time.

    Args:
        model: the new model.
        data: the prepared data of the new model.
        config: the other run, whose tables may be sharded or not, and the options.
        name: the name of the new model. If it is a class, the other run may have the same one.
        ranks: the ranks that share sharded tables, which all call it and see the other run.
        output: where the prepared data of the other run may be, see ``fit_one``.

    Returns:
        The result on rank 0, None elsewhere.

    Raises:
        CheckpointError: the run has no intact checkpoint, its prepared data are missing or changed,
            a rank does not see it, or nothing was copied and ``config.allow_empty`` is False.
        ConfigError: ``config.task`` is not a task of the run, or no shared table of ``model`` comes
            from a single task.
        DataError: a vocabulary cannot be read.
    """
    saved, build = open_earlier(output.found(config.run), name, ranks)
    found: list[tuple[WarmStart, Copies]] = []  # on rank 0

    def matched() -> list[list[str]]:
        found.append(_match(model, data, build(), config, name, output))
        return [list(names) for names in found[0][1]]

    ours = tables(model)
    for table, place, source in ranks.after_rank_zero(matched):
        own = {"rows": found[0][1][table, place, source]} if found else None
        rows = ranks.tensors_from_rank_zero(own)["rows"]
        if isinstance(ours[table], FusedEmbedding):
            weight = ours[table].field_weight(place)
            known = (rows != FRESH).nonzero().flatten()
            weight[known.to(weight.device)] = saved[source][rows[known]].to(weight)
        else:
            ours[table].field_weights()[place].take(saved.rows(source), rows)
    return found[0][0] if found else None


Copies = dict[tuple[str, str, str], Tensor]
"""The old row of each new row of a field, or ``FRESH``, int64 [rows], by the name of the new table,
of the field in it, and of the old rows in the checkpoint.
"""


def _match(
    model: MultiTaskModel,
    data: PreparedData,
    old: Trained,
    config: WarmStartConfig,
    name: str,
    output: Output,
) -> tuple[WarmStart, Copies]:
    """Copies the dense layers that match, and returns the report and the copies of rows to make.

    The tables of both models may be held elsewhere.
    """
    pair = Pair(model, old.model, _source_task(model, old, config))
    report = WarmStart(task=pair.task)
    old_data = old.data(output.found(old.config.data.folder))
    sources = _row_sources(data, old_data)
    copies = _row_copies(pair, data, old_data, sources, report)
    same_tasks = data.manifest.tasks == old_data.manifest.tasks
    same_fields = _columns(model, data) == _columns(old.model, old_data)
    same_ids = data.manifest.field_names == old_data.manifest.field_names and all(
        np.array_equal(rows, np.arange(len(rows))) for rows in sources.values()
    )
    report.taken, report.fresh = take_layers(pair, same_tasks, same_fields, same_ids)
    if report.is_empty and not config.allow_empty:
        raise CheckpointError(
            f"{config.run}: nothing fits for a warm start: expected "
            f"{_described(model, data, name or type(model).__name__)}, found "
            f"{_described(old.model, old_data, old.config.model.name)} "
            f"({'; '.join(report.summary().splitlines())}). Name another run, or allow to start "
            "from none of its weights by --warm_start_empty, WarmStartConfig(allow_empty=True) in "
            "Python"
        )
    return report, copies


def _source_task(model: MultiTaskModel, old: Trained, config: WarmStartConfig) -> str:
    """Returns the task whose tables of a Single-DNN become the shared ones; "" if there are none to
    choose.
    """
    if old.model.shares_weights or not model.shares_weights:
        if config.task:
            needed = "a run of single_dnn, and a new model that shares its tables, for a task"
            raise config.error("task", needed, f"{config.task} of a run of {old.config.model.name}")
        return ""
    names = old.model.task_names
    if config.task and config.task not in names:
        raise config.error("task", f"one of {', '.join(names)}", config.task)
    return config.task or next((each for each in model.task_names if each in names), names[0])


def _described(model: MultiTaskModel, data: PreparedData, name: str) -> str:
    """Names what a warm start matches: the fields with their widths, and the tasks."""
    fields = data.manifest.field_names
    if len(widths := _widths(model)) == len(fields):  # a model of one's own may have other tables
        fields = [f"{each} ({width})" for each, width in zip(fields, widths)]
    more = f" and {len(fields) - NAMED_FIELDS} more" if len(fields) > NAMED_FIELDS else ""
    shown = ", ".join(fields[:NAMED_FIELDS])
    return f"fields {shown}{more} and tasks {', '.join(data.manifest.tasks)} of {name}"


def _widths(model: MultiTaskModel) -> list[int]:
    if (found := backbone(model)) is not None:
        return found.widths
    return [width for table in tables(model).values() for width in table.widths]


def _columns(
    model: MultiTaskModel, data: PreparedData
) -> tuple[list[str], list[int], list[str | None], list[NumericEncoding]]:
    """What dense layers read: names, widths and attention targets of the fields, and encodings of
    numbers, each in order.
    """
    names = data.manifest.field_names
    found = backbone(model)
    targets = {} if found is None or found.attention is None else found.attention.targets
    of_target = [
        None if (target := targets.get(f)) is None else names[target] for f in range(len(names))
    ]
    return names, _widths(model), of_target, data.manifest.dense


def _row_sources(data: PreparedData, old: PreparedData) -> dict[str, np.ndarray]:
    """Returns the old row of every new row, int64 [rows], for each field that both have."""
    new, former = (read_encoders(each.folder, each.manifest) for each in (data, old))
    return {name: _same_meaning(new[name], former[name]) for name in new if name in former}


def _names_of_fields(model: MultiTaskModel, data: PreparedData) -> dict[str, str]:
    """Returns the names of the fields of ``data`` by their names in the tables of ``model``: their
    positions, or the same names in a model of one's own. {} if its tables have others.
    """
    names = data.manifest.field_names
    places = list(map(str, range(len(names))))
    if backbone(model) is not None:
        return dict(zip(places, names))
    held = [table.field_names for table in tables(model).values()]
    if any(each != held[0] for each in held):  # each table holds a part of the fields
        held = [[name for each in held for name in each]]
    return dict(zip(held[0], names)) if held and held[0] in (names, places) else {}


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


def _row_copies(
    pair: Pair,
    data: PreparedData,
    old: PreparedData,
    sources: dict[str, np.ndarray],
    report: WarmStart,
) -> Copies:
    """Returns the copies of the fields' rows, and adds their numbers to the report."""
    names = _names_of_fields(pair.model, data)
    places = {name: place for place, name in _names_of_fields(pair.old, old).items()}
    modules = {module: name for name, module in pair.old.named_modules()}  # as in the checkpoint
    ours = tables(pair.model)
    theirs = tables(pair.old)
    table_sources = pair.sources(ours, theirs)
    copies: Copies = {}
    for table_name, table in ours.items():
        old_table = theirs.get(table_sources.get(table_name, ""))
        old_widths = {}
        if old_table is not None:
            old_widths = dict(zip(old_table.field_names, old_table.widths, strict=True))
        fields = zip(table.field_names, table.num_embeddings, table.widths, strict=True)
        for place, size, width in fields:
            if (name := names.get(place)) is None:
                continue
            there = places.get(name, "")
            taken = 0
            if old_widths.get(there) == width:
                rows = torch.from_numpy(sources[name])
                copies[table_name, place, f"{modules[old_table]}.weight.{there}"] = rows
                taken = int((rows != FRESH).sum())
                report.known += int((rows > 0).sum())
            # of the other tasks' tables, if every task has its own
            before = report.rows.get(name, (0, 0))
            report.rows[name] = (before[0] + taken, before[1] + size)
    return copies
