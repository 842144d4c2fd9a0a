import pytest
import torch

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.stepper import Stepper
from tests.training.conftest import trainer

TOO_MUCH = 1 << 50  # bytes


def test_a_lack_of_memory_on_the_cpu_is_reported_and_the_model_runs_once(model, splits):
    calls = []

    def greedy(batch):
        calls.append(batch)
        return {"click": torch.empty(TOO_MUCH, dtype=torch.uint8).sum()}

    model.loss = greedy
    message = (
        r"^epoch 1, step 1: out of memory on cpu: lower training\.batch_size or raise "
        r"training\.accumulate$"
    )
    with pytest.raises(TrainingError, match=message):
        trainer(model, splits).fit()
    assert len(calls) == 1


def test_a_lack_of_memory_in_validation_names_its_batch_size(model, splits):
    def greedy(*_):
        torch.empty(TOO_MUCH, dtype=torch.uint8)

    model.forward, model.loss = greedy, lambda batch: {"click": model.out.weight.sum()}
    with pytest.raises(
        TrainingError, match=r"^out of memory on cpu: lower training\.eval_batch_size$"
    ):
        trainer(model, splits, batch_size=2000).fit()


@pytest.mark.parametrize("part", ["loss", "backward", "optimizer"])
def test_a_lack_of_memory_on_a_gpu_names_what_it_has(model, splits, part, monkeypatch):
    """The error that torch raises, on a stepper that takes itself to be on a GPU."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 78 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, int(79.1 * 2**30)))
    stepper = Stepper(model, OptimizerConfig(), TrainingConfig(batch_size=100))
    stepper.device = torch.device("cuda:0")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    if part == "loss":
        stepper.loss = fail
    elif part == "backward":
        model.out.weight.register_hook(fail)
    else:
        stepper.optimizers[0].step = fail
    message = (
        r"^out of memory on cuda:0 \(78\.0 GiB allocated, 79\.1 GiB in all\): lower "
        r"training\.batch_size"
    )
    with pytest.raises(TrainingError, match=message) as caught:
        stepper.step(next(splits[0].batches(100)), 1)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
