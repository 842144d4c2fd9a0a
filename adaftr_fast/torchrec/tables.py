"""Embedding tables that no rank holds whole, by TorchRec: every row lies on one rank, with its optimizer's state.

B rows of this rank's batch, F fields, E width, N ids of all bags together, R table rows of all fields together.

TorchRec sends ids to the ranks that have their rows, and vectors back; in backward it sends gradients, divided by the
number of ranks as averaged gradients are, and moves the rows there and then. torchrec is imported where it is used.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import RankError
from adaftr_fast.nn.embedding import FusedEmbedding, MixedWidths
from adaftr_fast.nn.embedding_table import drawn_rows
from adaftr_fast.ops.embedding.reference.bags import places
from adaftr_fast.ops.embedding.reference.lookup import check_ids
from adaftr_fast.torchrec.rows import Shard, ShardedRows

if TYPE_CHECKING:
    from torchrec.distributed.model_parallel import DistributedModelParallel

Sharding = Literal["table_wise", "row_wise"]
RowOptimizer = Literal["sgd", "adagrad", "rowwise_adagrad"]
STATE = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",)}  # as adaftr_fast.optim calls it
INSTALL = (
    "beside torch 2.13, pip install adaftr-fast[torchrec], then pip install --no-deps torchrec==1.8.0 and "
    "fbgemm-gpu-cpu==1.8.0 (fbgemm-gpu==1.8.0 for CUDA)"
)
RESERVED = 0.15  # of a GPU's memory for all but tables, TorchRec's default; on CPUs it keeps nothing back
CGROUPS = Path("/sys/fs/cgroup")


class ShardedTables(nn.Module):
    """What a ``FusedEmbedding`` computes, from rows that lie across ranks.

    All ranks must make it, and then look up, alike: a look-up is a collective, as is its backward, which also takes the
    optimizer's step. Ranks may have different numbers of rows, also none, where there is no backward. It has no
    parameters; ``weight``, ``state`` and ``optimizer`` give access to what it holds.

    Attributes:
        last: the last look-up [B, F * E], detached; None before the first, and where it failed.

    Args:
        table: whose fields, names and pooling it takes over; the chief's weights are the initial ones of all ranks. It
            may be made within ``tables_elsewhere``.
        sharding: "table_wise", a field to a rank, or "row_wise", an equal part of every field to each rank.
        optimizer: "sgd", "adagrad" or "rowwise_adagrad", which compute what adaftr_fast.optim's do.
        ranks: all of the default process group.
        lr, eps: of the optimizer. The rate can be changed in ``optimizer.param_groups``, as of any optimizer.
        device: where the rows are.

    Raises:
        RankError: TorchRec cannot be imported, or tables do not fit into the ranks' memory.
        ValueError: a table of other types or widths than TorchRec takes, or an unknown option.
    """

    offsets: Tensor
    oov_counts: Tensor
    last: Tensor | None

    def __init__(
        self,
        table: FusedEmbedding,
        *,
        sharding: Sharding,
        optimizer: RowOptimizer,
        ranks: Ranks,
        lr: float,
        eps: float = 1e-8,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        _check(table, sharding, optimizer)
        device = torch.empty(0, device=device).device  # "cuda" with the number of this rank's
        self.num_embeddings, self.embedding_dim = list(table.num_embeddings), table.embedding_dim
        self.field_names, self.pooling = list(table.field_names), table.pooling
        for name in ("offsets", "oov_counts"):  # as in FusedEmbedding, so that a saved state is the same
            self.register_buffer(name, getattr(table, name).to(device), persistent=False)
        self._options = {"optimizer": optimizer, "lr": lr, "eps": eps}
        self._keys = [str(field) for field in range(len(self.num_embeddings))]  # TorchRec takes no dots
        self.last = None
        self._recalls = False
        # In a tuple, which hides its parameters: each is of some rows, and moved by no optimizer but its own.
        self._collection = (_collection(self, sharding, device, ranks),)
        self.optimizer: torch.optim.Optimizer = self._collection[0].fused_optimizer
        self.weight.fill(table.weight.detach() if table.initial_rng is None else _Drawn(table))

    @property
    def out_features(self) -> int:
        """F * E, the width of the output."""
        return len(self.num_embeddings) * self.embedding_dim

    @torch.compiler.disable
    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """As ``FusedEmbedding.forward`` -> [B, F * E], on all ranks together; ``weights`` are not taken.

        Raises:
            IndexError, TypeError, ValueError: as there; ValueError with ``weights``.
        """
        if weights is not None:
            raise ValueError("ShardedTables: weights of ids are not supported, got some: use a FusedEmbedding")
        if self._recalls:
            return self.last
        self.last = None
        out = self._looked_up(ids, offsets)
        self.last = out.detach()
        return out

    @contextmanager
    def recalled(self) -> Iterator[None]:
        """Within it a look-up gives ``last`` again, and no other rank is asked."""
        self._recalls = True
        try:
            yield
        finally:
            self._recalls = False

    def _looked_up(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

        counts, values, lengths = self._bags(ids, offsets)
        looked_up = self._collection[0](KeyedJaggedTensor(self._keys, values, lengths=lengths)).wait()
        out = KeyedTensor.regroup([looked_up], [self._keys])[0]  # [B, F * E]
        if counts is None or self.pooling == "sum":
            return out
        return (out.unflatten(1, (*counts.shape[1:], -1)) / counts.clamp(min=1)[..., None]).flatten(1)

    def _bags(self, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Ids in each bag [B, F] (None: all one), and the ids field after field [N] with how many a bag has [F * B]."""
        if offsets is None:
            check_ids("sharded_tables", ids, self.offsets)
            return None, ids.T.flatten(), torch.ones(ids.numel(), dtype=torch.int32, device=ids.device)
        places("sharded_tables", ids, offsets, None, self.offsets)
        counts = offsets.diff().int()  # [B * F]
        order = torch.arange(len(counts), dtype=torch.int32, device=ids.device)
        order = order.view(-1, len(self.num_embeddings)).T.flatten()
        lengths, values, _ = torch.ops.fbgemm.permute_2D_sparse_data(order, counts[:, None], ids, None, len(ids))
        return counts.view(-1, len(self.num_embeddings)), values, lengths.flatten()

    @property
    def weight(self) -> ShardedRows:
        """The tables' rows, field after field, [R, E]."""
        return ShardedRows(chain.from_iterable(self._shards()), [self.embedding_dim])

    def field_weights(self) -> dict[str, ShardedRows]:
        """The rows of each field by its name, [rows, E]."""
        return {n: ShardedRows(shards, [self.embedding_dim]) for n, shards in zip(self.field_names, self._shards())}

    def state(self) -> dict[str, ShardedRows]:
        """The optimizer's state, ``<name>.<field name>`` as in adaftr_fast.optim: [rows, E], or [rows] if row-wise."""
        kind = self._options["optimizer"]
        rest = [self.embedding_dim] if kind == "adagrad" else []
        return {
            f"{key}.{name}": ShardedRows(shards, rest)
            for number, key in enumerate(STATE[kind], start=1)
            for name, shards in zip(self.field_names, self._shards(number))
        }

    def _shards(self, state: int = 0) -> list[list[Shard]]:
        """Each field's shards; their rows are those of the optimizer's ``state``-th tensor, or at 0 of the table."""
        weights, states = self._collection[0].state_dict(), self.optimizer.state_dict()["state"] if state else {}
        fields = []
        for field in range(len(self.num_embeddings)):
            key = f"embedding_bags.{field}.weight"
            rows = states.get(key, {}).get(f"{field}.momentum{state}") if state else weights[key]
            mine = [] if rows is None else rows.local_shards()
            local = {each.metadata.shard_offsets[0]: each.tensor for each in mine}
            whole = sorted(weights[key].metadata().shards_metadata, key=lambda each: each.shard_offsets[0])
            fields.append([Shard(p.placement.rank(), p.shard_sizes[0], local.get(p.shard_offsets[0])) for p in whole])
        return fields


class _Drawn:
    """The initial rows of a table made within ``tables_elsewhere``, to be read once and in their order."""

    def __init__(self, table: FusedEmbedding) -> None:
        generator = torch.Generator()
        generator.set_state(table.initial_rng)
        self._blocks, self._left = drawn_rows(*table.weight.shape, generator), torch.empty(0, table.embedding_dim)

    def __getitem__(self, rows: slice) -> Tensor:
        count = rows.stop - rows.start
        while len(self._left) < count:
            self._left = torch.cat([self._left, next(self._blocks)])
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def check_installed() -> None:
    """Raises RankError, with the cause and what to do, where TorchRec or what it imports is absent or does not fit."""
    try:
        import fbgemm_gpu  # noqa: F401
        import torchrec  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: kernels for another torch
        cause = str(error).partition("\n")[0]
        raise RankError(f"sharded tables need TorchRec, which cannot be imported ({cause}): {INSTALL}") from error


def _check(table: FusedEmbedding, sharding: str, optimizer: str) -> None:
    check_installed()
    for name, value, known in (("sharding", sharding, get_args(Sharding)), ("optimizer", optimizer, tuple(STATE))):
        if value not in known:
            raise ValueError(f"ShardedTables: {name} must be one of {', '.join(known)}, got {value!r}")
    if isinstance(table, MixedWidths) or table.embedding_dim % 4:
        raise ValueError(
            f"ShardedTables: embedding_dim must be one multiple of 4 for all fields, got {table.embedding_dim}"
        )
    if table.weight.dtype != torch.float32:
        raise ValueError(f"ShardedTables: tables must be float32, got {table.weight.dtype}")
    if table.on_bad_id != "raise":
        raise ValueError(f"ShardedTables: on_bad_id must be 'raise', got {table.on_bad_id!r}")


def quiet() -> None:
    """No advice to users on how TorchRec calls torch; in force for good, since backward runs in another thread."""
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        warnings.filterwarnings("ignore", rf"`torch\.distributed\.{name}` is deprecated", FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _collection(
    tables: ShardedTables, sharding: Sharding, device: torch.device, ranks: Ranks
) -> DistributedModelParallel:
    """TorchRec's module, every table sharded by the plan of its planner."""
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError
    from torchrec.distributed.types import ShardingEnv
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    class Sharder(EmbeddingBagCollectionSharder):
        def sharding_types(self, compute_device_type: str) -> list[str]:
            # TorchRec lists row-wise for GPUs alone, though its kernels and gloo's collectives are there on a CPU too.
            return [sharding]

    collection = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            # The sum, and means are made of it here: TorchRec's own, row-wise, divides by the number of ids + 1e-6.
            EmbeddingBagConfig(
                name=name,
                embedding_dim=tables.embedding_dim,
                num_embeddings=rows,
                feature_names=[name],
                pooling=PoolingType.SUM,
            )
            for name, rows in zip(tables._keys, tables.num_embeddings)
        ],
    )
    sharders = [Sharder(fused_params=_fused_params(**tables._options))]
    planner = EmbeddingShardingPlanner(
        topology=_topology(device.type),
        constraints={name: ParameterConstraints(sharding_types=[sharding]) for name in tables._keys},
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
    )

    def plan() -> Any:
        try:
            return planner.plan(collection, sharders)
        except PlannerError as error:
            why = str(error).splitlines()[0].strip()
            raise RankError(
                f"TorchRec finds no place for the tables on {ranks.size} ranks, {sharding}: {why}"
            ) from None

    # TorchRec's own collective_plan leaves the others waiting where the chief finds no plan.
    made = ranks.from_chief(plan)
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    return DistributedModelParallel(
        collection, env=env, device=device, plan=made, sharders=sharders, init_data_parallel=False
    )


def _fused_params(optimizer: RowOptimizer, lr: float, eps: float) -> dict[str, Any]:
    """FBGEMM's optimizer: "exact" ones merge a row's gradients before they step, always in the same order."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    kinds = {
        "sgd": EmbOptimType.EXACT_SGD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    }
    return {"optimizer": kinds[optimizer], "learning_rate": lr, "eps": eps}


def _topology(device: str) -> Any:
    """The ranks and their memory, as the planner wants to know them."""
    from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig

    size = dist.get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    on_gpu = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory if device == "cuda" else None
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=size, local_world_size=local),
        HardwareConfig(hbm_cap_bytes=on_gpu, ddr_cap_bytes=_host_memory() // local),
        KernelConfig(compute_device=device),
    )


def _host_memory() -> int:
    """Bytes that this machine has, or that a container on it may use."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            limits.append(int((CGROUPS / name).read_text()))
    return min(limits)
