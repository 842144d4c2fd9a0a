from types import SimpleNamespace

import pytest
import torch

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.errors import CheckpointError
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.training.checkpoint.progress import Progress
from adaftr_fast.training.checkpoint.state import capture, restore
from adaftr_fast.training.optimizers import build_optimizers
from tests.tolerances import assert_same_bits


def steps(model, optimizers, batches):
    for batch in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        for optimizer in optimizers:
            optimizer.step()


def copied(tensors):
    return {name: value.clone() for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("name", "widths", "count"),
    [
        ("adam", 4, 30),
        ("adam", [6, 2, 4], 30),
        ("adam", [6, 2, 4], 0),
        ("sgd", [6, 2, 4], 30),
        ("adagrad", 4, 30),
        ("rowwise_adagrad", 4, 30),
        ("lazy_adam", 4, 30),
    ],
)
def test_restored_training_has_the_same_bits(name, widths, count, model, splits):
    """Of exact Adam, some rows have deferred updates after 30 steps of small batches, which the
    state preserves.
    """
    batches = list(splits[0].batches(10))
    config = OptimizerConfig(lr=0.01, tables=name, tables_lr=0.01)
    model.embedding = FusedEmbedding((50, 20, 3), widths)
    optimizers = build_optimizers(model.train(), config)
    steps(model, optimizers, batches[:count])
    saved = copied(capture(model, optimizers))
    steps(model, optimizers, batches[30:90])
    drawn = torch.rand(3)
    if name == "adam":
        counts = saved.get("optimizer/0/0.counts", torch.zeros(4))  # none before the first step
        assert counts.tolist()[2] == (count > 0)  # stale
    other = type(model)().train()
    other.embedding = FusedEmbedding((50, 20, 3), widths)
    again = build_optimizers(other, config)
    restore(other, again, saved)
    steps(other, again, batches[30:90])
    assert torch.equal(torch.rand(3), drawn)
    assert_same_bits(capture(other, again), capture(model, optimizers))


def test_buffers_that_follow_from_the_model_may_be_missing(model, splits):
    optimizers = build_optimizers(model, OptimizerConfig())
    derived = {"model/embedding.offsets", "model/embedding.oov_counts"}
    saved = {
        name: value
        for name, value in copied(capture(model, optimizers)).items()
        if name not in derived
    }
    other = type(model)()
    restore(other, build_optimizers(other, OptimizerConfig()), saved)
    assert torch.equal(other.embedding.weight, model.embedding.weight)
    assert torch.equal(other.embedding.offsets, model.embedding.offsets)


def test_a_run_saves_and_restores_the_generator_of_its_own_gpu(monkeypatch):
    states = {f"cuda:{n}": torch.tensor(n) for n in range(2)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[str(device)])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: states.update({str(device): state})
    )

    def on(device):
        """Returns a model on a GPU, as far as its parameters say."""
        model = torch.nn.Module()
        parameter = SimpleNamespace(device=torch.device(device))
        model.parameters = lambda recurse=True: iter([parameter, parameter])
        return model

    saved = capture(on("cuda:1"), [])
    assert saved["rng/cuda"] == 1
    assert "rng/cuda" not in capture(on("cpu"), [])
    cpu = {"rng/cpu": saved["rng/cpu"]}
    of_a_cpu = cpu
    of_another = cpu | {"rng/cuda": torch.tensor(9)}
    for device, tensors, expected in (
        ("cuda:0", saved, [1, 1]),
        ("cuda:0", of_a_cpu, [1, 1]),
        ("cpu", of_another, [1, 1]),
        ("cuda:1", of_another, [1, 9]),
    ):
        restore(on(device), [], tensors)
        assert [int(state) for state in states.values()] == expected


def test_the_state_of_another_model_raises(model, splits):
    optimizers = build_optimizers(model, OptimizerConfig())
    saved = capture(model, optimizers)
    wrong = saved | {"model/out.weight": torch.zeros(2, 5)}
    with pytest.raises(
        CheckpointError, match=r"out\.weight: expected shape \(2, 12\), got \(2, 5\)"
    ):
        restore(model, optimizers, wrong)
    with pytest.raises(CheckpointError, match=r"out\.bias: expected shape \(2,\), got None"):
        restore(
            model,
            optimizers,
            {name: value for name, value in saved.items() if name != "model/out.bias"},
        )


def test_a_counter_of_an_optimizer_that_is_out_of_range_raises(model, splits):
    optimizers = build_optimizers(model.train(), OptimizerConfig())
    steps(model, optimizers, list(splits[0].batches(10))[:1])
    saved = copied(capture(model, optimizers))
    saved["optimizer/0/0.clock"][0] = -1e15
    with pytest.raises(CheckpointError, match=r"saved state: optimizer 0: .* got steps 1 and -1e"):
        restore(model, optimizers, saved)


@pytest.mark.parametrize("wrong", [{"epoch": 0}, {"step": -1}, {"step": 9}, {"validated": 5}])
def test_progress_that_is_none_raises(wrong):
    with pytest.raises(ValueError, match="progress must have"):
        Progress(**{"step": 2, "total_steps": 8} | wrong)
