"""Reads several runs to compare their results, and the options in which they differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaftr_fast._files import AnyPath
from adaftr_fast.errors import CheckpointError
from adaftr_fast.runs.record import read_result
from adaftr_fast.stores import local_copy
from adaftr_fast.training.checkpoint.weights import Description, read_description
from adaftr_fast.training.files import BEST
from adaftr_fast.training.result import TrainedRun


@dataclass(frozen=True)
class Recorded:
    """A run as its folder records it. Its weights are not read.

    Attributes:
        folder: the run folder.
        about: the description in its checkpoint.
        result: the epochs and metrics, under the name of the run in tables. The ``test`` of an unfinished run holds the
            validation metrics of its last epoch, and its name says so.
    """

    folder: AnyPath
    about: Description
    result: TrainedRun


def read_runs(folders: Sequence[AnyPath]) -> tuple[list[Recorded], list[str]]:
    """Returns the runs that can be read, in order, and a line about each other one.

    A run is named by the part of its path that the folders do not share.
    """
    folders = list(dict.fromkeys(folders))
    runs = []
    unread = []
    for folder, name in zip(folders, _names(folders)):
        try:
            local = local_copy(folder)
            about = read_description(local / BEST)
            result = read_result(local, about)
            if not result.epochs:
                raise CheckpointError(f"{folder}: no epoch has been recorded")
        except (CheckpointError, OSError) as error:
            unread.append(" ".join(str(error).split()))
            continue
        if not result.test:
            name = f"{name} (unfinished: validation after epoch {result.trained_epochs:g})"
            result = replace(result, test=result.epochs[-1]["validation"])
        runs.append(Recorded(folder, about, replace(result, name=name)))
    return runs, unread


def _names(folders: Sequence[AnyPath]) -> list[str]:
    if not all(isinstance(folder, Path) for folder in folders):
        return [str(folder) for folder in folders]
    places = [Path(os.path.abspath(str(folder))) for folder in folders]
    if len(places) < 2:
        return [place.name for place in places]
    shared = os.path.commonpath(places)
    return [os.path.relpath(place, shared) if str(place) != shared else place.name for place in places]


def differing_options(runs: Sequence[Recorded]) -> dict[str, list[Any]]:
    """Returns the values of the options in which the runs differ, one per run; None where a run lacks the option."""
    flat = [run.about.config.flat() for run in runs]
    names = dict.fromkeys(name for each in flat for name in each)
    values = {name: [each.get(name) for each in flat] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def groups_by_data(runs: Sequence[Recorded]) -> list[list[Recorded]]:
    """Returns the runs in groups whose ids and tasks have one meaning, and which were trained on one folder."""
    groups: dict[tuple[str, str], list[Recorded]] = {}
    for run in runs:
        place = os.path.abspath(run.about.config.data.folder)
        groups.setdefault((run.about.fingerprint, place), []).append(run)
    return list(groups.values())
