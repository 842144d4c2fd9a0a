"""Sharded look-ups and steps against one FusedEmbedding with adaftr_fast.optim."""

import os

import pytest
import torch
import torch.distributed as dist

from adaftr_fast import _memory
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.distributed.ranks import JoinedRanks
from adaftr_fast.errors import RankError
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.optim import SGD, Adagrad, RowwiseAdagrad
from adaftr_fast.torchrec import rows as sharded_rows
from adaftr_fast.torchrec.tables import ShardedTables
from tests.distributed.ranks import on_ranks

pytest.importorskip("torchrec", reason="make test-torchrec installs it")

# the last has fewer rows than there are ranks
FIELDS, NAMES = [201, 20, 7, 2], ["user", "item.id", "slot", "two"]
WIDTH, ROWS = 8, 12
OPTIMIZERS = {"sgd": SGD, "adagrad": Adagrad, "rowwise_adagrad": RowwiseAdagrad}
CASES = {
    f"{sharding} {optimizer} {form}": (sharding, optimizer, form)
    for sharding in ("table_wise", "row_wise")
    for optimizer in OPTIMIZERS
    for form in ("ids", "bags")
}
STEPS = 3
LR = 0.5
EPS = 1e-3


def table(pooling="mean") -> FusedEmbedding:
    torch.manual_seed(0)
    return FusedEmbedding(FIELDS, WIDTH, field_names=NAMES, pooling=pooling)


def sharded_by(sharding: str, optimizer: str) -> ShardedTables:
    ranks = JoinedRanks(dist.HashStore(), 60)
    return ShardedTables(
        table(), sharding=sharding, optimizer=optimizer, ranks=ranks, lr=LR, eps=EPS
    )


def batch(form: str, rank: int, step: int, rows: int = ROWS) -> tuple[torch.Tensor, ...]:
    """Returns one rank's rows: ids, or bags of 0 to 3 ids with duplicates."""
    random = torch.Generator().manual_seed(100 * step + rank)
    limits = torch.tensor(FIELDS)
    if form == "ids":
        return ((torch.rand(rows, len(FIELDS), generator=random) * limits).int(),)
    counts = torch.randint(0, 4, (rows * len(FIELDS),), generator=random)
    limits = limits.repeat(rows).repeat_interleave(counts)
    ids = (torch.rand(len(limits), generator=random) * limits.clamp(max=9)).int()
    return ids, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def loss(out: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient differs by row and element."""
    return (
        (out + torch.linspace(-1, 1, out.shape[1]))
        .square()
        .mul(torch.linspace(1, 2, len(out))[:, None])
        .mean()
    )


def trained(rank: int, sharding: str, optimizer: str, form: str) -> dict:
    """Returns this rank's outputs, and its rows and state after some steps."""
    sharded = sharded_by(sharding, optimizer)
    outputs = []
    for step in range(STEPS):
        for group in sharded.optimizer.param_groups:
            group["lr"] = LR / (step + 1)
        sharded.optimizer.zero_grad()
        outputs.append(sharded(*batch(form, rank, step)))
        loss(outputs[-1]).backward()
    rows = {"weight": sharded.weight, "user": sharded.field_weights()["user"]} | sharded.state()
    return {
        "out": torch.stack(outputs).detach(),
        "rows": {name: local(each) for name, each in rows.items()},
    }


def by_parts(rank: int, sharding: str, optimizer: str, form: str) -> dict:
    """Returns the squared norms of the gradient in each step, and the rows after steps of two
    parts, halved.
    """
    sharded = sharded_by(sharding, optimizer)
    norms = []
    for step in range(STEPS):
        sharded.optimizer.zero_grad()
        content = Batch(
            batch(form, rank, step)[0],
            torch.zeros(ROWS),
            offsets=[*batch(form, rank, step), None][1],
        )
        with sharded.held(content.ids, content.offsets) as held:
            for held.part in (slice(0, 5), slice(5, ROWS)):
                loss(sharded(*content[held.part].features)).backward()
            norms.append(held.squared_norm(dist.group.WORLD))
            held.scale(torch.tensor(0.5))
            held.update()
    return {"norms": torch.stack(norms), "rows": {"weight": local(sharded.weight)}}


def other_ids(rank: int) -> list[str]:
    """Returns the errors of look-ups that are not those of the batch."""
    sharded = sharded_by("row_wise", "sgd")
    (ids,) = batch("ids", rank, 0)
    messages = []
    with sharded.held(ids, None) as held:
        for part, looked_up in ((slice(0, ROWS), ids[:5]), (slice(0, 5), ids[1:6])):
            held.part = part
            try:
                sharded(looked_up)
            except ValueError as error:
                messages.append(str(error))
    return messages


def local(rows) -> list[tuple[int, torch.Tensor]]:
    """Returns this rank's shards with their first rows."""
    return [(first, shard.clone()) for first, shard in rows.local()]


def whole(by_rank: list[dict]) -> dict[str, torch.Tensor]:
    """Joins the shards of all ranks, which must follow each other."""
    joined = {}
    for name in by_rank[0]:
        shards = sorted(
            (shard for each in by_rank for shard in each[name]), key=lambda shard: shard[0]
        )
        firsts = [first for first, _ in shards]
        assert firsts == [
            0,
            *torch.tensor([len(rows) for _, rows in shards]).cumsum(0).tolist()[:-1],
        ]
        joined[name] = torch.cat([rows for _, rows in shards])
    return joined


def uneven(rank: int, sharding: str) -> list[torch.Tensor]:
    """Returns look-ups without gradient, of a different number of rows per rank."""
    sharded = sharded_by(sharding, "sgd")
    with torch.no_grad():
        return [sharded(*batch(form, rank, 0, 5 * rank)) for form in ("ids", "bags")]


def filled(rank: int, sharding: str) -> dict[str, dict]:
    """Returns this rank's rows and states after rank 0 sent them, and after each rank
    read its own.
    """
    sharded = sharded_by(sharding, "rowwise_adagrad")
    sharded_rows.CHUNK = 24  # numbers, so that every shard takes several messages
    found = {"fill": {}, "read": {}}
    for name, rows in ({"weight": sharded.weight} | sharded.state()).items():
        rows.fill(numbered(rows.shape) if rank == 0 else None)
        found["fill"][name] = local(rows)
        rows.read(-numbered(rows.shape))
        found["read"][name] = local(rows)
    return found


def numbered(shape) -> torch.Tensor:
    return torch.arange(shape.numel(), dtype=torch.float32).view(shape)


def same_bits(rank: int) -> bool:
    first, second = (trained(rank, "row_wise", "adagrad", "bags") for _ in range(2))
    pairs = [
        pair
        for name in first["rows"]
        for pair in zip(first["rows"][name], second["rows"][name], strict=True)
    ]
    return torch.equal(first["out"], second["out"]) and all(
        torch.equal(a, b) for (_, a), (_, b) in pairs
    )


def input_errors(rank: int) -> list[str]:
    """Returns the errors of look-ups that are refused before any communication."""
    sharded = sharded_by("row_wise", "sgd")
    ids, bags = batch("bags", rank, 0)
    bad = torch.tensor([[0, 0, 0, 2]])
    messages = []
    for arguments in (
        (bad,),
        (torch.zeros(1, 3).int(),),
        (bad[0], torch.arange(5)),
        (ids, bags, torch.ones(len(ids))),
    ):
        try:
            sharded(*arguments)
        except (IndexError, ValueError) as error:
            messages.append(str(error))
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
    results = {name: trained(rank, *case) for name, case in CASES.items()}
    results |= {f"parts {name}": by_parts(rank, *case) for name, case in CASES.items()}
    for sharding in ("table_wise", "row_wise"):
        results |= {
            f"uneven {sharding}": uneven(rank, sharding),
            f"filled {sharding}": filled(rank, sharding),
        }
    return results | {
        "same bits": same_bits(rank),
        "memory": memory_error(rank),
        "inputs": input_errors(rank),
        "other ids": other_ids(rank),
    }


@pytest.fixture(scope="module")
def by_two() -> list[dict]:
    return on_ranks(on_a_rank, 2, 2)


@pytest.fixture(scope="module")
def by_four() -> list[dict]:
    """More ranks than fields."""
    return on_ranks(on_a_rank, 4, 4)


def one_process(optimizer: str):
    """Returns the table and its optimizer."""
    embedding = table()
    return embedding, OPTIMIZERS[optimizer](
        embedding, lr=LR, **({} if optimizer == "sgd" else {"eps": EPS})
    )


def replicated(size: int, optimizer: str, form: str) -> dict:
    """The same computation by one process: the mean of the ranks' losses."""
    embedding, table_optimizer = one_process(optimizer)
    outputs = []
    for step in range(STEPS):
        table_optimizer.param_groups[0]["lr"] = LR / (step + 1)
        table_optimizer.zero_grad()
        outputs.append([embedding(*batch(form, rank, step)) for rank in range(size)])
        (sum(map(loss, outputs[-1])) / size).backward()
        table_optimizer.step()
    weight, state = embedding.weight.detach(), table_optimizer.state_dict()["state"][0]
    out = [
        torch.stack([outputs[step][rank] for step in range(STEPS)]).detach() for rank in range(size)
    ]
    return {"out": out, "whole": {"weight": weight, "user": weight[: FIELDS[0]]} | state}


@pytest.mark.parametrize("ranks", ["by_two", "by_four"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_rows_and_states_equal_one_process(name, ranks, request):
    got = request.getfixturevalue(ranks)
    expected = replicated(len(got), *CASES[name][1:])
    for rank, each in enumerate(got):
        torch.testing.assert_close(each[name]["out"], expected["out"][rank], rtol=1e-5, atol=1e-6)
    found = whole([each[name]["rows"] for each in got])
    assert found.keys() == expected["whole"].keys()
    for part, value in expected["whole"].items():
        torch.testing.assert_close(found[part], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(expected["whole"]["weight"], table().weight)


def replicated_by_parts(size: int, optimizer: str, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same steps by one process: the squared norms, and the rows."""
    embedding, table_optimizer = one_process(optimizer)
    norms = []
    for step in range(STEPS):
        table_optimizer.zero_grad()
        for rank in range(size):
            content = Batch(
                batch(form, rank, step)[0],
                torch.zeros(ROWS),
                offsets=[*batch(form, rank, step), None][1],
            )
            for part in (slice(0, 5), slice(5, ROWS)):
                (loss(embedding(*content[part].features)) / size).backward()
        grad = embedding.weight.grad.coalesce()
        norms.append(grad.values().square().sum())
        embedding.weight.grad = grad * 0.5
        table_optimizer.step()
    return torch.stack(norms), embedding.weight.detach()


@pytest.mark.parametrize("ranks", ["by_two", "by_four"])
@pytest.mark.parametrize("name", CASES)
def test_steps_of_parts_with_a_scaled_gradient_equal_one_process(name, ranks, request):
    got = [each[f"parts {name}"] for each in request.getfixturevalue(ranks)]
    norms, rows = replicated_by_parts(len(got), *CASES[name][1:])
    for each in got:
        torch.testing.assert_close(each["norms"], norms, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(
        whole([each["rows"] for each in got])["weight"], rows, rtol=1e-4, atol=1e-6
    )


def test_a_step_looks_up_its_batch_alone(by_two):
    for each in by_two:
        assert len(each["other ids"]) == 2
        assert all(
            message.startswith("ShardedTables: ids must be those of the batch")
            for message in each["other ids"]
        )


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_uneven_batches(sharding, by_four):
    embedding = table()
    for rank, each in enumerate(by_four):
        for form, out in zip(("ids", "bags"), each[f"uneven {sharding}"]):
            torch.testing.assert_close(
                out, embedding(*batch(form, rank, 0, 5 * rank)).detach(), rtol=1e-6, atol=1e-8
            )


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_fill_and_read_rows(sharding, by_two, by_four):
    for ranks in (by_two, by_four):
        for way, sign in (("fill", 1), ("read", -1)):
            found = whole([each[f"filled {sharding}"][way] for each in ranks])
            assert list(found) == ["weight", *(f"sum.{name}" for name in NAMES)]
            for value in found.values():
                assert torch.equal(value, sign * numbered(value.shape))


def test_bitwise_equal_across_runs(by_two, by_four):
    assert all(each["same bits"] for each in by_two + by_four)


def test_bad_ids_are_refused_before_they_are_sent(by_two):
    for each in by_two:
        assert each["inputs"] == [
            "sharded_tables: ids[0, 3] = 2 is out of range for field 3, whose ids are 0 to 1",
            "sharded_tables: ids must be [B, 4] (one column per field), got [1, 3]",
            "sharded_tables: values[3] = 2 (row 0) is out of range for field 3, whose ids are "
            "0 to 1",
            "ShardedTables: per_sample_weights must be None, got a tensor: use a FusedEmbedding "
            "for weighted ids",
        ]


def test_tables_that_exceed_memory_are_refused_on_all_ranks(by_two):
    for each in by_two:
        assert each["memory"].startswith(
            "TorchRec cannot place the tables on 2 ranks, table_wise: Unable"
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_dim": 6}, "embedding_dim must be one multiple of 4 for all fields, got 6"),
        (
            {"embedding_dim": [4, 8, 4, 4]},
            r"one multiple of 4 for all fields, got \[4, 8, 4, 4\]",
        ),
        ({"dtype": torch.bfloat16}, "tables must be float32, got torch.bfloat16"),
        ({"on_bad_id": "oov"}, "on_bad_id must be 'raise', got 'oov'"),
        (
            {"optimizer": "adam"},
            "optimizer must be one of sgd, adagrad, rowwise_adagrad, got 'adam'",
        ),
        (
            {"sharding": "column_wise"},
            "sharding must be one of table_wise, row_wise, got 'column_wise'",
        ),
    ],
)
def test_unsupported_tables_and_options(changed, message):
    options = {"sharding": "table_wise", "optimizer": "sgd", "embedding_dim": 8} | changed
    own = {name: options.pop(name) for name in ("sharding", "optimizer")}
    with pytest.raises(ValueError, match=message):
        ShardedTables(
            FusedEmbedding(FIELDS, options.pop("embedding_dim"), **options),
            ranks=None,
            lr=LR,
            **own,
        )
