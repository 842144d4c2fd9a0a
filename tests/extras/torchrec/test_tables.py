"""Sharded look-ups and steps against one FusedEmbedding with adaftr_fast.optim."""

import os

import pytest
import torch
import torch.distributed as dist

from adaftr_fast import _memory
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.distributed import rows as sharded_rows
from adaftr_fast.distributed.ranks import JoinedRanks
from adaftr_fast.errors import RankError
from adaftr_fast.extras.torchrec.tables import TorchRecTables
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim import SGD, Adagrad, RowwiseAdagrad
from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_same_bits

pytest.importorskip("torchrec", reason="make test-torchrec installs it")

# the last has fewer rows than there are ranks
FIELDS = [201, 20, 7, 2]
NAMES = ["user", "item.id", "slot", "two"]
WIDTH = 8
ROWS = 12
OPTIMIZERS = {"sgd": SGD, "adagrad": Adagrad, "rowwise_adagrad": RowwiseAdagrad}
CASES = [
    ("table_wise", "sgd", "bags"),
    ("table_wise", "adagrad", "ids"),
    ("table_wise", "rowwise_adagrad", "bags"),
    ("row_wise", "sgd", "ids"),
    ("row_wise", "adagrad", "bags"),
    ("row_wise", "rowwise_adagrad", "ids"),
]
SHARDINGS = ("table_wise", "row_wise")
PARTS = {"whole": [slice(0, ROWS)], "parts": [slice(0, 5), slice(5, ROWS)]}
"""A backward per batch takes the step; or a batch is held, read in parts, and its gradient
halved.
"""
SCALES = {"whole": 1.0, "parts": 0.5}
STEPS = 3
LR = 0.5
EPS = 1e-3


def table(pooling="mean") -> FusedEmbedding:
    torch.manual_seed(0)
    return FusedEmbedding(FIELDS, WIDTH, field_names=NAMES, pooling=pooling)


def sharded_by(sharding: str, optimizer: str) -> TorchRecTables:
    ranks = JoinedRanks(dist.HashStore(), 60)
    return TorchRecTables(
        table(), sharding=sharding, optimizer=optimizer, ranks=ranks, lr=LR, eps=EPS
    )


def batch(form: str, rank: int, step: int, rows: int = ROWS) -> Batch:
    """Returns one rank's rows: ids, or bags of 0 to 3 ids with duplicates."""
    random = torch.Generator().manual_seed(100 * step + rank)
    limits = torch.tensor(FIELDS)
    if form == "ids":
        ids = (torch.rand(rows, len(FIELDS), generator=random) * limits).int()
        return Batch(ids, torch.zeros(rows))
    counts = torch.randint(0, 4, (rows * len(FIELDS),), generator=random)
    limits = limits.repeat(rows).repeat_interleave(counts)
    ids = (torch.rand(len(limits), generator=random) * limits.clamp(max=9)).int()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Batch(ids, torch.zeros(rows), offsets=offsets)


def loss(out: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient differs by row and element."""
    of_element = (out + torch.linspace(-1, 1, out.shape[1])).square()
    return (of_element * torch.linspace(1, 2, len(out))[:, None]).mean()


def trained(rank: int, sharding: str, optimizer: str, form: str, way: str) -> dict:
    """Returns this rank's outputs, the squared norms of the gradients, and its rows and state after
    some steps.
    """
    sharded = sharded_by(sharding, optimizer)
    outputs = []
    norms = []
    for step in range(STEPS):
        for group in sharded.optimizer.param_groups:
            group["lr"] = LR / (step + 1)
        sharded.optimizer.zero_grad()
        content = batch(form, rank, step)
        if way == "whole":
            outputs.append(sharded(*content.features))
            loss(outputs[-1]).backward()
            continue
        with sharded.begin(content.ids, content.offsets) as held:
            for held.part in PARTS[way]:
                outputs.append(sharded(*content[held.part].features))
                loss(outputs[-1]).backward()
            norms.append(held.squared_norm(dist.group.WORLD))
            held.scale(torch.tensor(SCALES[way]))
            held.update()
    rows = {"weight": sharded.weight, "user": sharded.field_weights()["user"]} | sharded.state()
    return {
        "out": torch.cat(outputs).detach(),
        "norms": norms,
        "rows": {name: local(each) for name, each in rows.items()},
    }


def replicated(size: int, optimizer: str, form: str, way: str) -> dict:
    """The same computation by one process: the mean of the ranks' losses."""
    embedding = table()
    eps = {} if optimizer == "sgd" else {"eps": EPS}
    table_optimizer = OPTIMIZERS[optimizer](embedding, lr=LR, **eps)
    outputs = [[] for _ in range(size)]
    norms = []
    for step in range(STEPS):
        table_optimizer.param_groups[0]["lr"] = LR / (step + 1)
        table_optimizer.zero_grad()
        for rank, of_rank in enumerate(outputs):
            for part in PARTS[way]:
                of_rank.append(embedding(*batch(form, rank, step)[part].features))
                (loss(of_rank[-1]) / size).backward()
        grad = embedding.weight.grad.coalesce()
        norms.append(grad.values().square().sum())
        embedding.weight.grad = grad * SCALES[way]
        table_optimizer.step()
    weight = embedding.weight.detach()
    state = table_optimizer.state_dict()["state"].get(0, {})  # that of SGD has none
    out = [torch.cat(each).detach() for each in outputs]
    rows = {"weight": weight, "user": weight[: FIELDS[0]]} | state
    return {"out": out, "norms": norms, "rows": rows}


def local(rows) -> list[tuple[int, torch.Tensor]]:
    """Returns this rank's shards with their first rows."""
    return [(first, shard.clone()) for first, shard in rows.local]


def whole(by_rank: list[dict]) -> dict[str, torch.Tensor]:
    """Joins the shards of all ranks, which must follow each other."""
    joined = {}
    for name in by_rank[0]:
        shards = [shard for each in by_rank for shard in each[name]]
        end = 0
        parts = []
        for first, rows in sorted(shards, key=lambda shard: shard[0]):
            assert first == end
            end += len(rows)
            parts.append(rows)
        joined[name] = torch.cat(parts)
    return joined


def uneven(rank: int, sharding: str) -> list[torch.Tensor]:
    """Returns look-ups without gradient, of a different number of rows per rank."""
    sharded = sharded_by(sharding, "sgd")
    with torch.no_grad():
        return [sharded(*batch(form, rank, 0, 5 * rank).features) for form in ("ids", "bags")]


def read(rank: int, sharding: str) -> dict:
    """Returns this rank's rows and states after it has read its own of some numbers."""
    sharded = sharded_by(sharding, "rowwise_adagrad")
    sharded_rows.CHUNK = 24  # numbers, so that every shard takes several reads
    found = {"weight": sharded.weight} | sharded.state()
    for rows in found.values():
        rows.read(numbered(rows.shape))
    return {name: local(rows) for name, rows in found.items()}


def numbered(shape) -> torch.Tensor:
    return torch.arange(shape.numel(), dtype=torch.float32).view(shape)


def errors(rank: int) -> list[str]:
    """Returns the errors of look-ups that are refused before any communication, and of those that
    are not of the batch.
    """
    sharded = sharded_by("row_wise", "sgd")
    messages = []

    def look_up(*arguments):
        try:
            sharded(*arguments)
        except (IndexError, ValueError) as error:
            messages.append(str(error))

    bags = batch("bags", rank, 0)
    bad = torch.tensor([[0, 0, 0, 2]])
    look_up(bad)
    look_up(torch.zeros(1, 3).int())
    look_up(bad[0], torch.arange(5))
    look_up(bags.ids, bags.offsets, torch.ones(len(bags.ids)))
    ids = batch("ids", rank, 0).ids
    with sharded.begin(ids, None) as held:
        look_up(ids[:5])
        held.part = slice(0, 5)
        look_up(ids[1:6])
    return messages


def memory_error(rank: int) -> str:
    memory, _memory.limit = _memory.limit, lambda: 10_000
    try:
        sharded_by("table_wise", "sgd")
    except RankError as error:
        return str(error)
    finally:
        _memory.limit = memory


def on_a_rank(rank: int, size: int) -> dict:
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    assert dist.get_world_size() == size
    results = {
        f"{' '.join(case)} {way}": trained(rank, *case, way) for case in CASES for way in PARTS
    }
    results |= {f"uneven {sharding}": uneven(rank, sharding) for sharding in SHARDINGS}
    results |= {f"read {sharding}": read(rank, sharding) for sharding in SHARDINGS}
    again = trained(rank, "row_wise", "adagrad", "bags", "whole")
    return results | {"again": again, "memory": memory_error(rank), "errors": errors(rank)}


@pytest.fixture(scope="module", params=[2, 4])  # 4 are more ranks than fields have rows
def by_ranks(request) -> list[dict]:
    return on_ranks(on_a_rank, request.param, request.param)


@pytest.mark.parametrize("way", PARTS)
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_outputs_norms_rows_and_states_equal_one_process(case, way, by_ranks):
    got = [each[f"{' '.join(case)} {way}"] for each in by_ranks]
    expected = replicated(len(got), *case[1:], way)
    for rank, each in enumerate(got):
        torch.testing.assert_close(each["out"], expected["out"][rank], rtol=1e-5, atol=1e-6)
        if way == "parts":
            torch.testing.assert_close(each["norms"], expected["norms"], rtol=1e-5, atol=0.0)
    found = whole([each["rows"] for each in got])
    torch.testing.assert_close(found, expected["rows"], rtol=1e-4, atol=1e-6)
    assert not torch.equal(expected["rows"]["weight"], table().weight)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_uneven_batches(sharding, by_ranks):
    embedding = table()
    for rank, each in enumerate(by_ranks):
        for form, out in zip(("ids", "bags"), each[f"uneven {sharding}"]):
            expected = embedding(*batch(form, rank, 0, 5 * rank).features).detach()
            torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_read_rows(sharding, by_ranks):
    found = whole([each[f"read {sharding}"] for each in by_ranks])
    assert list(found) == ["weight", *(f"sum.{name}" for name in NAMES)]
    for value in found.values():
        assert torch.equal(value, numbered(value.shape))


def test_bitwise_equal_across_runs(by_ranks):
    for each in by_ranks:
        assert_same_bits(each["again"], each["row_wise adagrad bags whole"])


def test_ids_that_are_bad_or_not_of_the_batch_are_refused(by_ranks):
    expected = [
        "sharded_tables: ids[0, 3] = 2 is out of range for field 3, whose ids are 0 to 1",
        "sharded_tables: ids must be [B, 4] (one column per field), got [1, 3]",
        "sharded_tables: values[3] = 2 (row 0) is out of range for field 3, whose ids are 0 to 1",
        "TorchRecTables: per_sample_weights must be None, got a tensor: use a FusedEmbedding for "
        "weighted ids",
        *["TorchRecTables: ids must be those of the batch in a training step, which looks them up "
        "once; train a model that looks up others with training.tables = replicated"] * 2,
    ]  # fmt: skip
    assert [each["errors"] for each in by_ranks] == [expected] * len(by_ranks)


def test_tables_that_exceed_memory_are_refused_on_all_ranks(by_ranks):
    message = f"TorchRec cannot place the tables on {len(by_ranks)} ranks, table_wise: Unable"
    assert all(each["memory"].startswith(message) for each in by_ranks)


@pytest.mark.parametrize(
    ("of_table", "options", "message"),
    [
        ({"embedding_dim": 6}, {}, "embedding_dim must be one multiple of 4 for all fields, got 6"),
        ({"embedding_dim": [4, 8, 4, 4]}, {}, r"4 for all fields, got \[4, 8, 4, 4\]"),
        ({"dtype": torch.bfloat16}, {}, "tables must be float32, got torch.bfloat16"),
        ({"on_bad_id": "oov"}, {}, "on_bad_id must be 'raise', got 'oov'"),
        ({}, {"optimizer": "adam"}, "one of sgd, adagrad, rowwise_adagrad, got 'adam'"),
        ({}, {"sharding": "column_wise"}, "of table_wise, row_wise, got 'column_wise'"),
    ],
)
def test_unsupported_tables_and_options(of_table, options, message):
    embedding = FusedEmbedding(FIELDS, **{"embedding_dim": 8} | of_table)
    options = {"sharding": "table_wise", "optimizer": "sgd"} | options
    with pytest.raises(ValueError, match=message):
        TorchRecTables(embedding, **options, ranks=None, lr=LR)
