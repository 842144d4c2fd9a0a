"""Trains a two-tower retrieval model in plain PyTorch with ``adaptive_infonce`` as its loss.

Each user is contrasted with the items of the batch. The user tower also predicts a temperature per
user. Another row of the batch may hold the same item, which is then no negative: ``row_group``
leaves it out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adaftr_fast as af

USERS = 2000
ITEMS = 500
WIDTH = 32
BATCH = 512


class TwoTower(nn.Module):
    """Maps users and items to vectors of the same width; a user and an item that match have a large
    dot product.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, WIDTH), nn.Embedding(ITEMS, WIDTH)
        self.user_tower, self.item_tower = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.temperature = nn.Linear(WIDTH, 1)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """user [B], item [N] -> their unit vectors [B, d] and [N, d], and the temperature of each
        user [B].
        """
        u = self.users(user)
        i = self.items(item)
        tau = 0.05 + 0.95 * torch.sigmoid(self.temperature(u)).squeeze(1)
        return F.normalize(self.user_tower(u), dim=1), F.normalize(self.item_tower(i), dim=1), tau


def make_clicks(rows: int) -> tuple[Tensor, Tensor]:
    """Draws users and, for each, one of the ten items that the user likes."""
    liked = (torch.arange(USERS)[:, None] * 7 + torch.arange(10)) % ITEMS  # [USERS, 10]
    user = torch.randint(USERS, (rows,))
    return user, liked[user, torch.randint(10, (rows,))]


@torch.no_grad()
def recall_at_10(model: TwoTower, user: Tensor, item: Tensor) -> float:
    """Returns the share of users whose item is among the ten items with the largest dot
    products.
    """
    u, i, _ = model(user, torch.arange(ITEMS))
    return (u @ i.T).topk(10).indices.eq(item[:, None]).any(1).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    user, item = make_clicks(40_000)
    held_out = make_clicks(2_000)
    model = TwoTower()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    print(f"before training: recall@10 {recall_at_10(model, *held_out):.3f}")
    for epoch in range(1, 6):
        for rows in torch.randperm(len(user)).split(BATCH):
            u, i, tau = model(user[rows], item[rows])
            loss = af.adaptive_infonce(u, i, tau, row_group=item[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(
            f"epoch {epoch}: loss {loss.item():.3f}, recall@10 {recall_at_10(model, *held_out):.3f}"
        )


if __name__ == "__main__":
    main()
