"""Samples a second of training from parquet: AdaFTR on MMoE, B = 1024, 23 fields or more, E = 8,
exact Adam.

    python -m benchmarks.bench_trainer                              -> results/trainer-*.json
    python -m benchmarks.bench_trainer --fields 121 --ids 6719      -> results/trainer_fields121-*.json
    python -m benchmarks.bench_trainer --floor                      -> results/floor-*.json: see training/floor.py

Whole calls of ``Trainer.train_epoch``, loader and progress included, in turns, so that a drift of
the machine meets all alike. Our models are built anew for every turn: one is up to a tenth slower
than another for as long as it lives. Beside them (benchmarks/peers.py) an expert's MMoE in plain PyTorch, on
batches in memory, and, where installed, what users of torch-rechub and DeepCTR-Torch run, which know
no contrastive loss.
"""

import gc
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.config.model import preset
from adaftr_fast.data.dataset.loader import PreparedData, Split
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.interrupt import Interrupt
from adaftr_fast.training.trainer import Trainer
from benchmarks import render
from benchmarks.measure import options, write
from benchmarks.peers import BATCH, Contestant, peers
from benchmarks.prepared import FIELDS, write_prepared
from benchmarks.training import floor

FLOOR_SIZES = ((FIELDS, 10_000), (121, 6_719))  # fields, ids of each


def ours(data: PreparedData, train: Split, model: ModelConfig, **config: object) -> Contestant:
    torch.manual_seed(0)
    built = build_model(model, data.manifest.num_embeddings, data.manifest.tasks)
    settings = TrainingConfig(batch_size=BATCH, progress=False, **config)
    trainer = Trainer(
        built, train, data.load("validation"), optimizer=OptimizerConfig(), config=settings
    )
    epochs = itertools.count(1)

    def run() -> float:
        trainer.progress.step = 0
        trainer.progress.seconds = 0.0
        return trainer.train_epoch(next(epochs), Interrupt())["samples_per_s"]

    return run


def contestants(data: PreparedData, train: Split) -> dict[str, Callable[[], Contestant]]:
    """Returns what makes each contestant, warmed: ours anew, the peers once."""
    adaftr = ModelConfig()
    whole_batch = preset("recommended") | {"contrast_rows": 0}
    makes = {
        "AdaFTR": partial(ours, data, train, adaftr),
        "AdaFTR, bfloat16": partial(ours, data, train, adaftr, precision="bfloat16"),
        # Both contrast in the epoch that is measured, the second.
        "AdaFTR, recommended": partial(ours, data, train, ModelConfig(**preset("recommended"))),
        "AdaFTR, recommended, whole batch": partial(ours, data, train, ModelConfig(**whole_batch)),
        # Its relatedness network still trains: L_cl alone ends with epoch 1, which is not measured.
        "AdaFTR without L_cl": partial(ours, data, train, replace(adaftr, contrast_epochs=1)),
        "MMoE": partial(ours, data, train, ModelConfig(name="mmoe")),
    }
    fresh = {name: lambda make=make: warmed(make()) for name, make in makes.items()}
    made = {name: warmed(run) for name, run in peers(data, train).items()}
    return fresh | {name: lambda run=run: run for name, run in made.items()}


def warmed(run: Contestant) -> Contestant:
    run()  # compiles, and fills caches
    return run


def measure(fields: int, ids: int, rows: int, turns: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), rows, ids, held_out=BATCH, fields=fields)
        data = PreparedData(folder)
        makes = contestants(data, data.load("train"))
        rates = {name: [] for name in makes}
        names = list(makes)
        for turn in range(turns):
            # who goes after whom changes: some leave caches and memory in disorder
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                gc.collect()  # of the model before, whose trainer may be in a cycle
                rates[name].append(makes[name]()())
    median = {name: round(statistics.median(each)) for name, each in rates.items()}
    spread = {name: [round(min(each)), round(max(each))] for name, each in rates.items()}
    share = 1 - median["AdaFTR"] / median["AdaFTR without L_cl"]
    case = {
        "ids a field": ids,
        "samples/s": median,
        "range": spread,
        "share of L_cl in the step": round(share, 3),
    }
    return {"fields": fields} | case


def measure_floor(fields: int, ids: int, rows: int, turns: int) -> list[dict[str, object]]:
    """Returns what the parts of a step take alone beside the step, of AdaFTR and of MMoE."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), rows, ids, held_out=BATCH, fields=fields)
        data = PreparedData(folder)
        train = data.load("train")
        rates = floor.measured(fields * ids, ModelConfig().embedding_dim)
        decoding = floor.decoding(train, BATCH)
        for name in ("adaftr", "mmoe"):
            config = ModelConfig(name=name)
            run = warmed(ours(data, train, config))
            step = 1e3 * BATCH / max(run() for _ in range(turns))
            model = build_model(config, data.manifest.num_embeddings, data.manifest.tasks)
            work = floor.work(model, BATCH, *floor.distinct_rows(train, BATCH))
            parts = floor.parts(work, rates, decoding)
            case = {"fields": fields, "ids a field": ids, "model": name, "parts, ms": parts}
            cases.append(case | {"floor, ms": sum(parts.values()), "step, ms": step})
    return cases


def main() -> None:
    arguments = options(
        __doc__,
        fields=FIELDS,
        ids=([10_000, 200_000, 1_000_000], "of every field"),
        rows=(600_000, "of an epoch"),
        turns=5,
        threads=2,
        floor=(False, "what the parts of a step take alone, at 23 and 121 fields"),
    )
    if arguments.floor:
        cases = [
            each
            for fields, ids in FLOOR_SIZES
            for each in measure_floor(fields, ids, arguments.rows, arguments.turns)
        ]
        print(render.floor(cases))
        print(write("floor", cases))
        return
    cases = []
    for ids in arguments.ids:
        cases.append(measure(arguments.fields, ids, arguments.rows, arguments.turns))
        print(cases[-1])
    name = "trainer" if arguments.fields == FIELDS else f"trainer_fields{arguments.fields}"
    print(write(name, cases))


if __name__ == "__main__":
    main()
