"""Rows per second of `adaftr-fast prepare` on a synthetic log in Ali-CCP's raw format, and its peak memory.

    python -m benchmarks.bench_prepare --rows 2000000 --out runs/prepare [--shards 4]

With `--shards`, the shards run in turn, so that each has the machine to itself. The seconds of each shard over all its
stages are reported.

The raw files are generated first, in Ali-CCP's proportions (58 impressions per user, 550 tokens of history), and kept
for the next run. Peak memory is that of the process, including the schema's 23 vocabularies and Python.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.parallel import workers
from adaftr_fast.data.prepare.run import prepare, prepare_shard
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.shard import Shard
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.raw import NAMES, write_raw

ALICCP_ROWS = 42_300_135 + 43_016_840  # of both splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    raw, prepared = arguments.out / f"raw-{arguments.rows}", arguments.out / "prepared"
    if not raw.exists():
        # Half of the rows per split, as in Ali-CCP. The rates give both splits conversions.
        rates = {"click": 0.039, "conversion": 0.004}
        config = LogConfig(arguments.rows, users=arguments.rows // 58, days=2, rates=rates, list_scale=1.0)
        write_raw(config, raw, progress=True)
    files = [raw / name.format(split) for split in ("train", "test") for name in NAMES]
    shutil.rmtree(prepared, ignore_errors=True)
    seconds_of = [0.0] * arguments.shards
    while not prepared.exists():
        for shard in Shard(1, arguments.shards).all:
            start = time.perf_counter()
            if arguments.shards == 1:
                prepare(load_schema("aliccp"), files, prepared)
            else:
                prepare_shard(load_schema("aliccp"), files, prepared, shard)
            seconds_of[shard.number - 1] += time.perf_counter() - start
    manifest, seconds = read_manifest(prepared), max(seconds_of)
    rows = sum(split.rows for split in manifest.splits.values())
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
    text = sum(file.stat().st_size for file in files) / 1e6
    report = {
        "rows": rows,
        "text_mb": round(text),
        "seconds": round(seconds, 1),
        "cores": workers(),
        "rows_per_s": round(rows / seconds),
        "peak_mb": round(megabytes),
        "seconds_of_shards": [round(each, 1) for each in seconds_of],
        "aliccp_minutes": round(ALICCP_ROWS * seconds / rows / 60, 1),  # at this rate
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
