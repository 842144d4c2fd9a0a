"""Adam on dense weights: the results of torch.optim.Adam, its state and its hooks."""

import copy

import pytest
import torch

from adaftr_fast.optim.dense import DenseAdam
from tests.ops.marks import needs_extension, on_threads
from tests.tolerances import assert_same_bits
from tests.watch import Watch

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6}


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 70), (70,), (1, 5), ()]
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


def set_gradients(number, *models):
    generator = torch.Generator().manual_seed(number)
    for of_all in zip(*models, strict=True):
        grad = torch.randn(of_all[0].shape, generator=generator, dtype=of_all[0].dtype)
        for each in of_all:
            # with the strides of the weight, as autograd's
            each.grad = torch.empty_like(each).copy_(grad)


def assert_equal_to_rounding(own, theirs):
    for x, y in zip(own, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-6, atol=1e-7)


@needs_extension
def test_one_op_updates_all_weights_unless_they_are_of_a_subclass():
    class Own(torch.nn.Parameter):
        pass

    for kind, calls in ((torch.nn.Parameter, 1), (Own, 0)):
        own = [kind(w.detach()) for w in weights()]
        optimizer = DenseAdam(own)
        for number in range(2):  # torch takes the first step
            set_gradients(number, own)
            with Watch() as watch:
                optimizer.step()
        assert watch.ops["dense_adam_"] == calls


def test_groups_rates_and_absent_gradients():
    own = weights()
    theirs = weights()
    mine, torchs = (
        kind([{"params": w[:2]}, {"params": w[2:], "lr": 0.01}], **OPTIONS)
        for kind, w in ((DenseAdam, own), (torch.optim.Adam, theirs))
    )
    for number in range(6):
        set_gradients(number, own, theirs)
        # of one weight, and of a group
        for absent in {0: [2, 3], 3: [1]}.get(number, []):
            own[absent].grad = theirs[absent].grad = None
        for optimizer in (mine, torchs):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + number)
            optimizer.step()
        assert_equal_to_rounding(own, theirs)
        assert number or not any(w in mine.state for w in own[2:])
    states = [each.state_dict()["state"].values() for each in (mine, torchs)]
    steps = [[s["step"].item() for s in each] for each in states]
    assert steps == [[6, 5, 5, 5]] * 2
    for name in ("exp_avg", "exp_avg_sq"):
        assert_equal_to_rounding(*([s[name] for s in each] for each in states))


def assert_takes_the_same_steps(mine, torchs, own, theirs, numbers=range(3), *, exactly=False):
    for number in numbers:
        set_gradients(number, own, theirs)
        mine.step()
        torchs.step()
    if exactly:
        assert_same_bits(own, theirs)
    else:
        assert_equal_to_rounding(own, theirs)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("changed", [False, True], ids=["as saved", "other strides and types"])
def test_state_comes_from_torch(fused, changed):
    own = weights()
    theirs = weights()
    mine = DenseAdam(own, fused=fused, **OPTIONS)
    torchs = torch.optim.Adam(theirs, fused=fused, **OPTIONS)
    set_gradients(0, own, theirs)
    torchs.step()
    with torch.no_grad():
        for x, y in zip(own, theirs, strict=True):
            x.copy_(y)
    saved = copy.deepcopy(torchs.state_dict())
    for state in saved["state"].values() if changed else ():
        state["exp_avg"] = (
            state["exp_avg"].mT.contiguous().mT if state["exp_avg"].dim() == 2 else state["exp_avg"]
        )
        state["step"] = state["step"].double()
    mine.load_state_dict(saved)
    assert_takes_the_same_steps(mine, torchs, own, theirs, (1, 2))


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"maximize": True}, {"amsgrad": True}])
def test_options_of_a_group(option):
    own = weights()
    theirs = weights()
    mine = DenseAdam([{"params": own, **option}], fused=True, **OPTIONS)
    torchs = torch.optim.Adam(theirs, fused=True, **OPTIONS, **option)
    assert_takes_the_same_steps(mine, torchs, own, theirs, exactly=True)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_twice_takes_two_steps():
    own = weights()[:1]
    theirs = weights()[:1]
    mine, torchs = (
        kind(w * 2, fused=True, **OPTIONS)
        for kind, w in ((DenseAdam, own), (torch.optim.Adam, theirs))
    )
    assert_takes_the_same_steps(mine, torchs, own, theirs)


def test_strided_weights_and_gradients():
    own, theirs = (
        [torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).T.requires_grad_()]
        for _ in range(2)
    )
    others = [w.detach().contiguous().requires_grad_() for w in own]
    optimizers = [DenseAdam(w, **OPTIONS) for w in (own, others)] + [
        torch.optim.Adam(theirs, **OPTIONS)
    ]
    for number in range(3):
        set_gradients(number, own, others, theirs)
        others[0].grad = others[0].grad.T.contiguous().T
        own[0].grad = own[0].grad.contiguous()
        for optimizer in optimizers:
            optimizer.step()
    assert_equal_to_rounding(own, theirs)
    assert_equal_to_rounding(others, theirs)


def test_gradient_scaler():
    own = weights()
    theirs = weights()
    optimizers = (
        DenseAdam(own, fused=True, **OPTIONS),
        torch.optim.Adam(theirs, fused=True, **OPTIONS),
    )
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in optimizers]
    for number in range(4):
        for scaler, optimizer, leaves in zip(scalers, optimizers, (own, theirs), strict=True):
            optimizer.zero_grad()
            factor = float("inf") if number == 2 else 1.0
            scaler.scale(factor * sum((leaf**2).sum() for leaf in leaves)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_same_bits(own, theirs)


def test_closure_hooks_and_profiler():
    torch.optim.Adam(weights())  # which wraps torch.optim.Adam.step
    own = weights()
    calls = []
    optimizer = DenseAdam(own, **OPTIONS)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    set_gradients(0, own)
    assert optimizer.step(lambda: 7) == 7
    optimizer.step()
    assert calls == [1, 1]
    with torch.profiler.profile() as profiler:
        optimizer.step()
    assert any("DenseAdam.step" in event.key for event in profiler.key_averages())


def test_autograd_sees_that_a_weight_has_changed():
    (weight,) = own = [torch.ones(4, 2, requires_grad=True)]
    optimizer = DenseAdam(own, **OPTIONS)
    for _ in range(2):  # the first step makes the state
        loss = weight.square().sum()
        set_gradients(0, own)
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_sparse_gradient_is_refused_as_by_torch():
    weight = torch.zeros(4, 2, requires_grad=True)
    optimizer = DenseAdam([weight], **OPTIONS)
    weight.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def lists(dtype=torch.float32, shapes=((301, 77), (0, 4), (5,), ())):
    """The arguments of the op: weights, gradients, moments and steps."""
    generator = torch.Generator().manual_seed(1)
    draw = [
        [torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for _ in range(4)
    ]
    return [
        *draw[:3],
        [each.square() for each in draw[3]],
        [torch.tensor(float(3 + i)) for i in range(len(shapes))],
    ]


def test_the_same_bits_on_any_number_of_threads():
    results = []
    for number in (1, 2, 3):
        results.append(lists())
        with on_threads(number):
            torch.ops.adaftr_fast.dense_adam_(*results[-1], 0.01, 0.9, 0.999, 1e-8)
    assert_same_bits(results[1:], results[:1] * 2)


@needs_extension
def test_bad_lists():
    op = torch.ops.adaftr_fast.dense_adam_
    options = (0.01, 0.9, 0.999, 1e-8)
    op([], [], [], [], [], *options)
    short, of_another_type, strided, of_another_shape = (lists() for _ in range(4))
    short[1] = short[1][:3]
    of_another_type[4][2] = torch.tensor(1)
    strided[1][0] = torch.zeros(77, 301).T
    of_another_shape[1][0] = torch.zeros(301, 7)
    shape = r"weight, grad and moments number 0 must be contiguous Float \[301, 77\] on the CPU"
    for given, error, message in (
        (lists(torch.bfloat16), TypeError, "weights must be float32 or float64, got BFloat16"),
        (short, ValueError, "expected 4 tensors in each list, as in weights, got 3, 4, 4"),
        (
            of_another_type,
            ValueError,
            "steps must be 0-dim float32 or float64 on the CPU, got Long",
        ),
        (strided, ValueError, shape),
        (of_another_shape, ValueError, shape),
    ):
        before = [int(step) for step in given[4]]
        with pytest.raises(error, match=f"dense_adam_: {message}"):
            op(*given, *options)
        assert [int(step) for step in given[4]] == before
