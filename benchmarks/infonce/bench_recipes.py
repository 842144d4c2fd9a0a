"""The losses of other libraries beside ours (docs/recipes.md), forward and backward, where they are
installed.

    python -m benchmarks.infonce.bench_recipes        time in turns, and peak memory -> results/recipes-*.json

Inputs are pairs of unit Gaussians [B, 128] in float32. Nothing is timed before both losses agree.
"""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import adaftr_fast as af
from benchmarks.infonce.cases import forward_backward
from benchmarks.measure import options, side_by_side, step_alone, write
from benchmarks.render import recipes

WIDTH = 128
LABELS = 100
MOST_BYTES = 16e9  # beyond which a library's loss is left out
MATRICES = {
    "ranking": 4.5,
    "CLIP": 7.5,
    "SigLIP": 7.5,
    "SimCLR": 18,
    "SupCon": 12.5,
    "InfoNCE": 3.5,
}
"""How many matrices [B, B] of float32 a step of the library adds to the peak of memory, as measured
at B = 1024.
"""
Loss = Callable[[Tensor, Tensor], Tensor]
sys.modules.setdefault("kernels", None)  # transformers would import the repository's kernels/


def ranking() -> tuple[Loss, Loss]:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    ours = af.nn.losses.MultipleNegativesRankingLoss()
    theirs = MultipleNegativesRankingLoss(model=None)
    return lambda x, y: ours([x, y]), lambda x, y: theirs.compute_loss_from_embeddings([x, y], None)


def clip() -> tuple[Loss, Loss]:
    from open_clip.loss import ClipLoss

    theirs = ClipLoss()
    scale = torch.nn.Parameter(torch.tensor(1 / 0.07).log())
    return af.nn.losses.CLIPLoss(), lambda x, y: theirs(
        F.normalize(x, dim=1), F.normalize(y, dim=1), scale.exp()
    )


def simclr() -> tuple[Loss, Loss]:
    from lightly.loss.ntx_ent_loss import NTXentLoss

    return af.nn.losses.NTXentLoss(0.5), NTXentLoss(0.5)


def sup_con() -> tuple[Loss, Loss]:
    from pytorch_metric_learning.losses import SupConLoss

    ours = af.nn.losses.SupConLoss(0.1)
    theirs = SupConLoss(0.1)
    return lambda x, _: ours(x, torch.arange(len(x)) % LABELS), lambda x, _: theirs(
        x, torch.arange(len(x)) % LABELS
    )


def info_nce() -> tuple[Loss, Loss]:
    from info_nce import InfoNCE

    return lambda x, y: af.adaptive_infonce(
        F.normalize(x, dim=1), F.normalize(y, dim=1), 0.1
    ), InfoNCE()


def siglip() -> tuple[Loss, Loss]:
    from open_clip.loss import SigLipLoss

    ours = af.nn.losses.SigLIPLoss()
    theirs = SigLipLoss()
    scale = torch.tensor(10.0)
    bias = torch.tensor(-10.0)

    def loss(of: Callable[..., Tensor]) -> Loss:
        return lambda x, y: of(F.normalize(x, dim=1), F.normalize(y, dim=1), scale, bias)

    return loss(ours), loss(theirs)


RECIPES = {
    "ranking": ("sentence_transformers", ranking),
    "CLIP": ("open_clip", clip),
    "SigLIP": ("open_clip", siglip),
    "SimCLR": ("lightly", simclr),
    "SupCon": ("pytorch_metric_learning", sup_con),
    "InfoNCE": ("info_nce", info_nce),
}


def inputs(rows: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(rows, WIDTH, generator=g).requires_grad_() for _ in range(2)]


def checked(recipe: str) -> tuple[Loss, Loss]:
    """Returns our loss and the library's, whose gradients agree on 256 rows."""
    ours, theirs = RECIPES[recipe][1]()
    tensors = inputs(256)
    found, true = (
        torch.autograd.grad(loss(*tensors), tensors, allow_unused=True) for loss in (ours, theirs)
    )
    for x, y in zip(found, true):
        if y is not None and (x - y).abs().max() > 1e-4 * y.abs().max():
            raise RuntimeError(
                f"bench_recipes: the gradients of {recipe} and of {RECIPES[recipe][0]} disagree"
            )
    return ours, theirs


def installed() -> list[str]:
    return [recipe for recipe, (library, _) in RECIPES.items() if importlib.util.find_spec(library)]


def warmed(recipe: str, whose: int, rows: int) -> Callable[[], None]:
    """Returns a step of ours (0) or of the library (1) whose loss has been called on few rows."""
    loss = checked(recipe)[whose]
    forward_backward(loss, inputs(64))()
    return forward_backward(loss, inputs(rows))


def compare(recipe: str, rows: int, seconds: float) -> dict[str, Any]:
    """Milliseconds and added memory of ours and, where its matrices fit, of the library's."""
    both = dict(zip(("ours", "library"), checked(recipe)))
    if 4 * rows * rows * MATRICES[recipe] > MOST_BYTES:
        del both["library"]
    runs = {name: forward_backward(loss, inputs(rows)) for name, loss in both.items()}
    mib = {name: step_alone(warmed, recipe, number, rows)[1] for number, name in enumerate(both)}
    case = {"recipe": recipe, "library": RECIPES[recipe][0], "rows": rows, "d": WIDTH}
    return case | {"ms": side_by_side(runs, seconds), "added MiB": mib}


def main() -> None:
    arguments = options(__doc__, rows=[1024, 8192, 32768], seconds=(2.0, "per loss and case"))
    cases = []
    for rows in arguments.rows:
        for recipe in installed():
            cases.append(compare(recipe, rows, arguments.seconds))
            print(cases[-1], flush=True)
    print(recipes(cases))
    print(write("recipes", cases))


if __name__ == "__main__":
    main()
