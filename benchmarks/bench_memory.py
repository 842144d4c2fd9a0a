"""The peak of anonymous memory of prepare and predict at several lengths of a log, 23 fields of
which five hold lists.

    python -m benchmarks.bench_memory --out FOLDER             -> results/memory-*.json, shown in docs/scaling.md
    python -m benchmarks.bench_memory --out FOLDER --rows 1000000 8000000 24000000

The log is that of synthesize, and prepared from parquet, and from text in which "|" joins the
tokens of a list; each command has ``--memory``. The same call goes on after it was cut off.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from adaftr_fast.data.synthetic.log import LAYOUTS, PROBABILITY, RELATEDNESS
from adaftr_fast.data.synthetic.write import LOG, SCHEMA
from adaftr_fast.files.whole import make_folder, replacing
from benchmarks import render
from benchmarks.measure import options, write
from benchmarks.stages import Stages

LAYOUT = LAYOUTS["aliccp"]()
LISTS = [field.name for field in LAYOUT.fields if field.tokens > 1]
TRUTH = [PROBABILITY + stage for stage in LAYOUT.rates] + [RELATEDNESS]
ROLES = ["--labels", *LAYOUT.rates, "--group", LAYOUT.group, "--time", "day", "--ignore", *TRUTH]
SHORT_RUN = ["--training.max_epochs", "1", "--training.batch_size", "8192", "--model.name", "mmoe"]


def write_text(log: Path, path: Path) -> None:
    """Writes a log as text."""
    if path.exists():
        return
    with replacing(path) as new:
        batches = _batches(log)
        first = next(batches)
        with pa.csv.CSVWriter(new, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)


def _batches(log: Path) -> Iterator[pa.RecordBatch]:
    for file in sorted(log.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches():
            yield pa.record_batch(
                [_text(column) for column in batch.columns], names=batch.schema.names
            )


def _text(column: pa.Array) -> pa.Array:
    return (
        pc.binary_join(column.cast(pa.list_(pa.string())), "|")
        if pa.types.is_list(column.type)
        else column
    )


def measure(rows: int, memory: float, out: Path, model: Path) -> dict[str, object]:
    """Returns the peaks of one length of the log.

    Args:
        model: an exported model, which is made if there is none.
    """
    folder = out / str(rows)
    make_folder(folder)
    stages = Stages(folder / "stages.json")
    log = folder / "log"
    text = folder / "log.csv"
    bound = ["--memory", memory]
    stages.run("synthesize", ["synthesize", "--rows", rows], log)
    write_text(log / LOG, text)
    kinds = {"prepare, parquet": ["--dataset", log / SCHEMA, "--files", log / LOG]}
    multi = [f"{name}=|" for name in LISTS]
    kinds["prepare, text"] = [*ROLES, "--multi", *multi, "--files", text]
    for name, inputs in kinds.items():
        stages.run(name, ["prepare", *inputs, *bound], folder / name.replace(", ", "-"))
    run = folder / "run"
    scores = folder / "scores.parquet"
    if not model.exists():
        stages.run("train", ["train", *SHORT_RUN, "--data", folder / "prepare-parquet"], run)
        stages.run("export", ["export", "--run", run], model)
    stages.run("predict", ["predict", "--model", model, "--files", log / LOG, *bound], scores)
    peaks = {name: found["peak_mb"] for name, found in stages.done.items()}
    return {
        "rows": rows,
        "memory": memory,
        "peak MB": peaks,
        "text MB": round(text.stat().st_size / 1e6),
    }


def main() -> None:
    arguments = options(
        __doc__,
        rows=[1_000_000, 8_000_000],
        memory=(1.0, "GB"),
        out=(Path, "a folder for logs, results and what is done"),
    )
    model = arguments.out / "model"  # of the first length
    cases = [measure(rows, arguments.memory, arguments.out, model) for rows in arguments.rows]
    print(render.memory(cases))
    print(write("memory", cases))


if __name__ == "__main__":
    main()
