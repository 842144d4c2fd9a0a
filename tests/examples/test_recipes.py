"""Every block of docs/recipes.md runs, and the blocks of a section have equal losses and gradients.

A section has a block of another library's loss or of plain PyTorch, and blocks of ours ("# here").
Where the library is not installed, its block is skipped.
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
    section.splitlines()[0]: re.findall(
        r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL
    )
    for section in SECTIONS
}
OURS = {title: [b for b in blocks if b.startswith("# here")] for title, blocks in BLOCKS.items()}
OTHERS = [
    (title, b) for title, blocks in BLOCKS.items() for b in blocks if not b.startswith("# here")
]
ROWS = 24
WIDTH = 16


def names(dtype):
    """What the recipes share, drawn anew, so that each block has leaves of its own."""
    g = torch.Generator().manual_seed(0)
    draw = [
        torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    encoder = torch.nn.Linear(WIDTH, WIDTH, dtype=dtype)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=g, dtype=torch.float64))
    found = dict(zip(("anchors", "positives", "negatives"), draw)) | {
        "labels": torch.arange(ROWS) % 5,
        "tau": 0.7,
        "queue": F.normalize(torch.randn(40, WIDTH, generator=g, dtype=torch.float64), dim=1).to(
            dtype
        ),
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
    leaves = [found[name] for name in ("anchors", "positives", "negatives")] + list(
        found["encoder"].parameters()
    )
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
            pytest.importorskip(
                library[1], reason="make test-recipes installs it", exc_type=ModuleNotFoundError
            )

    return imported


@pytest.mark.parametrize(
    ("title", "block"), OTHERS, ids=lambda x: x.splitlines()[0].removeprefix("# ")
)
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


def on_a_rank(rank):
    """The losses and gradients of open_clip and of ours for this rank's half of the rows."""
    from open_clip.loss import ClipLoss, SigLipLoss

    from adaftr_fast.nn.losses import CLIPLoss, SigLIPLoss

    world = dist.group.WORLD
    clip = CLIPLoss(process_group=world)
    theirs = ClipLoss(True, True, rank=rank, world_size=2)
    results = []
    for loss_of, scalars in (
        (lambda x, y: theirs(x, y, clip.logit_scale.exp()), [clip.logit_scale]),
        (clip, [clip.logit_scale]),
        (SigLipLoss(rank=rank, world_size=2), [torch.tensor(10.0), torch.tensor(-10.0)]),
        (SigLIPLoss(process_group=world), [torch.tensor(10.0), torch.tensor(-10.0)]),
    ):
        found = names(torch.float64)
        sides = [
            F.normalize(found[name].detach(), dim=1).chunk(2)[rank]
            for name in ("anchors", "positives")
        ]
        x, y = (side.requires_grad_() for side in sides)
        loss = loss_of(x, y, *(each.requires_grad_() for each in scalars if len(scalars) == 2))
        gradients = torch.autograd.grad(loss, [x, y, *scalars])
        # The gradient of the features themselves: that of our CLIP is through a normalization of
        # unit vectors.
        along = [g - side * (g * side).sum(1, keepdim=True) for side, g in zip((x, y), gradients)]
        results.append(
            [loss.detach(), *(along if len(scalars) == 1 else gradients[:2]), *gradients[2:]]
        )
    return results


def test_losses_across_ranks_equal_those_of_open_clip():
    pytest.importorskip(
        "open_clip", reason="make test-recipes installs it", exc_type=ModuleNotFoundError
    )
    for clip, own_clip, siglip, own_siglip in on_ranks(on_a_rank, 2):
        assert difference(own_clip, clip) < 1e-6
        assert difference(own_siglip, siglip) < 1e-6
