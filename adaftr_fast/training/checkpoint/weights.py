"""Checkpoints: the weights of a model as a safetensors file and their description as JSON. Loading runs no code.

The weights file is named by its checksum, and ``checkpoint.json`` names the weights file. Replacing that one small file
replaces the checkpoint atomically.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from adaftr_fast._files import check_name, replace_file, sha256, sync
from adaftr_fast._json import dumps, from_json, loads
from adaftr_fast._tensor_file import ChunkedTensor, SavedTensors, write_tensors
from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.errors import CheckpointError

VERSION = 1
FILE = "checkpoint.json"


@dataclass(frozen=True)
class Description:
    """Describes the weights of a checkpoint.

    Attributes:
        config: the configuration of the run.
        fingerprint: the fingerprint of the prepared data (``Manifest.fingerprint``).
        num_embeddings: the number of embedding rows of each field.
        tasks: the tasks, in the order of the logits.
        metrics: validation metrics of the weights, per task.
        field_names: names of the fields; [] if they are unknown, as in older checkpoints.
    """

    config: RunConfig
    fingerprint: str
    num_embeddings: list[int]
    tasks: list[str]
    metrics: dict[str, dict[str, float]]
    field_names: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the description as JSON values, without field names if there are none."""
        content = asdict(self) | {"config": self.config.to_dict()}
        if not self.field_names:
            del content["field_names"]
        return content


@dataclass(frozen=True)
class _Head:
    version: int
    weights: str  # name of the weights file
    sha256: str


def save_checkpoint(
    folder: Path, model: nn.Module, about: Description, sharded: Mapping[str, ChunkedTensor] | None = None
) -> None:
    """Writes the checkpoint in ``folder`` or replaces it atomically.

    Args:
        folder: the folder of the checkpoint.
        model: the model whose weights are saved.
        about: the description.
        sharded: weights of sharded tables, which ``model.state_dict()`` lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".weights-{os.getpid()}"
    try:
        digest = write_tensors(temporary, {**model.state_dict(), **(sharded or {})})
        sync(temporary)
        weights = f"weights-{digest[:16]}.safetensors"
        temporary.replace(folder / weights)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(folder)
    head = asdict(_Head(VERSION, weights, digest))
    replace_file(folder / FILE, (dumps(head | about.to_dict(), indent=2) + "\n").encode())
    for stale in [
        *folder.glob("weights-*.safetensors"),
        *folder.glob(".weights-*"),
    ]:  # the latter are from killed processes
        if stale.name != weights:
            stale.unlink()


def remove_checkpoint(folder: Path) -> None:
    """Removes the checkpoint in ``folder``, if there is one, and no other files."""
    (folder / FILE).unlink(missing_ok=True)
    for weights in folder.glob("weights-*.safetensors"):
        weights.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Description]:
    """Reads all weights and the description. Raises CheckpointError like ``open_checkpoint``."""
    saved, about = open_checkpoint(folder)
    return dict(saved), about


def open_checkpoint(folder: Path) -> tuple[SavedTensors, Description]:
    """Verifies a checkpoint and returns its weights, which are read on access, and its description.

    Raises:
        CheckpointError: there is no checkpoint, its version differs, a key is missing, unknown or of the wrong type, or
            a file is truncated or changed.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no checkpoint here (no {FILE})")
    head, about = _read(path)
    weights = folder / head.weights
    try:
        digest, size = sha256(weights), weights.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: the weights cannot be read: {error}") from error
    if digest != head.sha256:
        raise CheckpointError(f"{weights}: damaged: its {size} bytes have another sha256 than recorded")
    try:
        return SavedTensors(weights), about
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: not a safetensors file: {error}") from error


def _read(path: Path) -> tuple[_Head, Description]:
    try:
        content = from_json(dict[str, Any], loads(path.read_text(encoding="utf-8")))
        head = from_json(_Head, {each.name: content.pop(each.name, None) for each in fields(_Head)})
        if head.version != VERSION:
            raise CheckpointError(f"{path}: version {head.version}, this program reads version {VERSION}")
        check_name(head.weights, "weights")
        about = from_json(Description, content)
        for section in SECTIONS:  # defaults would describe another run
            if section not in content["config"]:
                raise CheckpointError(f"{path}: missing key 'config.{section}'")
        return head, about
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {error}") from error


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads ``weights`` into ``model``.

    Args:
        model: the model.
        weights: the weights by name.
        source: where the weights come from, for the error message.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{source}: weight {name}: expected shape {expected.get(name)}, got {found.get(name)}"
            )
    model.load_state_dict(weights)
