"""The collectives of a training step, from which docs/scaling.md calculates its time."""

import torch
import torch.distributed as dist

from adaftr_fast import adaptive_infonce
from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.distributed import gather
from adaftr_fast.distributed.ranks import JoinedRanks
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.stepper import Stepper


def test_a_step_calls_five_gathers_one_scatter_and_one_reduction(tmp_path, monkeypatch):
    calls = []

    def count(owner, name):
        original = getattr(owner, name)

        def counting(*arguments, **options):
            calls.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build_model(ModelConfig(), [10, 10], ["click", "conversion"])
        config = TrainingConfig(batch_size=8, progress=False)
        stepper = Stepper(
            model.train(), OptimizerConfig(), config, JoinedRanks(dist.HashStore(), 60)
        )
        count(gather, "_all_gather")
        count(gather, "_reduce_scatter")
        count(dist, "all_reduce")
        stepper.step(Batch(torch.randint(10, (8, 2)), torch.ones(8, 2)), 1)
        of_step = sorted(calls)
        calls.clear()
        a = torch.randn(4, 3, requires_grad=True)
        frozen = torch.randn(4, 3)
        adaptive_infonce(a, frozen, 0.5, process_group=dist.group.WORLD).backward()
    finally:
        dist.destroy_process_group()
    assert of_step == ["_all_gather"] * 5 + ["_reduce_scatter"] + ["all_reduce"]
    assert "_reduce_scatter" not in calls  # candidates without a gradient need none
