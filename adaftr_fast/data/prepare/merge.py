"""Merges the results of all shards: the account of the rows, vocabulary and groups, the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast._files import replacing, sha256
from adaftr_fast.data.dataset.manifest import (
    FORMAT,
    Manifest,
    SplitInfo,
    ValueInfo,
    field_info,
    fingerprint,
    total,
)
from adaftr_fast.data.dataset.vocabulary import VOCABULARY, grown, with_shared, write_vocabulary
from adaftr_fast.data.encode.encoders import Encoder, fit_encoder
from adaftr_fast.data.encode.moments import Moments, fit_dense
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.parallel import Shard, ordered_map
from adaftr_fast.data.prepare.load import Loaded
from adaftr_fast.data.prepare.steps import Job
from adaftr_fast.data.prepare.table import Log, write_ids
from adaftr_fast.data.prepare.work_folder import WorkFiles
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.raw.source import Unused
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


def merge_loaded(tolerance: float, loaded: Sequence[Loaded]) -> BadRows:
    """Returns the account of the rows of all shards.

    Raises:
        DataError: the share of bad rows exceeds ``tolerance``.
    """
    bad_rows = BadRows()
    before = 0
    for text in chain.from_iterable(each.texts for each in loaded):
        before = 0 if text.is_start else before
        bad_rows += text.bad_rows.shifted(text.path, before)
        before += text.lines
    bad_rows.check(tolerance)
    for each in loaded:
        bad_rows += replace(each.unlabelled, rows=each.others)
    bad_rows.check(tolerance)
    return bad_rows


def count(
    job: Job, known: PreparedIds | None, inputs: str, bad_rows: BadRows, loaded: Sequence[Loaded]
) -> Manifest:
    """Writes the vocabulary, and the ids of values and groups. Returns the manifest without splits.

    Args:
        known: ids to grow, if any.
        inputs: the digest of schema and inputs.
        bad_rows: the account of the rows.
        loaded: what is known of the rows of each shard.
    """
    schema = job.schema
    compared = {
        column: sum((each.compared[column] for each in loaded), Counter())
        for column in schema.compared()
    }
    shards = [job.work.shard(shard) for shard in Shard.all(len(loaded))]
    encoders: dict[str, Encoder] = {}
    values: dict[str, ValueInfo] = {}
    with job.connected(job.work.ids) as connection:
        log = Log(connection, job.columns, shards)
        if not log.training_rows() and any(field.counted for field in job.fitted):
            raise _no_rows(schema, "train")
        unused = sum((each.unused for each in loaded), Unused(log.unmatched()))
        for field in schema.fields:
            counts = log.counts(field, field.name in job.texts) if field.counted else None
            if counts is not None:
                values[field.name] = _value_info(field, counts)
            if field.vocabulary is None:
                encoders[field.name] = fit_encoder(field, counts)
        if known is None:
            dense = [_fit_dense(log, field, job.memory) for field in schema.dense]
        else:
            encoders = grown(known.encoders, encoders)
            dense = known.dense
        with replacing(job.work.prepared / VOCABULARY) as new:
            write_vocabulary(new, encoders)
        encoders = with_shared(schema.fields, encoders)
        write_ids(connection, job.columns, encoders)
        if schema.group:
            log.write_groups()
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
        unused=unused,
        dense=dense,
        values={} if known else values,
        bounds={
            name: shown_condition(rule.where)
            for name, rule in schema.split.items()
            if rule.time and rule.where
        },
        compared=compared_values(schema, compared),
        sha256={VOCABULARY: sha256(job.work.prepared / VOCABULARY)},
    )


def _fit_dense(log: Log, field: Field, memory: Memory) -> NumericEncoding:
    assert field.encoding is not None  # a dense field has one
    moments = Moments.of(pa.array([], pa.float32()), field.encoding)
    of_batch = partial(Moments.of, encoding=field.encoding)
    for each in ordered_map(of_batch, log.numbers(field), attrgetter("nbytes"), memory):
        moments.merge(each)
    return fit_dense(
        field, moments, log.counts(field, False) if field.encoding == "piecewise" else None
    )


def merge_encoded(
    work: WorkFiles, manifest: Manifest, encoded: Sequence[dict[str, tuple[SplitInfo, str]]]
) -> None:
    """Moves the files of all shards to the prepared folder, and writes the manifest.

    Args:
        manifest: that of ``count``.
        encoded: the results of ``encode`` of all shards.

    Raises:
        DataError: a split has no rows, or the training labels of a task are all equal.
    """
    splits = {}
    digests = dict(manifest.sha256)
    shards = Shard.all(len(encoded))
    for split in SPLITS:
        files = {}
        for shard, found in zip(shards, encoded):
            info, digest = found[split]
            path = work.encoded(split, shard)
            if info.rows:
                files[path.name] = info.rows
                digests[path.name] = digest
                path.replace(work.prepared / path.name)
        infos = total(found[split][0] for found in encoded)
        splits[split] = replace(infos, files=files if len(shards) > 1 else {})
    _check_splits(manifest.parsed, splits)
    replace(manifest, splits=splits, sha256=digests).write(work.prepared)


def _value_info(field: Field, table: pa.Table) -> ValueInfo:
    categorical = field.kind in ("categorical", "cross")
    rare = (
        pc.sum(table.filter(pc.less(table["count"], field.min_count))["count"]).as_py()
        if categorical
        else 0
    )
    decimals = categorical and pa.types.is_string(table["value"].type) and table.num_rows > 0
    share = pc.mean(pc.match_substring_regex(table["value"], DECIMAL)).as_py() if decimals else 0.0
    return ValueInfo(table.num_rows, rare or 0, share >= MOST)


def _no_rows(schema: Schema, split: str) -> DataError:
    where = schema.split[split].where
    if where is None:
        return DataError(f"split {split} has no rows")
    asked = f"split {split} has no rows: none meets its condition, {shown_condition(where)}"
    return DataError(
        f"{asked}; a split by shares of time, time = {{ column, start, stop }}, serves each log"
    )


def _check_splits(schema: Schema, splits: dict[str, SplitInfo]) -> None:
    for name, info in splits.items():
        if info.rows == 0:
            raise _no_rows(schema, name)
    for task, positives in splits["train"].positives.items():
        if positives in (0, splits["train"].rows):
            got = f"{positives} of {splits['train'].rows} training rows are positive"
            raise DataError(f"label {task}: {got}, expected some but not all")


def compared_values(
    schema: Schema, counts: Mapping[str, Counter[str]]
) -> dict[str, dict[str, int]]:
    """Returns the rows of the ``SHOWN`` most frequent values by column.

    The columns are those that labels compare with text.

    Raises:
        DataError: a value differs from such a text in case or spaces alone, so that its rows would
            be negative ones.
    """
    found = {}
    for column, rows in counts.items():
        frequent = sorted(rows, key=lambda value: (-rows[value], value))
        for label in schema.labels:
            texts = label.texts().get(column, set())
            plain = set(map(_plain, texts))
            variants = [each for each in frequent if each not in texts and _plain(each) in plain]
            if variants:
                shown = [*dict.fromkeys(variants + frequent)][:SHOWN]
                values = ", ".join(f"{value!r} ({rows[value]:,} rows)" for value in shown)
                raise DataError(
                    f"label {label.name}: {column} has {values}; {', '.join(map(repr, variants))} "
                    "differ from what the "
                    "condition names in case or spaces alone. Name every spelling, in a list of "
                    "'in' or 'not in': "
                    f"{sorted({*texts, *variants})}"
                )
        found[column] = {value: rows[value] for value in frequent[:SHOWN]}
    return found


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
