"""Every block of docs/frameworks.md runs, those of ranks on two of them."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_same_bits

TEXT = (Path(__file__).parents[2] / "docs/frameworks.md").read_text(encoding="utf-8")
PREAMBLE, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {section.splitlines()[0]: BLOCK.findall(section) for section in SECTIONS}


def run(block, folder):
    """Runs a block in a folder; returns what it leaves."""
    os.chdir(folder)
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    found = {"__name__": "frameworks"}
    exec(BLOCK.search(PREAMBLE)[1], found)
    exec(block, found)
    return found


def trains_on(found):
    """Takes some more steps on batches that depend on the rank alone."""
    torch.manual_seed(dist.get_rank())
    for batch in found["batches"](3):
        found["optimizer"].zero_grad()
        found["loss_of"](found["parallel"], *batch).backward()
        found["optimizer"].step()


def state_on_a_rank(rank, block, folder, goes_on):
    torch.manual_seed(rank)
    found = run(block, folder)
    if goes_on:
        trains_on(found)
    return {
        name: each.full_tensor() if hasattr(each, "full_tensor") else each
        for name, each in found["model"].state_dict().items()
    }


def lightning_loads_what_it_saved(found):
    module = found["Module"]()
    module.load_state_dict(torch.load("epoch.ckpt", weights_only=True)["state_dict"])
    assert_same_bits(module.state_dict(), found["trainer"].lightning_module.state_dict())


def accelerate_loads_what_it_saved(found):
    model = found["model"]
    accelerator = found["accelerator"]
    before = {name: each.clone() for name, each in model.state_dict().items()}
    accelerator.save_model(model, "model")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    accelerator.load_state("state")
    assert_same_bits(dict(model.state_dict()), before)
    saved = load_file("model/model.safetensors")
    assert_same_bits(saved, before)


def the_schedule_keeps_the_betas(found):
    assert found["optimizer"].param_groups[0]["betas"] == (0.9, 0.999)


CHECKS = {
    "A loop of your own": the_schedule_keeps_the_betas,
    "Lightning": lightning_loads_what_it_saved,
    "Accelerate": accelerate_loads_what_it_saved,
}


@pytest.mark.parametrize(
    "title", [title for title, blocks in BLOCKS.items() if not blocks[0].startswith("# ranks")]
)
def test_the_block_runs(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCKS[title]
    if library := re.match(r"# library: (\w+)", block):
        # accelerate looks for a package "kernels", and finds the folder of the repository.
        monkeypatch.setitem(sys.modules, "kernels", None)
        pytest.importorskip(
            library[1], reason="make test-recipes installs it", exc_type=ModuleNotFoundError
        )
    found = run(block, tmp_path)
    if title in CHECKS:
        CHECKS[title](found)


@pytest.mark.parametrize(
    "title", [title for title, blocks in BLOCKS.items() if blocks[0].startswith("# ranks")]
)
def test_the_blocks_run_on_two_ranks_with_equal_weights(title, tmp_path):
    """Those of one section in processes of their own, which then train on and end alike."""
    several = len(BLOCKS[title]) > 1
    ends = [
        state
        for block in BLOCKS[title]
        for state in on_ranks(state_on_a_rank, 2, block, str(tmp_path), several)
    ]
    for each in ends[1:]:
        assert_same_bits(each, ends[0])
