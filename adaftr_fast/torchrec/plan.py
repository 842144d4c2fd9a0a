"""TorchRec's sharding plan as plain values, which rank 0 sends to the other ranks.

torchrec is an optional dependency, imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrec.distributed.types import ShardingPlan

Tables = dict[str, dict[str, Any]]


def tables_of(plan: ShardingPlan) -> Tables:
    """Returns how each table of a plan for one EmbeddingBagCollection is sharded, as
    plain values.
    """
    ((_, module),) = plan.plan.items()
    return {
        name: {
            "sharding_type": table.sharding_type,
            "compute_kernel": table.compute_kernel,
            "ranks": list(table.ranks),
            "shards": [
                {
                    "offsets": list(shard.shard_offsets),
                    "sizes": list(shard.shard_sizes),
                    "placement": str(shard.placement),
                }
                for shard in table.sharding_spec.shards
            ],
        }
        for name, table in module.items()
    }


def plan_of(tables: Tables) -> ShardingPlan:
    """Returns the plan that ``tables_of`` describes."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
    from torchrec.distributed.types import (
        EmbeddingModuleShardingPlan,
        ParameterSharding,
        ShardingPlan,
    )

    module = EmbeddingModuleShardingPlan()
    for name, table in tables.items():
        shards = [
            ShardMetadata(each["offsets"], each["sizes"], each["placement"])
            for each in table["shards"]
        ]
        module[name] = ParameterSharding(
            sharding_type=table["sharding_type"],
            compute_kernel=table["compute_kernel"],
            ranks=table["ranks"],
            sharding_spec=EnumerableShardingSpec(shards),
        )
    return ShardingPlan({"": module})  # the collection is the root module


@contextmanager
def no_broadcast_of_settings() -> Iterator[None]:
    """Within the block, DistributedModelParallel does not broadcast whether to validate TorchRec's
    collectives.

    TorchRec pickles this flag, False by default. It is the only value that TorchRec pickles for
    ``ShardedTables``.
    """
    from torchrec.distributed import collective_utils

    before, collective_utils._INITIALIZED = collective_utils._INITIALIZED, True
    try:
        yield
    finally:
        collective_utils._INITIALIZED = before
