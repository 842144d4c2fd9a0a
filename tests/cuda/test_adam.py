"""The deferred Adam of the CUDA files, run serially on the CPU: modules and optimizers as users
call them.
"""

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import stored
from tests.optim.conftest import Pair
from tests.optim.test_adam import (
    TWINS,
    check_rows_that_skip,
    outside_of_the_schedule,
    train,
)

SIZES = [200, 3, 50]


@pytest.mark.parametrize(
    ("width", "dtype", "tolerance"), [(8, torch.float32, 1e-6), (3, torch.float64, 1e-12)]
)
@pytest.mark.parametrize("name", TWINS)
def test_400_steps_equal_dense_torch(on_serial, lanes, name, dtype, tolerance, width):
    torch.manual_seed(0)
    two = Pair(SIZES, width, dtype, sparse=False)
    train(two, name, 400)
    assert two.distance() <= tolerance * 4 / 3  # that of the CPU kernels after 300 steps


@pytest.mark.parametrize("name", TWINS)
def test_rows_that_lag_by_hundreds(on_serial, name):
    check_rows_that_skip(Pair, name, 400)


def test_launches_are_those_of_the_documentation(serial):
    """docs/gpu.md, "Launches per step": without the radix sort, which is CUB's."""
    emb = FusedEmbedding(SIZES, 8)
    ids = torch.zeros(200, 3, dtype=torch.int64)
    deferred = optim.Adam(emb)._state_of(emb.weight).own
    weight = emb.weight.detach().clone()
    deferred.configure(emb.weight, (0.9, 0.999), 1e-8, 0.0)
    rows = torch.zeros(600, dtype=torch.int64)
    grad = torch.ones(600, 8)
    calls = {
        "look-up": (1, lambda: serial.fused_embedding(weight, ids, emb.offsets, [])),
        "gradient": (1, lambda: serial.embedding_rows(ids, emb.offsets)),
        "update": (1 + 2, lambda: serial.embedding_sgd_(weight, rows, grad, 0.1, 0.0)),
        "Adam": (
            1 + 2 + 2,
            lambda: serial.embedding_adam_(weight, deferred.tensors, rows, grad, 0.1),
        ),
    }
    for name, (expected, call) in calls.items():
        before = serial.launches()
        call()
        assert serial.launches() - before == expected, name


def test_a_full_series_is_flushed(on_serial, monkeypatch):
    """Its tensors stay where they are, because a CUDA graph has their addresses."""
    two = Pair(SIZES, 8, torch.float32, sparse=False)
    left = optim.Adam(two.ours, lr=0.01)
    right = torch.optim.Adam([two.theirs.weight], lr=0.01)
    deferred = left._state_of(two.ours.weight).own
    assert len(deferred.tensors[2]) == 1 << 16
    deferred.tensors[2:4] = [each[:64].clone() for each in deferred.tensors[2:4]]
    addresses = [each.data_ptr() for each in deferred.tensors]
    launches = []
    for _ in range(200):
        before = on_serial.launches()
        left.zero_grad()
        right.zero_grad()
        two.backward(two.ids(4))
        left.step()
        right.step()
        launches.append(on_serial.launches() - before)
    assert sum(count > min(launches) for count in launches[1:]) == 200 // 64  # the steps that flush
    assert [each.data_ptr() for each in deferred.tensors] == addresses
    assert two.distance() <= 1e-6


def test_a_state_outside_of_its_schedule_is_reported(serial):
    two = Pair([5, 3], 4, torch.float32, sparse=False)
    optimizer, _ = train(two, "AdamW", 3)
    weight = stored(two.ours.weight)
    state = optimizer.state[two.ours.weight].own.tensors
    ids = torch.zeros(1, 2, dtype=torch.int64)
    rows = torch.tensor([0, 5])
    starts = two.ours.offsets
    calls = (
        lambda s: serial.fused_embedding(weight, ids, starts, s),
        lambda s: serial.embedding_bags(weight, ids[0], torch.arange(3), None, starts, False, s),
        lambda s: serial.embedding_adam_flush_(weight.clone(), s),
        lambda s: serial.embedding_adam_(weight.clone(), s, rows, weight[rows], 0.1),
    )
    for message, wrong in outside_of_the_schedule(state):
        errors = []
        for call in calls:
            try:
                call([each.clone() for each in wrong])
                serial.raise_reported(weight)
            except RuntimeError as error:
                errors.append(str(error))
        if "horizon" not in message:  # every number is one, or none
            assert message in errors[-1]
        # the others read a clock of which no row has missed a step
        assert len(errors) == (4 if "tensor 1" in message else "clock" in message)
