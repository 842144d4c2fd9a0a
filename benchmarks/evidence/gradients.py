"""What blocks of k rows do to the gradient of the contrast, and to the representations.

    python -m benchmarks.evidence.gradients       -> benchmarks/results/evidence_gradients-<processor>.json

Beside the protocol: it reads no test split, and describes one seed. MMoE, blocks of two and the whole batch, with half
of beta, are trained by default otherwise. On 16 shuffled training batches of each, the gradient of the contrast (tau =
0.05) in the dense weights is that of eight divisions into blocks of k rows each:

- norm: of the mean over divisions, in units of that of the whole batch;
- cosine: between the two;
- noise: the variance over divisions in units of the squared norm of their mean.

Alignment and uniformity (Wang and Isola, ICML'20) are of the normalized h: the mean squared distance of a row's two
representations, and log of the mean of exp(-2 d^2) over pairs of rows, mean of both tasks.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.models import AdaFTR
from adaftr_fast.nn.embedding import tables_of
from adaftr_fast.ops.infonce.api import adaptive_infonce
from adaftr_fast.runs.run import build
from adaftr_fast.training.trainer import Trainer
from benchmarks.evidence.rows import PAIRS, config
from benchmarks.evidence.sets import open_set
from benchmarks.measure import options, write
from benchmarks.render import Cases, table

BATCHES, DIVISIONS = 16, 8
TAU = 0.05
BLOCKS = (2, 4, 16, 64)
MODELS = {  # AdaFTR without a contrast trains as MMoE
    "MMoE": (PAIRS | {"contrast": "none"}, 1.0),
    "blocks of two": (PAIRS, 1.0),
    "whole batch, half of beta": (PAIRS | {"contrast_rows": 0}, 0.5),
}


def trained(data: PreparedData, changes: dict[str, Any], beta: float) -> tuple[AdaFTR, int]:
    """Trains a model with the default options. Returns it and its batch size."""
    options = config({}, changes, beta, data.manifest.splits["train"].rows)
    torch.manual_seed(0)
    model = build(options.model, data)
    assert isinstance(model, AdaFTR)
    splits = data.load("train"), data.load("validation")
    Trainer(model, *splits, optimizer=options.optimizer, config=options.training).fit()
    model.eval()
    return model, options.training.batch_size


def of_batch(model: AdaFTR, batch: Batch, random: torch.Generator) -> dict[str, Any]:
    """Returns the figures of a batch, by number of rows those of the gradient."""
    tables = {id(each) for each in tables_of([model])}
    weights = [each for each in model.backbone.parameters() if id(each) not in tables]
    a, b = model.pairs[0]
    layers = model._contrasted(model.backbone.represent(*batch.features))
    h = [layers[a], layers[b]]

    def gradient(rows: Tensor, k: int | None) -> Tensor:
        loss = adaptive_infonce(h[0][rows], h[1][rows], TAU, block=k)
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return torch.cat([each.flatten() for each in found if each is not None]).double()

    whole = gradient(torch.arange(len(batch)), None)
    z = [F.normalize(each.detach()) for each in h]
    found: dict[str, Any] = {
        "alignment": float((z[0] - z[1]).square().sum(1).mean()),
        "uniformity": float(np.mean([_uniformity(each) for each in z])),
    }
    for k in BLOCKS:
        each = torch.stack(
            [gradient(torch.randperm(len(batch), generator=random), k) for _ in range(DIVISIONS)]
        )
        mean = each.mean(0)
        found[str(k)] = {
            "norm": float(mean.norm() / whole.norm()),
            "cosine": float(F.cosine_similarity(mean, whole, dim=0)),
            "noise": float(each.var(0).sum() / mean.square().sum()),
        }
    return found


def _uniformity(z: Tensor) -> float:
    return float(torch.pdist(z).square().mul(-2).exp().mean().log())


def measured(name: str, data: PreparedData) -> list[dict[str, Any]]:
    """Returns a case per model of a set, means over batches."""
    cases = []
    for title, (changes, beta) in MODELS.items():
        model, rows = trained(data, changes, beta)
        random = torch.Generator().manual_seed(1)
        batches = islice(data.load("train").shuffled(rows, epoch=1, seed=1), BATCHES)
        each = [of_batch(model, batch, random) for batch in batches]
        case = {"set": name, "model": title, "rows": rows}
        case |= {key: _mean(each, key) for key in ("alignment", "uniformity")}
        for k in map(str, BLOCKS):
            case[k] = {key: _mean([one[k] for one in each], key) for key in each[0][k]}
        cases.append(case)
    return cases


def _mean(cases: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([case[key] for case in cases]))


def gradients(cases: Cases) -> str:
    """Alignment, uniformity, and norm, cosine and noise of the gradient by number of rows."""

    def row(case: dict[str, Any]) -> list[str]:
        found = [
            case["set"],
            case["model"],
            f"{case['alignment']:.2f}",
            f"{case['uniformity']:.2f}",
        ]
        for k in map(str, BLOCKS):
            of = case[k]
            found += [f"{of['norm']:.2f}", f"{of['cosine']:.2f}", f"{of['noise']:.2f}"]
        return found

    header = "set | model | alignment | uniformity | " + " | ".join(
        f"k = {k}, norm | cosine | noise" for k in BLOCKS
    )
    return table(header, "ll" + "r" * (2 + 3 * len(BLOCKS)), map(row, cases))


def main() -> None:
    arguments = options(
        __doc__,
        sets=["flights_2", "draw_101", "chemistry", "star", "movies"],
        data=(Path("data/evidence"), "the folder of the prepared folders"),
        files=(Path("data"), "the folder of the files of census"),
        threads=1,
    )
    cases = []
    for name in arguments.sets:
        cases += measured(name, open_set(name, arguments.data, arguments.files))
        print(gradients(cases), flush=True)
    write("evidence_gradients", cases)


if __name__ == "__main__":
    main()
