"""Merges the results of all shards after a step: staged text, vocabulary and groups,
the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast._files import replacing, sha256
from adaftr_fast._json import dumps, from_json
from adaftr_fast.data.dataset.manifest import (
    FORMAT,
    Manifest,
    SplitInfo,
    ValueInfo,
    field_info,
    fingerprint,
)
from adaftr_fast.data.dataset.vocabulary import VOCABULARY, grown, with_shared, write_vocabulary
from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.encoders import Encoder, fit_encoder
from adaftr_fast.data.encode.groups import Groups
from adaftr_fast.data.encode.moments import Moments, fit_dense
from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.prepare.steps import SHA256, VISIBLE_SECONDS, Job
from adaftr_fast.data.prepare.work_folder import WorkFiles
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.raw.source import Unused
from adaftr_fast.data.raw.staging import TextInput, check_staged, staged_bad_rows
from adaftr_fast.data.schema.types import SPLITS, Field, Schema, shown_condition
from adaftr_fast.errors import DataError
from adaftr_fast.nn.dense import NumericEncoding

SHOWN = 20  # values of a column
DECIMAL = r"^[+-]?[0-9]+[.,][0-9]+$"
MOST = 0.9  # of the values


@dataclass(frozen=True)
class PreparedIds:
    """Meaning of the ids and numbers of another prepared folder."""

    fingerprint: str
    encoders: dict[str, Encoder]
    dense: list[NumericEncoding]


def merge_read(
    job: Job, texts: list[TextInput], shards: Sequence[tuple[Shard, Any]]
) -> dict[str, Any]:
    """Returns the number of blocks of each text file, and their bad rows.

    Args:
        texts: the text files.
        shards: the shards with their results of ``read``.

    Raises:
        DataError: the share of bad rows exceeds the tolerated one, or a line is lost.
        OSError: a staged block is absent.
    """
    bad_rows = BadRows()
    blocks = {}
    for text in texts:
        name = text.folder.name
        blocks[name] = sum(each[name] for _, each in shards)
        check_staged(text.folder, blocks[name], VISIBLE_SECONDS if job.remote else 0.0)
        bad_rows += staged_bad_rows(text)
    bad_rows.check(job.tolerance)
    return {"blocks": blocks, "bad_rows": dataclasses.asdict(bad_rows)}


def merge_counted(
    job: Job,
    known: PreparedIds | None,
    bad_rows: BadRows | None,
    inputs: str,
    shards: Sequence[tuple[Shard, Any]],
) -> Manifest:
    """Writes the vocabulary and the groups of all shards. Returns the manifest without splits.

    Args:
        known: ids to grow, if any.
        bad_rows: those of all text files.
        inputs: ``inputs_digest``.
        shards: the shards with their results of ``count``.
    """
    bad_rows = _with_unlabelled(
        bad_rows, [from_json(BadRows, each["unlabelled"]) for _, each in shards]
    )
    bad_rows.check(job.tolerance)
    _merge_groups(job, [shard for shard, _ in shards])
    with ExitStack() as stack:
        every = [stack.enter_context(job.work.counts(shard).open("rb")) for shard, _ in shards]
        compared = {column: ValueCounts.read(every) for column in job.schema.compared()}
        files = list(compress(every, [each["has_rows"] for _, each in shards]))
        encoders: dict[str, Encoder] = {}
        values: dict[str, ValueInfo] = {}
        for field in job.schema.fields:
            if field.counted:
                counts = ValueCounts.read(_some(job.schema, files))
                encoders[field.name], values[field.name] = (
                    fit_encoder(field, counts),
                    _value_info(field, counts),
                )
            elif field.hashed:
                encoders[field.name] = fit_encoder(field, None)
        dense = (
            []
            if known
            else [_fit_dense(field, _some(job.schema, files)) for field in job.schema.dense]
        )
    if known is not None:
        encoders, dense = grown(known.encoders, encoders), known.dense
    with replacing(job.work.prepared / VOCABULARY) as new:
        write_vocabulary(new, encoders)
    encoders = with_shared(job.schema.fields, encoders)
    schema = job.schema
    fields = [field_info(field, encoders[field.name]) for field in schema.fields]
    return Manifest(
        dataset=schema.name,
        attribution=schema.attribution,
        format=FORMAT,
        fingerprint=fingerprint(fields, schema, encoders, dense),
        inputs=inputs,
        tasks=[label.name for label in schema.labels],
        group=schema.group,
        splits={},
        fields=fields,
        schema=schema.source,
        weight=schema.weight,
        bad_rows=bad_rows if bad_rows.bad or bad_rows.lines is not None else None,
        unused=sum((from_json(Unused, each["unused"]) for _, each in shards), Unused()),
        dense=dense,
        values={} if known else values,
        bounds={
            name: shown_condition(rule.where)
            for name, rule in schema.split.items()
            if rule.time and rule.where
        },
        compared=most_telling(schema, compared),
        sha256={VOCABULARY: sha256(job.work.prepared / VOCABULARY)},
    )


def _with_unlabelled(text: BadRows | None, unlabelled: Sequence[BadRows]) -> BadRows:
    """Returns the bad rows of text and, among those that were read from all inputs, the rows that
    lack a label.
    """
    text, found = text or BadRows(), sum(unlabelled, BadRows())
    return text + replace(found, rows=max(0, found.rows - (text.rows - text.bad)))


def merge_encoded(
    work: WorkFiles, manifest: Manifest, shards: Sequence[tuple[Shard, Any]]
) -> dict[str, str]:
    """Moves the files of all shards to the prepared folder, and writes the manifest, its last file.

    Running it again after an interruption is harmless.

    Args:
        manifest: that of ``merge_counted``.
        shards: the shards with their results of ``encode``.

    Returns:
        The sha256 of the files, by name.

    Raises:
        DataError: a split has no rows, or the training labels of a task are all equal.
    """
    splits = {}
    digests = dict(manifest.sha256)
    for split in SPLITS:
        infos = {}
        for shard, result in shards:
            path, info = work.encoded(split, shard), from_json(SplitInfo, result[split])
            infos[path.name] = info
            if info.rows:
                digests[path.name] = result[SHA256][path.name]
        splits[split] = _merge_infos(infos)
    _check_splits(manifest.parsed, splits)
    for split in SPLITS:
        for shard, _ in shards:
            path = work.encoded(split, shard)
            if path.name in digests and (path.exists() or not (work.prepared / path.name).exists()):
                path.replace(work.prepared / path.name)
    for path in work.prepared.iterdir():
        if path.name not in digests:  # moved by an interrupted run with another number of shards
            path.unlink()
    replace(manifest, splits=splits, sha256=digests).write(work.prepared)
    return digests


def inputs_digest(schema: Schema, known: PreparedIds | None, digests: dict[str, str]) -> str:
    """Returns the sha256 of the schema, the ids to grow and the digests of all input files in order
    of their index.
    """
    digest = hashlib.sha256(
        dumps([FORMAT, schema.source, *([known.fingerprint] if known else [])]).encode()
    )
    for number in sorted(digests, key=int):
        digest.update(bytes.fromhex(digests[number]))
    return digest.hexdigest()


def _merge_groups(job: Job, shards: list[Shard]) -> None:
    if group := job.schema.group:
        for split in SPLITS:
            groups = Groups.read(group, [job.work.groups(split, shard) for shard in shards])
            with replacing(job.work.groups(split)) as new:
                groups.write(new)


def _value_info(field: Field, counts: ValueCounts) -> ValueInfo:
    table = counts.table()
    categorical = field.kind in ("categorical", "cross")
    rare = (
        pc.sum(table.filter(pc.less(table["count"], field.min_count))["count"]).as_py()
        if categorical
        else 0
    )
    decimals = categorical and pa.types.is_string(table["value"].type) and table.num_rows > 0
    share = pc.mean(pc.match_substring_regex(table["value"], DECIMAL)).as_py() if decimals else 0.0
    return ValueInfo(table.num_rows, rare or 0, share >= MOST)


def _fit_dense(field: Field, counted: Sequence[BinaryIO]) -> NumericEncoding:
    """Fits the encoding of a dense field to the next moments in the files of the shards."""
    assert field.encoding is not None  # a dense field has one
    return fit_dense(field, Moments.read(counted, field.encoding))


def _some(schema: Schema, counted: Sequence[BinaryIO]) -> Sequence[BinaryIO]:
    if not counted:
        raise _no_rows(schema, "train")
    return counted


def _no_rows(schema: Schema, split: str) -> DataError:
    where = schema.split[split].where
    if where is None:
        return DataError(f"split {split} has no rows")
    asked = f"split {split} has no rows: none meets its condition, {shown_condition(where)}"
    return DataError(
        f"{asked}; a split by shares of time, time = {{ column, start, stop }}, serves each log"
    )


def _merge_infos(infos: dict[str, SplitInfo]) -> SplitInfo:
    """Merges the infos of all shards' files of a split, in shard order."""
    each = list(infos.values())
    return SplitInfo(
        rows=sum(info.rows for info in each),
        positives=_sums([info.positives for info in each]),
        unknown=_sums([info.unknown for info in each]),
        outside_funnel=_sums([info.outside_funnel for info in each]),
        both={task: _sums([info.both[task] for info in each]) for task in each[0].both},
        files={name: info.rows for name, info in infos.items() if info.rows}
        if len(infos) > 1
        else {},
    )


def _sums(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def _check_splits(schema: Schema, splits: dict[str, SplitInfo]) -> None:
    for name, info in splits.items():
        if info.rows == 0:
            raise _no_rows(schema, name)
    for task, positives in splits["train"].positives.items():
        if positives in (0, splits["train"].rows):
            got = f"{positives} of {splits['train'].rows} training rows are positive"
            raise DataError(f"label {task}: {got}, expected some but not all")


def most_telling(schema: Schema, counts: Mapping[str, ValueCounts]) -> dict[str, dict[str, int]]:
    """Returns the rows of at most ``SHOWN`` values by column, the most frequent ones; variants come
    first.

    The columns are those that labels compare with text. A variant of such a text makes a row a
    negative one.
    """
    found = {}
    for column, each in counts.items():
        table = each.table().to_pydict()
        rows = dict(zip(table["value"], table["count"]))
        variants = {
            value
            for label in schema.labels
            for value in _variants(rows, label.texts().get(column, set()))
        }
        values = sorted(rows, key=lambda value: (value not in variants, -rows[value], value))
        found[column] = {value: rows[value] for value in values[:SHOWN]}
    return found


def check_variants(schema: Schema, compared: Mapping[str, Mapping[str, int]]) -> None:
    """Raises DataError if a value differs from a text which a label compares in case or spaces
    alone.
    """
    for label in schema.labels:
        for column, texts in label.texts().items():
            if variants := _variants(compared[column], texts):
                values = ", ".join(
                    f"{value!r} ({rows:,} rows)" for value, rows in compared[column].items()
                )
                raise DataError(
                    f"label {label.name}: {column} has {values}; {', '.join(map(repr, variants))} "
                    "differ from what the "
                    "condition names in case or spaces alone. Name every spelling, in a list of "
                    "'in' or 'not in': "
                    f"{sorted({*texts, *variants})}"
                )


def _variants(values: Iterable[str], texts: set[str]) -> dict[str, str]:
    """Returns the values that differ from one of ``texts`` in case or spaces alone, and
    that text.
    """
    plain = {_plain(text): text for text in sorted(texts)}
    return {
        value: plain[_plain(value)]
        for value in values
        if value not in texts and _plain(value) in plain
    }


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
