"""FusedEmbedding under torch.compile: dense gradients in one graph, sparse ones between graphs."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported
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
            gradients.append([weight.grad for weight in emb.table_weights()])
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
    emb = FusedEmbedding(SIZES, widths, padding_idx=padding, sparse=False)
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


class TwoTowers(nn.Module):
    """Look-ups of one table, sliced, split and used twice."""

    def __init__(self, sparse):
        super().__init__()
        self.embedding = FusedEmbedding(SIZES, 4, sparse=sparse)
        self.layer = nn.Linear(8, 4)

    def forward(self, ids):
        user, item = self.embedding(ids).split([8, 4], 1)
        other = self.embedding(ids.flip(0))[:, 8:]
        bags = self.embedding(torch.stack([ids, ids], 2))[:, :4]
        return (self.layer(user) * item).sum(1) - (other * bags).sum(1)


@pytest.mark.parametrize("sparse", [True, False])
def test_inductor_trains_models_that_slice(sparse):
    torch.manual_seed(0)
    model = TwoTowers(sparse)
    nn.init.normal_(model.embedding.weight)
    compiled = torch.compile(model)
    ids = batch()
    found = []
    for run in (model, compiled):
        model.zero_grad()
        run(ids).sin().sum().backward()
        found.append([weight.grad for weight in model.parameters()])
        assert model.embedding.weight.grad.is_sparse is sparse
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("width", "pooling"), [([2, 3, 2], "mean"), (4, "max"), (4, ["max", "mean", "sum"])]
)
def test_inductor_trains_on_batches_without_ids(width, pooling):
    emb = FusedEmbedding([5, 4, 40], width, pooling=pooling, sparse=False)
    compiled = torch.compile(emb, fullgraph=True)
    bags = torch.tensor([0, 1, 1, 2, 3, 4, 4])
    for ids, offsets in (
        (torch.arange(4), bags),
        (torch.arange(0), torch.zeros_like(bags)),
        (torch.arange(0), bags[:1]),  # no rows
    ):
        found = []
        for run in (emb, compiled):
            emb.zero_grad()
            out = run(ids, offsets)
            out.sin().sum().backward()
            found.append([out, *(weight.grad for weight in emb.table_weights())])
        torch.testing.assert_close(*found)


def test_a_sparse_gradient_in_one_graph_is_refused_with_advice():
    emb = FusedEmbedding(SIZES, 4)
    whole = torch.compile(emb, fullgraph=True, backend="aot_eager")
    with pytest.raises(Unsupported, match=r"FusedEmbedding: a sparse gradient .* sparse=False or"):
        whole(batch())
    with torch.no_grad():
        torch.testing.assert_close(whole(batch(3)).shape, (3, 12))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("compute", [torch.tanh, lambda w: w @ w.T[:, :4], lambda w: w.softmax(0)])
def test_computed_weights_get_dense_gradients(compute, sparse):
    emb = FusedEmbedding(SIZES, 4, sparse=sparse, dtype=torch.float64)
    ids = batch()
    rows = ids + emb.field_offsets[:-1]

    def loss(weight):
        found = torch.func.functional_call(emb, {"weight": compute(weight)}, (ids,))
        return found.sin().sum()

    weight = emb.weight
    expected = nn.functional.embedding(rows, compute(weight)).sin().sum()
    expected, again = (
        torch.autograd.grad(x, weight, create_graph=True)[0] for x in (expected, loss(weight))
    )
    torch.testing.assert_close(again, expected)
    seconds = (torch.autograd.grad(x.sin().sum(), weight)[0] for x in (again, expected))
    torch.testing.assert_close(*seconds)


def test_weight_norm_trains_a_table():
    torch.manual_seed(0)
    emb = FusedEmbedding(SIZES, 4)
    peer = nn.Embedding.from_pretrained(emb.weight.detach().clone(), freeze=False)
    ids = batch()
    rows = ids + emb.field_offsets[:-1]
    for module, given in ((emb, ids), (peer, rows)):
        nn.utils.parametrizations.weight_norm(module)
        module(given).sin().sum().backward()
    for own, other in zip(emb.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
