"""What code written for torch's modules expects of any module: dense gradients, the meta device."""

import copy

import pytest
import torch
from torch.autograd import forward_ad

from adaftr_fast import FusedEmbedding, optim

SIZES = [5, 9, 4]


@pytest.fixture(params=[3, [3, 2, 3]], ids=["one table", "two tables"])
def widths(request):
    return request.param


def drawn_ids():
    return torch.stack([torch.randint(rows, (6,)) for rows in SIZES], 1)


def test_dense_gradients_are_the_sparse_ones_also_in_copies(widths):
    torch.manual_seed(0)
    dense = copy.deepcopy(FusedEmbedding(SIZES, widths, sparse=False))
    sparse = FusedEmbedding(SIZES, widths)
    sparse.load_state_dict(dense.state_dict())
    optimizers = optim.Adam(dense, lr=0.1), torch.optim.Adam(sparse.parameters(), lr=0.1)
    for _ in range(3):
        ids = drawn_ids()
        for module, optimizer in zip((dense, sparse), optimizers):
            optimizer.zero_grad()
            for _ in range(2):
                module(ids).square().sum().backward()
        for own, other in zip(dense.parameters(), sparse.parameters()):
            assert own.grad.layout == torch.strided
            other.grad = other.grad.to_dense()
            torch.testing.assert_close(own.grad, other.grad)
        torch.nn.utils.clip_grad_norm_(dense.parameters(), 1.0)
        optim.clip_grad_norm_(sparse, 1.0)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(dense.state_dict(), sparse.state_dict())


def test_a_module_leaves_the_meta_device_with_its_buffers(widths):
    options = {"padding_idx": [None, 2, 0], "on_bad_id": "oov"}
    here = FusedEmbedding(SIZES, widths, **options)
    with torch.device("meta"):
        module = FusedEmbedding(SIZES, widths, **options)
    module.to_empty(device="cpu")
    for (name, own), (_, expected) in zip(
        module.named_buffers(), here.named_buffers(), strict=True
    ):
        assert torch.equal(own, expected), name
    module.reset_parameters()
    assert 0 < max(weight.abs().max() for weight in module.table_weights()) < 0.1
    module.load_state_dict(here.state_dict())
    ids = drawn_ids()
    assert torch.equal(module(ids), here(ids))


@pytest.mark.parametrize("offsets", [None, torch.arange(0, 19)], ids=["ids", "bags"])
def test_torch_func_differentiates_look_ups(widths, offsets):
    module = FusedEmbedding(SIZES, widths, dtype=torch.float64)
    ids = drawn_ids() if offsets is None else drawn_ids().flatten()
    weights = {name: p.detach() for name, p in module.named_parameters()}
    tangents = {name: p.cos() for name, p in weights.items()}

    def loss(parameters):
        return torch.func.functional_call(module, parameters, (ids, offsets)).sin().sum()

    module(ids, offsets).sin().sum().backward()
    gradients = {name: weight.grad.to_dense() for name, weight in module.named_parameters()}
    torch.testing.assert_close(torch.func.grad(loss)(weights), gradients)
    expected = sum((gradients[name] * tangent).sum() for name, tangent in tangents.items())
    torch.testing.assert_close(torch.func.jvp(loss, (weights,), (tangents,))[1], expected)
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p, tangents[name]) for name, p in weights.items()}
        torch.testing.assert_close(forward_ad.unpack_dual(loss(duals)).tangent, expected)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0, "on_bad_id": "oov"}], ids=str)
@pytest.mark.parametrize("length", [None, 2], ids=["ids", "bags"])
def test_vmap_gives_gradients_per_sample(widths, options, length):
    torch.manual_seed(0)
    module = FusedEmbedding(SIZES, widths, dtype=torch.float64, **options)
    ids = drawn_ids() if length is None else torch.stack([drawn_ids(), drawn_ids()], 2)
    if options:
        ids[1, 2] = 77
        ids[3, 0] = -1

    def loss(parameters, sample):
        found = torch.func.functional_call(module, parameters, (sample[None],))
        return found.sin().sum()

    weights = {name: p.detach() for name, p in module.named_parameters()}
    samples = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, ids)
    counted = module.oov_counts.clone()
    module.oov_counts.zero_()
    for sample, each in enumerate(ids):
        module.zero_grad()
        module(each[None]).sin().sum().backward()
        for name, weight in module.named_parameters():
            torch.testing.assert_close(samples[name][sample], weight.grad.to_dense())
    assert torch.equal(counted, module.oov_counts)


def test_vmap_checks_ids_and_takes_offsets_per_sample():
    module = FusedEmbedding(SIZES, 3)
    values = torch.zeros(2, 3, dtype=torch.int64)
    offsets = torch.tensor([[0, 1, 2, 3], [0, 0, 3, 3]])
    expected = torch.stack([module(values[k], offsets[k]) for k in range(2)])
    torch.testing.assert_close(torch.func.vmap(module)(values, offsets), expected)
    values[1, 2] = 9
    with pytest.raises(IndexError, match=r"values\[1, 2\] = 9 \(row 0\) is .* field 1, .* 0 to 8"):
        torch.func.vmap(module)(values, offsets)
    with pytest.raises(IndexError, match=r"ids\[1, 0, 2\] = 9 is out of range for field 2"):
        torch.func.vmap(module)(values[:, None])
    with pytest.raises(IndexError, match=r"look_up_field: ids\[1, 2\] = 9 is out of range"):
        torch.func.vmap(lambda ids: module.look_up_field(1, ids))(values)


@pytest.mark.parametrize("rule", [None, optim.SGD, optim.Adam])
def test_parameters_are_swapped_on_conversion(widths, rule):
    """As ``torch.__future__.set_swap_module_params_on_conversion(True)`` has it."""
    module = FusedEmbedding(SIZES, widths)
    before = module.table_weights()
    optimizer = None if rule is None else rule(module, lr=0.1)
    if optimizer is not None:
        module(drawn_ids()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = drawn_ids()
    expected = module(ids)
    other = FusedEmbedding(SIZES, widths)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
        torch.testing.assert_close(module(ids), expected.double())
        module.load_state_dict(other.state_dict())
        module.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert torch.equal(module(ids), other(ids))
    module(drawn_ids()).sum().backward()
    for own, weight in zip(before, module.table_weights(), strict=True):
        assert own is weight
        assert weight.grad.is_coalesced()
    if optimizer is not None:
        optimizer.step()
        module.grow(0, 8)
        assert all(
            weight in {p for group in optimizer.param_groups for p in group["params"]}
            for weight in module.parameters()
        )
