"""The commands that train: ``train``, ``tune``, ``daily``, ``stream`` and ``demo``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonargparse

from adaftr_fast.cli.options import (
    Command,
    Parser,
    add_config,
    add_engine,
    add_warm_start,
    place,
    read_config,
    read_warm_start,
    training_engine,
)
from adaftr_fast.config import RunConfig, TrainingConfig
from adaftr_fast.errors import ConfigError, DataError

if TYPE_CHECKING:
    from adaftr_fast._files import AnyPath
    from adaftr_fast.data.schema.types import Schema
    from adaftr_fast.distributed.ranks import Ranks
    from adaftr_fast.streaming.source import Source


def add_train(parser: Parser) -> None:
    """Adds the options of ``train`` to a parser that reads TOML."""
    add_config(parser)
    out = (
        "the run folder, for metrics.jsonl, best/ and test.json; an unfinished run in it resumes, "
        "and a finished one "
        "is replaced after the first epoch"
    )
    parser.add_argument("--out", type=place, required=True, help=out)
    restart = "discard an unfinished run in --out"
    parser.add_argument("--restart", action="store_true", help=restart)
    add_warm_start(parser)


def train(arguments: jsonargparse.Namespace) -> None:
    """Trains and prints the test metrics; under torchrun only rank 0 prints."""
    from adaftr_fast.api.run import train
    from adaftr_fast.distributed.ranks import is_first

    config = read_config(arguments)
    start = read_warm_start(arguments)
    trained = train(None, arguments.out, config=config, restart=arguments.restart, warm_start=start)
    if is_first():
        out = arguments.out
        print(f"{trained.table()}\n\nReport: {out}/report.md")
        print(
            f"adaftr-fast evaluate --run {out} --importance --out {out}\nadaftr-fast export --run "
            f"{out} --out MODEL"
        )


def add_tune(parser: Parser) -> None:
    """Adds the options of ``tune`` to a parser that reads TOML."""
    out = (
        "the folder, for study.db, best.toml, report.md and a run per trial; the same command "
        "continues the search"
    )
    parser.add_argument("--out", type=place, required=True, help=out)
    trials = "number of trials, including those of earlier calls"
    parser.add_argument("--trials", type=int, default=50, help=trials)
    space = (
        "a TOML file of the options that vary, with their values (docs/tuning.md); default: lr, l2 "
        "and the sizes"
    )
    parser.add_argument("--space", type=Path | None, help=space)
    task = "the task whose AUC counts (default: the mean over tasks)"
    parser.add_argument("--task", type=str | None, help=task)
    add_engine(
        parser, "what trains the trials: local, this process, or ray, a Ray cluster that sees --out"
    )
    parallel = (
        "with --engine ray: how many trials train at the same time, each on one thread (default: 1)"
    )
    parser.add_argument("--parallel", type=int | None, help=parallel)
    add_config(parser)


def tune(arguments: jsonargparse.Namespace) -> None:
    """Runs or continues a search, prints its best trials and writes its report."""
    from adaftr_fast.data.dataset.loader import PreparedData
    from adaftr_fast.engines import Local
    from adaftr_fast.runs.output import output
    from adaftr_fast.tuning.report import tune_and_report
    from adaftr_fast.tuning.search import Search
    from adaftr_fast.tuning.space import default_space, read_space

    if arguments.trials < 1:
        raise ConfigError(f"--trials: expected >= 1, got {arguments.trials}")
    if arguments.parallel is not None and (arguments.engine != "ray" or arguments.parallel < 1):
        raise ConfigError(f"--parallel: expected >= 1, with --engine ray, got {arguments.parallel}")
    config = read_config(arguments)
    space = (
        default_space(config) if arguments.space is None else read_space(arguments.space, config)
    )
    with output(arguments.out) as out:
        search = Search(
            PreparedData(config.data.folder), config, space, out.local, arguments.task, out
        )
        with training_engine(
            arguments, config.training, Local(), arguments.parallel or 1
        ) as engine:
            print(tune_and_report(search, arguments.trials, engine))
        print(f"\nadaftr-fast train --config {out.recorded(out.local / 'best.toml')} --out RUN")


def _add_schema(parser: Parser) -> None:
    """Adds ``--dataset``, and ``--labels`` with the roles of columns, which stand for it."""
    dataset = "a data set or schema file (.toml) of one input file; its split is ignored"
    parser.add_argument("--dataset", type=str | None, help=dataset)
    labels = (
        "instead of --dataset: one 0/1 column per task; the fields are inferred from the first "
        "file as prepare does, "
        "and the schema is kept as schema.toml in --out"
    )
    parser.add_argument("--labels", type=str, nargs="+", help=labels)
    parser.add_argument("--group", type=str | None, help="with --labels: the column of users")
    parser.add_argument(
        "--weight", type=str | None, help="with --labels: the column of sample weights"
    )
    parser.add_argument(
        "--ignore",
        type=str,
        nargs="+",
        help="with --labels: columns to leave out, such as the time",
    )
    funnel = (
        "with --labels: tasks in order, each of which happens only after the one before; none if "
        "independent"
    )
    parser.add_argument("--funnel", type=str, nargs="*", help=funnel)
    share = "maximum share of rows of a file that cannot be read; they alone are left out"
    parser.add_argument("--bad_rows", type=float, default=0.0, help=share)


def _read_schema(
    arguments: jsonargparse.Namespace, first: Callable[[], AnyPath | None], out: Path, ranks: Ranks
) -> Schema:
    """Returns the schema that ``_add_schema`` asks for.

    Args:
        arguments: the parsed arguments.
        first: returns the first file, from which fields are inferred, or None if there is none yet.
        out: where an inferred schema is kept. A later call reads it there, when the first file may
            be gone.
        ranks: the ranks, of which rank 0 infers.

    Raises:
        ConfigError: both or neither of ``--dataset`` and ``--labels`` are given, or roles without
            ``--labels``.
        DataError: there is no file to infer fields from, or the kept schema has other labels.
    """
    from adaftr_fast.data.raw.infer import infer_schema
    from adaftr_fast.data.schema.parse import load_schema, parse_schema, write_schema

    roles = {
        name: arguments[name]
        for name in ("group", "weight", "ignore", "funnel")
        if arguments[name] is not None
    }
    if (arguments.dataset is None) == (arguments.labels is None):
        raise ConfigError("expected --dataset or --labels, and not both")
    if arguments.labels is None:
        if roles:
            raise ConfigError(f"--{min(roles)}: goes with --labels")
        return load_schema(arguments.dataset)

    def infer() -> dict[str, Any]:
        kept = out / "schema.toml"
        if kept.exists():
            schema = load_schema(str(kept))
            if (labels := [label.name for label in schema.labels]) != arguments.labels:
                raise DataError(
                    f"{kept}: has the labels {', '.join(labels)}; pass these, or another --out"
                )
            known = {"group": schema.group, "weight": schema.weight, "funnel": list(schema.funnel)}
            for name, value in roles.items():
                if name in known and known[name] != value:
                    raise DataError(
                        f"{kept}: has {name} {known[name]!r}, not {value!r}; pass this, or "
                        "another --out"
                    )
            return schema.source
        file = first()
        if file is None:
            raise DataError(
                "--labels: there is no file yet to infer the fields from; pass a schema as "
                "--dataset"
            )
        source = infer_schema([file], arguments.labels, **roles)
        out.mkdir(parents=True, exist_ok=True)
        write_schema(kept, source, f"Inferred from {file.name!r}.")
        return source

    return parse_schema(ranks.from_rank_zero(infer))


def add_daily(parser: Parser) -> None:
    """Adds the options of ``daily`` to a parser that reads TOML."""
    files = "one file per day in order, including the finished days"
    _add_schema(parser)
    parser.add_argument("--files", type=place, nargs="+", required=True, help=files)
    parser.add_argument(
        "--out", type=place, required=True, help="folder for daily.jsonl and one folder per day"
    )
    add_warm_start(parser, "for the first day, a run")
    add_engine(
        parser,
        "what prepares a day: local, this process, or ray, a Ray cluster that sees --files "
        "and --out",
    )
    add_config(parser, SECTIONS)


def daily(arguments: jsonargparse.Namespace) -> None:
    """Trains day by day; rank 0 prints the metrics of each day before and after training on it."""
    from adaftr_fast.distributed.ranks import is_first, joined
    from adaftr_fast.engines import open_engine
    from adaftr_fast.runs.daily import train_daily
    from adaftr_fast.runs.output import output
    from adaftr_fast.stores import as_path

    config = replace(read_config(arguments, SECTIONS), warm_start=read_warm_start(arguments))
    files = [as_path(file) for file in arguments.files]
    training = config.training
    with (
        joined(training.device, training.rank_timeout) as ranks,
        output(arguments.out, ranks) as out,
        open_engine(arguments.engine, arguments.address) if is_first() else nullcontext() as engine,
    ):
        schema = _read_schema(arguments, lambda: files[0], out.local, ranks)
        record: dict[str, Any] | None = None
        for record in train_daily(
            schema, files, config, out.local, ranks, engine, out, arguments.bad_rows
        ):
            if is_first():
                print(_day_line(record))
    if is_first() and record is not None:
        run = f"{arguments.out}/day-{record['day']:04d}/run"
        print(f"\nRecords: {arguments.out}/daily.jsonl\nadaftr-fast export --run {run} --out MODEL")


def _day_line(record: dict[str, Any]) -> str:
    from adaftr_fast.training.trained import aucs

    measured = record["before_training"]
    text = "the first day" if measured is None else aucs(measured)
    return (
        f"day {record['day']} ({record['file']}): {_rows(record)}, {record['ids']:,} ids; "
        f"before training: {text}; validation after training: {aucs(record['validation'])}"
    )


def _rows(record: dict[str, Any]) -> str:
    left_out = f" and {record['bad_rows']:,} left out" if "bad_rows" in record else ""
    return f"{record['rows']:,} rows{left_out}"


INCOMING = "incoming"  # the chunk of a topic that is in progress, in OUT
SECTIONS = ("model", "optimizer", "training")


def add_stream(parser: Parser) -> None:
    """Adds the options of ``stream`` to a parser that reads TOML."""
    _add_schema(parser)
    parser.add_argument("--folder", type=Path | None, help="the folder to watch for files")
    parser.add_argument(
        "--out", type=place, required=True, help="folder for stream.jsonl, serving and the chunks"
    )
    settle = "seconds without a change after which a file of --folder is whole"
    parser.add_argument("--settle", type=float, default=2.0, help=settle)
    parser.add_argument(
        "--poll", type=float, default=1.0, help="seconds between two looks for a chunk"
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=0.0,
        help="end after so many seconds without a chunk; 0: never",
    )
    parser.add_argument(
        "--keep", type=int, default=2, help="trained chunks whose data and run are kept"
    )
    minutes = "minutes between two exports to OUT/serving; 0: after each chunk"
    parser.add_argument("--export_minutes", type=float, default=0.0, help=minutes)
    on_error = (
        "at a chunk that cannot be trained on: end, or record the error and go on with the next"
    )
    parser.add_argument("--on_error", type=Literal["stop", "skip"], default="stop", help=on_error)
    _add_kafka(parser)
    add_warm_start(parser, "for the first chunk, a run")
    add_config(parser, SECTIONS, RunConfig(training=TrainingConfig(max_epochs=1)))


def _add_kafka(parser: Parser) -> None:
    parser.add_argument(
        "--kafka_topic",
        type=str | None,
        help="instead of --folder, a topic of rows as JSON objects",
    )
    parser.add_argument(
        "--kafka_servers", type=str, default="localhost:9092", help="its bootstrap.servers"
    )
    parser.add_argument(
        "--kafka_group",
        type=str,
        default="adaftr-fast",
        help="its group.id, for tools that show lags",
    )
    settings = 'further settings of its client, such as {"security.protocol": "SSL"}'
    parser.add_argument("--kafka_settings", type=dict[str, Any], default={}, help=settings)
    parser.add_argument(
        "--chunk_rows", type=int, default=100_000, help="the most rows of a chunk of a topic"
    )
    parser.add_argument(
        "--chunk_seconds",
        type=float,
        default=60.0,
        help="seconds until a chunk of a topic is whole",
    )


def stream(arguments: jsonargparse.Namespace) -> None:
    """Trains on each chunk; rank 0 prints its lag and its metrics before and after
    training on it.
    """
    from adaftr_fast.distributed.ranks import is_first, joined
    from adaftr_fast.runs.output import output
    from adaftr_fast.streaming.loop import StreamOptions, train_stream

    config = replace(read_config(arguments, SECTIONS), warm_start=read_warm_start(arguments))
    names = ("poll", "idle", "keep", "export_minutes", "on_error", "bad_rows")
    options = StreamOptions(**{name: arguments[name] for name in names})
    with (
        joined(config.training.device, config.training.rank_timeout) as ranks,
        output(arguments.out, ranks) as out,
        ExitStack() as stack,
    ):
        schema = _read_schema(
            arguments, lambda: _first_file(arguments.folder, arguments.settle), out.local, ranks
        )
        source = _source(arguments, schema, out.local, stack) if is_first() else None
        for record in train_stream(schema, source, config, out.local, options, ranks, out):
            if is_first():
                print(_chunk_line(record), flush=True)
    if is_first():
        print(f"\nRecords: {arguments.out}/stream.jsonl\nadaftr-fast serve {arguments.out}/serving")


def _first_file(folder: Path | None, settle: float) -> AnyPath | None:
    """Returns the first whole file of the folder of a stream, if there is one."""
    if folder is None:
        return None
    from adaftr_fast.streaming.folder import FolderSource

    chunk = FolderSource(folder, settle).next({})
    return None if chunk is None else chunk.file


def _source(
    arguments: jsonargparse.Namespace, schema: Schema, out: Path, stack: ExitStack
) -> Source:
    folder = arguments.folder
    topic = arguments.kafka_topic
    if (folder is None) == (topic is None):
        raise ConfigError("stream: expected --folder or --kafka_topic, and not both")
    if folder is not None:
        from adaftr_fast.streaming.folder import FolderSource

        return FolderSource(folder, arguments.settle)
    from adaftr_fast.streaming.kafka import KafkaSource

    source = KafkaSource(
        topic,
        arguments.kafka_servers,
        out / INCOMING,
        schema,
        rows=arguments.chunk_rows,
        seconds=arguments.chunk_seconds,
        group=arguments.kafka_group,
        settings=arguments.kafka_settings,
    )
    stack.callback(source.close)
    return source


def _chunk_line(record: dict[str, Any]) -> str:
    from adaftr_fast.training.trained import aucs

    aside = f", {record['set_aside']['messages']:,} set aside" if "set_aside" in record else ""
    head = f"chunk {record['chunk']} ({record['name']}{aside}): "
    if "error" in record:
        return f"{head}the whole chunk is left out: {record['error']}"
    measured = record["before_training"]
    before = "the first chunk" if measured is None else aucs(measured)
    return (
        f"{head}{_rows(record)}, {record['ids']:,} ids, {record['rows_per_s']:,.0f} rows/s, "
        f"lag {record['lag']:.1f} s; before training: {before}; validation: "
        f"{aucs(record['validation'])}"
    )


def add_demo(parser: Parser) -> None:
    """Adds the options of ``demo``."""
    out = "folder for the prepared data, both runs and the report"
    parser.add_argument("--out", type=place, required=True, help=out)
    parser.add_argument("--restart", action="store_true", help="discard unfinished runs in --out")
    parser.add_section(TrainingConfig(), "training.")


def demo(arguments: jsonargparse.Namespace) -> None:
    """Runs the demo."""
    from adaftr_fast.distributed.ranks import joined
    from adaftr_fast.runs.demo import run_demo
    from adaftr_fast.runs.output import output

    training = TrainingConfig(**arguments.training.as_dict())
    with (
        joined(training.device, training.rank_timeout) as ranks,
        output(arguments.out, ranks) as out,
    ):
        run_demo(out.local, training, restart=arguments.restart, ranks=ranks, output=out)


COMMANDS = {
    "train": Command("Train one model on a prepared folder.", add_train, train),
    "tune": Command("Search for the options with the best validation AUC.", add_tune, tune),
    "daily": Command(
        "Train day by day, and evaluate each day before training on it.", add_daily, daily
    ),
    "stream": Command(
        "Train on files as they arrive, evaluate each before training on it, and export.",
        add_stream,
        stream,
    ),
    "demo": Command(
        "Train MMoE and AdaFTR on the included flights data set and compare them.", add_demo, demo
    ),
}
