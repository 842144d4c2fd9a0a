"""Rows a second of `adaftr-fast predict`, and how long one request takes by program and size.

    python -m benchmarks.bench_serving        -> results/serving-*.json

AdaFTR on MMoE over Ali-CCP's 23 fields, on a synthetic log as parquet and in Ali-CCP's raw layout,
and its export with an AOTInductor package; they are made first and kept for the next time. The
model is untrained, which costs the same. A request is ids in, probabilities out, on ``--threads``
threads (a server has more requests at a time); the last kind also encodes its raw rows.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch

from adaftr_fast.config import DataConfig, RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import LOG, NAMES, SCHEMA, write_log, write_raw
from adaftr_fast.models import build_model
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.predict import predict
from adaftr_fast.serving.programs import Probabilities, apply_program
from adaftr_fast.serving.scorer import AOT, Scorer, load_scorer
from adaftr_fast.training.checkpoint.weights import Description, save_checkpoint
from adaftr_fast.training.trained import load_trained
from benchmarks.measure import options, write

REQUEST_ROWS = (1, 500)
RATES = {"click": 0.039, "conversion": 0.004}


def make(out: Path, rows: int) -> dict[str, list[Path]]:
    """Prepared data, a run and its export for each input format, made where they are not there yet;
    the raw files.
    """
    log = LogConfig(rows, rates=RATES)
    raw = LogConfig(rows, users=rows // 58, days=2, rates=RATES)
    inputs = {
        "parquet": [out / "parquet/raw" / LOG],
        "aliccp": [out / "aliccp/raw" / name.format("test") for name in NAMES],
    }
    if not (out / "parquet/raw").exists():
        write_log(log, out / "parquet/raw", progress=True)
        write_raw(raw, out / "aliccp/raw", progress=True)
    schemas = {"parquet": str(out / "parquet/raw" / SCHEMA), "aliccp": "aliccp"}
    files = {
        "parquet": inputs["parquet"],
        "aliccp": [
            out / "aliccp/raw" / name.format(split) for split in ("train", "test") for name in NAMES
        ],
    }
    for kind, schema in schemas.items():
        folder = out / kind
        prepare(load_schema(schema), files[kind], folder / "data", progress=True)
        if not (folder / "model").exists():
            save_run(folder / "run", PreparedData(folder / "data"))
            export_run(folder / "run", folder / "model", aot=kind == "parquet")
    return inputs


def save_run(folder: Path, data: PreparedData) -> None:
    """A run of an untrained model."""
    torch.manual_seed(0)
    settings = RunConfig(data=DataConfig(str(data.folder)))
    model = build_model(settings.model, data.manifest.num_embeddings, data.manifest.tasks)
    manifest = data.manifest
    about = Description(settings, manifest.fingerprint, manifest.num_embeddings, manifest.tasks, {})
    save_checkpoint(folder / "best", model, about)


def throughput(model: Path, files: list[Path], turns: int) -> dict[str, Any]:
    """Rows a second of ``predict`` from raw files, the median."""
    scorer = load_scorer(model)
    scores = model.parent / "scores.parquet"
    reports = [predict(scorer, files, scores) for _ in range(turns + 1)][1:]
    rate = statistics.median(report.rows / report.seconds for report in reports)
    return {"rows": reports[0].rows, "rows/s": round(rate)}


def program_alone(scorer: Scorer, rows: pa.RecordBatch) -> dict[str, Any]:
    """Rows a second from ids to probabilities, on the threads of ``predict``."""
    features = scorer.encode(rows)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        scorer.probabilities(features)
        times.append(time.perf_counter() - start)
    return {
        "predict": "ids alone",
        "rows": len(rows),
        "rows/s": round(len(rows) / statistics.median(times)),
    }


@torch.no_grad()
def latency(folder: Path, table: pa.RecordBatch, requests: int) -> list[dict[str, Any]]:
    """p50 and p99 of requests in milliseconds; the programs take turns."""
    scorer = load_scorer(folder / "model")
    programs = {
        "eager model": Probabilities(load_trained(folder / "run").model),
        "torch.export program": scorer.program,
        "AOTInductor package": torch._inductor.aoti_load_package(str(folder / "model" / AOT)),
    }
    cases = []
    for rows in REQUEST_ROWS:
        batches = [
            table.slice(rows * (number % (len(table) // rows)), rows) for number in range(requests)
        ]
        requested = [scorer.encode(batch) for batch in batches]
        runs = {
            name: [lambda p=program, x=x: apply_program(p, x) for x in requested]
            for name, program in programs.items()
        }
        runs["raw rows to scores"] = [
            lambda b=batch: scorer.score(b, extra="ignore") for batch in batches
        ]
        times = {name: [] for name in runs}
        for turn in range(-requests // 10, requests):  # the first ones warm
            for name, each in runs.items():
                start = time.perf_counter()
                each[turn]()
                if turn >= 0:
                    times[name].append(1e3 * (time.perf_counter() - start))
        for name, of_program in times.items():
            p50, p99 = np.quantile(of_program, (0.5, 0.99)).round(4).tolist()
            cases.append({"request": name, "rows": rows, "p50 ms": p50, "p99 ms": p99})
    return cases


def main() -> None:
    all_cores = torch.get_num_threads()
    arguments = options(
        __doc__,
        rows=1_000_000,
        requests=2000,
        turns=5,
        threads=(1, "of torch, for requests; predict uses all cores"),
        out=(Path("runs/serving"), "folder of what is measured"),
    )
    torch.set_num_threads(all_cores)
    inputs = make(arguments.out, arguments.rows)
    cases = []
    for kind, files in inputs.items():
        cases.append(
            {"predict": kind} | throughput(arguments.out / kind / "model", files, arguments.turns)
        )
        print(cases[-1])
    folder = arguments.out / "parquet"
    table = next(ds.dataset(inputs["parquet"][0]).to_batches(batch_size=1 << 17))
    cases.append(program_alone(load_scorer(folder / "model"), table))
    print(cases[-1])
    torch.set_num_threads(arguments.threads)
    for case in latency(folder, table, arguments.requests):
        cases.append(case)
        print(case)
    print(write("serving", cases))


if __name__ == "__main__":
    main()
