"""Optimizers and clipping that take a whole model: its tables and its other parameters."""

import copy
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.optim.dense import DenseAdam
from tests.tolerances import assert_same_bits

SIZES = [20, 3, 50]
TWINS = {
    "SGD": ("SGD", {"lr": 0.1}),
    "Adagrad": ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "RowwiseAdagrad": ("Adagrad", {"lr": 0.1, "weight_decay": 0.01}),
    "LazyAdam": ("Adam", {"lr": 0.1, "betas": (0.8, 0.9)}),
    "Adam": ("Adam", {"lr": 0.1, "weight_decay": 0.01, "eps": 1e-6}),
    "AdamW": ("AdamW", {"lr": 0.1, "weight_decay": 0.1}),
}
# to the optimizer of torch on dense gradients
EQUAL_ON_TABLES = ("SGD", "Adagrad", "Adam", "AdamW")


def new_net(widths=4):
    """A FusedEmbedding and layers."""
    embedding = FusedEmbedding(SIZES, widths)
    return nn.Sequential(
        embedding, nn.Linear(embedding.out_features, 8), nn.ReLU(), nn.Linear(8, 1)
    )


class Twin(nn.Module):
    """The same with nn.Embedding."""

    def __init__(self, net):
        super().__init__()
        tables = [net[0].field_weight(f).clone() for f in range(len(SIZES))]
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(table, freeze=False) for table in tables
        )
        self.layers = copy.deepcopy(net[1:])

    def forward(self, ids):
        return self.layers(torch.cat([table(ids[:, f]) for f, table in enumerate(self.tables)], 1))


def ids(batch=16):
    return torch.stack([torch.randint(0, n, (batch,)) for n in SIZES], 1)


def train(models, optimizers, steps):
    for _ in range(steps):
        batch = ids()
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(batch).sub(1).square().mean().backward()
            optimizer.step()


FORMS = {
    "parameters": lambda net: net.parameters(),
    "named": lambda net: net.named_parameters(),
    "module": lambda net: net,
    "modules": lambda net: list(net.children()),
    "groups": lambda net: [{"params": net[1:].parameters()}, {"params": [net[0]]}],
    "one group": lambda net: [{"params": net.parameters()}],
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("Adam", form) for form in FORMS),
        *((name, "parameters") for name in TWINS if name != "Adam"),
    ],
)
def test_one_optimizer_takes_a_whole_model(name, form):
    torch.manual_seed(0)
    net = new_net([4, 2, 4] if form == "module" else 4)
    twin = Twin(net)
    theirs, options = TWINS[name]
    ours = getattr(optim, name)(FORMS[form](net), **options)
    assert {p for group in ours.param_groups for p in group["params"]} == set(net.parameters())
    if name not in EQUAL_ON_TABLES:  # the tables have another rule, so they rest
        net[0].requires_grad_(False)
        twin.tables.requires_grad_(False)
    train([net, twin], [ours, getattr(torch.optim, theirs)(twin.parameters(), **options)], 5)
    torch.testing.assert_close(net[1:].state_dict(), twin.layers.state_dict(), rtol=1e-4, atol=1e-6)
    for f, table in enumerate(twin.tables):
        torch.testing.assert_close(
            net[0].field_weight(f), table.weight.detach(), rtol=1e-4, atol=1e-5
        )
    ours.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", TWINS)
def test_the_state_of_both_kinds_is_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    one = new_net()
    two = new_net()
    make = getattr(optim, name)
    options = TWINS[name][1]
    first = make(one.parameters(), **options)
    second = make(two.parameters(), **options)
    train([one], [first], 3)
    torch.save([one.state_dict(), first.state_dict()], tmp_path / "checkpoint.pt")
    weights, saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1, 2, 3, 4]]
    two.load_state_dict(weights)
    second.load_state_dict(saved)
    train([one, two], [first, second], 3)
    assert_same_bits(one.state_dict(), two.state_dict())
    assert_same_bits(first.state_dict()["state"], second.state_dict()["state"])


def test_a_snapshot_of_the_tables_alone_restores():
    """That of an optimizer of the tables, and of versions whose snapshots left out other
    parameters.
    """
    net = new_net()
    optimizer = optim.Adam(net)
    train([net], [optimizer], 2)
    saved = {
        key: value.clone()
        for key, value in optimizer.snapshot().items()
        if not key.startswith("others")
    }
    before = copy.deepcopy(optimizer.state_dict()["state"][1])
    alone = new_net()
    of_tables = optim.Adam(alone[0])
    train([alone], [of_tables], 1)
    assert saved.keys() == of_tables.snapshot().keys()
    optimizer.restore(saved)
    assert_same_bits(optimizer.state_dict()["state"][1], before)
    with pytest.raises(
        ValueError, match=r"Adam.restore: saved must hold 4 parameters that are not tables, got 3"
    ):
        optimizer.restore({**optimizer.snapshot(), "others": torch.tensor(3)})
    moments = optimizer.snapshot()["0.moments"]
    with pytest.raises(
        ValueError, match=rf"moments must be \[{len(moments)}, 2, 4\], got \[1, 2, 4\]"
    ):
        optimizer.restore({**optimizer.snapshot(), "0.moments": moments[:1]})


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", TWINS)
def test_distributed_checkpoints_load_into_new_and_used_optimizers(name, flat, tmp_path):
    names = ["user", "user.day", "item"]
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    pairs = []
    for _ in range(3):
        torch.manual_seed(len(pairs))
        embedding = FusedEmbedding(SIZES, [4, 2, 4], field_names=names)
        model = nn.Sequential(embedding, nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
        pairs.append((model, getattr(optim, name)(model, **TWINS[name][1])))
    one, used, new = pairs
    train(*zip(one, strict=True), 3)
    train(*zip(used, strict=True), 2)
    state = dict(zip(("model", "optimizer"), get_state_dict(*one, options=options), strict=True))
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    for model, optimizer in (used, new, one):
        weights, of_optimizer = get_state_dict(model, optimizer, options=options)
        saved = {"model": weights, "optimizer": of_optimizer}
        dcp.load(saved, checkpoint_id=tmp_path, no_dist=True)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=saved["model"],
            optim_state_dict=saved["optimizer"],
            options=options,
        )
    models, optimizers = zip(*pairs, strict=True)
    train(models, optimizers, 4)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for model, found in zip(models[1:], states[1:], strict=True):
        assert_same_bits(model.state_dict(), one[0].state_dict())
        assert_same_bits(found, states[0])


@pytest.mark.parametrize("name", TWINS)
def test_groups_without_some_options_load(name):
    net = new_net()
    optimizer = getattr(optim, name)(net.parameters(), **TWINS[name][1])
    expected = copy.deepcopy(optimizer.state_dict()["param_groups"])
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for key in group.keys() - TWINS[name][1].keys() - {"params"}:
            del group[key]
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == expected
    train([net], [optimizer], 1)
    with pytest.raises(ValueError, match="must have differentiable=False, got True"):
        optimizer.add_param_group({"params": FusedEmbedding([4], 2), "differentiable": True})


@pytest.mark.parametrize("name", ["Adam", "LazyAdam"])
def test_dense_weights_have_the_bits_of_dense_adam_also_after_a_load_of_other_strides(name):
    torch.manual_seed(0)
    net = new_net()
    options = TWINS["LazyAdam"][1]
    twin = copy.deepcopy(net[1:])
    optimizer = getattr(optim, name)(net, **options)
    dense = DenseAdam(twin.parameters(), **options)
    for _ in range(6):
        net.zero_grad()
        net(ids()).sub(1).square().mean().backward()
        for own, other in zip(net[1:].parameters(), twin.parameters(), strict=True):
            other.grad = own.grad
        optimizer.step()
        dense.step()
        assert_same_bits(net[1:].state_dict(), twin.state_dict())
        saved = copy.deepcopy(optimizer.state_dict())
        for key, value in saved["state"][1].items():
            saved["state"][1][key] = value.mT.contiguous().mT if value.dim() else value.double()
        optimizer.load_state_dict(saved)


def test_a_schedule_reaches_both_kinds_also_after_a_load():
    net = new_net()
    optimizer = optim.SGD(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    optimizer.load_state_dict(optimizer.state_dict())
    for moves in (True, False):
        before = [parameter.detach().clone() for parameter in net.parameters()]
        train([net], [optimizer], 1)
        for old, new in zip(before, net.parameters(), strict=True):
            assert torch.equal(old, new) != moves
        schedule.step()


def test_tables_are_found_in_copies_and_after_growth_and_added_groups():
    net = copy.deepcopy(new_net())
    net[0].grow(1, 5)
    optimizer = optim.SGD(net[0].parameters(), lr=0.1)
    optimizer.add_param_group({"params": net[1:].parameters(), "lr": 0.2})
    other = FusedEmbedding([4], 2)
    optimizer.add_param_group({"params": other})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.1]
    before = [parameter.detach().clone() for parameter in [*net.parameters(), *other.parameters()]]
    (net(ids()).sum() + other(torch.zeros(1, 1, dtype=torch.int64)).sum()).backward()
    optimizer.step()
    after = [*net.parameters(), *other.parameters()]
    moved = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    assert all(moved)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": other.parameters()})


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("SGD", {"momentum": 0.9}, "SGD: a group with tables must have momentum=0, got 0.9"),
        (
            "Adagrad",
            {"initial_accumulator_value": 1.0},
            "must have initial_accumulator_value=0.0, got 1.0",
        ),
        (
            "LazyAdam",
            {"maximize": True},
            "LazyAdam: a group with tables must have maximize=False, got True",
        ),
        ("SGD", {"rate": 0.1}, "SGD: a group with tables takes lr, weight_decay, got rate=0.1"),
    ],
)
def test_options_that_tables_do_not_have_are_refused(name, option, message):
    net = new_net()
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)([{"params": net.parameters(), **option}])
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)([{"params": net[0], **option}])
    if "initial_accumulator_value" not in option:  # which is an argument
        keyword = "unexpected keyword argument 'rate'" if "rate" in option else message
        with pytest.raises(TypeError if "rate" in option else ValueError, match=keyword):
            getattr(optim, name)(net.parameters(), **option)
    optimizer = getattr(optim, name)(net.parameters())
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= option
    if "rate" not in option:  # groups may have further keys, which torch keeps
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)


def test_options_of_torch_are_accepted_for_other_parameters_and_at_their_defaults():
    net = new_net()
    groups = [
        {"params": net[0], "momentum": 0, "foreach": False},
        {"params": net[1:].parameters(), "momentum": 0.9},
    ]
    optimizer = optim.SGD(groups, lr=0.1)
    assert [group["momentum"] for group in optimizer.param_groups] == [0, 0.9]


def test_schedulers_see_the_groups_that_were_given():
    net = new_net()
    optimizer = optim.Adam(net.parameters())
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.5])
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1], total_steps=10)
    plain = optim.SGD(net.parameters())
    torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=[0.1], total_steps=10, cycle_momentum=False)
    assert [group["params"] for group in optimizer.param_groups] == [list(net.parameters())]
    optimizer.load_state_dict(optimizer.state_dict())  # with the keys that schedulers add
    # the tables' rule has none
    with pytest.raises(ValueError, match="optimizer must support momentum"):
        torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=[0.1], total_steps=10)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("Adam", "Adam"), ("AdamW", "AdamW"), ("LazyAdam", "SparseAdam"), ("Adagrad", "Adagrad")],
)
def test_states_of_torch_are_loaded(ours, theirs):
    torch.manual_seed(0)
    embedding = FusedEmbedding(SIZES, 4)
    dense = nn.Parameter(embedding.weight.detach().clone())
    sparse = theirs == "SparseAdam"
    optimizer = getattr(optim, ours)(embedding, lr=0.1)
    other = getattr(torch.optim, theirs)([dense], lr=0.1)
    for step in range(6):
        embedding.zero_grad()
        embedding(ids()).square().sum().backward()
        gradient = embedding.weight.grad
        dense.grad = gradient.clone() if sparse else gradient.to_dense()
        other.step()
        if step < 3:
            with torch.no_grad():
                embedding.weight.copy_(dense)
            optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
        else:
            optimizer.step()
    torch.testing.assert_close(embedding.weight.detach(), dense.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("Adam", "Adam"),
        ("AdamW", "AdamW"),
        ("LazyAdam", "SparseAdam"),
        ("Adagrad", "Adagrad"),
        ("SGD", "SGD"),
    ],
)
def test_torch_goes_on_from_our_state(ours, theirs):
    torch.manual_seed(0)
    embedding = FusedEmbedding(SIZES, 4, dtype=torch.float64)
    layer = nn.Linear(12, 2, dtype=torch.float64)
    sparse = theirs == "SparseAdam"
    optimizer = getattr(optim, ours)([embedding] if sparse else [embedding, layer], lr=0.1)
    dense, twin, other = None, copy.deepcopy(layer), None
    for step in range(8):
        embedding.zero_grad()
        layer.zero_grad()
        layer(embedding(ids())).square().sum().backward()
        if step == 4:
            dense = nn.Parameter(embedding.weight.detach().clone())
            twin.load_state_dict(layer.state_dict())
            parameters = [dense] if sparse else [dense, *twin.parameters()]
            other = getattr(torch.optim, theirs)(parameters, lr=0.3)
            other.load_state_dict(copy.deepcopy(optimizer.torch_state_dict()))
        if step >= 4:
            gradient = embedding.weight.grad
            dense.grad = gradient.clone() if sparse else gradient.to_dense()
            for own, others in zip(layer.parameters(), twin.parameters(), strict=True):
                others.grad = own.grad.clone()
            other.step()
        optimizer.step()
    torch.testing.assert_close(embedding.weight.detach(), dense.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-9, atol=1e-12)


def test_torch_has_no_rowwise_adagrad():
    optimizer = optim.RowwiseAdagrad(new_net())
    with pytest.raises(TypeError, match=r"torch_state_dict: torch.optim has no .* number per row"):
        optimizer.torch_state_dict()


@pytest.mark.parametrize("name", ["LazyAdam", "AdamW", "Adagrad"])
def test_hooks_see_and_replace_the_state_of_tables(name):
    torch.manual_seed(0)
    net = new_net()
    optimizer = getattr(optim, name)(net, **TWINS[name][1])
    train([net], [optimizer], 3)
    moment = "sum" if name == "Adagrad" else "exp_avg"
    seen = []

    def note(optimizer, packed):
        seen.append({key: value.clone() for key, value in packed["state"][0].items()})

    def double(optimizer, given):
        state = {key: 2 * value for key, value in given["state"][0].items()}
        return {**given, "state": {**given["state"], 0: state}}

    hooks = [
        optimizer.register_state_dict_post_hook(note, prepend=True),
        optimizer.register_load_state_dict_pre_hook(double),
        optimizer.register_load_state_dict_post_hook(
            lambda optimizer: seen.append(optimizer.state[net[0].weight][moment].clone()),
            prepend=True,
        ),
    ]
    saved = copy.deepcopy(optimizer.state_dict())
    assert_same_bits(seen.pop(), saved["state"][0])
    optimizer.load_state_dict(saved)
    rows = [saved["state"][0][f"{moment}.{f}"] for f in range(len(SIZES))]
    assert_same_bits(seen.pop(), 2 * torch.cat(rows))
    for hook in hooks:
        hook.remove()
    expected = {key: 2 * value for key, value in saved["state"][0].items()}
    assert_same_bits(optimizer.state_dict()["state"][0], expected)


def test_the_state_of_a_table_reads_and_is_set_as_that_of_torch():
    torch.manual_seed(0)
    net = new_net().double()
    dense = nn.Parameter(net[0].weight.detach().clone())
    optimizer = optim.Adam(net, lr=0.1)
    other = torch.optim.Adam([dense], lr=0.1)
    weight = net[0].weight
    assert weight not in optimizer.state
    for number in range(6):
        optimizer.zero_grad()
        net(ids(2)).square().sum().backward()
        dense.grad = weight.grad.to_dense()
        optimizer.step()
        other.step()
        if number == 2:  # as programs move the state to a device
            for state in optimizer.state.values():
                for key, value in state.items():
                    state[key] = value.clone()
    state = optimizer.state[weight]
    assert [*state] == ["step", "exp_avg", "exp_avg_sq"]
    assert len(state) == 3
    assert state.get("exp_avg") is not None
    assert state.get("sum") is None
    torch.testing.assert_close(dict(state.items()), other.state[dense], check_dtype=False)
    state["exp_avg"].zero_()
    state["step"] = torch.tensor(1.0)
    assert optimizer.state_dict()["state"][0]["step"] == 1
    assert not optimizer.state_dict()["state"][0]["exp_avg.0"].any()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("name", TWINS)
def test_copies_train_on_alike(name, way):
    torch.manual_seed(0)
    net = new_net([4, 2, 4])
    optimizer = getattr(optim, name)(net, **TWINS[name][1])
    train([net], [optimizer], 3)
    pairs = [way((net, optimizer)), (net, optimizer)]
    train(*zip(*pairs, strict=True), 3)
    for each, _ in pairs:
        torch.manual_seed(1)
        each[0].grow(1, 5)
    train(*zip(*pairs, strict=True), 3)
    (copied, of_copy), _ = pairs
    assert_same_bits(copied.state_dict(), net.state_dict())
    assert_same_bits(of_copy.state_dict(), optimizer.state_dict())
    alone = way(optimizer)
    assert_same_bits(alone.state_dict(), optimizer.state_dict())
    held = {weight for group in alone.param_groups for weight in group["params"]}
    assert held.isdisjoint(net.parameters())


def with_gradients():
    """Returns a net and its twin after two batches whose gradients share rows."""
    torch.manual_seed(0)
    net = new_net()
    twin = Twin(net)
    for batch in (ids(), ids()):
        for each in (net, twin):
            each(batch).square().sum().backward()
    return net, twin


def assert_same_gradients(net, twin):
    torch.testing.assert_close(net[1].weight.grad, twin.layers[0].weight.grad)
    dense = torch.cat([table.weight.grad for table in twin.tables])
    torch.testing.assert_close(net[0].weight.grad.to_dense(), dense)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
def test_clipping_takes_a_module(norm_type):
    net, twin = with_gradients()
    ours = optim.clip_grad_norm_(net, 0.1, norm_type, foreach=False)
    theirs = nn.utils.clip_grad_norm_(twin.parameters(), 0.1, norm_type)
    torch.testing.assert_close(ours, theirs)
    assert_same_gradients(net, twin)
    torch.testing.assert_close(optim.clip_grad_norm_(net[1].weight, 1.0), net[1].weight.grad.norm())
    net.zero_grad()
    net[0](ids(0)).sum().backward()  # whose gradient has no rows
    assert optim.clip_grad_norm_(net[0], 1.0, norm_type) == 0
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 1, 2])).sum().backward()  # torch's gradient has a row twice
    expected = nn.utils.get_total_norm([table.weight.grad.to_dense()], norm_type)
    torch.testing.assert_close(optim.clip_grad_norm_(table, 1.0, norm_type), expected)


def test_clipping_by_value_limits_the_sums_of_sparse_gradients():
    net, twin = with_gradients()
    limit = twin.tables[1].weight.grad.abs().median().item()
    optim.clip_grad_value_(net, limit)
    nn.utils.clip_grad_value_(twin.parameters(), limit)
    assert_same_gradients(net, twin)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_clipping_by_a_norm_that_is_not_finite(bad):
    net = new_net()
    twin = Twin(net)
    for each in (net, twin):
        each(ids()).sum().backward()
    net[1].weight.grad[0, 0] = bad
    twin.layers[0].weight.grad[0, 0] = bad
    ours = optim.clip_grad_norm_(net, 1.0)
    theirs = nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    dense = torch.cat([table.weight.grad for table in twin.tables])
    of_batch = net[0].weight.grad
    rows = of_batch.indices()[0]
    torch.testing.assert_close(of_batch.values(), dense[rows], equal_nan=True)
    found, expected = net[1].weight.grad, twin.layers[0].weight.grad
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("size", [(5,), (4, 5), (4, 5, 2)])
def test_clipping_takes_sparse_gradients_that_are_not_of_a_table(size):
    x = nn.Parameter(torch.ones(size))
    index = torch.zeros(size, dtype=torch.int64)  # each place several times
    torch.gather(x, 0, index, sparse_grad=True).sum().backward()
    dense = x.grad.to_dense()
    torch.testing.assert_close(optim.clip_grad_norm_(x, 1.0), dense.norm())
    torch.testing.assert_close(x.grad.to_dense(), dense / dense.norm())


def test_clipping_says_what_it_takes():
    net = new_net()
    refused = (
        (lambda: optim.clip_grad_norm_(net, -1.0), "clip_grad_norm_: max_norm must be >= 0"),
        (lambda: optim.clip_grad_norm_(net, torch.nan), "clip_grad_norm_: max_norm must be >= 0"),
        (lambda: optim.clip_grad_norm_(net, 1.0, 0), "clip_grad_norm_: norm_type must be > 0"),
        (lambda: optim.clip_grad_value_(net, -1.0), "clip_grad_value_: clip_value must be >= 0"),
    )
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    for clip in (optim.clip_grad_norm_, optim.clip_grad_value_):
        with pytest.raises(TypeError, match=r"parameters must be a module.*got a tuple among them"):
            clip(net.named_parameters(), 1.0)
    assert optim.clip_grad_norm_([], 1.0, error_if_nonfinite=True) == 0
    assert optim.clip_grad_norm_(net, 1.0) == 0  # there is no gradient yet


def test_clipping_can_refuse_a_norm_that_is_not_finite():
    net = new_net()
    net(ids()).sum().backward()
    net[1].weight.grad[0, 0] = torch.inf
    before = net[3].weight.grad.clone()
    with pytest.raises(RuntimeError, match="non-finite"):
        optim.clip_grad_norm_(net, 1.0, error_if_nonfinite=True)
    assert torch.equal(net[3].weight.grad, before)


@pytest.mark.parametrize("name", TWINS)
def test_the_default_dtype_may_be_float64(name):
    """torch counts steps in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        net = new_net()
        layers = copy.deepcopy(net[1:])
        embedded = net[0].requires_grad_(False)
        optimizer = getattr(optim, name)(net, **TWINS[name][1])
        other = getattr(torch.optim, TWINS[name][0])(layers.parameters(), **TWINS[name][1])
        for number in range(6):
            if number == 3:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            train([net, nn.Sequential(embedded, *layers)], [optimizer, other], 1)
        torch.testing.assert_close(net[1:].state_dict(), layers.state_dict(), rtol=1e-10, atol=0)
    finally:
        torch.set_default_dtype(before)


def test_the_number_of_steps_may_be_a_number():
    """States that went through JSON, and those of old versions of torch, have one."""
    nets = [new_net(), new_net()]
    nets[1].load_state_dict(nets[0].state_dict())
    own, loaded = (optim.LazyAdam(net.parameters(), lr=0.1) for net in nets)

    def step(net, optimizer):
        net(torch.tensor([[1, 2, 3], [4, 0, 3]])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(nets[0], own)
    nets[1].load_state_dict(nets[0].state_dict())
    saved = copy.deepcopy(own.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    loaded.load_state_dict(saved)
    for net, optimizer in zip(nets, (own, loaded), strict=True):
        step(net, optimizer)
    for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert_same_bits(mine, theirs)
