"""Trains an epoch of each contestant for every line on stdin and prints the milliseconds of a step,
as JSON.

    python epochs.py FOLDER THREADS ROWS IDS FIELDS      writes data of so many rows, ids and fields to FOLDER

``bench_against`` runs this file in two checkouts of the repository, so it imports only what all
versions have, and each version prepares the data in its own format. The first line that it prints
says where adaftr_fast is.
"""

import json
import sys
import time
from pathlib import Path

import torch

import adaftr_fast
from adaftr_fast.config import OptimizerConfig, TrainingConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.training.interrupt import Interrupt
from adaftr_fast.training.trainer import Trainer
from benchmarks.prepared import write_prepared

BATCH = 1024
CONTESTANTS = {
    "AdaFTR": ("adaftr", "float32"),
    "AdaFTR, bfloat16": ("adaftr", "bfloat16"),
    "MMoE": ("mmoe", "float32"),
}


def main() -> None:
    folder = Path(sys.argv[1])
    threads, rows, ids, fields = map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    folder.mkdir()
    write_prepared(folder, rows, ids, held_out=BATCH, fields=fields)
    data = PreparedData(folder)
    train = data.load("train")
    validation = data.load("validation")
    steps = len(train) // BATCH
    trainers = {}
    for name, (model, precision) in CONTESTANTS.items():
        torch.manual_seed(0)
        built = build_model(
            ModelConfig(name=model), data.manifest.num_embeddings, data.manifest.tasks
        )
        config = TrainingConfig(batch_size=BATCH, progress=False, precision=precision)
        trainers[name] = Trainer(
            built, train, validation, optimizer=OptimizerConfig(), config=config
        )
    print(adaftr_fast.__file__, flush=True)
    for epoch, _ in enumerate(sys.stdin, start=1):
        spent = {}
        for name, trainer in trainers.items():
            trainer.progress.step = 0
            trainer.progress.seconds = 0.0
            start = time.perf_counter()
            trainer.train_epoch(epoch, Interrupt())
            spent[name] = 1e3 * (time.perf_counter() - start) / steps
        print(json.dumps(spent), flush=True)


if __name__ == "__main__":
    main()
