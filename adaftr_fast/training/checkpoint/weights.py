"""Checkpoints: the weights of a model as a safetensors file and their description as JSON. Loading
runs no code.

The weights file is named by its checksum, and ``checkpoint.json`` names the weights file. Replacing
that one small file replaces the checkpoint atomically. With sharded tables it also names one shard
file per rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from adaftr_fast.config import RunConfig
from adaftr_fast.config.run import SECTIONS
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.errors import CheckpointError
from adaftr_fast.files.json import from_json
from adaftr_fast.files.tensors import SavedTensors
from adaftr_fast.files.whole import (
    check_name,
    make_folder,
    read_json,
    remove_new,
    sha256,
    write_json,
)
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.training.checkpoint.files import damages, local_rows, write_file

VERSION = 3
FILE = "checkpoint.json"
WEIGHTS = "weights-*.safetensors"


@dataclass(frozen=True)
class Description:
    """Describes the weights of a checkpoint.

    Attributes:
        config: the configuration of the run.
        fingerprint: the fingerprint of the prepared data (``Manifest.fingerprint``).
        num_embeddings: the number of embedding rows of each field.
        tasks: the tasks, in the order of the logits.
        metrics: validation metrics of the weights, per task.
        field_names: names of the fields; [] if they are unknown.
        dense: encodings of the dense fields.
    """

    config: RunConfig
    fingerprint: str
    num_embeddings: list[int]
    tasks: list[str]
    metrics: dict[str, dict[str, float]]
    field_names: list[str] = field(default_factory=list)
    dense: list[NumericEncoding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the description as JSON values, without field names and dense fields if there are
        none.
        """
        content = asdict(self) | {"config": self.config.to_dict()}
        return _without_empty(content, "field_names", "dense")


def _without_empty(content: dict[str, Any], *optional: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value or key not in optional}


@dataclass(frozen=True)
class _Shard:
    name: str
    sha256: str


@dataclass(frozen=True)
class _Head:
    version: int
    weights: str  # name of the weights file
    sha256: str
    shards: list[_Shard] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values, without shards if there are none."""
        return _without_empty(asdict(self), "shards")

    def checksums(self) -> dict[str, str]:
        """Returns the sha256 of every file by its name, the weights file first."""
        return {self.weights: self.sha256} | {each.name: each.sha256 for each in self.shards}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    about: Description,
    sharded: Mapping[str, ShardedRows] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Writes the checkpoint in ``folder`` or replaces it atomically.

    Args:
        folder: the folder of the checkpoint.
        model: the model whose weights are saved.
        about: the description.
        sharded: weights of sharded tables, which ``model.state_dict()`` lacks. Each rank writes its
            rows, and rank 0 writes the rest when all have done so.
        ranks: the ranks that all call it, with ``sharded``.

    Raises:
        OSError: a file cannot be written. The former checkpoint remains.
    """
    shards: list[list[str]] = []
    if sharded:
        # and it removes no more files in it
        ranks.from_rank_zero(lambda: bool(make_folder(folder)))
        shard = write_file(
            folder, f"weights-{ranks.rank}-{{:.16}}.safetensors", local_rows(sharded)
        )
        shards = ranks.gathered(list(shard))
        if not ranks.is_rank_zero:
            return
    make_folder(folder)
    weights, digest = write_file(folder, "weights-{:.16}.safetensors", weights_of(model))
    head = _Head(VERSION, weights, digest, [_Shard(*each) for each in shards])
    write_json(folder / FILE, head.to_dict() | about.to_dict())
    kept = head.checksums()
    for stale in folder.glob(WEIGHTS):
        if stale.name not in kept:
            stale.unlink()
    remove_new(folder)


def remove_checkpoint(folder: Path) -> None:
    """Removes the checkpoint in ``folder``, if there is one, and no other files."""
    (folder / FILE).unlink(missing_ok=True)
    remove_weights(folder)


def remove_weights(folder: Path) -> None:
    """Removes the weights of the checkpoint in ``folder``, if there is one, and keeps its
    description.
    """
    for weights in folder.glob(WEIGHTS):
        weights.unlink()


def read_description(folder: Path) -> Description:
    """Reads the description alone. Raises CheckpointError if there is no checkpoint, or the
    description is damaged.
    """
    return _read(folder)[1]


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Description]:
    """Reads all weights and the description. Raises CheckpointError like ``open_checkpoint``."""
    saved, about = open_checkpoint(folder)
    return dict(saved), about


def open_checkpoint(folder: Path) -> tuple[SavedTensors, Description]:
    """Verifies a checkpoint and returns its weights, which are read on access, and its description.

    Raises:
        CheckpointError: there is no checkpoint, its version differs, a key is missing, unknown or
            of the wrong type, or a file is missing, truncated or changed.
    """
    head, about = _read(folder)
    if not any(folder.glob(WEIGHTS)):
        raise CheckpointError(
            f"{folder / head.weights}: missing: tune keeps the weights of its best trial only"
        )
    return _opened(folder, head.checksums()), about


def open_on_all_ranks(folder: Path, ranks: Ranks) -> SavedTensors:
    """Verifies a checkpoint that all ranks see, each a part of it, and returns its weights, which
    are read on access.

    Raises:
        CheckpointError: like ``open_checkpoint``, on all ranks.
    """
    return _opened(folder, ranks.from_rank_zero(lambda: _read(folder)[0].checksums()), ranks)


def _opened(folder: Path, checksums: dict[str, str], ranks: Ranks = ALONE) -> SavedTensors:
    found = damages(folder, checksums, sha256, ranks)
    if found:
        raise CheckpointError(found[0])
    paths = [folder / name for name in checksums]
    try:
        return SavedTensors(paths[0], paths[1:])
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{paths[0]}: not weights: {error}") from error


def _read(folder: Path) -> tuple[_Head, Description]:
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no checkpoint here (no {FILE})")
    try:
        content = read_json(dict[str, Any], path)
        head = from_json(
            _Head,
            {each.name: content.pop(each.name) for each in fields(_Head) if each.name in content},
        )
        if head.version != VERSION:
            raise CheckpointError(
                f"{path}: written in version {head.version}, this program reads version {VERSION}: "
                "train again"
            )
        for name in head.checksums():
            check_name(name, "weights")
        about = from_json(Description, content)
        for section in SECTIONS:  # defaults would describe another run
            if section not in content["config"]:
                raise CheckpointError(f"{path}: missing key 'config.{section}'")
        return head, about
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {error}") from error


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a model by their names in a checkpoint.

    They are those of ``model.state_dict()``, but tables have an entry ``weight.<field name>`` per
    field, as sharded tables have, so that runs read the weights of each other.
    """
    weights = model.state_dict()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FusedEmbedding):
            prefix = f"{path}." if path else ""
            for name in module.state_names():
                del weights[prefix + name]
            weights |= {
                f"{prefix}weight.{name}": module.field_weight(name) for name in module.field_names
            }
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Loads ``weights`` into ``model``.

    Args:
        model: the model.
        weights: the weights by name.
        source: where the weights come from, for the error message.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{source}: weight {name}: expected shape {expected.get(name)}, got "
                f"{found.get(name)}"
            )
    model.load_state_dict(weights)
