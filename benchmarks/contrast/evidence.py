"""What a contrast of k rows sees: near-duplicates among the negatives, effective candidates, and
its gradient.

    python -m benchmarks.contrast.evidence          -> benchmarks/results/contrast_evidence-<processor>.json

Trains AdaFTR as printed for one epoch with seed 0, and measures on 16 shuffled batches of 1,024
training rows. The model has been trained by the contrast of the whole batch, whatever the k that is
measured, so the figures differ by k alone.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaftr_fast.config import RunConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.models import AdaFTR
from adaftr_fast.ops.infonce.api import adaptive_infonce
from adaftr_fast.runs.run import build
from adaftr_fast.training.trainer import Trainer
from benchmarks.contrast.rows import BATCH, GRID, PARTS, PRINTED
from benchmarks.contrast.runs import open_set
from benchmarks.measure import options, write
from benchmarks.paper.catalog import config_of
from benchmarks.render import Cases, table

BATCHES = 16
SAME_FIELDS = 0.8  # the share of equal fields from which two rows are near-duplicates
# the distance of two rows of h, in units of the mean one, below which they are near-duplicates
NEAR = 0.1


def trained(name: str, data: PreparedData) -> AdaFTR:
    """Trains AdaFTR as printed for one epoch."""
    torch.manual_seed(0)
    model = build(RunConfig().with_options(model=PRINTED).model, data)
    assert isinstance(model, AdaFTR)
    config = TrainingConfig(max_epochs=1, progress=False)
    splits = data.load("train"), data.load("validation")
    Trainer(model, *splits, optimizer=config_of(name).optimizer, config=config).fit()
    return model


@torch.no_grad()
def contrasted(model: AdaFTR, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns h of both tasks and tau, the arguments of the contrast."""
    seen = model.backbone.represent(*batch.features)
    h, (a, b) = model._contrasted(seen), model.pairs[0]
    related = model._relatedness_for_tau(seen, model._relatedness_logits(seen, detach=True))[0]
    assert related is not None
    return h[a], h[b], model.contrasts[0].temperature(related)


def near_by_fields(batch: Batch) -> float | None:
    """Returns the share of pairs of rows that agree in most fields; None with fields of several
    values.
    """
    if batch.offsets is not None:
        return None
    same = (batch.ids[:, None] == batch.ids[None]).float().mean(2) >= SAME_FIELDS
    return _share(same)


def near_by_distance(h: Tensor) -> float:
    """Returns the share of pairs of rows whose h is nearly the same."""
    distance = torch.cdist(h, h)
    return _share(distance < NEAR * distance.mean())


def _share(near: Tensor) -> float:
    rows = len(near)
    return float((near.sum() - near.diagonal().sum()) / (rows * (rows - 1)))


def by_rows(h_1: Tensor, h_2: Tensor, tau: Tensor, k: int) -> dict[str, float]:
    """Returns the median of the effective number of candidates, exp of the entropy, and the norm of
    the gradients.
    """
    leaves = [h_1.clone().requires_grad_(), h_2.clone().requires_grad_()]
    loss, stats = adaptive_infonce(*leaves, tau, block=k, return_stats=True)
    gradients = torch.autograd.grad(loss, leaves)
    return {
        "effective": float(stats.entropy.exp().median()),
        "norm": float(torch.stack(gradients).norm()),
    }


def measured(name: str, data: PreparedData) -> dict[str, Any]:
    """Returns the figures of a set, means over the batches."""
    model = trained(name, data)
    batches = list(islice(data.load("train").shuffled(BATCH, epoch=1, seed=1), BATCHES))
    arguments = [contrasted(model, batch) for batch in batches]
    fields = [near_by_fields(batch) for batch in batches]
    found = {
        "set": name,
        "fields": None if fields[0] is None else _mean([each or 0.0 for each in fields]),
        "distance": _mean([near_by_distance(each[1]) for each in arguments]),
    }
    for k in GRID:
        each = [by_rows(*arguments_of_batch, k) for arguments_of_batch in arguments]
        found[str(k)] = {figure: _mean([one[figure] for one in each]) for figure in each[0]}
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def evidence(cases: Cases) -> str:
    """Near-duplicates, and by k the effective candidates and the norm of the gradients in units of
    that of 1,024.
    """

    def row(case: dict[str, Any]) -> list[str]:
        shares = [
            "" if case[by] is None else f"{100 * case[by]:.2f} %" for by in ("fields", "distance")
        ]
        whole = case[str(BATCH)]["norm"]
        by_k = (
            f"{case[str(k)]['effective']:.1f} | {case[str(k)]['norm'] / whole:.2f}" for k in GRID
        )
        return [case["set"], *shares, *" | ".join(by_k).split(" | ")]

    header = "set | near, fields | near, h | " + " | ".join(f"k = {k:,} | norm" for k in GRID)
    return table(header, "l" + "r" * (2 + 2 * len(GRID)), map(row, cases))


def main() -> None:
    data = Path("data"), "the folder of the prepared folders"
    arguments = options(__doc__, data=data, sets=list(PARTS["confirm"].sets))
    cases = [measured(name, open_set(name, arguments.data)) for name in arguments.sets]
    write("contrast_evidence", cases)
    print(evidence(cases))


if __name__ == "__main__":
    main()
