"""The commands that train: ``train``, ``tune``, ``daily``, ``stream`` and ``demo``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adaftr_fast.cli.options import Command, Fitted, OnEngine, Place, WarmStart, options
from adaftr_fast.config import RunConfig
from adaftr_fast.errors import ConfigError, DataError

if TYPE_CHECKING:
    from adaftr_fast.data.schema.types import Schema
    from adaftr_fast.distributed.ranks import Ranks
    from adaftr_fast.extras.streaming.source import Source


@options
class Train(Fitted, WarmStart, Command):
    """Train one model on a prepared folder."""

    sections = ("data", "model", "optimizer", "training")
    out: Place
    """The run folder, for metrics.jsonl, best/ and test.json; an unfinished run in it resumes, and
    a finished one is replaced after the first epoch.
    """
    restart: bool = False
    """Discard an unfinished run in --out."""

    def __call__(self) -> None:
        """Trains and prints the test metrics; under torchrun only rank 0 prints."""
        from adaftr_fast.api.run import train
        from adaftr_fast.distributed.ranks import is_first
        from adaftr_fast.training.trained import metric_notes

        out = self.out
        trained = train(
            None, out, config=self.config, restart=self.restart, warm_start=self.start()
        )
        if is_first():
            notes = metric_notes(trained.test, trained.config.training.gauc_weights)
            print("\n".join([str(trained.table()), *notes, *trained.doubts]))
            print(f"\nReport: {out}/report.md")
            print(f"adaftr-fast evaluate --run {out} --importance --out {out}")
            print(f"adaftr-fast export --run {out} --out MODEL")


@options
class Tune(Fitted, OnEngine, Command):
    """Search for the options with the best validation AUC."""

    sections = ("data", "model", "optimizer", "training")
    texts: ClassVar = {
        "engine": "What trains the trials: local, this process, or ray, a Ray cluster that sees "
        "--out"
    }
    out: Place
    """The folder, for study.db, best.toml, report.md and a run per trial; the same command
    continues the search.
    """
    trials: int = 50
    """Number of trials, including those of earlier calls."""
    space: Place | None = None
    """A TOML file of the options that vary, with their values (docs/tuning.md); default: lr, l2 and
    the sizes.
    """
    task: str | None = None
    """The task whose AUC counts (default: the mean over tasks)."""
    parallel: int | None = None
    """With --engine ray: how many trials train at the same time, each on one thread (default:
    1).
    """

    def __call__(self) -> None:
        """Runs or continues a search, prints its best trials and writes its report."""
        from adaftr_fast.api.prepared import open_data
        from adaftr_fast.api.ranks import output
        from adaftr_fast.extras.tuning.report import tune_and_report
        from adaftr_fast.extras.tuning.search import Search
        from adaftr_fast.extras.tuning.space import default_space, read_space

        if self.trials < 1:
            raise ConfigError(f"--trials: expected >= 1, got {self.trials}")
        if self.parallel is not None and (self.engine != "ray" or self.parallel < 1):
            raise ConfigError(f"--parallel: expected >= 1, with --engine ray, got {self.parallel}")
        config = self.config
        data = open_data(config.data.folder)
        if self.space is None:
            manifest = data.manifest
            rows = manifest.splits["train"].rows
            space = default_space(config.for_log(rows, manifest.parsed.preset))
        else:
            space = read_space(Path(self.space), config)
        device = config.training.device
        with output(self.out) as out:
            search = Search(data, config, space, out.local, self.task, out)
            with self.training_engine(self.out, device, self.parallel or 1) as engine:
                print(tune_and_report(search, self.trials, engine))
            print(f"\nadaftr-fast train --config {out.recorded(out.local / 'best.toml')} --out RUN")


@options
class LogParts:
    """The rows of each file."""

    dataset: str | None = None
    """A data set or schema file (.toml) of one input file; its split is ignored."""
    labels: list[str] | None = None
    """Instead of --dataset: one 0/1 column per task; the fields are inferred from the first file as
    prepare does, and the schema is kept as schema.toml in --out.
    """
    group: str | None = None
    """With --labels: the column of users."""
    weight: str | None = None
    """With --labels: the column of sample weights."""
    ignore: list[str] | None = None
    """With --labels: columns to leave out, such as the time."""
    funnel: list[str] | None = None
    """With --labels: tasks in order, each of which happens only after the one before; none if
    independent.
    """
    bad_rows: float = 0.0
    """Maximum share of rows of a file that cannot be read; they alone are left out."""

    def schema(self, first: Callable[[], Path | None], out: Path, ranks: Ranks) -> Schema:
        """Returns the schema of the rows.

        Args:
            first: returns the first file, from which fields are inferred, or None if there is none
                yet.
            out: where an inferred schema is kept. A later call reads it there, when the first file
                may be gone.
            ranks: the ranks, of which rank 0 infers.

        Raises:
            ConfigError: both or neither of ``--dataset`` and ``--labels`` are given, or roles
                without ``--labels``.
            DataError: there is no file to infer fields from, or the kept schema has other labels.
        """
        from adaftr_fast.api.places import local
        from adaftr_fast.data.raw.infer import infer_schema
        from adaftr_fast.data.schema.parse import load_schema, parse_schema, write_schema

        roles: dict[str, Any] = {
            name: value
            for name in ("group", "weight", "ignore", "funnel")
            if (value := getattr(self, name)) is not None
        }
        if (self.dataset is None) == (self.labels is None):
            raise ConfigError("expected --dataset or --labels, and not both")
        labels = self.labels
        if labels is None:
            if roles:
                raise ConfigError(f"--{min(roles)}: goes with --labels")
            return load_schema(str(local(str(self.dataset))))

        def infer() -> dict[str, Any]:
            kept = out / "schema.toml"
            if kept.exists():
                schema = load_schema(str(kept))
                _check_kept(kept, schema, labels, roles)
                return schema.source
            file = first()
            if file is None:
                raise DataError(
                    "--labels: there is no file yet to infer the fields from; pass a schema as "
                    "--dataset"
                )
            # a part's rows are divided by their numbers, so its groups are known
            source = infer_schema([file], labels, keep_group=True, **roles)
            out.mkdir(parents=True, exist_ok=True)
            write_schema(kept, source, f"Inferred from {file.name!r}.")
            return source

        return parse_schema(ranks.from_rank_zero(infer))


def _check_kept(kept: Path, schema: Schema, labels: list[str], roles: dict[str, Any]) -> None:
    """Raises DataError if the schema that an earlier call has kept has other labels or roles."""
    if (found := [label.name for label in schema.labels]) != labels:
        raise DataError(f"{kept}: has the labels {', '.join(found)}; pass these, or another --out")
    known = {"group": schema.group, "weight": schema.weight, "funnel": list(schema.funnel)}
    for name, value in roles.items():
        if name in known and known[name] != value:
            raise DataError(
                f"{kept}: has {name} {known[name]!r}, not {value!r}; pass this, or another --out"
            )


@options
class Daily(LogParts, Fitted, WarmStart, OnEngine, Command):
    """Train day by day, and evaluate each day before training on it."""

    sections = ("model", "optimizer", "training")
    texts: ClassVar = {
        "engine": "What prepares a day: local, this process, or ray, a Ray cluster that sees "
        "--files and --out",
    }
    files: list[Place]
    """One file per day in order, including the finished days."""
    out: Place
    """Folder for daily.jsonl and one folder per day."""

    def __call__(self) -> None:
        """Trains; rank 0 prints the metrics of each day before and after training on it."""
        from adaftr_fast.api.engines import open_engine
        from adaftr_fast.api.places import local, place_of
        from adaftr_fast.api.ranks import joined, output
        from adaftr_fast.distributed.ranks import is_first
        from adaftr_fast.runs.daily import train_daily

        config = replace(self.config, warm_start=self.start())
        files = [place_of(file) for file in self.files]
        training = config.training
        with (
            joined(training) as ranks,
            output(self.out, ranks) as out,
            open_engine(self.engine, self.address) if is_first() else nullcontext() as engine,
        ):
            schema = self.schema(lambda: local(files[0]), out.local, ranks)
            record: dict[str, Any] | None = None
            for record in train_daily(
                schema, files, config, out.local, ranks, engine, out, self.bad_rows
            ):
                if is_first():
                    print("\n".join([_day_line(record), *record["doubts"]]))
        if is_first() and record is not None:
            run = f"{self.out}/day-{record['day']:04d}/run"
            print(f"\nRecords: {self.out}/daily.jsonl")
            print(f"adaftr-fast export --run {run} --out MODEL")


def _day_line(record: dict[str, Any]) -> str:
    from adaftr_fast.training.trained import metric_line

    measured = record["before_training"]
    text = "the first day" if measured is None else metric_line(measured)
    return (
        f"day {record['day']} ({record['file']}): {_rows(record)}, {record['ids']:,} ids; "
        f"before training: {text}; validation after training: {metric_line(record['validation'])}"
    )


def _rows(record: dict[str, Any]) -> str:
    left_out = f" and {record['bad_rows']:,} left out" if "bad_rows" in record else ""
    return f"{record['rows']:,} rows{left_out}"


INCOMING = "incoming"  # the chunk of a topic that is in progress, in OUT


@options
class Kafka:
    """The topic."""

    kafka_topic: str | None = None
    """Instead of --folder, a topic of rows as JSON objects."""
    kafka_servers: str = "localhost:9092"
    """Its bootstrap.servers."""
    kafka_group: str = "adaftr-fast"
    """Its group.id, for tools that show lags."""
    kafka_settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of its client, such as {"security.protocol": "SSL"}."""
    chunk_rows: int = 100_000
    """The most rows of a chunk of a topic."""
    chunk_seconds: float = 60.0
    """Seconds until a chunk of a topic is whole."""


@options
class Stream(LogParts, Fitted, Kafka, WarmStart, Command):
    """Train on files as they arrive, evaluate each before training on it, and export."""

    sections = ("model", "optimizer", "training")
    config: RunConfig = field(
        default_factory=lambda: RunConfig().with_options(training={"max_epochs": 1})
    )
    folder: Place | None = None
    """The folder to watch for files."""
    out: Place
    """Folder for stream.jsonl, serving and the chunks."""
    settle: float = 2.0
    """Seconds without a change after which a file of --folder is whole."""
    poll: float = 1.0
    """Seconds between two looks for a chunk."""
    idle: float = 0.0
    """End after so many seconds without a chunk; 0: never."""
    keep: int = 2
    """Trained chunks whose data and run are kept."""
    export_minutes: float = 0.0
    """Minutes between two exports to OUT/serving; 0: after each chunk."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a chunk that cannot be trained on: end, or record the error and go on with the next."""

    def __call__(self) -> None:
        """Trains; rank 0 prints the lag of each chunk and its metrics before and after training on
        it.
        """
        from adaftr_fast.api.ranks import joined, output
        from adaftr_fast.distributed.ranks import is_first
        from adaftr_fast.extras.streaming.loop import StreamOptions, train_stream

        config = replace(self.config, warm_start=self.start())
        names = [each.name for each in fields(StreamOptions)]
        options = StreamOptions(**{name: getattr(self, name) for name in names})
        with (
            joined(config.training) as ranks,
            output(self.out, ranks) as out,
            ExitStack() as stack,
        ):
            schema = self.schema(self._first_file, out.local, ranks)
            source = self._source(schema, out.local, stack) if is_first() else None
            for record in train_stream(schema, source, config, out.local, options, ranks, out):
                if is_first():
                    print("\n".join([_chunk_line(record), *record.get("doubts", [])]), flush=True)
        if is_first():
            print(f"\nRecords: {self.out}/stream.jsonl\nadaftr-fast serve {self.out}/serving")

    def _first_file(self) -> Path | None:
        """Returns the first whole file of the folder, if there is one."""
        if self.folder is None:
            return None
        from adaftr_fast.extras.streaming.folder import FolderSource

        chunk = FolderSource(Path(self.folder), self.settle).next({})
        return None if chunk is None else chunk.file

    def _source(self, schema: Schema, out: Path, stack: ExitStack) -> Source:
        if (self.folder is None) == (self.kafka_topic is None):
            raise ConfigError("stream: expected --folder or --kafka_topic, and not both")
        if self.folder is not None:
            from adaftr_fast.extras.streaming.folder import FolderSource

            return FolderSource(Path(self.folder), self.settle)
        from adaftr_fast.extras.streaming.kafka import KafkaSource

        source = KafkaSource(
            str(self.kafka_topic),
            self.kafka_servers,
            out / INCOMING,
            schema,
            rows=self.chunk_rows,
            seconds=self.chunk_seconds,
            group=self.kafka_group,
            settings=self.kafka_settings,
        )
        stack.callback(source.close)
        return source


def _chunk_line(record: dict[str, Any]) -> str:
    from adaftr_fast.training.trained import metric_line

    aside = f", {record['set_aside']['messages']:,} set aside" if "set_aside" in record else ""
    head = f"chunk {record['chunk']} ({record['name']}{aside}): "
    if "error" in record:
        return f"{head}the whole chunk is left out: {record['error']}"
    measured = record["before_training"]
    before = "the first chunk" if measured is None else metric_line(measured)
    return (
        f"{head}{_rows(record)}, {record['ids']:,} ids, {record['rows_per_s']:,.0f} rows/s, "
        f"lag {record['lag']:.1f} s; before training: {before}; validation: "
        f"{metric_line(record['validation'])}"
    )


@options
class Demo(Command):
    """Train MMoE and AdaFTR on the included flights data set and compare them."""

    sections = ("training",)
    out: Place
    """Folder for the prepared data, both runs and the report."""
    restart: bool = False
    """Discard unfinished runs in --out."""

    def __call__(self) -> None:
        from adaftr_fast.api.ranks import joined, output
        from adaftr_fast.runs.demo import run_demo

        training = self.config.training
        with (
            joined(training) as ranks,
            output(self.out, ranks) as out,
        ):
            run_demo(out.local, training, restart=self.restart, ranks=ranks, output=out)
