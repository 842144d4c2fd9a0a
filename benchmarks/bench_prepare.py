"""Rows per second of `adaftr-fast prepare` on a synthetic log in Ali-CCP's raw format, and its peak memory.

    python -m benchmarks.bench_prepare --rows 2000000 --out runs/prepare
    python -m benchmarks.bench_prepare --rows 2000000 --out runs/prepare --engine local ray --kill [--shards 12]

With `--engine local ray`, a cluster of three nodes on this machine, each with a third of its cores, prepares the log
too. With `--kill`, one of the nodes is killed at a random time. Both folders must have the same rows, ids, vocabulary
and manifest. This needs the extra "ray".

The raw files are generated first, in Ali-CCP's proportions (58 impressions per user, 550 tokens of history). They and
finished runs are kept: the same command runs only what is missing, and `--again` runs everything but the generation.
Each run is a process of its own, so that its peak memory is that of the run, including Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq

from adaftr_fast.data.dataset.manifest import Manifest, read_manifest
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.raw import NAMES, write_raw
from adaftr_fast.engines import open_engine
from adaftr_fast.engines.engine import cores

ALICCP_ROWS = 42_300_135 + 43_016_840  # of both splits
NODES = 3
STORE_BYTES = 80 << 20  # of a node's object store, through which only results pass
SAMPLE_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", nargs="+", choices=["local", "ray"], default=["local"])
    parser.add_argument("--shards", type=int, help="with ray; default: one for each 512 MB")
    parser.add_argument("--kill", action="store_true", help="with ray: kill a node at a random time")
    parser.add_argument("--seed", type=int, help="of the node and the time")
    parser.add_argument("--again", action="store_true", help="repeat finished runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the run of this process
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments)
        return
    files = raw_files(arguments)
    if not all(file.exists() for file in files):
        # Half of the rows per split, as in Ali-CCP. The rates give both splits conversions.
        rates = {"click": 0.039, "conversion": 0.004}
        config = LogConfig(arguments.rows, users=arguments.rows // 58, days=2, rates=rates, list_scale=1.0)
        write_raw(config, files[0].parent, progress=True)
    for engine in arguments.engine:
        report = report_path(arguments, engine)
        if arguments.again or not report.exists():
            subprocess.run(
                [sys.executable, "-m", "benchmarks.bench_prepare", *sys.argv[1:], "--one", engine], check=True
            )
        print(report.read_text())
    if len(arguments.engine) == 2:
        found = differences(*(report_path(arguments, engine).with_suffix("") for engine in arguments.engine))
        print(json.dumps({"differences": found}))
        sys.exit(bool(found))


def raw_files(arguments: argparse.Namespace) -> list[Path]:
    """Returns the four raw files in the order that `prepare` expects."""
    folder = arguments.out / f"raw-{arguments.rows}"
    return [folder / name.format(split) for split in ("train", "test") for name in NAMES]


def report_path(arguments: argparse.Namespace, engine: str) -> Path:
    """Returns where a run reports; the prepared folder has the same name without the suffix."""
    kill = "-kill" if engine == "ray" and arguments.kill else ""
    return arguments.out / f"{engine}{kill}-{arguments.rows}.json"


def run_one(arguments: argparse.Namespace) -> None:
    """Prepares the log with one engine and writes the report."""
    report, files = report_path(arguments, arguments.one), raw_files(arguments)
    folder = report.with_suffix("")
    for path in (folder, folder.with_name(f".{folder.name}.work")):
        shutil.rmtree(path, ignore_errors=True)
    report.unlink(missing_ok=True)
    if arguments.one == "local":
        start = time.perf_counter()
        prepare(load_schema("aliccp"), files, folder)
        seconds, more = time.perf_counter() - start, {}
    else:
        seconds, more = run_on_ray(arguments, files, folder)
    manifest = read_manifest(folder)
    rows = sum(split.rows for split in manifest.splits.values())
    found = {
        "engine": arguments.one,
        "rows": rows,
        "text_mb": round(sum(file.stat().st_size for file in files) / 1e6),
        "seconds": round(seconds, 1),
        "cores": cores(),
        "rows_per_s": round(rows / seconds),
        "peak_mb": round(peak_kb(Path("/proc/self")) / 1024),
        "aliccp_minutes": round(ALICCP_ROWS * seconds / rows / 60, 1),  # at this rate
    }
    report.write_text(json.dumps(found | more))


def run_on_ray(arguments: argparse.Namespace, files: list[Path], folder: Path) -> tuple[float, dict[str, object]]:
    """Prepares the log on a cluster. Returns the seconds, without those to start the cluster, and what is reported."""
    chosen = random.Random(arguments.seed)
    local = report_path(arguments, "local")
    expected = json.loads(local.read_text())["seconds"] if local.exists() else 10.0
    with local_cluster() as (cluster, nodes), open_engine("ray", cluster.address) as engine, peak_of_workers() as peak:
        kill = {}
        start = time.perf_counter()
        ended = threading.Event()

        def killer() -> None:
            if not ended.wait(chosen.uniform(0.1, 0.9) * expected):
                work = folder.with_name(f".{folder.name}.work")
                done = [step for step in ("read", "join", "count", "encode") if (work / f"{step}.json").exists()]
                kill.update({"killed_after_s": round(time.perf_counter() - start, 1), "steps_done": done})
                cluster.remove_node(chosen.choice(nodes), allow_graceful=False)

        thread = threading.Thread(target=killer)
        if arguments.kill:
            thread.start()
        manifest = prepare(load_schema("aliccp"), files, folder, engine=engine, shards=arguments.shards)
        seconds = time.perf_counter() - start
        ended.set()
        if arguments.kill:
            thread.join()
    files_of_train = len(manifest.files("train"))
    return seconds, {
        "nodes": NODES,
        "files_of_train": files_of_train,
        "peak_mb_of_largest_worker": round(peak[0] / 1024),
    } | kill


@contextmanager
def local_cluster() -> Iterator[tuple[object, list[object]]]:
    """Starts a cluster of ``NODES`` nodes, and a head that runs nothing, during the block."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cpus = max(1, cores() // NODES)
        yield cluster, [cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES) for _ in range(NODES)]
    finally:
        cluster.shutdown()


@contextmanager
def peak_of_workers() -> Iterator[list[int]]:
    """Yields a list of the largest peak of resident memory of Ray's workers in kB, known after the block."""
    peak, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, StopIteration):  # it has ended
                    if (process / "cmdline").read_bytes().startswith(b"ray::"):
                        peak[0] = max(peak[0], peak_kb(process))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def peak_kb(process: Path) -> int:
    """Returns the peak of resident memory of a process. That of `getrusage` may be of the process before its exec."""
    lines = (process / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def differences(one: Path, other: Path) -> list[str]:
    """Returns what differs between two prepared folders, apart from the division into files."""
    first, second = read_manifest(one), read_manifest(other)
    found = [] if whole(first) == whole(second) else ["manifest"]
    if (one / "vocabulary.parquet").read_bytes() != (other / "vocabulary.parquet").read_bytes():
        found.append("vocabulary")
    for split in first.splits:
        names = pq.read_schema(one / next(iter(first.files(split)))).names
        found += [f"{split}: {name}" for name in names if differ(name, split, (one, first), (other, second))]
    return found


def differ(name: str, split: str, *folders: tuple[Path, Manifest]) -> bool:
    """Returns whether a column, which fits memory, differs between two folders."""
    first, second = (read_split(folder, manifest, split, [name]) for folder, manifest in folders)
    return not first.equals(second)


def whole(manifest: Manifest) -> Manifest:
    """Returns the manifest without the division into files."""
    splits = {split: dataclasses.replace(info, files={}) for split, info in manifest.splits.items()}
    return dataclasses.replace(manifest, splits=splits, sha256={})


if __name__ == "__main__":
    main()
