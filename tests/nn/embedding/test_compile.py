"""FusedEmbedding under torch.compile, with fullgraph=True and with the default, which may break a
graph.
"""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from adaftr_fast import FusedEmbedding

SIZES = [5, 1, 40]


def batch(size=16):
    return torch.stack([torch.randint(0, n, (size,)) for n in SIZES], 1)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    counters.clear()


def check(module, arguments, **options):
    """Compares the gradients of the eager and the compiled module."""
    emb = module[0] if isinstance(module, nn.Sequential) else module
    compiled = torch.compile(module, backend="aot_eager", **options)
    for each in arguments:
        gradients = []
        for run in (module, compiled):
            module.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # of torch 2.11, whatever its caller says
                warnings.filterwarnings("ignore", "Sparse invariant checks")
                run(*each).square().sum().backward()
            assert all(weight.grad.is_coalesced() for weight in emb.table_weights())
            gradients.append([weight.grad.to_dense() for weight in emb.table_weights()])
        torch.testing.assert_close(*gradients)


def check_quiet(caplog):
    """Expects neither warnings nor graph breaks."""
    assert not counters["graph_break"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("widths", "padding", "options"),
    [
        (8, None, {}),
        (8, None, {"dynamic": True}),
        ([2, 3, 2], None, {"fullgraph": True}),
        (4, 0, {"fullgraph": True}),
    ],
)
def test_look_ups_and_bags_are_one_graph(caplog, widths, padding, options):
    emb = FusedEmbedding(SIZES, widths, padding_idx=padding)
    check(
        nn.Sequential(emb, nn.Linear(emb.out_features, 4)), [(batch(16),), (batch(17),)], **options
    )
    values = torch.tensor([0, 1, 1, 0, 30, 30, 30])
    offsets = torch.tensor([0, 3, 4, 7, 7, 7, 7])
    bags = [
        (torch.stack([batch(6), batch(6)], 2),),
        (values, offsets),
        (values, offsets, values / 9),
    ]
    check(emb, bags, **options)
    check_quiet(caplog)
