"""Every block of docs/recipes.md runs, and the blocks of a section have equal losses and gradients.

A section has a block of another library's loss or of plain PyTorch, and blocks of ours ("# here"). Where the library is
not installed, its block is skipped.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.distributed.ranks import on_ranks

TEXT = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
PREAMBLE, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)
BLOCKS = {
    section.splitlines()[0]: re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    for section in SECTIONS
}
OURS = {title: [b for b in blocks if b.startswith("# here")] for title, blocks in BLOCKS.items()}
OTHERS = [(title, b) for title, blocks in BLOCKS.items() for b in blocks if not b.startswith("# here")]
ROWS, WIDTH = 24, 16


def names(dtype):
    """What the recipes share, drawn anew, so that each block has leaves of its own."""
    g = torch.Generator().manual_seed(0)
    draw = [torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]
    encoder = torch.nn.Linear(WIDTH, WIDTH, dtype=dtype)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=g, dtype=torch.float64))
    found = dict(zip(("anchors", "positives", "negatives"), draw)) | {
        "labels": torch.arange(ROWS) % 5,
        "tau": 0.7,
        "queue": F.normalize(torch.randn(40, WIDTH, generator=g, dtype=torch.float64), dim=1).to(dtype),
        "item_id": torch.arange(ROWS) // 2,
        "probability": torch.rand(ROWS, generator=g, dtype=torch.float64).to(dtype),
        "encoder": encoder,
    }
    exec(re.search(r"^```python\n(.*?)^```$", PREAMBLE, re.MULTILINE | re.DOTALL)[1], found)
    return found


def run(block, dtype=torch.float64):
    """Returns the loss and the gradients in whatever the block differentiates."""
    found = names(dtype)
    exec(block, found)
    if found["loss"].requires_grad:
        found["loss"].backward()
    leaves = [found[name] for name in ("anchors", "positives", "negatives")] + list(found["encoder"].parameters())
    scale = found["clip"].logit_scale if "clip" in found else found.get("logit_scale")
    gradients = [x.grad for x in (*leaves, scale, found.get("logit_bias")) if x is not None]
    return [found["loss"].detach(), *(g for g in gradients if g is not None)]


def difference(found, true):
    """Largest difference of loss and gradients, each in units of the largest true value."""
    assert len(found) == len(true) > 1
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, true))


@pytest.fixture
def import_library(monkeypatch):
    """Imports the library that a block names, or skips the test."""

    def imported(block):
        if library := re.match(r"# library: (\w+)", block):
            # transformers looks for a package "kernels", and finds the folder of the repository.
            monkeypatch.setitem(sys.modules, "kernels", None)
            pytest.importorskip(library[1], reason="make test-recipes installs it", exc_type=ModuleNotFoundError)

    return imported


@pytest.mark.parametrize(("title", "block"), OTHERS, ids=lambda x: x.splitlines()[0].removeprefix("# "))
def test_the_loss_of_the_library_equals_ours(title, block, import_library, record_property):
    import_library(block)
    true = run(block)
    assert OURS[title]
    for ours in OURS[title]:
        found = difference(run(ours), true)
        record_property("difference", found)
        assert found < 1e-6  # CLIP's scale is float32


@pytest.mark.parametrize("title", [title for title in OURS if OURS[title]])
def test_our_blocks_run_in_float32(title):
    for block in OURS[title]:
        assert difference(run(block, torch.float32), run(block)) < 1e-4


def clip_on_a_rank(rank):
    """The loss and gradients of open_clip and of ours for this rank's half of the rows."""
    from open_clip.loss import ClipLoss

    from adaftr_fast.nn.losses import CLIPLoss

    results = []
    for ours in (False, True):
        found = names(torch.float64)
        image, text = (F.normalize(found[name].detach(), dim=1).chunk(2)[rank] for name in ("anchors", "positives"))
        image.requires_grad_(), text.requires_grad_()
        clip = CLIPLoss(process_group=dist.group.WORLD)
        theirs = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=2)
        loss = clip(image, text) if ours else theirs(image, text, clip.logit_scale.exp())
        loss.backward()
        with torch.no_grad():
            # The gradient of the features themselves: that of ours is through a normalization of unit vectors.
            along = [g - x * (g * x).sum(1, keepdim=True) for x, g in ((image, image.grad), (text, text.grad))]
        results.append([loss.detach(), *along, clip.logit_scale.grad])
    return results


def siglip_on_a_rank(rank):
    """The loss and gradients of open_clip and of ours for this rank's half of the rows."""
    from open_clip.loss import SigLipLoss

    from adaftr_fast.nn.losses import SigLIPLoss

    results = []
    for loss_of in (SigLipLoss(rank=rank, world_size=2), SigLIPLoss(process_group=dist.group.WORLD)):
        found = names(torch.float64)
        image, text = (F.normalize(found[name].detach(), dim=1).chunk(2)[rank] for name in ("anchors", "positives"))
        leaves = [image, text, torch.tensor(10.0), torch.tensor(-10.0)]
        loss = loss_of(*(x.requires_grad_() for x in leaves), output_dict=True)["contrastive_loss"]
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in leaves)])
    return results


def test_siglip_across_ranks_equals_open_clip():
    pytest.importorskip("open_clip", reason="make test-recipes installs it", exc_type=ModuleNotFoundError)
    for true, found in on_ranks(siglip_on_a_rank, 2):
        assert difference(found, true) < 1e-6


def test_clip_across_ranks_equals_open_clip():
    pytest.importorskip("open_clip", reason="make test-recipes installs it", exc_type=ModuleNotFoundError)
    for true, found in on_ranks(clip_on_a_rank, 2):
        assert difference(found, true) < 1e-6
