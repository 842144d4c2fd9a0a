"""What a training step consists of: the time of each op, by PyTorch's profiler.

    python -m benchmarks.training.parts --fields 23 --threads 2

Trains MMoE on a generated log, an epoch before that is not measured. An op's time is its own,
without that of ops it calls. The profiler takes about a microsecond a call, so small ops look
larger than they are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.loader import PreparedData
from benchmarks.bench_trainer import BATCH, ours, warmed
from benchmarks.measure import options
from benchmarks.prepared import write_prepared
from benchmarks.render import table

SHOWN = 20  # ops


def main() -> None:
    arguments = options(__doc__, fields=23, ids=10_000, rows=400_000, threads=2)
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(
            Path(folder), arguments.rows, arguments.ids, held_out=BATCH, fields=arguments.fields
        )
        data = PreparedData(folder)
        run = warmed(ours(data, data.load("train"), ModelConfig(name="mmoe")))
        with profile(activities=[ProfilerActivity.CPU]) as found:
            rate = run()
    steps = arguments.rows // BATCH
    ops = sorted(found.key_averages(), key=lambda op: -op.self_cpu_time_total)[:SHOWN]
    lines = [
        [op.key, f"{op.count / steps:.1f}", f"{op.self_cpu_time_total / 1e3 / steps:.3f}"]
        for op in ops
    ]
    print(f"a step, with the profiler: {1e3 * BATCH / rate:.2f} ms\n")
    print(table("op | calls a step | ms a step", "lrr", lines))


if __name__ == "__main__":
    main()
