"""What 700 million impressions would take on GPUs, from assumed rates, each with a range.

The range of a result comes from varying each assumption alone over its range: the deviations are added in quadrature,
as those of independent errors. It is then widened by the error of the formula itself, which is that of the check on
local processes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.scaling.formula import CALLS, Collective, Rates, Work, step_seconds


@dataclass(frozen=True)
class Range:
    """An assumed or calculated value."""

    low: float
    expected: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.expected)} ({short(self.low)} to {short(self.high)})"

    def scaled(self, factor: float) -> "Range":
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def widened(self, low: float, high: float) -> "Range":
        return Range(self.low * low, self.expected, self.high * high)


GPU = {  # of the H100's kind
    # 1: a step of small kernels, bound by launches; 4: replayed as one graph, with compiled towers
    "rows": Range(1e6, 2e6, 4e6),
    # of 990 TFLOP/s bfloat16 dense: 10 % for products of d = 64 with exponentials between, 40 % as FlashAttention
    "contrast_flops": Range(100e12, 200e12, 400e12),
    # 40 bytes a row, read and written about five times: 10 % to 50 % of 3.3 TB/s, since single rows are scattered
    "merge": Range(8e8, 2e9, 4e9),
    # steps of equal work on equal cards: jitter of a few percent; more where a host thread is late
    "waiting": Range(0.0, 0.05, 0.2),
    # NCCL's small messages: 10 us within a machine at best; 50 us over many machines
    "latency": Range(10e-6, 20e-6, 50e-6),
    # NVLink of 450 GB/s: large messages reach 75 %, of a few MB half of it
    "link": Range(150e9, 300e9, 400e9),
    # 400 Gbit/s a GPU to other machines: 50 GB/s at most; 15 where flows collide
    "between": Range(15e9, 40e9, 48e9),
}
# The file system that all ranks see: from one that ten machines share to a parallel one of many disks
DISK = Range(1e9, 5e9, 20e9)
ONE_WRITER = Range(0.5e9, 1.5e9, 3e9)  # what one process of it writes
MACHINE_GPUS = 8
IMPRESSIONS, BIG = 700_000_000, Work(1, 8192, fields=100, distinct=0.5, table_rows=10**9, dense=250_000)


def seconds(work: Work, values: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a step by what they go to, for one value of each assumption."""
    link = values["link" if work.ranks <= MACHINE_GPUS else "between"]
    collectives = dict.fromkeys(CALLS, Collective(values["latency"], link))
    rates = Rates(values["rows"], values["contrast_flops"], values["merge"], values["waiting"], collectives)
    return step_seconds(work, rates, products=4)


def spread(result: Callable[[Mapping[str, float]], float], assumed: Mapping[str, Range]) -> Range:
    """Returns the range of ``result`` over independent ranges of its arguments."""
    middle = {name: each.expected for name, each in assumed.items()}
    expected = result(middle)
    below = 0.0
    above = 0.0
    for name, each in assumed.items():
        changes = [result(middle | {name: value}) - expected for value in (each.low, each.high)]
        below, above = below + min(*changes, 0.0) ** 2, above + max(*changes, 0.0) ** 2
    return Range(max(expected - math.sqrt(below), 0.0), expected, expected + math.sqrt(above))


def own_error(cases: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns the smallest and the largest of 1 and the measured over the calculated time on several processes."""
    ratios = [1.0, *(case["measured ms"] / case["calculated ms"] for case in cases if case["ranks"] > 1)]
    return min(ratios), max(ratios)


def steps(cases: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of steps and epochs, with the error of the formula as measured in ``cases``."""
    low, high = own_error(cases)
    lines = [
        "| GPUs | rows a step | ms a step | of it contrast | candidates | table rows | an epoch, min |",
        "|---:|---:|---|---|---|---|---|",
    ]
    for ranks in (1, 8, 64):
        work = replace(BIG, ranks=ranks)
        total = spread(lambda values, work=work: 1e3 * sum(seconds(work, values).values()), GPU)
        if ranks > 1:  # the rate of one GPU is assumed as a whole
            total = total.widened(low, high)
        parts = []
        for name in ("contrast", "candidates", "table rows"):
            found = spread(lambda values, work=work, name=name: 1e3 * seconds(work, values).get(name, 0.0), GPU)
            parts.append(str(found) if found.expected else "0")
        epoch = total.scaled(IMPRESSIONS / (ranks * work.rows) / 60e3)
        lines.append(f"| {ranks} | {ranks * work.rows:,} | {total} | {' | '.join(parts)} | {epoch} |")
    return "\n".join(lines)


def tables() -> str:
    """Returns the table of what 10^9 rows of embeddings cost."""
    width = 4 * BIG.width
    states = {"Adam": 3 * width + 4, "row-wise Adagrad": width + 4}  # the moments and the step of a row; the sum
    lines = [
        "| tables | optimizer | GB a rank | received a step, MB | a checkpoint, GB | written in, s |",
        "|---|---|---:|---:|---:|---|",
    ]
    for ranks, optimizer in ((1, "Adam"), (1, "row-wise Adagrad"), (8, "row-wise Adagrad"), (64, "row-wise Adagrad")):
        total = BIG.table_rows * states[optimizer]
        if ranks == 1:
            name, disk = "replicated, 8 ranks", ONE_WRITER
            moved = sum(replace(BIG, ranks=8).received["table rows"].values())
        else:
            name = f"row-wise, {ranks} ranks"
            disk = DISK
            moved = replace(BIG, ranks=ranks).received_sharded()
        time = Range(total / disk.high, total / disk.expected, total / disk.low)
        lines.append(
            f"| {name} | {optimizer} | {total / ranks / 1e9:.1f} | {moved / 1e6:,.0f} | {total / 1e9:.0f} | {time} |"
        )
    return "\n".join(lines)


def short(value: float) -> str:
    """Formats a number with two significant digits and no exponent."""
    if value == 0:
        return "0"
    places = max(1 - math.floor(math.log10(abs(value))), 0)
    return f"{round(value, 1 - math.floor(math.log10(abs(value)))):,.{places}f}"
