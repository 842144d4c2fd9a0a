"""Divides tables and batches among ranks, and checks the options that this supports."""

from __future__ import annotations

from torch import nn

from adaftr_fast.config import ModelConfig, OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import Share
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import TrainingError
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim.tables import Sharder
from adaftr_fast.training.optimizers import tables_lr


def check_sharding(optimizer: OptimizerConfig, config: TrainingConfig, ranks: Ranks) -> None:
    """Checks that the options support ``config.tables`` "torchrec"; other values of it pass.

    Raises:
        TrainingError: an option is not supported. The message names a supported value.
        RankError: TorchRec cannot be imported.
    """
    if config.tables != "torchrec":
        return
    if ranks.is_alone:
        raise _refused(
            "several processes, got one: start them with torchrun --nproc-per-node 2 or more"
        )
    sharder = _sharder(ranks)
    if optimizer.tables not in sharder.kinds:
        kinds = ", ".join(sharder.kinds)
        reason = "TorchRec updates the rows of the batch inside backward"
        raise _refused(f"optimizer.tables = {kinds}, got {optimizer.tables} ({reason})")
    sharder.check_installed()


def _sharder(ranks: Ranks) -> Sharder:
    if ranks.sharder is None:
        raise _refused("ranks with a sharder, got None: join them by adaftr_fast.api.ranks.joined")
    return ranks.sharder


def check_tables(model: ModelConfig, config: TrainingConfig) -> None:
    """Raises TrainingError if ``config.tables`` is "torchrec" and it cannot shard the model's
    tables.

    ``shard_tables`` replaces one ``FusedEmbedding``, and single_dnn has one per task. FBGEMM has
    kernels for widths that are multiples of 4, and ``TorchRecTables`` takes one width for all
    fields.
    """
    if config.tables != "torchrec":
        return
    if model.name == "single_dnn":
        raise _refused(
            "a model with one FusedEmbedding, got model.name = single_dnn, which has one per task"
        )
    if model.embedding_dim % 4:
        raise _refused(f"model.embedding_dim = a multiple of 4, got {model.embedding_dim}")
    if set(model.embedding_dims.values()) - {model.embedding_dim}:
        raise _refused(f"model.embedding_dims = none of another width, got {model.embedding_dims}")
    if model.attention:
        raise _refused(
            f"model.attention = none, got {model.attention} (it reads the vector of each id)"
        )


def check_replicated(what: str, config: TrainingConfig) -> None:
    """Raises TrainingError if ``config.tables`` shards the tables, which ``what`` does
    not support.
    """
    if config.tables != "replicated":
        raise TrainingError(f"{what} needs training.tables = replicated, got {config.tables}")


def _refused(needed: str) -> TrainingError:
    return TrainingError(f"training.tables = torchrec needs {needed}")


def shard_tables(
    model: nn.Module,
    optimizer: OptimizerConfig,
    config: TrainingConfig,
    ranks: Ranks,
    *,
    fills: bool = True,
) -> None:
    """Replaces the model's one ``FusedEmbedding`` by ``ShardedTables`` with the weights of rank 0.

    Args:
        model: the model.
        optimizer: the optimizer options.
        config: the training options.
        ranks: the ranks.
        fills: see ``Sharder``.

    Raises:
        RankError, ValueError: see ``Sharder``.
    """
    (found,) = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, FusedEmbedding)
    )
    name, table = found
    parent, _, leaf = name.rpartition(".")
    sharded = _sharder(ranks)(
        table,
        sharding=config.sharding,
        optimizer=optimizer.tables,
        ranks=ranks,
        lr=tables_lr(optimizer),
        eps=optimizer.eps,
        device=config.device,
        fills=fills,
    )
    setattr(model.get_submodule(parent), leaf, sharded)


def share_of(config: TrainingConfig, rows: int, ranks: Ranks) -> Share | None:
    """Returns this rank's rows of a batch: an equal share of each part, so a part has the same rows
    as on one rank.

    Raises:
        TrainingError: ``rows`` training rows do not make a batch, and a step for each validation of
            an epoch; a batch cannot be divided equally among ranks and parts; or ``sync_steps``
            differs between ranks, which would wait for each other's collectives.
    """
    steps = rows // config.batch_size
    if not steps:
        raise TrainingError(
            f"training.batch_size: {rows} training rows are fewer than a batch of "
            f"{config.batch_size}"
        )
    if steps < config.validations:
        found = f"the {steps} steps of an epoch are fewer than its {config.validations} validations"
        raise TrainingError(f"training.validate_every: {found}")
    parts = ranks.size * config.accumulate
    run, rest = divmod(config.batch_size, parts)
    if rest:
        raise TrainingError(
            f"training.batch_size: expected a multiple of {ranks.size} ranks times "
            f"training.accumulate = {config.accumulate}, got {config.batch_size}"
        )
    if ranks.is_alone:
        return None
    least = -ranks.largest(-config.sync_steps)
    most = ranks.largest(config.sync_steps)
    if least != most:
        raise TrainingError(
            f"training.sync_steps: expected one value on all ranks, got {least} to {most}"
        )
    return Share(ranks.rank, ranks.size, run)
