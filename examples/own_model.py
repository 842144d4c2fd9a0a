"""Trains a model of one's own with the trainer, alone and under AdaFTR.

A ``Backbone`` computes what each task's tower reads; the embedding, the towers, the losses and the
metrics are there. ``AdaFTR`` stands over any backbone. A model of another kind subclasses
``MultiTaskModel`` and defines ``forward`` and ``loss`` itself.

``adaftr-fast train --model.class own_model:CrossNet``, in this folder, trains it by name.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import adaftr_fast as af
from adaftr_fast.api.prepared import Prepared
from adaftr_fast.api.run import Evaluation
from adaftr_fast.config import ModelConfig, OptimizerConfig, TrainingConfig
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log
from adaftr_fast.models import AdaFTR, Backbone, MultiTaskModel
from adaftr_fast.training.evaluation import evaluate
from adaftr_fast.training.trainer import Trainer


class CrossNet(Backbone):
    """DCN-V2's cross layers as a shared bottom: x' = x0 * (W x + b) + x (Wang et al., WWW'21)."""

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(num_embeddings, task_names, config, field_names)
        features = self.embedded_features  # F * E
        self.cross = nn.ModuleList(nn.Linear(features, features) for _ in range(2))
        self.towers = self.make_towers(features, config.tower_hidden)

    def task_inputs(self, embedded: Tensor) -> list[Tensor]:
        """embedded [B, F * E] -> what the tower of each task reads, T of [B, F * E]."""
        x = embedded
        for layer in self.cross:
            x = embedded * layer(x) + x
        return [x] * len(self.towers)


def train(model: MultiTaskModel, data: Prepared) -> Evaluation:
    """Trains until validation stops improving; returns the metrics of the best weights on the test
    split.
    """
    trainer = Trainer(
        model,
        data.load("train"),
        data.load("validation"),
        optimizer=OptimizerConfig(lr=0.005),
        config=TrainingConfig(batch_size=512, max_epochs=3, progress=False),
    )
    trainer.fit()
    return Evaluation("test", evaluate(model, data.load("test"), batch_size=8192))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = LogConfig(rows=20_000, rates={"click": 0.3, "conversion": 0.1}, list_scale=0.02)
        write_log(log, folder / "log")
        data = af.prepare(
            folder / "log" / LOG, folder / "data", dataset=folder / "log" / SCHEMA, progress=False
        )
        config = ModelConfig(tower_hidden=[32, 16])
        for title in ("CrossNet", "AdaFTR over CrossNet"):
            torch.manual_seed(0)
            backbone = CrossNet(data.manifest.num_embeddings, data.manifest.tasks, config)
            model = AdaFTR(backbone, config) if title.startswith("AdaFTR") else backbone
            print(f"{title}\n{train(model, data)}\n")


if __name__ == "__main__":
    main()
