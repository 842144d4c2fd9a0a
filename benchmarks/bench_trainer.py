"""Samples a second of training from parquet: AdaFTR on MMoE, B = 1024, 23 fields, E = 8, exact Adam.

    python -m benchmarks.bench_trainer        -> results/trainer-*.json

Whole calls of ``Trainer.train_epoch``, loader and progress included, in turns, so that a drift of the machine meets
all alike. Beside them, where installed, what their users run (benchmarks/peers.py): torch-rechub's and DeepCTR-Torch's
MMoE, which know no contrastive loss.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import torch

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData, Split
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.interrupt import Interrupt
from adaftr_fast.training.trainer import Trainer
from benchmarks.measure import write
from benchmarks.peers import BATCH, Contestant, peers
from benchmarks.prepared import write_prepared


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
    return named | peers(data, train)


def measure(ids: int, rows: int, turns: int, compiled: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), rows, ids, held_out=BATCH)
        data = PreparedData(folder)
        named = contestants(data, data.load("train"), compiled)
        for run in named.values():
            run()  # compiles and warms
        rates = {name: [] for name in named}
        names = list(named)
        for turn in range(turns):
            for place in range(len(names)):  # who goes after whom changes: some leave caches and memory in disorder
                name = names[(turn + place) % len(names)]
                rates[name].append(named[name]())
    median = {name: round(statistics.median(each)) for name, each in rates.items()}
    share = 1 - median["AdaFTR"] / median["AdaFTR without L_cl"]
    return {"ids a field": ids, "samples/s": median, "share of L_cl in the step": round(share, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, nargs="+", default=[10_000, 200_000, 1_000_000], help="of every field")
    parser.add_argument("--rows", type=int, default=600_000, help="of an epoch")
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
