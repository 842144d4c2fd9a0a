"""How saturated the softmax of the contrast is while a model trains.

    python -m benchmarks.adaptation.saturation --folder data/flights

Trains AdaFTR on MMoE with a contrast that is constant, at the paper's temperature and at tau = 0.05, and one that falls
to 0 over two epochs. Four times an epoch it measures the softmax of Eq. 13 over the 1,024 candidates, on 16 shuffled
batches of training rows: the share of rows on which one candidate has more than half, and the median of the effective
number of candidates, exp of the entropy. Where the softmax is saturated, that is about one, the loss is the margin to
the hardest negative over tau, and the row's temperature is the weight 1 / tau of its gradient and no more.
"""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from adaftr_fast._tables import Table
from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.models import AdaFTR
from adaftr_fast.runs.run import build
from adaftr_fast.training.trainer import Trainer

BATCH, BATCHES = 1024, 16
ROWS: dict[str, dict[str, Any]] = {
    "as printed": {},
    "tau = 0.05": {"tau": "fixed"},
    "recommended": {"preset": "recommended"},
}


@torch.no_grad()
def probabilities(model: AdaFTR, batch: Batch) -> Tensor:
    """Returns the softmax of the first pair's contrast, [B, B]."""
    seen = model.backbone.represent(*batch.features)
    (a, b), h = model.pairs[0], model._contrasted(seen)
    related = model._relatedness_for_tau(seen, model._relatedness_logits(seen, detach=True))[0]
    tau = model.contrasts[0].temperature(related)
    return (h[a] @ h[b].T / (tau.unsqueeze(1) if isinstance(tau, Tensor) else tau)).softmax(1)


def measured(data: PreparedData, model: ModelConfig, epochs: int) -> dict[float, tuple[float, float]]:
    """Trains a model; returns the share of rows and the effective number after each quarter of an epoch."""
    torch.manual_seed(0)
    built = build(model, data)
    assert isinstance(built, AdaFTR)
    batches = list(islice(data.load("train").shuffled(BATCH, epoch=1, seed=1), BATCHES))
    found: dict[float, tuple[float, float]] = {}

    def measure(record: dict[str, Any]) -> None:
        largest, effective = [], []
        for p in (probabilities(built, batch) for batch in batches):
            largest.append(p.amax(1))
            effective.append(torch.special.entr(p).sum(1).exp())
        share = (torch.cat(largest) > 0.5).float().mean()
        found[record["epoch"]] = float(share), float(torch.cat(effective).median())

    config = TrainingConfig(max_epochs=epochs, patience=epochs, validate_every=0.25, progress=False)
    splits = (data.load("train"), data.load("validation"))
    Trainer(built, *splits, optimizer=OptimizerConfig(), config=config, on_epoch=measure).fit()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="data/flights", help="a prepared folder")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    data = PreparedData(arguments.folder)
    found = {
        title: measured(data, RunConfig().with_options(model=options).model, arguments.epochs)
        for title, options in ROWS.items()
    }
    epochs = list(next(iter(found.values())))
    lines = []
    for title, each in found.items():
        lines.append([f"{title}: one has half", *(f"{100 * each[epoch][0]:.0f} %" for epoch in epochs)])
        lines.append([f"{title}: effective number", *(f"{each[epoch][1]:.0f}" for epoch in epochs)])
    print(Table(["epoch", *(f"{epoch:g}" for epoch in epochs)], lines, text_columns=1).markdown())


if __name__ == "__main__":
    main()
