"""Warm starts of models with sharded tables: each rank reads the rows that it needs from the earlier run's files."""

from __future__ import annotations

from typing import Any

import torch

from adaftr_fast.config import WarmStartConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.runs.output import Output
from adaftr_fast.runs.trained import open_earlier
from adaftr_fast.runs.warm_layers import tables
from adaftr_fast.runs.warm_start import Match, WarmStart, match


@torch.no_grad()
def warm_start_sharded(
    model: MultiTaskModel, data: PreparedData, config: WarmStartConfig, name: str, ranks: Ranks, output: Output
) -> WarmStart | None:
    """Copies what ``warm_start`` copies. All ranks must call it.

    Rank 0 copies the dense layers to its model alone, and matches the values of the fields. It sends the sources of a
    field's rows to the others, 8 bytes per row, one field at a time.

    Args:
        model: the new model, with sharded tables.
        data: the prepared data of the new model.
        config: the other run and the options. All ranks must see it. Its tables may be sharded or not.
        name: the name of the new model. If it is a class, the other run may have the same one.
        ranks: the ranks.
        output: as of ``warm_start``.

    Returns:
        The result on rank 0, None elsewhere.

    Raises:
        CheckpointError, ConfigError, DataError: as ``warm_start``, or a rank does not see the other run.
    """
    saved, build = open_earlier(output.local_copy(config.run), name, ranks)
    found: list[Match] = []  # on rank 0

    def matched() -> list[list[Any]]:
        found.append(match(model, data, build(), config, name, output))
        old = found[0].old.model
        names = {module: of_module for of_module, module in old.named_modules()}  # as in the checkpoint
        theirs = tables(old)
        return [
            [each.table, each.place, f"{names[theirs[each.old_table]]}.weight.{each.old_place}"]
            for each in found[0].copies
        ]

    ours = tables(model)
    for number, (table, place, source) in enumerate(ranks.after_rank_zero(matched)):
        sent = {"sources": found[0].copies[number].sources} if found else None
        rows = ours[table].field_weights()[place]
        rows.take(saved.rows(source), ranks.tensors_from_rank_zero(sent)["sources"])
    return found[0].report if found else None
