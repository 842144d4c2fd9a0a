"""Look-ups of one table from several Python threads at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from tests.tolerances import assert_same_bits

SIZES = [500, 3, 4000]


def random_ids(seed: int, size: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, n, (size,), generator=generator) for n in SIZES], 1)


@pytest.mark.parametrize("widths", [8, [8, 3, 8]], ids=["one width", "mixed"])
@pytest.mark.parametrize("bags", [False, True], ids=["ids", "bags"])
def test_look_ups_through_deferred_steps(widths, bags):
    emb = FusedEmbedding(SIZES, widths)
    optimizer = optim.Adam(emb, lr=0.1)
    for seed in range(4):
        optimizer.zero_grad()
        emb(random_ids(seed, 20)).sin().sum().backward()
        optimizer.step()

    def look_up(seed: int) -> torch.Tensor:
        ids = random_ids(seed)
        if bags:
            return emb(ids.flatten().repeat_interleave(2), torch.arange(0, 2 * ids.numel() + 1, 2))
        return emb(ids)

    expected = [look_up(seed) for seed in range(4)]

    def work(seed: int) -> bool:
        return all(torch.equal(look_up(seed), expected[seed]) for _ in range(10))

    assert all(in_threads(*(partial(work, seed) for seed in range(4))))


def test_tables_train_side_by_side():
    """Each thread has a table and an optimizer; scratch memory is what they share."""

    def train(seed: int) -> torch.Tensor:
        emb = FusedEmbedding(SIZES, 8)
        with torch.no_grad():
            emb.weight.copy_(torch.linspace(-0.1, 0.1, emb.weight.numel()).view_as(emb.weight))
        optimizer = optim.Adam(emb, lr=0.1)
        for step in range(10):
            optimizer.zero_grad()
            emb(random_ids(10 * seed + step)).sin().sum().backward()
            optimizer.step()
        emb.flush()
        return emb.weight.detach()

    expected = [train(seed) for seed in range(4)]
    found = in_threads(*(partial(train, seed) for seed in range(4)))
    assert_same_bits(found, expected)


def in_threads(*works):
    """Runs the functions side by side; raises what one of them raises."""
    with ThreadPoolExecutor(len(works)) as pool:
        ready = threading.Barrier(len(works))

        def work(each):
            ready.wait()
            return each()

        return [future.result() for future in [pool.submit(work, each) for each in works]]


@pytest.mark.parametrize("beside", ["read", "look-up", "step"])
def test_rows_are_made_current_once(beside):
    """A pass over the table takes long enough for the other thread to meet it."""
    tables = []
    ids = torch.stack([torch.arange(400)] * 2, 1) * 249
    for _ in range(2):
        torch.manual_seed(0)
        emb = FusedEmbedding([100_009, 100_009], 8)
        optimizer = optim.Adam(emb, lr=0.1)
        emb(ids).sin().sum().backward()
        for _ in range(3):
            optimizer.step()
        tables.append((emb, optimizer))
    (emb, optimizer), (expected, other) = tables
    present = emb(ids)
    works = {
        "read": lambda: emb.weight.sum(),
        "look-up": lambda: [emb(ids) for _ in range(200)],
        "step": optimizer.step,
    }
    seen = in_threads(lambda: emb.weight.sum(), works[beside])
    if beside == "step":
        other.step()
    elif beside == "look-up":
        assert all(torch.equal(each, present) for each in seen[1])
    torch.testing.assert_close(emb.weight, expected.weight, rtol=1e-6, atol=1e-7)
    assert type(emb.weight) is torch.nn.Parameter
