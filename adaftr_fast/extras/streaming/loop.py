"""Trains on the chunks of a stream (Section 3.4): measures the model on each, then trains on it,
and exports.

Each chunk is a day of ``daily``: prepared with the ids of the chunk before, measured with that
chunk's model, trained from its weights. A process that is killed at any point continues by the same
command, with the same weights.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from adaftr_fast.config import RunConfig
from adaftr_fast.data.bad_rows import check_share
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.errors import DataError, TrainingError
from adaftr_fast.extras.streaming.source import Chunk, Position, Source, check_number
from adaftr_fast.extras.trackers.log import Trackers, numbers
from adaftr_fast.files.whole import read_json, write_json
from adaftr_fast.runs import daily
from adaftr_fast.runs.daily import part_schema, train_part, writing_parts
from adaftr_fast.runs.output import HERE, Output
from adaftr_fast.serving.export import export_run
from adaftr_fast.training.interrupt import Interrupt, deferred_interrupt
from adaftr_fast.training.sharding import check_replicated
from adaftr_fast.training.trained import TRACKERS

RECORDS = "stream.jsonl"
CURRENT = "current.json"
EXPORTED = "exported.json"


class Journal(daily.Journal):
    """The files of a stream's state. Each change is on disk when the method returns, or has not
    happened.

    Args:
        folder: the folder of the stream, which this run alone writes.
        ranks: the ranks, which all call ``append``. Rank 0 alone calls the other methods.
        output: the output that ``folder`` is.

    Raises:
        DataError: a file is damaged.
    """

    keys = ("chunk", "name", "position")

    def __init__(self, folder: Path, ranks: Ranks = ALONE, output: Output = HERE) -> None:
        super().__init__(folder / RECORDS, ranks)
        self.folder = folder
        self.output = output

    @property
    def done(self) -> dict[str, Position]:
        """The positions of the finished chunks, trained or left out, by name, in order."""
        return {record["name"]: record["position"] for record in self.records}

    @property
    def trained(self) -> list[int]:
        """The numbers of the chunks that were trained on."""
        return [record["chunk"] for record in self.records if "error" not in record]

    def current(self) -> dict[str, Any] | None:
        """Returns the plain values of the chunk that was begun and is not finished."""
        content = _object(self.folder / CURRENT, "name", "file", "arrived")
        return None if content is None or content["name"] in self.done else content

    def begin(self, chunk: Chunk) -> dict[str, Any]:
        """Notes the chunk that is trained next, also by a later process; returns its plain
        values.
        """
        content = chunk.plain(self.output)
        write_json(self.folder / CURRENT, content)
        return content

    def exported(self) -> tuple[int, float]:
        """Returns the number of the chunk of the last export, 0 for none, and its time in seconds
        since 1970.
        """
        content = _object(self.folder / EXPORTED, "chunk", "time") or {"chunk": 0, "time": 0.0}
        return content["chunk"], content["time"]

    def note_export(self, chunk: int, at: float) -> None:
        """Notes that the model of a chunk has been exported."""
        write_json(self.folder / EXPORTED, {"chunk": chunk, "time": at})


def _object(path: Path, *keys: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return daily.with_keys(keys, read_json(Any, path))
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error


SERVING = "serving"  # the exported model in the stream's folder
CHUNKS = "chunk-*"
NAP = 0.2  # seconds between two looks for a signal while waiting


@dataclass(frozen=True)
class StreamOptions:
    """How a stream runs.

    Attributes:
        poll: the seconds between two looks for a chunk.
        idle: the seconds without a chunk after which the stream ends; 0 waits forever.
        keep: the number of trained chunks whose data and run are kept, at least 1.
        export_minutes: the minutes between two exports; 0 exports after each chunk.
        on_error: "stop" ends the stream at a chunk that cannot be trained on; "skip" records its
            error and goes on. With several ranks, "skip" leaves out chunks that cannot be prepared;
            an error of training ends the stream.
        bad_rows: the share of a chunk's rows that may be unreadable or lack a label. They are left
            out, and the record of the chunk has their number. A chunk with more cannot be trained
            on.

    Raises:
        ConfigError: a number is too small or not finite.
        DataError: ``bad_rows`` is no share.
    """

    poll: float = 1.0
    idle: float = 0.0
    keep: int = 2
    export_minutes: float = 0.0
    on_error: Literal["stop", "skip"] = "stop"
    bad_rows: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("poll", 0), ("idle", 0), ("keep", 1), ("export_minutes", 0)):
            check_number(name, getattr(self, name), least)
        check_share(self.bad_rows)


def train_stream(
    schema: Schema,
    source: Source | None,
    config: RunConfig,
    out: Path,
    options: StreamOptions,
    ranks: Ranks = ALONE,
    output: Output = HERE,
) -> Iterator[dict[str, Any]]:
    """Trains on each chunk of ``source`` once, and yields a record per chunk when it is in
    ``stream.jsonl``.

    Args:
        schema: a schema of one file. Its split is ignored.
        source: the chunks. Only rank 0 needs them.
        config: the configuration of every chunk. Its ``warm_start`` is that of the first chunk; its
            ``data`` are replaced for each. The trackers log the whole stream as one run, with the
            number of the chunk as the step.
        out: the folder of the stream. Its ``serving`` is the exported model.
        options: how the stream runs.
        ranks: the ranks that train together. All of them must see ``out``, and get the records.
            Rank 0 reads the source, prepares, exports and logs.
        output: the output that ``out`` is.

    Raises:
        RankError: the ranks have different options.
        KeyboardInterrupt: Ctrl-C or SIGTERM. The arguments are the number of the signal and a
            message for the user.
        DataError: the schema reads several files, a file of the stream's state is damaged, or a
            chunk cannot be prepared.
        TrainingError, CheckpointError, ServingError, BusyError: see ``train_one`` and
            ``export_run``.
    """
    check_replicated("stream", config.training)
    schema = part_schema(schema)
    agreed = asdict(options)
    with (
        writing_parts(out, config, ranks, CURRENT, EXPORTED, TRACKERS, **agreed),
        _Stream(schema, source, config, out, options, ranks, output) as stream,
    ):
        yield from stream.run()


@dataclass
class _Stream:
    """A stream; the arguments are those of ``train_stream``."""

    schema: Schema
    source: Source | None
    config: RunConfig
    out: Path
    options: StreamOptions
    ranks: Ranks
    output: Output

    def __post_init__(self) -> None:
        self.journal = Journal(self.out, self.ranks, self.output)
        self.trackers: Trackers | None = None  # of rank 0
        self.ranks.from_rank_zero(self._open_trackers)
        self.config = replace(self.config, training=replace(self.config.training, trackers=[]))

    def _open_trackers(self) -> None:
        shown = [_numbers(record) for record in self.journal.records]
        names = self.config.training.trackers
        self.trackers = Trackers(names, self.out, self.config.flat(), resumed=True, records=shown)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Closes the trackers."""
        if self.trackers is not None:
            self.trackers.close(failed=kind is not None)

    def run(self) -> Iterator[dict[str, Any]]:
        """Yields the record of each chunk."""
        self.ranks.from_rank_zero(self._remove_old)  # what a killed process has left
        last = time.monotonic()
        while True:
            chunk = self._next()
            record = None if chunk is None else self._finish(chunk)
            self.ranks.after_rank_zero(self._export_if_due)
            if record is not None:
                yield record
                last = time.monotonic()
            elif self.ranks.from_rank_zero(partial(self._is_idle, last)):
                break
            else:
                self._wait()
        self.ranks.after_rank_zero(self._export)

    def _is_idle(self, since: float) -> bool:
        return 0 < self.options.idle <= time.monotonic() - since

    def _next(self) -> Chunk | None:
        """Returns the chunk in progress, or else the next one of the source, which is then in
        progress.
        """
        found = self.ranks.after_rank_zero(self._found)
        return None if found is None else Chunk.of(found, self.output)

    def _found(self) -> dict[str, Any] | None:
        """Returns the plain values of the next chunk, on rank 0."""
        current = self.journal.current()
        if current is not None:
            file = self.output.found(current["file"])
            if file.exists():
                return current
            warnings.warn(f"{file}: is gone and was not trained on", RuntimeWarning, stacklevel=2)
        # what a chunk that is gone has left
        shutil.rmtree(self._folder(len(self.journal.records) + 1), ignore_errors=True)
        assert self.source is not None  # on rank 0
        chunk = self.source.next(self.journal.done)
        return None if chunk is None else self.journal.begin(chunk)

    def _finish(self, chunk: Chunk) -> dict[str, Any]:
        """Trains on a chunk, or leaves it out, and returns its record."""
        number = len(self.journal.records) + 1
        about: dict[str, Any] = {
            "chunk": number,
            "name": chunk.name,
            "file": self.output.recorded(chunk.file),
            "position": chunk.position,
        }
        about |= {"set_aside": chunk.set_aside} if chunk.set_aside else {}
        before = self._folder(self.journal.trained[-1]) if self.journal.trained else None
        began = time.time()
        try:
            with train_part(
                self.schema,
                chunk.file,
                self._folder(number),
                before,
                self.config,
                self.ranks,
                output=self.output,
                bad_rows=self.options.bad_rows,
            ) as found:
                record = about | found | self._timed(chunk, began)
                record["rows_per_s"] = record["rows"] / record["seconds"]
                self.journal.append(record)
        except (DataError, TrainingError) as error:
            # Training may fail on one rank alone, and the others would wait for it. All learn that
            # preparing failed.
            if self.options.on_error == "stop" or (
                not self.ranks.is_alone and isinstance(error, TrainingError)
            ):
                raise
            record = about | {"error": str(error)} | self._timed(chunk, began)
            self.journal.append(record)
            if self.trackers is not None:
                warnings.warn(
                    f"{chunk.file}: the whole chunk is left out: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        if self.trackers is not None:
            self.trackers.log(_numbers(record), number)
        self.ranks.from_rank_zero(self._remove_old)
        if self.output.save is not None:
            self.output.save()
        return record

    def _timed(self, chunk: Chunk, began: float) -> dict[str, float]:
        """Returns when a chunk arrived, and the seconds from then and from ``began`` until now, by
        rank 0's clock.
        """

        def timed() -> dict[str, float]:
            now = time.time()
            return {"arrived": chunk.arrived, "lag": now - chunk.arrived, "seconds": now - began}

        return self.ranks.from_rank_zero(timed)

    def _folder(self, number: int) -> Path:
        return self.out / f"chunk-{number:06d}"

    def _remove_old(self) -> None:
        """Removes the folders of chunks that are no longer needed."""
        kept = {self._folder(number) for number in self.journal.trained[-self.options.keep :]}
        for folder in self.out.glob(CHUNKS):
            if folder not in kept and folder <= self._folder(len(self.journal.records)):
                shutil.rmtree(folder, ignore_errors=True)

    def _export_if_due(self) -> None:
        _, at = self.journal.exported()
        if time.time() - at >= 60 * self.options.export_minutes:
            self._export()

    def _export(self) -> None:
        """Exports the model of the last chunk, unless it has been exported."""
        trained = self.journal.trained
        if not trained or self.journal.exported()[0] == trained[-1]:
            return
        folder = self._folder(trained[-1])
        model = self.config.model
        now = time.time()
        own = model.name if model.is_own else None
        export_run(folder / "run", self.out / SERVING, data=folder / "data", model_class=own)
        self.journal.note_export(trained[-1], now)

    def _wait(self) -> None:
        with deferred_interrupt(self.ranks) as stop:
            _sleep(self.options.poll, stop)
            stop.synchronize()
        if stop:
            message = (
                "interrupted; run the same command to continue from "
                f"{self.output.recorded(self.out)}"
            )
            raise KeyboardInterrupt(stop.signum, message)


def _sleep(seconds: float, stop: Interrupt) -> None:
    end = time.monotonic() + seconds
    while stop.own is None and (rest := end - time.monotonic()) > 0:
        time.sleep(min(rest, NAP))


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what the trackers log of a record. An undefined metric is left out, which a file has
    as null.
    """
    names = (
        "lag",
        "seconds",
        "rows",
        "bad_rows",
        "rows_per_s",
        "ids",
        "before_training",
        "validation",
    )
    found = numbers({name: record.get(name) for name in names})
    # nan differs
    return {name: value for name, value in found if value is not None and value == value}
