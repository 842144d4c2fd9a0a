"""Detects what a training step reads from the device between two reports;
tests/cuda/test_training.py finds nothing.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adaftr_fast.config.model import MODELS
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.checkpoint.progress import RunningMean
from tests.training.device.test_graph import ROWS, SIZES, batches, stepper
from tests.watch import Watch


@pytest.fixture
def gpu_path(monkeypatch):
    """Steppers take the path of a GPU on tensors of the CPU; what would read a tensor beside an op
    raises.
    """
    monkeypatch.setattr("adaftr_fast.training.stepper.reads_losses", lambda device: False)

    def refuse(self, *_, **__):
        raise AssertionError("a step reads a tensor")

    for name in ("tolist", "numpy", "cpu", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)


def watched(own, content):
    """Takes steps as the trainer does between two reports; returns what each did."""
    means = RunningMean()
    seen = []
    for number, each in enumerate(content, start=1):
        with Watch() as watch:
            means.add(own.step(each, number))
        seen.append(watch)
    return seen


def test_the_watch_sees_what_a_step_on_the_cpu_reads():
    """The finite check of each step, with which the tests of steps on a GPU would fail."""
    assert all(watch.reads for watch in watched(stepper("mmoe", "adam"), batches(2)))


def test_the_watch_sees_each_kind_of_read():
    for read in (
        lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: x.unique(), lambda x: x.long().repeat_interleave(x.long()), lambda x: torch.equal(x, x),
    ):  # fmt: skip
        with Watch() as watch:
            read(torch.ones(3))
        assert watch.reads
    with Watch() as watch:  # what stays on the device
        x = torch.ones(3)
        x[torch.tensor([0, 1])], x.repeat_interleave(2), x.clone().add_(1), torch.where(x > 0, x, 0)
        x.repeat_interleave(torch.tensor([1, 2, 0]), output_size=3)
    assert not watch.reads


@pytest.mark.skipif(torch.version.cuda is None, reason="a build of torch for CPUs")
@pytest.mark.parametrize("name", MODELS)
def test_forward_on_a_gpu_reads_nothing(name):
    """Fake tensors show the devices of all ops. Their backward needs a GPU, so a step on a card
    shows the rest.
    """
    config = ModelConfig(name=name, embedding_dims={"1": 16})
    with FakeTensorMode(), torch.device("cuda"):
        model = build_model(config, SIZES, ["click", "conversion"], field_names=list("012")).train()
        content = Batch(
            torch.ones(ROWS, 3, dtype=torch.int32), torch.ones(ROWS, 2), weight=torch.ones(ROWS)
        )
        with Watch() as watch, torch.autocast("cuda", torch.bfloat16):
            terms = model.loss(content)
    assert all(term.device.type == "cuda" for term in terms.values())
    assert watch.reads == []
