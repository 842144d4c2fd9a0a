"""Merges the results of all shards after a step: staged text, vocabulary and groups,
the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.bad_rows import BadRows, Unused
from adaftr_fast.data.dataset.manifest import (
    FORMAT,
    FieldInfo,
    Manifest,
    SplitInfo,
    ValueInfo,
    total,
)
from adaftr_fast.data.encode.counts import ValueCounts, merged
from adaftr_fast.data.encode.encoders import Buckets, Encoder, Vocabulary, fit_encoder
from adaftr_fast.data.encode.moments import fit_dense
from adaftr_fast.data.encode.vocabulary import VOCABULARY, grown, with_shared, write_vocabulary
from adaftr_fast.data.parallel import Shard
from adaftr_fast.data.prepare.steps import VISIBLE_SECONDS, Job
from adaftr_fast.data.prepare.work_folder import WorkFiles
from adaftr_fast.data.raw.staging import TextInput, bad_rows_of, check_staged
from adaftr_fast.data.schema.types import SPLITS, Field, Schema, shown_condition
from adaftr_fast.errors import DataError
from adaftr_fast.files.json import dumps
from adaftr_fast.files.whole import replacing, sha256
from adaftr_fast.nn.encoding import NumericEncoding

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
) -> tuple[dict[str, int], BadRows]:
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
        staged = [block for _, each in shards for block in each[name]]
        blocks[name] = len(staged)
        check_staged(text.folder, blocks[name], VISIBLE_SECONDS if job.remote else 0.0)
        bad_rows += bad_rows_of(text, staged)
    bad_rows.check(job.tolerance)
    return blocks, bad_rows


def merge_counted(
    job: Job,
    known: PreparedIds | None,
    bad_rows: BadRows,
    shards: Sequence[tuple[Shard, Any]],
) -> Manifest:
    """Writes the vocabulary and the groups of all shards. Returns the manifest without splits.

    Args:
        known: ids to grow, if any.
        bad_rows: those of all text files.
        shards: the shards with their results of ``count``.
    """
    schema = job.schema
    unlabelled = sum((each["unlabelled"] for _, each in shards), BadRows())
    # read from all inputs, of which those of text are among the bad rows already
    others = max(0, unlabelled.rows - (bad_rows.rows - bad_rows.bad))
    bad_rows += replace(unlabelled, rows=others)
    bad_rows.check(job.tolerance)
    with ExitStack() as stack:
        every = [stack.enter_context(job.work.counts(shard).open("rb")) for shard, _ in shards]
        compared = {column: merged(every) for column in schema.compared()}
        with replacing(job.work.groups) as new, new.open("wb") as file:
            pickle.dump({split: merged(every) for split in SPLITS if schema.group}, file)
        # the others are of shards without training rows
        files = [file for file in every if file.peek(1)]
        if not files and any(field.counted for field in job.fitted):
            raise _no_rows(schema, "train")
        encoders: dict[str, Encoder] = {}
        values: dict[str, ValueInfo] = {}
        for field in schema.fields:
            counts = merged(files) if field.counted else None
            if counts is not None:
                values[field.name] = _value_info(field, counts)
            if field.vocabulary is None:
                encoders[field.name] = fit_encoder(field, counts)
        if known is None:
            dense = [fit_dense(field, merged(files)) for field in schema.dense]
        else:
            encoders = grown(known.encoders, encoders)
            dense = known.dense
    write_vocabulary(job.work.prepared / VOCABULARY, encoders)
    encoders = with_shared(schema.fields, encoders)
    fields = [_field_info(field, encoders[field.name]) for field in schema.fields]
    return Manifest(
        dataset=schema.name,
        attribution=schema.attribution,
        format=FORMAT,
        fingerprint=_fingerprint(fields, schema, encoders, dense),
        inputs=job.digest,
        tasks=[label.name for label in schema.labels],
        group=schema.group,
        splits={},
        fields=fields,
        schema=schema.source,
        weight=schema.weight,
        bad_rows=bad_rows if bad_rows.bad or bad_rows.lines is not None else None,
        unused=sum((each["unused"] for _, each in shards), Unused()),
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


def merge_encoded(work: WorkFiles, manifest: Manifest, shards: Sequence[tuple[Shard, Any]]) -> None:
    """Moves the files of all shards to the prepared folder, and writes the manifest.

    Args:
        manifest: that of ``merge_counted``.
        shards: the shards with their results of ``encode``.

    Raises:
        DataError: a split has no rows, or the training labels of a task are all equal.
    """
    splits = {}
    digests = dict(manifest.sha256)
    for split in SPLITS:
        files = {}
        infos = []
        for shard, result in shards:
            name = work.encoded(split, shard).name
            infos.append(result[split]["info"])
            if infos[-1].rows:
                files[name] = infos[-1].rows
                digests[name] = result[split]["sha256"]
        splits[split] = replace(total(infos), files=files if len(shards) > 1 else {})
    _check_splits(manifest.parsed, splits)
    for split in SPLITS:
        for shard, _ in shards:
            path = work.encoded(split, shard)
            if path.name in digests:
                path.replace(work.prepared / path.name)
    replace(manifest, splits=splits, sha256=digests).write(work.prepared)


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


def compared_values(schema: Schema, counts: Mapping[str, ValueCounts]) -> dict[str, dict[str, int]]:
    """Returns the rows of the ``SHOWN`` most frequent values by column.

    The columns are those that labels compare with text.

    Raises:
        DataError: a value differs from such a text in case or spaces alone, so that its rows would
            be negative ones.
    """
    found = {}
    for column, each in counts.items():
        table = each.table().to_pydict()
        rows = dict(zip(table["value"], table["count"]))
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


def _field_info(field: Field, encoder: Encoder) -> FieldInfo:
    """Returns the manifest entry of a field."""
    edges = [float(edge) for edge in encoder.edges] if isinstance(encoder, Buckets) else None
    return FieldInfo(
        field.name,
        field.kind,
        list(field.columns),
        encoder.num_embeddings,
        edges,
        field.tokens == "all",
    )


def _fingerprint(
    fields: list[FieldInfo],
    schema: Schema,
    encoders: dict[str, Encoder],
    dense: Sequence[NumericEncoding] = (),
) -> str:
    """Returns the sha256 of everything a model's weights depend on.

    That are fields, edges, vocabularies in order of their ids, lengths of token lists, encodings of
    numbers, labels, and the expressions of fields and labels.
    """
    labels = [dataclasses.asdict(label) for label in schema.labels]
    for label in labels:
        if label["condition"] is not None:
            label["condition"] = schema.source["labels"][label["name"]]  # as it is written
    meaning = [[dataclasses.asdict(field) for field in fields], labels]
    meaning += [[dataclasses.asdict(each) for each in dense]] if dense else []
    digest = hashlib.sha256(dumps(meaning).encode())
    if lengths := {field.name: field.length for field in schema.fields if field.length is not None}:
        digest.update(dumps(lengths).encode())
    names = [column for each in schema.features for column in each.columns]
    names += [column for label in schema.labels for column in label.columns()]
    if computed := schema.meaning(names):
        digest.update(dumps(computed).encode())
    for field in fields:
        encoder = encoders[field.name]
        if isinstance(encoder, Vocabulary):
            digest.update(json.dumps(encoder.values.to_pylist()).encode())
    return digest.hexdigest()
