"""The loss under DistributedDataParallel: towers and the scalar temperature get the ranks' mean gradient."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaftr_fast import AdaptiveInfoNCE

RANKS, ROWS = 2, 33


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 5), nn.Linear(8, 5)
        self.contrast = AdaptiveInfoNCE(tau="scalar")

    def forward(self, x: Tensor) -> Tensor:
        return self.contrast(self.left(x), self.right(x))


def model_and_batches() -> tuple[TwoTowers, Tensor]:
    torch.manual_seed(0)
    return TwoTowers(), torch.randn(RANKS, ROWS, 8)


def gradients_of_a_rank(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    model, batches = model_and_batches()
    parallel = DistributedDataParallel(model)  # kept: a collected wrapper reduces nothing in backward
    parallel(batches[rank]).backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{out}{rank}")
    dist.destroy_process_group()


def test_gradients_are_the_mean_of_the_ranks(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "rank"))
    torch.multiprocessing.start_processes(gradients_of_a_rank, arguments, RANKS, start_method="spawn")
    model, batches = model_and_batches()
    torch.stack([model(x) for x in batches]).mean().backward()
    for rank in range(RANKS):
        got = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-6, atol=1e-7)
    assert model.contrast.logit.grad != 0
