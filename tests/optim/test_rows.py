"""The optimizers that update the rows of a batch only, and their kernels against the references."""

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.embedding_table import trained_by

SIZES = [200, 3, 50]


def test_rowwise_adagrad_by_hand():
    emb = FusedEmbedding([4], 2)
    start = emb.weight.detach().clone()
    optimizer = optim.RowwiseAdagrad(emb, lr=0.5, eps=0.0)
    emb(torch.tensor([[1]])).backward(torch.tensor([[3.0, 4.0]]))
    optimizer.step()
    start[1] -= 0.5 * torch.tensor([3.0, 4.0]) / 12.5**0.5
    torch.testing.assert_close(emb.weight.detach(), start)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam"])
def test_half_precision_tables_keep_float32_state(name):
    emb = FusedEmbedding(SIZES, 8, dtype=torch.bfloat16)
    optimizer = getattr(optim, name)(emb, lr=0.1)
    for _ in range(3):
        emb(torch.zeros(4, 3, dtype=torch.int64)).sum().backward()
        optimizer.step()
    before = optimizer.state_dict()["state"].get(0, {})
    optimizer.load_state_dict(optimizer.state_dict())
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == torch.float32
            assert torch.equal(value, optimizer.state_dict()["state"][0][key])
    assert emb.weight.dtype == torch.bfloat16


def test_accumulation_clipping_and_scaling_with_dense_parameters(pair):
    """Two backwards, the gradient scaler and a joint norm give the result of PyTorch on dense
    gradients.
    """
    torch.manual_seed(0)
    two = pair(SIZES, 8, torch.float32, sparse=False)
    dense = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    left = optim.SGD(two.ours, lr=0.1)
    right = torch.optim.SGD([two.theirs.weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    two.backward(two.ids(5), scale=8.0)
    two.backward(two.ids(5), scale=8.0)
    for parameter in dense:
        parameter.grad = torch.ones(3)
    two.theirs.weight.grad /= 8
    scaler.scale(torch.ones(()))  # the scaler initialises with its first loss
    scaler.unscale_(left)
    ours = optim.clip_grad_norm_([two.ours.weight, dense[0]], 1.0)
    theirs = torch.nn.utils.clip_grad_norm_([two.theirs.weight, dense[1]], 1.0)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dense[0].grad, dense[1].grad)
    scaler.step(left)
    right.step()
    assert two.distance() <= 1e-6


def test_groups_closure_and_zero_grad():
    first = FusedEmbedding([5], 2)
    second = FusedEmbedding([7], 2)
    optimizer = optim.SGD([{"params": first, "lr": 0.0}, {"params": [second]}], lr=1.0)
    before = [first.weight.detach().clone(), second.weight.detach().clone()]
    ids = torch.tensor([[3]])

    def closure():
        optimizer.zero_grad()
        loss = first(ids).sum() + second(ids).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() != 0
    assert torch.equal(first.weight, before[0])
    torch.testing.assert_close(second.weight.detach()[3], before[1][3] - 1)
    optimizer.zero_grad()
    assert first.weight.grad is None


def test_bad_arguments():
    emb = FusedEmbedding([5], 2)
    with pytest.raises(ValueError, match=r"SGD: lr must be >= 0, got -1"):
        optim.SGD(emb, lr=-1.0)
    with pytest.raises(ValueError, match=r"Adam: betas must be in \[0, 1\)"):
        optim.Adam(emb, betas=(0.9, 1.0))
    # as the order of torch.optim's arguments is another one
    for rule in (optim.SGD, optim.Adagrad, optim.RowwiseAdagrad):
        with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were"):
            rule(emb, 0.1, 0.9)
    adagrad = optim.Adagrad(emb)
    with pytest.raises(
        ValueError, match=r"Adagrad.load_state_dict: table 0: sum.0 must be \[5, 2\], got None"
    ):
        adagrad.load_state_dict({**adagrad.state_dict(), "state": {0: {"sum.1": torch.ones(5, 2)}}})
    other = optim.Adagrad(FusedEmbedding([6], 2)).state_dict()
    with pytest.raises(
        ValueError, match=r"Adagrad.load_state_dict: table 0: sum.0 must be \[5, 2\], got \[6, 2\]"
    ):
        adagrad.load_state_dict(other)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("SGD", []),
        ("Adagrad", ["sum"]),
        ("RowwiseAdagrad", ["sum"]),
        ("LazyAdam", ["exp_avg", "exp_avg_sq"]),
        ("AdamW", ["exp_avg", "exp_avg_sq"]),
    ],
)
def test_state_dict_holds_state_per_field(name, keys):
    emb = FusedEmbedding([5, 3], 2, field_names=["user", "day"])
    optimizer = getattr(optim, name)(emb)
    emb(torch.tensor([[4, 1]])).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"].get(0, {})
    assert state.keys() - {"step"} == {
        f"{key}.{field}" for key in keys for field in ("user", "day")
    }
    for key in keys:
        assert len(state[f"{key}.user"]) == 5
        assert (state[f"{key}.day"] != 0).reshape(3, -1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("given", ["module", "parameters"])
def test_a_shared_parameter_has_the_table_of_the_module_that_is_given_or_was_made_first(given):
    """Ten pairs, since an order of chance would often be right for one."""
    pairs = [
        [FusedEmbedding([2, 3], 4, field_names=names) for names in ("ab", "cd")] for _ in range(10)
    ]
    for first, second in pairs:
        second.weight = first.weight
        optimizer = optim.Adagrad(second if given == "module" else second.parameters())
        names = "cd" if given == "module" else "ab"
        assert {
            key[-1] for key in optimizer.state_dict()["state"][0] if key.startswith("sum.")
        } == set(names)
        assert trained_by(first.weight) is optimizer
        with pytest.raises(
            ValueError, match=r"grow: the parameter of field .* another FusedEmbedding shares it"
        ):
            second.grow("c", 5)
        assert second.weight is first.weight


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RowwiseAdagrad", "LazyAdam", "Adam", "AdamW"])
def test_dense_gradients_take_the_steps_of_sparse_ones(name):
    tables = []
    for sparse in (True, False):
        torch.manual_seed(0)
        emb = FusedEmbedding([40, 20], 4, sparse=sparse)
        optimizer = getattr(optim, name)(emb, lr=0.1, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad(set_to_none=False)
            emb(torch.randint(20, (6, 2))).sin().sum().backward()
            optimizer.step()
        tables.append(emb.weight.detach())
    assert torch.equal(*tables)
