"""Embedding tables sharded over ranks by TorchRec: one rank holds each row, with its optimizer
state.

Shapes: B rows of this rank's batch, F fields, E width, N ids of all bags, R table rows of all
fields.

TorchRec sends ids to the ranks that hold their rows, and receives the vectors. In backward it sends
the gradients, divided by the number of ranks, and updates the rows. torchrec is an optional
dependency, imported where it is used.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from adaftr_fast import _memory
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.distributed.rows import ShardedRows
from adaftr_fast.errors import RankError, first_line
from adaftr_fast.extras.torchrec.step import StepLookup
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.embedding_table import drawn_rows
from adaftr_fast.ops.embedding.reference.bags import resolve_ids
from adaftr_fast.ops.embedding.reference.lookup import check_ids
from adaftr_fast.optim.tables import ShardedTables

if TYPE_CHECKING:
    from torchrec.distributed.model_parallel import DistributedModelParallel

SHARDINGS = ("table_wise", "row_wise")
Shards = list[tuple[int, Tensor]]  # the first row and the rows of each
# The names of the state's tensors, as in adaftr_fast.optim.
STATE: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "adagrad": ("sum",),
    "rowwise_adagrad": ("sum",),
}
INSTALL = (
    "with torch 2.13, pip install adaftr-fast[torchrec], then pip install --no-deps "
    "torchrec==1.8.0 and "
    "fbgemm-gpu-cpu==1.8.0 (fbgemm-gpu==1.8.0 for CUDA)"
)
# share of a GPU's memory kept free of tables, TorchRec's default; no effect on CPUs
RESERVED = 0.15


class TorchRecTables(ShardedTables):
    """Computes a ``FusedEmbedding`` whose rows are sharded over ranks.

    All ranks must construct it and call it in the same order. A look-up is a collective, and so is
    its backward, which also takes the optimizer's step. Without backward, the ranks' batches may
    differ in size and may be empty. Within ``begin``, look-ups read parts of one batch, and
    ``update`` takes the step. The module has no parameters; ``weight``, ``state`` and
    ``optimizer`` give access to the rows and their state.

    The other arguments are those of ``optim.tables.Sharder``.

    Args:
        sharding: "table_wise" (each field on one rank) or "row_wise" (an equal part of every field
            on each rank).
        optimizer: "sgd", "adagrad" or "rowwise_adagrad", which compute the same as those of
            adaftr_fast.optim.

    Shape:
        - ids: [B, F], or [N] with offsets [B * F + 1]
        - Output: [B, F * E]

    Raises:
        RankError: TorchRec cannot be imported, or the tables do not fit into the ranks' memory.
        ValueError: TorchRec does not support the table's dtype or width, or an option is unknown.
    """

    kinds = tuple(STATE)
    offsets: Tensor
    oov_counts: Tensor

    def __init__(
        self,
        table: FusedEmbedding,
        *,
        sharding: str,
        optimizer: str,
        ranks: Ranks,
        lr: float,
        eps: float = 1e-8,
        device: torch.device | str = "cpu",
        fills: bool = True,
    ) -> None:
        super().__init__()
        self.check_installed()
        _check(table, sharding, optimizer)
        _quiet()
        device = torch.empty(0, device=device).device  # "cuda" with this rank's index
        self.num_embeddings = list(table.num_embeddings)
        self.widths = list(table.widths)
        self.embedding_dim = self.widths[0]
        self.field_names = list(table.field_names)
        self.pooling = table.pooling
        for name in ("offsets", "oov_counts"):  # as in FusedEmbedding, for an equal state dict
            self.register_buffer(name, getattr(table, name).to(device), persistent=False)
        self._kind = optimizer
        # TorchRec takes no dots
        self._keys = [str(field) for field in range(len(self.num_embeddings))]
        self._held: StepLookup | None = None
        self._ranks = ranks
        # The tuple hides the parameters from nn.Module: each holds some rows, and only its own
        # optimizer updates it.
        fused = _fused_params(optimizer, lr, eps)
        self._collection = (_collection(self, sharding, fused, device, ranks),)
        self.optimizer: torch.optim.Optimizer = self._collection[0].fused_optimizer
        if fills:
            rng = table.initial_rng
            own = {"weight": table.weight.detach()} if rng is None else {"rng": rng}
            (first,) = ranks.tensors_from_rank_zero(own).values()
            self.weight.read(first if rng is None else _Drawn(table.weight.shape, first))

    @_disable_dynamo  # torch.compiler.disable, without importing the compiler until it is needed
    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Looks up like ``FusedEmbedding.forward``, as a collective -> [B, F * E].

        Raises:
            IndexError, TypeError, ValueError: as ``FusedEmbedding.forward``.
            ValueError: ``per_sample_weights`` are given, which are not supported, or ids are not
                those of ``begin``.
        """
        if per_sample_weights is not None:
            raise ValueError(
                "TorchRecTables: per_sample_weights must be None, got a tensor: use a "
                "FusedEmbedding for weighted ids"
            )
        return self._look_up(ids, offsets) if self._held is None else self._held.read(ids, offsets)

    @classmethod
    def check_installed(cls) -> None:
        try:
            import fbgemm_gpu  # noqa: F401
            import torchrec  # noqa: F401
        except (ImportError, OSError) as error:  # OSError: FBGEMM is built for another torch
            cause = first_line(error)
            raise RankError(
                f"sharded tables require TorchRec, which cannot be imported ({cause}): {INSTALL}"
            ) from error

    @contextmanager
    def begin(self, ids: Tensor, offsets: Tensor | None) -> Iterator[StepLookup]:
        """Looks up a batch, as a collective. Within the block, look-ups read from it without
        communication.

        Raises:
            IndexError, TypeError, ValueError: as ``forward``.
        """
        self.optimizer.zero_grad()  # passes the learning rate to the update inside backward
        self._held = StepLookup(
            self._look_up(ids, offsets), ids, offsets, self.offsets, self.pooling == "mean"
        )
        try:
            yield self._held
        finally:
            self._held = None

    def read_part(self, rows: slice) -> None:
        self._step.part = rows

    @torch.no_grad()
    def clip(self, parameters: Sequence[Tensor], max_norm: float) -> None:
        """Scales dense gradients, which are averaged, and those of the rows."""
        grads = [grad for parameter in parameters if (grad := parameter.grad) is not None]
        dense = torch.nn.utils.get_total_norm(grads).square()
        squares = torch.stack([dense, self._step.squared_norm(self._ranks.group)])
        scale = (max_norm / (squares.sum().sqrt() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
        self._step.scale(scale)

    def update(self) -> None:
        self._step.update()

    @property
    def _step(self) -> StepLookup:
        """The look-up of the present step."""
        assert self._held is not None  # begin() was called
        return self._held

    def _look_up(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

        counts, values, lengths = self._bags(ids, offsets)
        looked_up = self._collection[0](
            KeyedJaggedTensor(self._keys, values, lengths=lengths)
        ).wait()
        out = KeyedTensor.regroup([looked_up], [self._keys])[0]  # [B, F * E]
        if counts is None or self.pooling == "sum":
            return out
        return (out.unflatten(1, (*counts.shape[1:], -1)) / counts.clamp(min=1)[..., None]).flatten(
            1
        )

    def _bags(self, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """Returns the bags' sizes [B, F] (None: all 1), the ids field by field [N], and their bags'
        sizes [F * B].
        """
        if offsets is None:
            check_ids("sharded_tables", ids, self.offsets)
            return (
                None,
                ids.T.flatten(),
                torch.ones(ids.numel(), dtype=torch.int32, device=ids.device),
            )
        resolve_ids("sharded_tables", ids, offsets, None, self.offsets)
        counts = offsets.diff().int()  # [B * F]
        order = torch.arange(len(counts), dtype=torch.int32, device=ids.device)
        order = order.view(-1, len(self.num_embeddings)).T.flatten()
        lengths, values, _ = torch.ops.fbgemm.permute_2D_sparse_data(
            order, counts[:, None], ids, None, len(ids)
        )
        return counts.view(-1, len(self.num_embeddings)), values, lengths.flatten()

    @property
    def weight(self) -> ShardedRows:
        """The rows of all tables, one field after another, [R, E]."""
        *starts, end = self.offsets.tolist()
        local = [
            (start + first, rows)
            for start, shards in zip(starts, self._shards())
            for first, rows in shards
        ]
        return ShardedRows([end, self.embedding_dim], local)

    def field_weights(self) -> dict[str, ShardedRows]:
        """Returns the rows [rows, E] of each field by its name."""
        return self._by_field(self._shards(), [self.embedding_dim])

    def state(self) -> dict[str, ShardedRows]:
        """Returns the state by ``<name>.<field name>``, as adaftr_fast.optim: [rows, E], or [rows]
        for row-wise.
        """
        rest = [self.embedding_dim] if self._kind == "adagrad" else []
        return {
            f"{key}.{name}": rows
            for number, key in enumerate(STATE[self._kind], start=1)
            for name, rows in self._by_field(self._shards(number), rest).items()
        }

    def _by_field(self, shards: list[Shards], rest: list[int]) -> dict[str, ShardedRows]:
        fields = zip(self.field_names, self.num_embeddings, shards)
        return {name: ShardedRows([rows, *rest], local) for name, rows, local in fields}

    def _shards(self, state: int = 0) -> list[Shards]:
        """Returns each field's shards on this rank of the table (``state`` 0) or of the optimizer's
        ``state``-th tensor.
        """
        weights = self._collection[0].state_dict()
        states = self.optimizer.state_dict()["state"] if state else {}
        fields = []
        for field in range(len(self.num_embeddings)):
            key = f"embedding_bags.{field}.weight"
            rows = states.get(key, {}).get(f"{field}.momentum{state}") if state else weights[key]
            mine = [] if rows is None else rows.local_shards()
            fields.append([(each.metadata.shard_offsets[0], each.tensor) for each in mine])
        return fields


class _Drawn:
    """The initial rows of a table constructed within ``tables_elsewhere``, of which ranges are read
    in order.
    """

    def __init__(self, shape: torch.Size, rng: Tensor) -> None:
        rows, width = shape
        generator = torch.Generator()
        generator.set_state(rng)
        self._blocks = drawn_rows(rows, width, generator)
        self._block = torch.empty(0, width)
        self._end = 0  # of the block, in rows

    def __getitem__(self, rows: slice) -> Tensor:
        found = []
        while True:
            first = self._end - len(self._block)
            found.append(self._block[max(0, rows.start - first) : max(0, rows.stop - first)])
            if rows.stop <= self._end:
                return torch.cat(found)
            self._block = next(self._blocks)
            self._end += len(self._block)


def _check(table: FusedEmbedding, sharding: str, optimizer: str) -> None:
    for name, value, known in (
        ("sharding", sharding, SHARDINGS),
        ("optimizer", optimizer, tuple(STATE)),
    ):
        if value not in known:
            raise ValueError(
                f"TorchRecTables: {name} must be one of {', '.join(known)}, got {value!r}"
            )
    if len(table.by_width) > 1 or table.widths[0] % 4:
        raise ValueError(
            "TorchRecTables: embedding_dim must be one multiple of 4 for all fields, got "
            f"{table.embedding_dim}"
        )
    if table.weight.dtype != torch.float32:
        raise ValueError(f"TorchRecTables: tables must be float32, got {table.weight.dtype}")
    if table.pooling not in ("mean", "sum") or not table.include_last_offset:
        raise ValueError(
            "TorchRecTables: pooling must be 'mean' or 'sum' for all fields, with "
            f"include_last_offset, got {table.pooling!r} and {table.include_last_offset}"
        )
    if table.on_bad_id != "raise":
        raise ValueError(f"TorchRecTables: on_bad_id must be 'raise', got {table.on_bad_id!r}")


def _quiet() -> None:
    """Silences warnings about TorchRec's calls of torch, for good because backward runs in another
    thread.
    """
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        warnings.filterwarnings(
            "ignore", rf"`torch\.distributed\.{name}` is deprecated", FutureWarning
        )
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _collection(
    tables: TorchRecTables,
    sharding: str,
    fused: dict[str, Any],
    device: torch.device,
    ranks: Ranks,
) -> DistributedModelParallel:
    """Constructs TorchRec's module, with the tables sharded by its planner."""
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError
    from torchrec.distributed.sharding_plan import (
        construct_module_sharding_plan,
        row_wise,
        table_wise,
    )
    from torchrec.distributed.types import ShardingEnv, ShardingPlan
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]  # torchrec has no types
        def sharding_types(self, compute_device_type: str) -> list[str]:
            # TorchRec offers row-wise on GPUs only, although its kernels and gloo's collectives
            # support CPUs too.
            return [sharding]

    collection = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            # Means are computed from the sum here: TorchRec's row-wise mean divides by the number
            # of ids + 1e-6.
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
    sharder = Sharder(fused_params=fused)
    topology = _topology(device.type)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        constraints={
            name: ParameterConstraints(sharding_types=[sharding]) for name in tables._keys
        },
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
    )

    def plan() -> dict[str, list[Any]]:
        """Returns the first rank and the kernel of each table."""
        try:
            (module,) = planner.plan(collection, [sharder]).plan.values()
        except PlannerError as error:
            cause = first_line(error)
            raise RankError(
                f"TorchRec cannot place the tables on {ranks.size} ranks, {sharding}: {cause}"
            ) from None
        return {name: [each.ranks[0], each.compute_kernel] for name, each in module.items()}

    # TorchRec's collective_plan leaves the other ranks waiting if rank 0 finds no plan.
    placed = {
        name: (
            table_wise(rank, compute_kernel=kernel)
            if sharding == "table_wise"
            else row_wise(compute_kernel=kernel)
        )
        for name, (rank, kernel) in ranks.from_rank_zero(plan).items()
    }
    module = construct_module_sharding_plan(
        collection, placed, sharder, topology.local_world_size, ranks.size, device.type
    )
    with _no_broadcast_of_settings():
        return DistributedModelParallel(
            collection,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=device,
            plan=ShardingPlan({"": module}),  # the collection is the root module
            sharders=[sharder],
            init_data_parallel=False,
        )


@contextmanager
def _no_broadcast_of_settings() -> Iterator[None]:
    """Within the block, DistributedModelParallel does not broadcast whether to validate TorchRec's
    collectives.

    TorchRec pickles this flag, False by default. It is the only value that TorchRec pickles for
    ``TorchRecTables``.
    """
    from torchrec.distributed import collective_utils

    before = collective_utils._INITIALIZED
    collective_utils._INITIALIZED = True
    try:
        yield
    finally:
        collective_utils._INITIALIZED = before


def _fused_params(optimizer: str, lr: float, eps: float) -> dict[str, Any]:
    """Returns FBGEMM's options. Its "exact" optimizers first merge a row's gradients, always in the
    same order.
    """
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    kind = EmbOptimType[f"EXACT_{optimizer.upper()}"]
    return {"optimizer": kind, "learning_rate": lr, "eps": eps}


def _topology(device: str) -> Any:
    """Describes the ranks and their memory for the planner."""
    from torchrec.distributed.planner.types import (
        HardwareConfig,
        KernelConfig,
        TopologyFactory,
        TrainerConfig,
    )

    size = dist.get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    on_gpu = (
        torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        if device == "cuda"
        else None
    )
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=size, local_world_size=local),
        HardwareConfig(hbm_cap_bytes=on_gpu, ddr_cap_bytes=_memory.limit() // local),
        KernelConfig(compute_device=device),
    )
