"""``adaftr_fast.prepare``: raw logs to a prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaftr_fast._tables import Table
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.prepare import run
from adaftr_fast.data.prepare.run import Unfinished
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError


class Prepared(PreparedData):
    """A prepared folder. It prints as its splits, with rows and rates of positives."""

    def table(self) -> Table:
        """A row a split."""
        tasks = self.manifest.tasks
        rows = [
            [name, f"{split.rows:,}", *(f"{100 * split.positives[task] / split.rows:.2f} %" for task in tasks)]
            for name, split in self.manifest.splits.items()
        ]
        return Table(["split", "rows", *tasks], rows)

    def summary(self) -> str:
        """One line: data set, fields and ids."""
        manifest = self.manifest
        ids = sum(manifest.num_embeddings)
        return f"{self.folder}: {manifest.dataset}, {len(manifest.fields)} fields, {ids:,} ids"

    def notes(self) -> list[str]:
        """The rows that were left out, and the source of the data, where there are any."""
        manifest, notes = self.manifest, []
        if manifest.bad_rows and manifest.bad_rows.bad:
            notes.append(f"Left out: {manifest.bad_rows.summary()}")
        if manifest.attribution:
            notes.append(f"Source: {manifest.attribution}")
        return notes

    def __repr__(self) -> str:
        return "\n".join([self.summary(), self.table().markdown(), *self.notes()])

    def _repr_html_(self) -> str:
        return "".join(f"<p>{line}</p>" for line in [self.summary(), *self.notes()]) + self.table().html()


def prepare(
    files: Sequence[str | Path] | str | Path = (),
    out: str | Path = "data/prepared",
    *,
    dataset: str | Path | None = None,
    labels: Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    ignore: Sequence[str] = (),
    bad_rows: float = 0.0,
    grow: str | Path | None = None,
    shard: str | None = None,
    wait: float = 0.0,
    progress: bool = True,
) -> Prepared | Unfinished:
    """Turns raw logs, parquet or text, into a prepared folder.

    A folder that already holds this preparation of these files is left as it is. An interrupted call continues when it
    is repeated.

    Args:
        files: input files in the order of the schema; none for data sets that ship or are generated.
        out: the prepared folder.
        dataset: the name of a data set (``adaftr-fast info`` lists them) or a schema file.
        labels: instead of ``dataset``: the 0/1 columns of one file, one a task, from which a schema is inferred.
        group: with ``labels``: the column of users, for GAUC.
        time: with ``labels``: the column to split by; None splits by users, or by rows.
        weight: with ``labels``: the column of sample weights.
        ignore: with ``labels``: columns to leave out.
        bad_rows: share of the rows of a text file that may be unreadable; they are left out and reported.
        grow: a prepared folder of the same fields whose ids keep their meaning; new values get new ids.
        shard: "K/N" does shard K of N, on any machine that sees the files and ``out``.
        wait: with ``shard``: seconds to wait for the other shards at each stage.
        progress: show progress bars.

    Returns:
        The prepared folder; with ``shard``, ``Unfinished`` while other shards have work to do.

    Raises:
        DataError: neither or both of ``dataset`` and ``labels``, or an input that cannot be prepared.
        OSError: ``out`` cannot be written.

    Example::

        data = adaftr_fast.prepare("log.csv", "data/mine", labels=["click", "conversion"], group="user")
    """
    files = [files] if isinstance(files, str | Path) else list(files)
    if (dataset is None) == (labels is None):
        raise DataError("expected dataset, or labels for a schema inferred from the one file of files")
    if shard is None and wait:
        raise DataError("wait goes with shard")
    if dataset is not None:
        schema = load_schema(str(dataset))
    elif len(files) != 1:
        raise DataError(f"expected one file beside labels, got {len(files)}")
    else:
        source = infer_schema(files[0], labels or (), group=group, time=time, weight=weight, ignore=ignore)
        schema = parse_schema(source)
    options = {"bad_rows": bad_rows, "grow": grow, "progress": progress}
    result: Manifest | Unfinished
    if shard is None:
        result = run.prepare(schema, files, out, **options)
    else:
        result = run.prepare_shard(schema, files, out, Shard.parse(shard), wait=wait, **options)
    return result if isinstance(result, Unfinished) else Prepared(out)
