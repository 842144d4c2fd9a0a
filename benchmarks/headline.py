"""From nothing to scores on one machine: a log in Ali-CCP's shape, one epoch of AdaFTR and of MMoE,
export, predict.

    python -m benchmarks.headline --out FOLDER                      Ali-CCP's 85 million rows
    python -m benchmarks.headline --out FOLDER --rows 1000000       -> results/headline-*.json

Each stage is a command of ``adaftr-fast`` in a process of its own, of which wall time, peak of
anonymous memory and files on disk are recorded. Killed at any time, the same call goes on with what
is done.
"""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.synthetic.log import DAY, LogConfig
from adaftr_fast.data.synthetic.write import LOG, SCHEMA
from adaftr_fast.files.whole import make_folder, replacing
from benchmarks import render
from benchmarks.measure import options, write
from benchmarks.stages import Stages

ALICCP_ROWS = 42_300_135 + 43_016_840  # of both splits
MODELS = {"AdaFTR": "adaftr", "MMoE": "mmoe"}


def write_test_rows(log: Path, path: Path) -> None:
    """Writes the rows of the test split, which are those of the last day, as a file of
    their own.
    """
    if path.exists():
        return
    rows = ds.dataset(log).scanner(filter=pc.field(DAY) == LogConfig(1).days - 1, batch_readahead=2)
    with (
        replacing(path) as new,
        pq.ParquetWriter(new, rows.projected_schema, compression="zstd") as writer,
    ):
        for batch in rows.to_batches():
            writer.write_batch(batch)


def measure(rows: int, memory: float, out: Path) -> dict[str, object]:
    """Runs the stages that are not done, and returns the figures of all.

    Args:
        memory: the bound of prepare and predict in GB.
    """
    make_folder(out)
    stages = Stages(out / f"stages-{rows}.json")
    log = out / "log"
    data = out / "data"
    test = out / "test.parquet"
    model = out / "model"
    bound = ["--memory", memory]
    stages.run("synthesize", ["synthesize", "--rows", rows], log)
    files = ["--dataset", log / SCHEMA, "--files", log / LOG]
    stages.run("prepare", ["prepare", *files, *bound], data)
    for name, kind in MODELS.items():
        settings = ["--model.name", kind, "--training.max_epochs", 1]
        stages.run(name, ["train", "--data", data, *settings], out / kind)
    stages.run("export", ["export", "--run", out / "adaftr"], model)
    write_test_rows(log / LOG, test)
    scored = ["predict", "--model", model, "--files", test, *bound]
    stages.run("predict", scored, out / "scores.parquet")
    manifest = read_manifest(data)
    of_stages = {"synthesize": rows, "prepare": rows, "predict": manifest.splits["test"].rows}
    of_stages |= dict.fromkeys(MODELS, manifest.splits["train"].rows)
    return {"rows": rows, "rows of stages": of_stages, "memory": memory, "stages": stages.done}


def main() -> None:
    arguments = options(
        __doc__,
        rows=ALICCP_ROWS,
        memory=(4.0, "GB, of prepare and predict"),
        out=(Path, "a folder for all that the stages write"),
    )
    case = measure(arguments.rows, arguments.memory, arguments.out)
    print(render.headline([case]))
    print(write("headline", [case]))


if __name__ == "__main__":
    main()
