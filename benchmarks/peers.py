"""Training in other libraries, as their users run it, where they are installed: MMoE on some of the
same rows.

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
    """Those that are installed."""
    found = {}
    for library, make in {"torch_rechub": rechub, "deepctr_torch": deepctr}.items():
        if importlib.util.find_spec(library):
            found |= make(data, list(itertools.islice(train.batches(BATCH), STEPS)))
    return found


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
