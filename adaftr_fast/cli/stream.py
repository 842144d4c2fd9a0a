"""``adaftr-fast stream``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonargparse

from adaftr_fast.cli.options import Parser, add_config, add_warm_start, place, read_config, read_warm_start
from adaftr_fast.config import RunConfig, TrainingConfig
from adaftr_fast.errors import ConfigError

if TYPE_CHECKING:
    from adaftr_fast.data.schema.types import Schema
    from adaftr_fast.streaming.source import Source

DESCRIPTION = "Train on files as they arrive, evaluate each before training on it, and export."
INCOMING = "incoming"  # the chunk of a topic that is in progress, in OUT
SECTIONS = ("model", "optimizer", "training")


def add_arguments(parser: Parser) -> None:
    """Adds the options of ``stream`` to a parser that reads TOML."""
    dataset = "a data set or schema file (.toml) of one input file; its split is ignored"
    parser.add_argument("--dataset", type=str, required=True, help=dataset)
    parser.add_argument("--folder", type=Path | None, help="the folder to watch for files")
    parser.add_argument("--out", type=place, required=True, help="folder for stream.jsonl, serving and the chunks")
    settle = "seconds without a change after which a file of --folder is whole"
    parser.add_argument("--settle", type=float, default=2.0, help=settle)
    parser.add_argument("--poll", type=float, default=1.0, help="seconds between two looks for a chunk")
    parser.add_argument("--idle", type=float, default=0.0, help="end after so many seconds without a chunk; 0: never")
    parser.add_argument("--keep", type=int, default=2, help="trained chunks whose data and run are kept")
    minutes = "minutes between two exports to OUT/serving; 0: after each chunk"
    parser.add_argument("--export_minutes", type=float, default=0.0, help=minutes)
    on_error = "at a chunk that cannot be trained on: end, or record the error and go on with the next"
    parser.add_argument("--on_error", type=Literal["stop", "skip"], default="stop", help=on_error)
    _add_kafka(parser)
    add_warm_start(parser, "for the first chunk, a run")
    add_config(parser, SECTIONS, RunConfig(training=TrainingConfig(max_epochs=1)))


def _add_kafka(parser: Parser) -> None:
    parser.add_argument("--kafka_topic", type=str | None, help="instead of --folder, a topic of rows as JSON objects")
    parser.add_argument("--kafka_servers", type=str, default="localhost:9092", help="its bootstrap.servers")
    parser.add_argument("--kafka_group", type=str, default="adaftr-fast", help="its group.id, for tools that show lags")
    settings = 'further settings of its client, such as {"security.protocol": "SSL"}'
    parser.add_argument("--kafka_settings", type=dict[str, Any], default={}, help=settings)
    parser.add_argument("--chunk_rows", type=int, default=100_000, help="the most rows of a chunk of a topic")
    parser.add_argument("--chunk_seconds", type=float, default=60.0, help="seconds until a chunk of a topic is whole")


def run(arguments: jsonargparse.Namespace) -> None:
    """Trains on each chunk; rank 0 prints its lag and its metrics before and after training on it."""
    from adaftr_fast.data.schema.parse import load_schema
    from adaftr_fast.distributed.ranks import is_first, joined
    from adaftr_fast.runs.output import output
    from adaftr_fast.streaming.loop import StreamOptions, train_stream

    config = replace(read_config(arguments, SECTIONS), warm_start=read_warm_start(arguments))
    names = ("poll", "idle", "keep", "export_minutes", "on_error")
    options = StreamOptions(**{name: arguments[name] for name in names})
    schema = load_schema(arguments.dataset)
    with (
        joined(config.training.device, config.training.rank_timeout) as ranks,
        output(arguments.out, ranks) as out,
        ExitStack() as stack,
    ):
        source = _source(arguments, schema, out.local, stack) if is_first() else None
        for record in train_stream(schema, source, config, out.local, options, ranks, out):
            if is_first():
                print(_line(record), flush=True)


def _source(arguments: jsonargparse.Namespace, schema: Schema, out: Path, stack: ExitStack) -> Source:
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


def _line(record: dict[str, Any]) -> str:
    from adaftr_fast.training.result import aucs

    aside = f", {record['set_aside']['messages']:,} set aside" if "set_aside" in record else ""
    head = f"chunk {record['chunk']} ({record['name']}{aside}): "
    if "error" in record:
        return f"{head}left out: {record['error']}"
    measured = record["before_training"]
    before = "the first chunk" if measured is None else aucs(measured)
    return (
        f"{head}{record['rows']:,} rows, {record['ids']:,} ids, {record['rows_per_s']:,.0f} rows/s, "
        f"lag {record['lag']:.1f} s; before training: {before}; validation: {aucs(record['validation'])}"
    )
