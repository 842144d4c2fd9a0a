"""Training in plain PyTorch, as an expert writes it, and in other libraries, as their users run it,
where they are installed: MMoE on some of the same rows.

    pip install torch-rechub
    pip install --no-deps deepctr-torch; pip install requests        # it would also install what it does not use

Each has its own model of our sizes, its own loop over its own DataLoader of rows in memory, and
dense Adam.
"""

import importlib.util
import io
import itertools
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import torch
from torch import nn

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import PreparedData, Split

BATCH = 1024
WIDTH = 8
EXPERTS = (64,)
TOWERS = (64, 32, 16)
STEPS = 20
Contestant = Callable[[], float]
"""Trains a while and returns samples a second."""


def peers(data: PreparedData, train: Split) -> dict[str, Contestant]:
    """Plain PyTorch, and the libraries that are installed."""
    batches = list(itertools.islice(train.batches(BATCH), STEPS))
    found = plain(data, batches)
    for library, make in {"torch_rechub": rechub, "deepctr_torch": deepctr}.items():
        if importlib.util.find_spec(library):
            found |= make(data, batches)
    return found


class PlainMMoE(nn.Module):
    """MMoE of our sizes: one table for all fields, the experts and gates as one product each."""

    def __init__(self, sizes: list[int], tasks: int, sparse: bool) -> None:
        super().__init__()
        self.experts = 3
        first_rows = torch.tensor([0, *itertools.accumulate(sizes)][:-1])
        self.register_buffer("first_rows", first_rows)
        self.embedding = nn.Embedding(sum(sizes), WIDTH, sparse=sparse)
        nn.init.normal_(self.embedding.weight, 0.0, 0.01)
        width = len(sizes) * WIDTH
        self.first = nn.Linear(width, self.experts * EXPERTS[0])
        self.gates = nn.Linear(width, tasks * self.experts)
        self.towers = nn.ModuleList(self._tower() for _ in range(tasks))

    def _tower(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise((*EXPERTS, *TOWERS)):
            layers += [nn.Linear(before, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(TOWERS[-1], 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(ids + self.first_rows).flatten(1)
        experts = torch.relu(self.first(embedded)).unflatten(1, (self.experts, -1))
        gates = self.gates(embedded).unflatten(1, (-1, self.experts)).softmax(2)
        mixed = (gates @ experts).unbind(1)
        return torch.cat([tower(x) for tower, x in zip(self.towers, mixed)], 1)


def plain(data: PreparedData, batches: list[Batch]) -> dict[str, Contestant]:
    """The bare step on batches in memory: with dense gradients and fused Adam, the same compiled,
    and with sparse gradients and SparseAdam (which is lazy) for the table.
    """
    loaded = [(batch.ids.long(), batch.labels) for batch in batches]
    sizes = [field.num_embeddings for field in data.manifest.fields]

    def contestant(sparse: bool, compiled: bool) -> Contestant:
        model = PlainMMoE(sizes, len(data.manifest.tasks), sparse)
        lr = OptimizerConfig().lr
        table = {model.embedding.weight} if sparse else set()
        dense = [each for each in model.parameters() if each not in table]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(dense, lr, fused=True)]
        if sparse:
            optimizers.append(torch.optim.SparseAdam(list(table), lr))
        forward = torch.compile(model) if compiled else model

        def steps() -> None:
            for ids, labels in loaded:
                logits = forward(ids)
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()

        return rated(steps)

    return {
        "plain PyTorch MMoE, dense": contestant(sparse=False, compiled=False),
        "plain PyTorch MMoE, compiled": contestant(sparse=False, compiled=True),
        "plain PyTorch MMoE, sparse": contestant(sparse=True, compiled=False),
    }


def rechub(data: PreparedData, batches: list[Batch]) -> dict[str, Contestant]:
    """Its ``MTLTrainer``; and, as its bare step, the same on batches made beforehand, without bar
    and running means.
    """
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    fields = data.manifest.fields
    kinds = ["classification"] * len(data.manifest.tasks)
    features = [
        SparseFeature(field.name, vocab_size=field.num_embeddings, embed_dim=WIDTH)
        for field in fields
    ]
    model = MMOE(
        features, kinds, 3, {"dims": list(EXPERTS)}, [{"dims": list(TOWERS)} for _ in kinds]
    )
    trainer = MTLTrainer(model, kinds, optimizer_params={"lr": OptimizerConfig().lr})
    loaded = [
        (
            {name: torch.from_numpy(ids) for name, ids in columns(data, [batch]).items()},
            batch.labels,
        )
        for batch in batches
    ]
    rows = columns(data, batches), torch.cat([batch.labels for batch in batches]).numpy()
    loader = DataGenerator(*rows).generate_dataloader(*rows, *rows, batch_size=BATCH)[0]

    def bare_step() -> None:
        for ids, labels in loaded:
            loss = torch.nn.functional.binary_cross_entropy(model(ids), labels)
            model.zero_grad()
            loss.backward()
            trainer.optimizer.step()

    return {
        "torch-rechub MMoE": rated(lambda: trainer.train_one_epoch(loader)),
        "torch-rechub MMoE, bare step": rated(bare_step),
    }


def deepctr(data: PreparedData, batches: list[Batch]) -> dict[str, Contestant]:
    """Its ``fit``, which reads ids as float32 and by default penalises whole tables in
    every step.
    """
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models.multitask import MMOE

    features = [SparseFeat(each.name, each.num_embeddings, WIDTH) for each in data.manifest.fields]
    model = MMOE(
        features,
        expert_dnn_hidden_units=EXPERTS,
        gate_dnn_hidden_units=(),
        tower_dnn_hidden_units=TOWERS,
        task_names=data.manifest.tasks,
    )
    model.compile(
        torch.optim.Adam(model.parameters(), OptimizerConfig().lr), ["binary_crossentropy"] * 2
    )
    ids = columns(data, batches)
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    return {"DeepCTR-Torch MMoE": rated(lambda: model.fit(ids, labels, BATCH, verbose=0))}


def columns(data: PreparedData, batches: list[Batch]) -> dict[str, np.ndarray]:
    """Ids by field, int64."""
    ids = torch.cat([batch.ids for batch in batches]).long().numpy()
    return {field.name: ids[:, place] for place, field in enumerate(data.manifest.fields)}


def rated(run: Callable[[], object]) -> Contestant:
    """Samples a second of ``STEPS`` steps; what it prints, progress bars that cannot be turned off
    too, is dropped.
    """

    def rate() -> float:
        start = time.perf_counter()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            run()
        return STEPS * BATCH / (time.perf_counter() - start)

    return rate
