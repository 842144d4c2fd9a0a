"""Classes that tests train by name."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from adaftr_fast.models import Backbone, MultiTaskModel
from adaftr_fast.nn.embedding import FusedEmbedding
from adaftr_fast.nn.mlp import Tower


class Net(Backbone):
    """One linear layer of ``options["width"]`` as the bottom that the tasks share."""

    def __init__(self, num_embeddings, task_names, config, field_names=None):
        super().__init__(num_embeddings, task_names, config, field_names)
        width = config.options.get("width", 4)
        self.bottom = nn.Linear(self.embedded_features, width)
        self.towers = nn.ModuleList(Tower(width, config.tower_hidden) for _ in task_names)

    def task_inputs(self, embedded):
        return [self.bottom(embedded)] * len(self.towers)


class Keywords(Net):
    """Passes what it gets on to its base."""

    def __init__(self, *args, dense=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.encodings = dense

    def forward(self, ids, offsets=None, dense=None):
        return super().forward(ids, offsets)


class AnyKeywords(Keywords):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Plain(MultiTaskModel):
    """A linear layer over a table whose fields are named by their positions. It takes
    no numbers.
    """

    def __init__(self, num_embeddings, task_names, config, field_names):
        super().__init__(task_names)
        self.make_tables(num_embeddings, config.embedding_dim, field_names)
        self.out = nn.Linear(len(num_embeddings) * config.embedding_dim, len(task_names))

    def make_tables(self, num_embeddings, width, names):
        self.embedding = FusedEmbedding(num_embeddings, width)

    def forward(self, ids, offsets=None):
        return self.out(self.embedding(ids, offsets))

    def loss(self, batch):
        each = F.binary_cross_entropy_with_logits(
            self(*batch.features), batch.labels, reduction="none"
        )
        return dict(zip(self.task_names, each.mean(0).unbind(), strict=True))


class Doubled(Plain):
    """Reads its table, of another type, when it is made."""

    def make_tables(self, num_embeddings, width, names):
        self.embedding = FusedEmbedding(num_embeddings, width, dtype=torch.float64)
        self.largest = self.embedding.weight.detach().abs().max().item()

    def forward(self, ids, offsets=None):
        return self.out(self.embedding(ids, offsets).float())


class Logits(nn.Module):
    """The same as ``Plain``, as a module without a loss."""

    def __init__(self, num_embeddings, task_names, config, field_names):
        super().__init__()
        self.embedding = FusedEmbedding(num_embeddings, config.embedding_dim)
        self.out = nn.Linear(len(num_embeddings) * config.embedding_dim, len(task_names))

    def forward(self, ids, offsets=None):
        return self.out(self.embedding(ids, offsets))


class Output(Logits):
    def forward(self, ids, offsets=None):
        return SimpleNamespace(logits=super().forward(ids, offsets))


class Wrong(Logits):
    def forward(self, ids, offsets=None):
        return torch.zeros(len(ids), 3)


class Misnamed(Logits):
    def forward(self, ids, off):
        return super().forward(ids, off)


class Optional(Logits):
    def forward(self, ids, off=None):
        return super().forward(ids, off)


class Torch(Plain):
    """Looks up tables of torch."""

    def make_tables(self, num_embeddings, width, names):
        self.embedding = nn.ModuleList(nn.Embedding(rows, width) for rows in num_embeddings)

    def forward(self, ids):
        return self.out(torch.cat([table(ids[:, f]) for f, table in enumerate(self.embedding)], 1))


class Named(Plain):
    """Names the fields of its table as the log does."""

    def make_tables(self, num_embeddings, width, names):
        self.embedding = FusedEmbedding(num_embeddings, width, field_names=names)


class Each(Torch):
    """Has a table of one field for each field."""

    def make_tables(self, num_embeddings, width, names):
        self.embedding = nn.ModuleList(FusedEmbedding([rows], width) for rows in num_embeddings)

    def forward(self, ids):
        return self.out(
            torch.cat([table(ids[:, f : f + 1]) for f, table in enumerate(self.embedding)], 1)
        )


class Deep(Plain):
    """Has two tables of all fields, of which one has a weight for each id."""

    def make_tables(self, num_embeddings, width, names):
        self.embedding = FusedEmbedding(num_embeddings, width)
        self.linear = FusedEmbedding(num_embeddings, 1)

    def forward(self, ids):
        return super().forward(ids) + self.linear(ids).sum(1, keepdim=True)


class Short(Net):
    def __init__(self, num_embeddings):
        """Takes too few arguments."""


class Abstract(MultiTaskModel):
    def __init__(self, num_embeddings, task_names, config, field_names):
        super().__init__(task_names)


class Refusing(Net):
    def __init__(self, num_embeddings, task_names, config, field_names=None):
        raise ValueError("options: expected a width, got none")


class Shuffled(Logits):
    """Takes its arguments in another order, and the numbers of dense fields alone."""

    def __init__(self, config, dense=(), *, field_names, task_names, num_embeddings):
        super().__init__(num_embeddings, task_names, config, field_names)

    def forward(self, ids, dense=None):
        return super().forward(ids) + (
            0 if dense is None else dense.nan_to_num().sum(1, keepdim=True)
        )


class Half(Shuffled):
    """Takes the numbers of dense fields in its constructor alone."""

    def forward(self, ids, offsets=None):
        return super().forward(ids)
