"""FusedEmbedding under the default torch.compile, which breaks a graph where fullgraph=True would not."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from adaftr_fast import FusedEmbedding, optim

SIZES = [5, 1, 40]


def batch(size: int = 16) -> torch.Tensor:
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    counters.clear()


def check_one_graph(caplog, module, arguments):
    """Compares the gradients of the eager and the compiled module, and expects neither warnings nor graph breaks."""
    emb, compiled = (
        module[0] if isinstance(module, nn.Sequential) else module,
        torch.compile(module, backend="aot_eager"),
    )
    for each in arguments:
        gradients = []
        for run in (module, compiled):
            module.zero_grad()
            with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
                warnings.simplefilter("error")
                run(*each).square().sum().backward()
            assert all(weight.grad.is_coalesced() for weight in emb.table_weights())
            gradients.append([weight.grad.to_dense() for weight in emb.table_weights()])
        torch.testing.assert_close(*gradients)
    check_quiet(caplog)


def check_quiet(caplog):
    assert not counters["graph_break"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("widths", [8, [2, 3, 2]], ids=["one width", "mixed"])
def test_look_ups_are_one_graph(caplog, widths):
    model = nn.Sequential(emb := FusedEmbedding(SIZES, widths), nn.Linear(emb.out_features, 4))
    check_one_graph(caplog, model, [(batch(16),), (batch(17),)])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bags_are_one_graph(caplog, weighted, dtype):
    emb = FusedEmbedding(SIZES, 8, pooling="sum" if weighted else "mean", dtype=dtype)
    values, offsets = torch.tensor([0, 1, 1, 0, 30, 30, 30]), torch.tensor([0, 3, 4, 7, 7, 7, 7])
    check_one_graph(caplog, emb, [(values, offsets, torch.rand(7) if weighted else None)])


def test_exact_adam_trains_a_compiled_module(caplog):
    one, two = FusedEmbedding(SIZES, 8), FusedEmbedding(SIZES, 8)
    two.load_state_dict(one.state_dict())
    compiled = torch.compile(two, backend="aot_eager")
    optimizers = [optim.Adam(each, lr=0.1) for each in (one, two)]
    for _ in range(4):
        ids = batch(4)
        for run, optimizer in zip((one, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            run(ids).sin().sum().backward()
            optimizer.step()
    torch.testing.assert_close(one.state_dict(), two.state_dict())
    check_quiet(caplog)
