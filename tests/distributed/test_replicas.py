"""replicate_tables under DistributedDataParallel: the replicas are equal, and are those of one
process.
"""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import adaftr_fast as af
from adaftr_fast.nn.replicas import replicate_tables
from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_same_bits


class Net(nn.Module):
    """Two embeddings, of which a batch may look up one alone; the first has two tables."""

    def __init__(self, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.first = af.FusedEmbedding([20, 7], [4, 2], sparse=sparse)
        self.second = af.FusedEmbedding([9], 6, sparse=sparse)
        self.layer = nn.Linear(6, 1)

    def forward(self, ids, both=True):
        vectors = self.first(ids[:, :2])
        return self.layer(vectors + self.second(ids[:, 2:]) if both else vectors)


def batches():
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([20, 7, 9])
    return [(torch.rand(8, 3, generator=generator) * sizes).long() for _ in range(6)]


def loss_of(model, ids, both=True):
    return model(ids, both).sin().sum() / 4


def fail_in_backward(net):
    """Ends a backward before the gradients of its tables are averaged; the next one
    averages again.
    """

    def fail(weight):
        raise RuntimeError("failed")

    failing = net.first.tables[0].weight.register_post_accumulate_grad_hook(fail)
    with pytest.raises(RuntimeError, match="failed"):
        net.first(batches()[0][:, :2]).sum().backward()
    failing.remove()
    net.zero_grad()


def trained_on_a_rank(rank, sparse):
    """Rank 0 alone looks up ``second`` in the third batch; the last two are accumulated, first
    without averaging.
    """
    net = Net(sparse)
    if rank == 1:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
    replicate_tables(net)
    parallel = DistributedDataParallel(net, find_unused_parameters=not sparse)
    if sparse:
        fail_in_backward(net)
    optimizer = af.optim.Adam(net.parameters(), lr=0.1)
    for number, batch in enumerate(batches()):
        own = batch.split(4)[rank]
        if number == 2 and sparse:
            net.first.grow(1, 7)  # a new parameter, whose gradient is averaged as well
        if number == 4:
            with parallel.no_sync():
                loss_of(parallel, own).backward()
            continue
        loss_of(parallel, own, rank == 0 or number != 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(net.state_dict())


def trained_alone():
    net = Net()
    optimizer = af.optim.Adam(net.parameters(), lr=0.1)
    for number, batch in enumerate(batches()):
        for rank, own in enumerate(batch.split(4)):
            (loss_of(net, own, rank == 0 or number != 2) / 2).backward()
        if number != 4:
            optimizer.step()
            optimizer.zero_grad()
    return net.state_dict()


def refusals(rank):
    mesh = init_device_mesh("cpu", (2,))
    h = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
    local = torch.ones(4, 3)
    each = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    table = af.FusedEmbedding([4, 4], 3)
    ids = distribute_tensor(torch.ones(4, 2, dtype=torch.int64), mesh, [Shard(0)])
    sharded = distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)])
    found = []
    for call in (
        lambda: af.adaptive_infonce(h, h, 0.1),
        lambda: af.sigmoid_contrast(h, h, 1.0, 0.0),
        lambda: af.adaptive_infonce(local, local, each),
        lambda: af.adaptive_infonce(local, local, 0.1, row_weight=each),
        lambda: table(ids),
        lambda: torch.func.functional_call(table, {"weight": sharded}, (ids.to_local(),)),
        lambda: af.optim.Adam(fully_shard(table, mesh=mesh)),
    ):
        with pytest.raises(TypeError) as error:
            call()
        found.append(str(error.value))
    return found


def test_distributed_tensors_are_refused_with_what_to_do():
    of_h = (
        "h_ctr must be a local tensor, got a DTensor; pass h_ctr.to_local(), and process_group to "
        "contrast the rows"
    )
    expected = [
        f"adaptive_infonce: {of_h} of all ranks",
        f"sigmoid_contrast: {of_h} of all ranks",
        "adaptive_infonce: tau must be a local tensor, got a DTensor; pass tau.to_local()",
        "adaptive_infonce: row_weight must be a local tensor, got a DTensor; pass "
        "row_weight.to_local()",
        "FusedEmbedding: ids must be a local tensor, got a DTensor; pass ids.to_local()",
        "FusedEmbedding: weight must be a local tensor, got a DTensor; leave the tables out of "
        "what is sharded "
        "(docs/frameworks.md)",
        "Adam: a table must be a local tensor, got a DTensor; leave the tables out of fully_shard, "
        "and replicate them "
        "(docs/frameworks.md)",
    ]
    assert on_ranks(refusals, 2)[0] == expected


def clipped_on_a_rank(rank, shard):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))  # one row, of which a rank has none
    net = nn.Sequential(af.FusedEmbedding([20, 7], [4, 2]), layers)
    if shard:
        fully_shard(net[1], mesh=init_device_mesh("cpu", (2,)))
    net(batches()[0][:, :2]).sin().sum().backward()  # the same on all ranks
    norms = [
        af.optim.clip_grad_norm_(net, 0.1, norm_type, foreach=foreach)
        for norm_type, foreach in ((1.0, None), (2.0, True), (float("inf"), False))
    ]
    af.optim.clip_grad_value_(net, 1e-3)
    grads = [each.grad for each in net.parameters()]
    whole = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in grads]
    return norms, [each.to_dense() for each in whole]


def test_sharded_layers_and_tables_are_clipped_by_one_norm():
    sharded = on_ranks(clipped_on_a_rank, 2, True)
    for found in sharded:
        torch.testing.assert_close(found, clipped_on_a_rank(0, False))
    assert_same_bits(*sharded)


def clipped_on_a_mesh(rank):
    """Clips gradients that are shards, copies and terms of the whole ones, two of each."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = [torch.randn(3), torch.randn(2, 3), torch.randn(4)] * 2
    placements = [Shard(0), Replicate(), Partial()] * 2
    found = []
    for norm_type in (1.0, 2.0, float("inf")):
        parameters = []
        for grad, placement in zip(whole, placements, strict=True):
            parameter = nn.Parameter(distribute_tensor(torch.zeros_like(grad), mesh, [Replicate()]))
            parameter.grad = distribute_tensor(grad.clone(), mesh, [placement])
            parameters.append(parameter)
        norm = af.optim.clip_grad_norm_(parameters, 1e6, norm_type)
        found.append((norm, nn.utils.get_total_norm(whole, norm_type)))
    af.optim.clip_grad_value_(parameters, 0.5)
    found += [
        (each.grad.full_tensor(), grad.clamp(-0.5, 0.5))
        for each, grad in zip(parameters, whole, strict=True)
    ]
    return found


def test_clipping_counts_each_gradient_once_whatever_ranks_hold():
    for found, expected in on_ranks(clipped_on_a_mesh, 2)[1]:
        torch.testing.assert_close(found, expected)


def left_to_ddp(rank):
    messages = []
    for squares in (False, True):
        table = af.FusedEmbedding([20, 7], 4)
        table.forward = table.with_squares if squares else table.forward
        parallel = DistributedDataParallel(table)
        ids = batches()[0][:, :2]
        with parallel.no_sync():
            parallel(ids)
        with torch.no_grad():
            parallel(ids)
        parallel.eval()(ids)
        with pytest.raises(RuntimeError) as error:
            parallel.train()(ids)
        messages.append(str(error.value))
    return messages


def test_a_table_that_is_left_to_ddp_is_refused_with_what_to_do():
    for message in on_ranks(left_to_ddp, 2)[0]:
        assert message == (
            "FusedEmbedding: DistributedDataParallel cannot average the sparse gradient of a table "
            "[27, 4]; call adaftr_fast.nn.replicas.replicate_tables(model) before "
            "DistributedDataParallel wraps it (docs/frameworks.md), or make the FusedEmbedding "
            "with sparse=False"
        )


def test_replicas_are_equal_and_those_of_one_process():
    alone = trained_alone()
    for sparse in (True, False):
        first, second = on_ranks(trained_on_a_rank, 2, sparse)
        assert_same_bits(first, second)
        torch.testing.assert_close(first, dict(alone), rtol=1e-4, atol=1e-5)
