"""The sharding plan as plain values."""

import json

import pytest

from adaftr_fast.distributed.ranks import text_of
from adaftr_fast.torchrec import tables as sharded_tables
from adaftr_fast.torchrec.plan import plan_of, tables_of
from tests.distributed.ranks import on_ranks
from tests.torchrec.test_tables import sharded_by

pytest.importorskip("torchrec", reason="make test-torchrec installs it")


def rebuilt_equals_planned(rank: int, sharding: str) -> bool:
    """Returns whether the plan of rank 0 equals the one rebuilt from its text."""
    equal = []

    def compared(plan):
        tables = tables_of(plan)
        equal.append(plan_of(json.loads(text_of(tables, "test"))) == plan)
        return tables

    sharded_tables.tables_of = compared
    sharded_by(sharding, "sgd")
    return equal == ([True] if rank == 0 else [])


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_plan_is_rebuilt_as_it_was(sharding):
    assert on_ranks(rebuilt_equals_planned, 2, sharding) == [True, True]
