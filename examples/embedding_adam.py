"""Trains all embedding fields of a model with ``FusedEmbedding`` and exact Adam in a plain PyTorch
loop.

``adaftr_fast.optim.Adam`` touches only the rows that a batch looks up. Its tables equal those of
``torch.optim.Adam``, which moves every row in every step. The script trains the same model both
ways and compares the tables.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adaftr_fast as af

FIELDS = {"user": 5000, "item": 1000, "hour": 24}
WIDTH = 8


class Fused(nn.Module):
    """Logistic regression on the embeddings of all fields, which one module looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = af.FusedEmbedding(list(FIELDS.values()), WIDTH, field_names=list(FIELDS))
        self.out = nn.Linear(self.embedding.out_features, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, F] -> logits [B]."""
        return self.out(self.embedding(ids)).squeeze(1)


class Plain(nn.Module):
    """The same model of one ``nn.Embedding`` per field."""

    def __init__(self, fused: Fused) -> None:
        super().__init__()
        tables = (fused.embedding.field_weight(name).clone() for name in FIELDS)
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(table, freeze=False) for table in tables
        )
        self.out = nn.Linear(len(FIELDS) * WIDTH, 1)
        self.out.load_state_dict(fused.out.state_dict())

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, F] -> logits [B]."""
        return self.out(
            torch.cat([table(column) for table, column in zip(self.tables, ids.T)], 1)
        ).squeeze(1)


def train(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ids: Tensor, labels: Tensor
) -> float:
    """Makes one pass over the rows and returns the mean loss."""
    losses = []
    for rows in torch.arange(len(ids)).split(256):
        loss = F.binary_cross_entropy_with_logits(model(ids[rows]), labels[rows])
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def main() -> None:
    torch.manual_seed(0)
    ids = torch.stack([torch.randint(rows, (20_000,)) for rows in FIELDS.values()], 1)  # [B, F]
    labels = (ids[:, 1] % 7 + torch.rand(len(ids)) > 4).float()
    fused = Fused()
    plain = Plain(fused)
    ours = [
        af.optim.Adam(fused.embedding, lr=0.01),
        torch.optim.Adam(fused.out.parameters(), lr=0.01),
    ]
    theirs = [torch.optim.Adam(plain.parameters(), lr=0.01)]
    for epoch in range(1, 4):
        losses = train(fused, ours, ids, labels), train(plain, theirs, ids, labels)
        print(
            f"epoch {epoch}: loss {losses[0]:.4f} with FusedEmbedding, {losses[1]:.4f} with "
            "nn.Embedding"
        )
    pairs = [
        (fused.embedding.field_weight(name), table.weight)
        for name, table in zip(FIELDS, plain.tables)
    ]
    largest = max(table.abs().max().item() for _, table in pairs)
    difference = max((a - b).abs().max().item() for a, b in pairs)
    print(f"largest weight {largest:.3f}, largest difference between the tables {difference:.1e}")


if __name__ == "__main__":
    main()
