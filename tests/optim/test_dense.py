"""Adam on dense weights: the bits of torch.optim.Adam, its state and its hooks."""

import copy

import pytest
import torch

from adaftr_fast.optim.dense import DenseAdam

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6}


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 70), (70,), (1, 5), ()]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def set_gradients(number, *models):
    generator = torch.Generator().manual_seed(number)
    for of_all in zip(*models, strict=True):
        grad = torch.randn(of_all[0].shape, generator=generator, dtype=of_all[0].dtype)
        for each in of_all:
            each.grad = grad.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(dtype):
    own, theirs = weights(dtype), weights(dtype)
    groups = [lambda w: [{"params": w[:2]}, {"params": w[2:], "lr": 0.01}]] * 2
    mine = DenseAdam(groups[0](own), **OPTIONS)
    torchs = torch.optim.Adam(groups[1](theirs), fused=True, **OPTIONS)
    for number in range(6):
        set_gradients(number, own, theirs)
        if number == 3:
            own[1].grad = theirs[1].grad = None
        for optimizer in (mine, torchs):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + number)
            optimizer.step()
        assert all(torch.equal(x, y) for x, y in zip(own, theirs, strict=True))
    assert repr(mine.state_dict()) == repr(torchs.state_dict())


def test_state_goes_to_and_comes_from_torch():
    own, theirs = weights(), weights()
    mine, torchs = DenseAdam(own, **OPTIONS), torch.optim.Adam(theirs, fused=True, **OPTIONS)
    for number in range(3):
        set_gradients(number, own, theirs)
        torchs.step()
    with torch.no_grad():
        for x, y in zip(own, theirs, strict=True):
            x.copy_(y)
    mine.load_state_dict(copy.deepcopy(torchs.state_dict()))
    for number in range(3, 5):
        set_gradients(number, own, theirs)
        mine.step()
        torchs.step()
    assert all(torch.equal(x, y) for x, y in zip(own, theirs, strict=True))


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"maximize": True}, {"amsgrad": True}])
def test_options_of_a_group(option):
    own, theirs = weights(), weights()
    mine = DenseAdam([{"params": own, **option}], **OPTIONS)
    torchs = torch.optim.Adam(theirs, fused=True, **OPTIONS, **option)
    for number in range(3):
        set_gradients(number, own, theirs)
        mine.step()
        torchs.step()
    assert all(torch.equal(x, y) for x, y in zip(own, theirs, strict=True))


def test_gradient_scaler():
    own, theirs = weights(), weights()
    optimizers = DenseAdam(own, **OPTIONS), torch.optim.Adam(theirs, fused=True, **OPTIONS)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in optimizers]
    for number in range(4):
        for scaler, optimizer, leaves in zip(scalers, optimizers, (own, theirs), strict=True):
            optimizer.zero_grad()
            factor = float("inf") if number == 2 else 1.0
            scaler.scale(factor * sum((leaf**2).sum() for leaf in leaves)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert all(torch.equal(x, y) for x, y in zip(own, theirs, strict=True))


def test_closure_hooks_and_profiler():
    torch.optim.Adam(weights())  # which wraps torch.optim.Adam.step
    own, calls = weights(), []
    optimizer = DenseAdam(own, **OPTIONS)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    set_gradients(0, own)
    assert optimizer.step(lambda: 7) == 7
    assert calls == [1]
    optimizer.step()
    assert calls == [1, 1]
    with torch.profiler.profile() as profiler:
        optimizer.step()
    assert any("DenseAdam.step" in event.key for event in profiler.key_averages())


def test_sparse_gradient_is_refused_as_by_torch():
    weight = torch.zeros(4, 2, requires_grad=True)
    optimizer = DenseAdam([weight], **OPTIONS)
    weight.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
