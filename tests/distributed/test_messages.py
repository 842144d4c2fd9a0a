"""What ranks exchange besides gradients: plain values, errors and named tensors; and which errors
are of exchanges.
"""

import math

import pytest
import torch
import torch.distributed as dist

from adaftr_fast import errors
from adaftr_fast.distributed.ranks import (
    JoinedRanks,
    bytes_of,
    error_of,
    is_of_a_collective,
    named,
    text_of,
    value_of,
)
from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_same_bits

VALUES = [
    None, True, 0, -(2**70), 0.1, 5e-324, -0.0, math.inf, -math.inf, "", "größer 漢 \n "
"\udcff", [], {},
    {"epochs": [{"auc": 0.5, "names": ["a", "b"], "best": None}], "": [[1], 2.0, False]},
]  # fmt: skip


def received(value):
    return value_of(bytes_of(text_of(value, "Ranks.agree")))


def test_plain_values_are_read_as_written():
    for value in VALUES:
        assert repr(received(value)) == repr(value)
    assert math.isnan(received(math.nan))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ((1, 2), "tuple"),
        ({"a": [{"b": {1}}]}, "set"),
        ({"a": torch.ones(1)}, "Tensor"),
        (errors.RankError("x"), "RankError"),
        ({1: "a"}, "str as keys of dicts, got int: 1"),
        ({"a": {None: 1}}, "str as keys of dicts, got NoneType: None"),
    ],
)
def test_other_values_are_refused(value, named):
    with pytest.raises(TypeError, match=f"^Ranks.agree: expected .*{named}"):
        text_of(value, "Ranks.agree")


class OwnError(errors.DataError):
    """An error that messages do not name."""


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (errors.CheckpointError("a: damaged"), errors.CheckpointError, "a: damaged"),
        (errors.BusyError("b"), errors.BusyError, "b"),
        (IndexError("id 7"), IndexError, "id 7"),
        (OwnError("c"), errors.DataError, "c"),
        (FileNotFoundError(2, "No such file", "x"), OSError, "[Errno 2] No such file: 'x'"),
        (KeyError("d"), errors.RankError, "rank 0 failed: KeyError: 'd'"),
        (RuntimeError("e"), errors.RankError, "rank 0 failed: RuntimeError: e"),
    ],
)
def test_errors_keep_class_and_message(raised, kind, message):
    error = error_of(*received(named(raised)))
    assert type(error) is kind
    assert str(error) == message


def test_a_message_cannot_name_another_class():
    assert type(error_of("SystemExit", "x")) is errors.RankError


TENSORS = {
    "float": torch.linspace(-1, 1, 6).view(2, 3).T,  # not contiguous
    "number": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "none": torch.empty(0, 4, dtype=torch.float64),
}


def exchange(rank: int) -> dict:
    """Returns what every method gives, and the errors it raises."""
    ranks = JoinedRanks(dist.HashStore(), 60)
    found = {
        "value": ranks.from_rank_zero(lambda: {"loss": math.nan, "best": -math.inf, "rank": rank}),
        "nothing": ranks.from_rank_zero(lambda: None),
        "from zero": ranks.tensors_from_rank_zero(TENSORS if rank == 0 else None),
        "to zero": ranks.tensors_to_rank_zero(
            TENSORS if rank == 1 else {} if rank == 2 else {"rank": torch.zeros(0)}
        ),
    }
    ranks.agree("equal", [math.nan, "a"])

    def fail():
        raise errors.DataError("rank 0's file")

    calls = {
        "agree": lambda: ranks.agree("settings", "a" * (rank + 1)),
        "failure": lambda: ranks.from_rank_zero(fail),
        "refused": lambda: ranks.from_rank_zero(lambda: {1, 2}),
        "refused by all": lambda: ranks.agree("settings", {1, 2}),
    }
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def test_exchange_between_three_ranks():
    results = on_ranks(exchange, 3)
    for each in results:
        assert repr(each["value"]) == "{'loss': nan, 'best': -inf, 'rank': 0}"
        assert each["nothing"] is None
        assert_equal(each["from zero"], TENSORS)
        assert each["agree"].startswith("RankError: settings differ between rank 0 and rank 1")
        assert each["failure"] == "DataError: rank 0's file"
        assert each["refused"].startswith("TypeError: Ranks.from_rank_zero: expected a plain value")
        assert each["refused by all"].startswith("TypeError: Ranks.agree: expected a plain value")
    assert [len(each["to zero"]) for each in results] == [3, 0, 0]
    first, second, third = results[0]["to zero"]
    assert_equal(first, {"rank": torch.zeros(0)})
    assert_equal(second, TENSORS)
    assert third == {}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert_same_bits(found[name], tensor)


@pytest.mark.parametrize(
    ("message", "of_gloo"),
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
            "[::1]:4242",
            True,
        ),
        (
            "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
            "3000ms for recv",
            True,
        ),
        ("[enforce fail at /pytorch/third_party/gloo/gloo/context.cc:51] timeout >= 0. ", True),
        (
            "Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] "
            "no error",
            True,
        ),
        ("cannot open /data/gloo/x: no such file", False),
        ("cannot parse /home/gloo/loader.cc", False),
    ],
)
def test_only_errors_raised_by_gloo_are_collective_errors(message, of_gloo):
    assert is_of_a_collective(RuntimeError(message)) == of_gloo
