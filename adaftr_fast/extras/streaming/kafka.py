"""A Kafka topic: the rows of some time are a chunk, and each row is in one chunk."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
)
from confluent_kafka import TopicPartition as Place

from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import ConfigError, DataError
from adaftr_fast.extras.streaming.messages import RowReader
from adaftr_fast.extras.streaming.source import Chunk, Position, check_number
from adaftr_fast.files.publish import publishing
from adaftr_fast.runs.daily import part_schema

CONNECT_SECONDS = 30.0
# of a call of the client, and of a call of next() while messages come
POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0
BATCH = 10_000  # messages of a call
SHOWN = 100  # messages that are set aside before a chunk whose places it has
# the client connects again
PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT)


class KafkaSource:
    """The messages of a topic, each a row as a JSON object.

    A chunk has the rows that come within ``seconds`` of its first, at most ``rows``. It is written
    to ``folder`` as parquet. Its position, the offset of each partition, is recorded with the
    chunk. A stream that was killed goes on from there, so it trains on each row once, whatever was
    committed to the broker. The offsets of finished chunks are also committed under ``group``, for
    tools that show how far a group is. Partitions that are added are read by the next process.

    A message that cannot be read as a row is set aside: a warning counts such messages, and the
    next chunk has their number, and topic, partition, offset and reason of the first ones.

    Args:
        topic: the topic.
        servers: ``bootstrap.servers``, such as "host:9092,other:9092".
        folder: where the chunk in progress is written. Other parquet files there are removed.
        schema: the schema of ``train_stream``. Columns that it does not read are left out.
        rows: the most rows of a chunk.
        seconds: the time after which a chunk is whole.
        group: ``group.id``.
        settings: further settings of the client, such as those of SSL.

    Raises:
        ConfigError: ``rows`` is less than 1, ``seconds`` is negative or not finite, or ``settings``
            has one that this class sets.
        DataError: the servers do not answer within half a minute, there is no such topic, a setting
            is wrong, or the schema reads several files.
    """

    def __init__(
        self,
        topic: str,
        servers: str,
        folder: Path,
        schema: Schema,
        *,
        rows: int = 100_000,
        seconds: float = 60.0,
        group: str = "adaftr-fast",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        own = {
            "bootstrap.servers": servers,
            "group.id": group,
            "enable.auto.commit": False,
            # rows that the broker has removed must not be left out in silence
            "auto.offset.reset": "error",
        }
        check_number("seconds", seconds)
        if rows < 1:
            raise ConfigError(f"rows: expected at least 1 row in a chunk, got {rows}")
        if taken := own.keys() & (settings or {}).keys():
            raise ConfigError(
                f"settings: expected none of {', '.join(own)}, got {', '.join(sorted(taken))}"
            )
        self.topic = topic
        self.folder = folder
        self.rows = rows
        self.seconds = seconds
        self._reader = RowReader(part_schema(schema))
        try:
            self._consumer = Consumer({**(settings or {}), **own})
            found = self._consumer.list_topics(topic, CONNECT_SECONDS).topics[topic]
        except KafkaException as error:
            raise DataError(f"topic {topic} of {servers}: {error.args[0].str()}") from error
        if found.error is not None:
            raise DataError(f"topic {topic} of {servers}: {found.error.str()}")
        self._partitions = sorted(found.partitions)
        self._offsets: dict[str, int] | None = None  # after the last chunk
        self._committed: dict[str, int] = {}
        self._messages: list[Any] = []
        self._set_aside: dict[str, Any] = {}  # since the last chunk
        self._began = 0.0

    def next(self, done: dict[str, Position]) -> Chunk | None:
        """Reads what has arrived, and returns a chunk if it is whole.

        Raises:
            DataError: the broker no longer has the rows after the last chunk, or reports another
                error, or the last chunk is of another source.
        """
        name = next(reversed(done), None)
        last: Position = {"offsets": {}} if name is None else done[name]
        if "offsets" not in last:
            raise DataError(f"chunk {name}: is of another source than the topic; use another --out")
        finished: dict[str, int] = last["offsets"]
        if self._offsets is None:
            self._offsets = finished
            self._consumer.assign(
                self._places({str(n): OFFSET_BEGINNING for n in self._partitions} | finished)
            )
        if finished != self._committed:
            self._consumer.commit(offsets=self._places(finished), asynchronous=True)
            self._committed = finished
        end = time.monotonic() + LOOK_SECONDS
        while not self._is_whole() and time.monotonic() < end:
            found = self._consumer.consume(
                min(BATCH, self.rows - len(self._messages)), POLL_SECONDS
            )
            self._add(found)
            if not found:
                break
        return self._chunk(self._offsets) if self._is_whole() else None

    def close(self) -> None:
        """Ends the connections."""
        self._consumer.close()

    def _places(self, offsets: dict[str, int]) -> list[Place]:
        return [Place(self.topic, int(number), offset) for number, offset in offsets.items()]

    def _add(self, messages: Sequence[Any]) -> None:
        for message in messages:
            error = message.error()
            if error is None:
                self._began = self._began if self._messages else time.monotonic()
                self._messages.append(message)
            elif error.code() not in PASSING:
                raise DataError(
                    f"topic {self.topic}, partition {message.partition()}: {error.str()}"
                )

    def _is_whole(self) -> bool:
        is_late = time.monotonic() - self._began >= self.seconds
        return bool(self._messages) and (is_late or len(self._messages) >= self.rows)

    def _chunk(self, before: dict[str, int]) -> Chunk | None:
        """Writes the messages as a chunk; returns None if none is a row."""
        messages = self._messages
        self._messages = []
        self._offsets = before | {str(each.partition()): each.offset() + 1 for each in messages}
        rows = self._rows(messages)
        if not len(rows):
            return None
        name = f"{self.topic}-{sum(self._offsets.values()):012d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.parquet"):
            old.unlink()
        path = self.folder / f"{name}.parquet"
        with publishing(path) as new:
            pq.write_table(rows, new)
        aside = self._set_aside
        self._set_aside = {}
        return Chunk(name, path, max(map(_written, messages)), {"offsets": self._offsets}, aside)

    def _rows(self, messages: Sequence[Any]) -> pa.Table:
        """Returns the rows of messages, and sets the other messages aside."""
        rows, reasons = self._reader.read([message.value() for message in messages])
        aside = [
            {
                "topic": self.topic,
                "partition": message.partition(),
                "offset": message.offset(),
                "reason": reason,
            }
            for message, reason in zip(messages, reasons)
            if reason is not None
        ]
        if aside:
            before = self._set_aside or {"messages": 0, "first": []}
            first = [*before["first"], *aside][:SHOWN]
            self._set_aside = {"messages": before["messages"] + len(aside), "first": first}
            counted = f"{len(aside)} of {len(messages)} messages cannot be read and are set aside"
            where = "the first at offset {offset} of partition {partition}: {reason}".format(
                **aside[0]
            )
            warnings.warn(f"topic {self.topic}: {counted}, {where}", RuntimeWarning, stacklevel=4)
        return rows


def _written(message: Any) -> float:
    """Returns when a message was written, in seconds since 1970."""
    kind, milliseconds = message.timestamp()
    return time.time() if kind == TIMESTAMP_NOT_AVAILABLE else float(milliseconds) / 1e3
