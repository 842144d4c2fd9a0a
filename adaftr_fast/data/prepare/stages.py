"""Stages of ``prepare``: read text, join, count values, encode rows.

Every stage runs per shard and is then merged (barrier.py). One process runs as the only shard. The folder ``work``
holds the staged text, the counts of each shard, and the prepared folder in progress, ``work/prepared``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from adaftr_fast._files import sha256
from adaftr_fast._json import dumps, from_json
from adaftr_fast.data.dataset.manifest import FORMAT, Manifest, SplitInfo, field_info, fingerprint
from adaftr_fast.data.dataset.split_file import split_file_name, split_info, write_split
from adaftr_fast.data.dataset.vocabulary import VOCABULARY, grown, read_encoders, with_shared, write_vocabulary
from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.dense import fit_dense
from adaftr_fast.data.encode.encoders import Encoder, count_values, fit_encoder
from adaftr_fast.data.encode.groups import Groups
from adaftr_fast.data.encode.moments import Moments
from adaftr_fast.data.prepare.barrier import Stage, read_result, result_path
from adaftr_fast.data.prepare.work_folder import PREPARED
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.raw.inputs import TextInput, parquet_inputs, text_inputs
from adaftr_fast.data.raw.source import Source, Unused
from adaftr_fast.data.raw.staging import check_staged, stage, staged_bad_rows
from adaftr_fast.data.schema.types import SPLITS, Field, Schema
from adaftr_fast.data.shard import Shard
from adaftr_fast.errors import DataError
from adaftr_fast.nn.dense import NumericEncoding

READ, JOIN, COUNT, ENCODE = "read", "join", "count", "encode"  # names of the stages; join needs what read has staged
SHA256 = "sha256"  # key of the checksums in a result of encode
FIELDS = "fields.arrow"  # counts of the values of a shard, in the order of the fields


@dataclass(frozen=True)
class PreparedIds:
    """Meaning of the ids and numbers of another prepared folder."""

    fingerprint: str
    encoders: dict[str, Encoder]
    dense: list[NumericEncoding]


@dataclass(frozen=True)
class ShardRun:
    """Runs the stages for one shard.

    Attributes:
        paths: input files by role.
        digests: returns the sha256 of the input files that this shard hashes, by index.
        check: raises DataError if an input file has changed since the run started.
        known: ids to grow, if any.
        tolerance: share of the rows of a text file that may be bad.
    """

    schema: Schema
    paths: dict[str, Path]
    work: Path
    shard: Shard
    digests: Callable[[], dict[str, str]]
    check: Callable[[], None]
    known: PreparedIds | None
    tolerance: float
    progress: bool

    @property
    def prepared(self) -> Path:
        """The prepared folder in progress."""
        return self.work / PREPARED

    @property
    def _fitted(self) -> tuple[Field, ...]:
        """The fields whose training values are counted: ids grow, but the encodings of dense fields do not change."""
        return self.schema.features if self.known is None else self.schema.fields

    def stages(self) -> list[Stage]:
        """Returns the stages in order. Only text files need ``join``, if they are joined with others."""
        first, *more = text_inputs(self.schema, self.paths, self.work / "staged") or [[]]
        return [
            Stage(READ, partial(self._read, first), partial(self._merge_read, first)),
            *(Stage(JOIN, partial(self._stage, texts), partial(self._merge_staged, texts)) for texts in more),
            Stage(COUNT, self._count, self._merge_counted),
            Stage(ENCODE, self._encode, self._merge_encoded),
        ]

    def _read(self, texts: list[TextInput]) -> dict[str, Any]:
        return {"digests": self.digests()} | self._stage(texts)

    def _stage(self, texts: list[TextInput]) -> dict[str, Any]:
        """Stages this shard's blocks of the text files and returns the number of blocks."""
        self._check_staged()
        size, blocks = sum(text.path.stat().st_size for text in texts) // self.shard.count, {}
        with self._bar(READ, size, "B") as bar:
            for text in texts:
                blocks[text.folder.name] = stage(
                    text.path,
                    text.folder,
                    text.parse(),
                    header_lines=text.header_lines,
                    tolerance=self.tolerance,
                    shard=self.shard,
                    check=self.check,
                    bar=bar,
                )
        return {"blocks": blocks}

    def _merge_read(self, texts: list[TextInput], results: list[dict[str, Any]]) -> dict[str, Any]:
        digests = {number: digest for result in results for number, digest in result["digests"].items()}
        return self._merge_staged(texts, results) | {"digests": digests}

    def _merge_staged(self, texts: list[TextInput], results: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the blocks of all shards and their bad rows."""
        bad_rows, blocks = BadRows(), {}
        for text in texts:
            name = text.folder.name
            blocks[name] = sum(result["blocks"][name] for result in results)
            check_staged(text.folder, blocks[name])
            bad_rows += staged_bad_rows(
                text.path, text.folder, header_lines=text.header_lines, tolerance=self.tolerance
            )
        return {"blocks": blocks, "bad_rows": dataclasses.asdict(bad_rows) if texts else None}

    def _check_staged(self) -> None:
        for each in self._staged_results():
            for name, blocks in each["blocks"].items():
                check_staged(self.work / "staged" / name, blocks)

    def _staged_results(self) -> list[dict[str, Any]]:
        """Returns the merged results of the finished stages that stage text."""
        return [
            read_result(path) for stage_name in (READ, JOIN) if (path := result_path(self.work, stage_name)).exists()
        ]

    def _count(self) -> dict[str, Any]:
        """Writes the counts of every field's training values, and the groups of every split in order of appearance.

        Returns:
            Whether the shard has training rows, and therefore counts; and the rows that are in no split.
        """
        source, folder = self._source(), self._counted(self.shard)
        folder.mkdir(exist_ok=True)
        with self._bar(COUNT, source.count_rows("train"), " rows") as bar:
            counts = count_values(self._fitted, source.scan("train", bar.update))
        with (folder / FIELDS).open("wb") as file:
            for field in self._fitted:
                if field.name in counts:
                    counts[field.name].write(file)
        if group := self.schema.group:
            for split in SPLITS:
                columns = (batch[group] for batch in source.scan(split, only=group))
                Groups.from_columns(group, columns).write(folder / f"{split}.parquet")
        return {"has_rows": bool(counts), "unused": dataclasses.asdict(source.count_unused())}

    def _merge_counted(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Writes the vocabulary and the groups of all shards. Returns the manifest without splits."""
        counted = [self._counted(shard) for shard in self.shard.all]
        self.prepared.mkdir(exist_ok=True)
        if group := self.schema.group:
            for split in SPLITS:
                groups = Groups.read(group, [folder / f"{split}.parquet" for folder in counted])
                groups.write(self.work / f"{split}.parquet")
        with ExitStack() as stack:
            files = [
                stack.enter_context((folder / FIELDS).open("rb"))
                for folder in compress(counted, [each["has_rows"] for each in results])
            ]
            encoders = {field.name: _fit(field, files) for field in self.schema.fields if not field.vocabulary}
            dense = [] if self.known else [_fit_dense(field, files) for field in self.schema.dense]
        if self.known is not None:
            encoders, dense = grown(self.known.encoders, encoders), self.known.dense
        write_vocabulary(self.prepared / VOCABULARY, encoders)
        encoders = with_shared(self.schema.fields, encoders)
        unused = sum((from_json(Unused, each["unused"]) for each in results), Unused())
        return dataclasses.asdict(replace(self._without_splits(encoders, dense), unused=unused))

    def _without_splits(self, encoders: dict[str, Encoder], dense: list[NumericEncoding]) -> Manifest:
        fields = [field_info(field, encoders[field.name]) for field in self.schema.fields]
        staged = self._staged_results()
        bad_rows = [from_json(BadRows, each["bad_rows"]) for each in staged if each["bad_rows"]]
        return Manifest(
            dataset=self.schema.name,
            attribution=self.schema.attribution,
            format=FORMAT,
            fingerprint=fingerprint(fields, self.schema, encoders, dense),
            inputs=inputs_digest(self.schema, self.known, staged[0]["digests"]),
            tasks=[label.name for label in self.schema.labels],
            group=self.schema.group,
            splits={},
            fields=fields,
            schema=self.schema.source,
            weight=self.schema.weight,
            bad_rows=sum(bad_rows, BadRows()) if bad_rows else None,
            dense=dense,
        )

    def _encode(self) -> dict[str, Any]:
        """Writes this shard's file of every split. Files of an interrupted run are kept."""
        source, encoders = self._source(), read_encoders(self.prepared, self._manifest())
        paths = {split: self.prepared / split_file_name(split, self.shard) for split in SPLITS}
        with self._bar(ENCODE, sum(map(source.count_rows, SPLITS)), " rows") as bar:
            for split, path in paths.items():
                if path.exists():
                    bar.update(source.count_rows(split))
                    continue
                groups = Groups.read(self.schema.group, [self.work / f"{split}.parquet"]) if self.schema.group else None
                raw = self.paths[self.schema.split[split].file]
                write_split(self.schema, encoders, groups, raw, source.scan(split, bar.update), path, self.check)
        infos = {split: dataclasses.asdict(split_info(path)) for split, path in paths.items()}
        return infos | {SHA256: {path.name: sha256(path) for path in paths.values()}}

    def _merge_encoded(self, encoded: list[dict[str, Any]]) -> None:
        """Writes the manifest, the last file of the prepared folder."""
        splits, digests = {}, {VOCABULARY: sha256(self.prepared / VOCABULARY)}
        for split in SPLITS:
            names = [split_file_name(split, shard) for shard in self.shard.all]
            infos = {name: from_json(SplitInfo, each[split]) for name, each in zip(names, encoded)}
            splits[split] = _merge_infos(infos)
            for name, each in zip(names, encoded):
                if infos[name].rows:
                    digests[name] = each[SHA256][name]
                else:
                    (self.prepared / name).unlink(missing_ok=True)
        _check_splits(splits)
        replace(self._manifest(), splits=splits, sha256=digests).write(self.prepared)

    def _manifest(self) -> Manifest:
        return from_json(Manifest, read_result(result_path(self.work, COUNT)))

    def _source(self) -> Source:
        self._check_staged()
        return Source(self.schema, parquet_inputs(self.schema, self.paths, self.work / "staged"), self.shard)

    def _counted(self, shard: Shard) -> Path:
        return self.work / f"counted-{shard.number}"

    def _bar(self, stage_name: str, total: int, unit: str) -> tqdm:
        return tqdm(total=total, unit=unit, unit_scale=True, desc=stage_name, disable=not self.progress)


def inputs_digest(schema: Schema, known: PreparedIds | None, digests: dict[str, str]) -> str:
    """Returns the sha256 of the schema, the ids to grow and the digests of all input files in order of their index."""
    digest = hashlib.sha256(dumps([FORMAT, schema.source, *([known.fingerprint] if known else [])]).encode())
    for number in sorted(digests, key=int):
        digest.update(bytes.fromhex(digests[number]))
    return digest.hexdigest()


def _fit(field: Field, counted: Sequence[BinaryIO]) -> Encoder:
    """Fits the encoder of a field to the next counts in the files of the shards."""
    if field.hashed:
        return fit_encoder(field, None)
    return fit_encoder(field, ValueCounts.read(_some(counted)))


def _fit_dense(field: Field, counted: Sequence[BinaryIO]) -> NumericEncoding:
    """Fits the encoding of a dense field to the next moments in the files of the shards."""
    assert field.encoding is not None  # a dense field has one
    return fit_dense(field, Moments.read(_some(counted), field.encoding))


def _some(counted: Sequence[BinaryIO]) -> Sequence[BinaryIO]:
    if not counted:
        raise DataError("split train has no rows")
    return counted


def _merge_infos(infos: dict[str, SplitInfo]) -> SplitInfo:
    """Merges the infos of all shards' files of a split, in shard order."""
    each = list(infos.values())
    unknown = [info.unknown for info in each]
    return SplitInfo(
        rows=sum(info.rows for info in each),
        positives=_sums([info.positives for info in each]),
        files={name: info.rows for name, info in infos.items() if info.rows} if len(infos) > 1 else {},
        outside_funnel=_sums([info.outside_funnel for info in each]),
        unknown=_sums(unknown) if all(unknown) else {},  # not counted in files that an earlier version has left
    )


def _sums(counts: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def _check_splits(splits: dict[str, SplitInfo]) -> None:
    for name, info in splits.items():
        if info.rows == 0:
            raise DataError(f"split {name} has no rows")
    for task, positives in splits["train"].positives.items():
        if positives in (0, splits["train"].rows):
            got = f"{positives} of {splits['train'].rows} training rows are positive"
            raise DataError(f"label {task}: {got}, expected some but not all")
