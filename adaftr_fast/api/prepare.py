"""``adaftr_fast.prepare``: raw logs to a prepared folder."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adaftr_fast.api.data_report import write_page
from adaftr_fast.api.engines import open_engine
from adaftr_fast.api.places import Place, local, output_folder
from adaftr_fast.api.prepared import Prepared, declared_funnel, likely_funnel
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.prepare import run
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.raw.tables import Input, Inputs, input_files, list_inputs
from adaftr_fast.data.schema.parse import load_schema, parse_schema, text_format
from adaftr_fast.data.schema.parse import write_schema as write_schema_file
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import DataError

Names = Sequence[str] | str


def prepare(
    files: Inputs = (),
    out: Place = "data/prepared",
    *,
    dataset: Place | None = None,
    labels: Names | None = None,
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    ignore: Names = (),
    multi: Mapping[str, str] | None = None,
    funnel: Names | None = None,
    dense: Names = (),
    hash: Mapping[str, int] | None = None,
    min_count: int | None = None,
    null: Names = (),
    thousands: str = "",
    decimal: str = ".",
    dates: Names = (),
    write_schema: str | Path | None = None,
    bad_rows: float = 0.0,
    grow: Place | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    shards: int | None = None,
    memory: float | None = None,
    progress: bool = True,
) -> Prepared:
    """Converts raw logs, files or tables in memory, to a prepared folder, with a page about the
    data, ``report.html``.

    A folder that already holds this preparation of these files is left as it is.

    Args:
        files: the inputs, in the order of the schema; none for data sets that ship or are
            generated. An input is the path or URL of a file of parquet, of delimited text or of
            JSON lines, or of a folder of such files; or a table: a ``pandas.DataFrame``, a
            ``polars.DataFrame``, a ``pyarrow.Table`` or any other object with
            ``__arrow_c_stream__``. The index of a DataFrame is left out, unless it has a name and
            is not a range. Several inputs are one log, unless the schema gives each of them a role;
            their columns may be in any order.
        out: the path or URL of the folder to write.
        dataset: the name of a data set (``adaftr-fast info`` lists them) or a schema file.
        labels: instead of ``dataset``: the 0/1 columns, one per task, from which a schema is
            inferred.
        group: with ``labels``: the column of users, for GAUC.
        time: with ``labels``: the column to split by, of numbers, timestamps, or text whose forms
            ``dates`` names; None splits by users, or by rows without ``group``. The schema has
            shares, and so serves later logs too.
        weight: with ``labels``: the column of sample weights.
        ignore: with ``labels``: columns that are not features.
        multi: with ``labels``: the separators of text columns that hold lists, ``{"tags": "|"}``;
            "" reads a column as one value. Lists in other columns are detected, with a warning.
        funnel: with ``labels``: tasks in order, each of which happens only after the one before;
            each later one has a CVR AUC among the metrics. [] for no funnel; None takes click and
            conversion, if both are labels.
        dense: with ``labels``: columns of numbers that a model reads themselves, instead of an
            embedding per bucket.
        hash: with ``labels``: numbers of ids of columns whose values get their ids by a hash,
            ``{"item": 1_000_000}``.
        min_count: with ``labels``: how many training rows a value needs to get an id of its own;
            None for 1.
        null: with ``labels``: words of text that mean a missing value. Words in columns of numbers
            are detected.
        thousands: with ``labels``: the mark between groups of three digits in text; "" detects it.
        decimal: with ``labels``: the mark of decimals in text; "." detects a comma.
        dates: with ``labels``: forms of ``time`` in text, as ``datetime.strptime`` reads them, such
            as ``"%d/%m/%Y %H:%M"``; the first one that fits a value reads it. () detects them; ISO
            8601 needs none.
        write_schema: with ``labels``: a TOML file to which the inferred schema is written as well,
            to be edited and passed as ``dataset``.
        bad_rows: the share of rows that may be unreadable or lack a label; they are left out and
            reported.
        grow: a prepared folder of the same fields whose ids keep their meaning; new values get new
            ids.
        engine: "local" runs all steps in this process, and "ray" on a Ray cluster, whose machines
            must see the files and the folder above ``out`` under the same names. The result is the
            same.
        address: with "ray": HOST:PORT of the cluster; None finds that of this machine. A connection
            that this process has already is used.
        shards: into how many shards the rows are divided; None is 1, with "ray" one for each 512 MB
            of the files.
        memory: how many GB (2^30 bytes) each process may take, beside the distinct values of the
            fields; None for 4.
        progress: show progress bars.

    Returns:
        The prepared folder.

    Raises:
        ConfigError: there is no such engine, or it has no address; or ``memory`` is too small for a
            batch of rows.
        DataError: arguments that do not go together, or an input that cannot be prepared.
        EngineError: the cluster is absent or fails, or one of its machines does not see the files.
        OSError: ``out`` cannot be written.
        TypeError: an input is neither a path nor a table.

    Example::

        data = adaftr_fast.prepare("log.csv", "data/mine", labels=["click", "conversion"],
        group="user")
    """
    text = {
        "null": _names(null),
        "thousands": thousands,
        "decimal": "" if decimal == "." else decimal,
        "dates": _names(dates),
    }
    roles: dict[str, Any] = {
        "group": group,
        "time": time,
        "weight": weight,
        "ignore": _names(ignore),
        "multi": dict(multi or {}),
        "funnel": None if funnel is None else _names(funnel),
        "dense": _names(dense),
        "hash": dict(hash or {}),
        "min_count": min_count,
        "text": {key: value for key, value in text.items() if value},
    }
    named = None if labels is None else _names(labels)
    with (
        output_folder(out) as place,
        input_files(local_inputs(files), place, Memory.of(memory)) as paths,
        open_engine(engine, address) as opened,
    ):
        schema = _schema(paths, dataset, named, roles, write_schema)
        result = run.prepare(
            schema,
            paths,
            place,
            engine=opened,
            shards=shards,
            bad_rows=bad_rows,
            grow=None if grow is None else local(grow),
            memory=memory,
            progress=progress,
            finish=write_page,
        )
    _warn_of_funnels(schema, result)
    return Prepared(out)


def local_inputs(files: Inputs) -> list[Input]:
    """Returns inputs as ``input_files`` takes them, URLs copied to this machine. Raises TypeError."""
    return [
        local(each) if isinstance(each, str | os.PathLike) else each for each in list_inputs(files)
    ]


def _warn_of_funnels(schema: Schema, manifest: Manifest) -> None:
    """Warns of rows that contradict the funnel, or of labels that look like a funnel and are not
    said to be one.
    """
    total = manifest.total
    for before, stage in itertools.pairwise(schema.funnel):
        if outside := total.outside_funnel.get(stage, 0):
            warnings.warn(
                f"{outside:,} of {total.rows:,} rows are positive in {stage!r} but not in {before!r}, "
                "the stage before it; a "
                "condition in the schema makes them consistent, or funnel = [] (--funnel alone) if "
                "they are no funnel",
                stacklevel=3,
            )
    if "funnel" not in schema.source and not schema.funnel and (stages := likely_funnel(manifest)):
        pairs = itertools.pairwise(stages)
        nested = " and ".join(f"each row with {stage} also has {before}" for before, stage in pairs)
        warnings.warn(
            f"{nested}: {declared_funnel(stages)} reads them as a funnel, with CVR AUC, p_cvr and "
            "bids; funnel = [] "
            "(--funnel alone) keeps them independent without this warning",
            stacklevel=3,
        )


def _schema(
    files: list[Path],
    dataset: Place | None,
    labels: list[str] | None,
    roles: dict[str, Any],
    written: str | Path | None,
) -> Schema:
    """Reads the schema of ``dataset``, or infers that of the one file from ``labels`` and ``roles``
    and writes it.
    """
    if (dataset is None) == (labels is None):
        got = "neither" if labels is None else "both"
        raise DataError(f"expected dataset, or labels to infer a schema from the file; got {got}")
    if labels is None:
        for name, value in (roles | roles["text"] | {"write_schema": written}).items():
            if value or (name, value) == ("funnel", []):  # which is not a default
                raise DataError(
                    f"{name}: goes with labels, got {name} = {value!r} with dataset = "
                    f"{str(dataset)!r}"
                )
        assert dataset is not None
        return load_schema(str(local(dataset)))
    if not labels:
        raise DataError("labels: expected one or more columns, got none")
    if not files:
        raise DataError("files: expected one or more beside labels, got none")
    schema = parse_schema(
        infer_schema(files, labels, **roles | {"text": text_format("text", roles["text"])})
    )
    if written is not None:
        write_schema_file(Path(written), schema.source, f"Inferred from {files[0].name!r}.")
    return schema


def _names(names: Names) -> list[str]:
    """Returns a list of names; a single one need not stand in a list."""
    return [names] if isinstance(names, str) else list(names)
