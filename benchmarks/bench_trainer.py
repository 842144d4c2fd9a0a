"""Samples a second of training from parquet: AdaFTR on MMoE, B = 1024, 23 fields, E = 8, exact Adam.

    python -m benchmarks.bench_trainer        -> results/trainer-*.json

Whole calls of ``Trainer.train_epoch``, loader and progress included, in turns, so that a drift of the machine meets
all alike. Beside them, where installed, torch-rechub's MMoE (``pip install torch-rechub``), which knows no contrastive
loss: its model, its trainer's loop and its DataLoader over some of the same rows in memory, with dense Adam; and, as
its bare step, the same on batches made beforehand, without progress bar and running means.
"""

import argparse
import importlib.util
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from adaftr_fast.data.loader import PreparedData, Split
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.config import OptimizerConfig, TrainingConfig
from adaftr_fast.training.interrupt import Interrupt
from adaftr_fast.training.trainer import Trainer
from benchmarks.measure import write
from benchmarks.prepared import write_prepared

BATCH = 1024
Contestant = Callable[[], float]
"""Trains a while and returns samples a second."""


def ours(data: PreparedData, train: Split, model: ModelConfig, **config: object) -> Contestant:
    torch.manual_seed(0)
    built = build_model(model, data.manifest.num_embeddings, data.manifest.tasks)
    settings = TrainingConfig(batch_size=BATCH, progress=False, **config)
    trainer = Trainer(built, train, data.load("validation"), optimizer=OptimizerConfig(), config=settings)
    epochs = itertools.count(1)

    def run() -> float:
        trainer.progress.step, trainer.progress.seconds = 0, 0.0
        return trainer.train_epoch(next(epochs), Interrupt())["samples_per_s"]

    return run


def rechub(data: PreparedData, train: Split, steps: int = 20) -> dict[str, Contestant]:
    """torch-rechub's MMoE in its own loop over its own DataLoader, and the steps of that loop alone."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    fields, kinds = data.manifest.fields, ["classification"] * len(data.manifest.tasks)
    features = [SparseFeature(field.name, vocab_size=field.num_embeddings, embed_dim=8) for field in fields]
    model = MMOE(features, kinds, 3, {"dims": [64]}, [{"dims": [64, 32, 16]} for _ in kinds])
    trainer = MTLTrainer(model, kinds, optimizer_params={"lr": OptimizerConfig().lr})
    batches = [
        ({field.name: batch.ids[:, place].long() for place, field in enumerate(fields)}, batch.labels)
        for batch in itertools.islice(train.batches(BATCH), steps)
    ]
    columns = {field.name: torch.cat([ids[field.name] for ids, _ in batches]).numpy() for field in fields}
    rows = columns, torch.cat([labels for _, labels in batches]).numpy()
    loader = DataGenerator(*rows).generate_dataloader(*rows, *rows, batch_size=BATCH)[0]

    def bare_step() -> None:
        for ids, labels in batches:
            loss = torch.nn.functional.binary_cross_entropy(model(ids), labels)
            model.zero_grad()
            loss.backward()
            trainer.optimizer.step()

    def rate(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
            run()
        return steps * BATCH / (time.perf_counter() - start)

    return {
        "torch-rechub MMoE": lambda: rate(lambda: trainer.train_one_epoch(loader)),
        "torch-rechub MMoE, bare step": lambda: rate(bare_step),
    }


def contestants(data: PreparedData, train: Split, compiled: bool) -> dict[str, Contestant]:
    named = {
        "AdaFTR": ours(data, train, ModelConfig()),
        "AdaFTR, bfloat16": ours(data, train, ModelConfig(), precision="bfloat16"),
        "AdaFTR without L_cl": ours(data, train, ModelConfig(contrast="none")),
        "MMoE": ours(data, train, ModelConfig(name="mmoe")),
    }
    if compiled:
        named["AdaFTR, compiled"] = ours(data, train, ModelConfig(), compile=True)
        named["AdaFTR, bfloat16, compiled"] = ours(data, train, ModelConfig(), precision="bfloat16", compile=True)
    if importlib.util.find_spec("torch_rechub"):
        named |= rechub(data, train)
    return named


def measure(ids: int, rows: int, turns: int, compiled: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), rows, ids, held_out=BATCH)
        data = PreparedData(folder)
        named = contestants(data, data.load("train"), compiled)
        for run in named.values():
            run()  # compiles and warms
        rates = {name: [] for name in named}
        for _ in range(turns):
            for name, run in named.items():
                rates[name].append(run())
    median = {name: round(statistics.median(each)) for name, each in rates.items()}
    share = 1 - median["AdaFTR"] / median["AdaFTR without L_cl"]
    return {"ids a field": ids, "samples/s": median, "share of L_cl in the step": round(share, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, nargs="+", default=[10_000, 200_000, 1_000_000], help="of every field")
    parser.add_argument("--rows", type=int, default=300_000, help="of an epoch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compiled contestants, too: minutes more")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = []
    for ids in arguments.ids:
        cases.append(measure(ids, arguments.rows, arguments.turns, arguments.compile))
        print(cases[-1])
    print(write("trainer", cases))


if __name__ == "__main__":
    main()
