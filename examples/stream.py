"""Trains on files as they arrive, and scores with the newest model, as a server beside it does.

A thread writes an hour's rows at a time and renames each file when it is whole. ``adaftr-fast
stream`` is the same loop as a command; the server is another process then.
"""

import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.synthetic.log import LogConfig
from adaftr_fast.data.synthetic.write import LOG, SCHEMA, write_log
from adaftr_fast.extras.streaming.folder import FolderSource
from adaftr_fast.extras.streaming.loop import StreamOptions, train_stream
from adaftr_fast.serving.reload import ReloadingScorer

HOURS = 4
ROWS = 5_000


def arrive(log: pa.Table, folder: Path) -> None:
    """Writes the hours one after the other. The source leaves names out that begin with a dot."""
    for hour in range(HOURS):
        pq.write_table(log.slice(hour * ROWS, ROWS), folder / ".writing")
        (folder / ".writing").rename(folder / f"hour-{hour:02d}.parquet")
        time.sleep(0.5)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(
            LogConfig(rows=HOURS * ROWS, rates={"click": 0.3, "conversion": 0.1}, list_scale=0.02),
            folder / "log",
        )
        log = pq.read_table(folder / "log" / LOG)
        (folder / "hours").mkdir()
        threading.Thread(target=arrive, args=(log, folder / "hours")).start()

        config = RunConfig(
            model=ModelConfig(tower_hidden=[32, 16]),
            optimizer=OptimizerConfig(lr=0.005),
            training=TrainingConfig(batch_size=256, max_epochs=1, progress=False),
        )
        source = FolderSource(folder / "hours", settle=0)  # renamed files are whole
        options = StreamOptions(poll=0.1, idle=2)
        models = None
        for record in train_stream(
            load_schema(str(folder / "log" / SCHEMA)), source, config, folder / "run", options
        ):
            measured = record["before_training"]
            before = (
                f"click AUC {100 * measured['click']['auc']:.1f} before training, "
                if measured
                else ""
            )
            print(f"{record['name']}: {before}lag {record['lag']:.1f} s")
            models = models or ReloadingScorer(folder / "run/serving")
            scorer = models.latest()  # one export for the whole request
            scores = scorer.score(log.slice(0, 3), extra="ignore")  # the log has the day, too
            print(
                "  scores of three rows: "
                f"{', '.join(f'{p:.3f}' for p in scores['p_ctr'].to_pylist())}"
            )


if __name__ == "__main__":
    main()
