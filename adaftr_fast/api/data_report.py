"""The page about a prepared folder: how each field is read, its values, their label rates, and
drift between splits.

Shapes: n rows, T tasks, V ids of a field.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.api.prepared import Prepared
from adaftr_fast.data.dataset.manifest import FieldInfo
from adaftr_fast.data.encode.encoders import Encoder, Vocabulary
from adaftr_fast.data.encode.vocabulary import read_encoders
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.display.tables import Table, paragraphs
from adaftr_fast.files.whole import replace_file

PAGE = "report.html"
MOST_ROWS = 1_000_000  # of a split that the page counts
MOST_IDS = 1 << 20  # of a field whose ids are counted
SHOWN = 10  # values of a field
STYLE = """body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .15em .8em; border-bottom: 1px solid #ddd; white-space: nowrap }
.bar { display: inline-block; height: .7em; background: #0072B2; margin-right: .4em } .warning { color: #D55E00 }"""


Counts = dict[str, np.ndarray]
"""Rows, or tokens of lists, by id of a field: int64 [1 + T, V] of all rows, then of the positive ones
of each task.
"""


def write_page(folder: Path) -> None:
    """Writes ``report.html`` into a prepared folder. Raises OSError if it cannot be written."""
    replace_file(folder / PAGE, page(Prepared(folder)).encode())


def page(data: Prepared) -> str:
    """Returns the page about a prepared folder, HTML without scripts and other files."""
    manifest = data.manifest
    counted = {split: _count(data, split) for split in SPLITS}
    encoders = read_encoders(data.folder, manifest)
    title = html.escape(f"{manifest.dataset}: {len(manifest.features)} fields")
    parts = [f"<title>{title}</title><meta charset='utf-8'><style>{STYLE}</style><h1>{title}</h1>"]
    parts += [f"<p class='warning'>{html.escape(each)}</p>" for each in data.useless()]
    parts += ["<h2>Splits</h2>", data.table().html(), paragraphs(*data.notes())]
    parts += ["<h2>Fields</h2>", _overview(data, counted).html(), paragraphs(_note(data))]
    for field in _shown(data):
        parts += [
            f"<h3>{html.escape(field.name)}</h3>",
            _values(data, field, encoders[field.name], counted["train"][field.name]),
        ]
    return "<!doctype html>\n" + "\n".join(parts) + "\n"


def _count(data: Prepared, split: str) -> Counts:
    """Counts the ids of at most ``MOST_ROWS`` rows, of row groups at equal distances."""
    fields = _shown(data)
    tasks = data.manifest.tasks
    found = {
        field.name: np.zeros((1 + len(tasks), field.num_embeddings), np.int64) for field in fields
    }
    for rows in _rows(data, split, [*found, *tasks]):
        masks = [np.ones(len(rows), bool), *(rows[task].to_numpy() > 0 for task in tasks)]
        for field in fields:
            ids, of_row = _flat(rows[field.name].combine_chunks())
            for counts, mask in zip(found[field.name], masks):
                counts += np.bincount(ids[mask[of_row]], minlength=field.num_embeddings)
    return found


def _shown(data: Prepared) -> list[FieldInfo]:
    """Returns the fields whose ids are counted."""
    return [field for field in data.manifest.fields if field.num_embeddings <= MOST_IDS]


def _rows(data: Prepared, split: str, columns: list[str]) -> Iterator[pa.Table]:
    files = [pq.ParquetFile(data.folder / name) for name in data.manifest.files(split)]
    groups = [(file, number) for file in files for number in range(file.num_row_groups)]
    step = -(-data.manifest.splits[split].rows // MOST_ROWS)
    for file, number in groups[::step]:
        yield file.read_row_group(number, columns)


def _flat(column: pa.Array) -> tuple[np.ndarray, np.ndarray | slice]:
    """Returns the ids of a column, and the row of each; the tokens of lists one after the other."""
    if not pa.types.is_list(column.type):
        return column.to_numpy(), slice(None)
    return column.flatten().to_numpy(), np.repeat(
        np.arange(len(column)), np.diff(column.offsets.to_numpy())
    )


def _overview(data: Prepared, counted: dict[str, Counts]) -> Table:
    """Returns a table with one row per field."""
    read_as = {row[0]: row for row in data.fields().rows}
    splits = data.manifest.splits
    others = SPLITS[1:]
    rows = []
    for field in data.manifest.fields:
        values = data.manifest.values.get(field.name)
        _, kind, ids, unknown = read_as[field.name]
        rare = (
            "-" if values is None or field.multiple else _percent(values.rare, splits["train"].rows)
        )
        distinct = "-" if values is None else f"{values.distinct:,}"
        drift = ["-"] * 2
        if field.name in counted["train"]:
            before = counted["train"][field.name]
            drift = [
                f"{100 * _distance(before, counted[split][field.name]):.1f} %" for split in others
            ]
        new = [_percent(splits[split].unknown[field.name], splits[split].rows) for split in others]
        rows.append([field.name, kind, distinct, ids, rare, unknown, *new, *drift])
    for name in data.manifest.features[len(rows) :]:  # dense, whose values have no ids
        _, kind, ids, unknown = read_as[name]
        new = [_percent(splits[split].unknown[name], splits[split].rows) for split in others]
        rows.append([name, kind, "-", ids, "-", unknown, *new, "-", "-"])
    header = ["field", "read as", "distinct", "ids", "rare", "missing or rare"]
    header += [f"in {split}" for split in others]
    header += [f"drift to {split}" for split in others]
    return Table(header, rows, text_columns=2)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the total variation distance between the most frequent values of one, and all others,
    in two splits.
    """
    top = np.argsort(-one[0], kind="stable")[: 2 * SHOWN]
    shares = []
    for ids in (one[0], other[0]):
        share = ids[top] / max(1, ids.sum())
        shares.append(np.append(share, 1 - share.sum()))
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _values(data: Prepared, field: FieldInfo, encoder: Encoder, counted: np.ndarray) -> str:
    """Returns a table of the most frequent values of a field, or of its buckets in their order,
    with label rates.
    """
    ids = counted[0]
    if field.edges is not None:
        shown = np.flatnonzero(ids).tolist()
    else:
        order = np.argsort(-ids, kind="stable")
        shown = order[ids[order] > 0].tolist()[:SHOWN]
    total = max(1, ids.sum())
    rates = counted[1:] / np.maximum(1, ids)
    highest = rates[:, shown].max(axis=1, initial=1e-12)
    head = "".join(
        f"<th>{html.escape(each)}</th>" for each in ("value", "share", *data.manifest.tasks)
    )
    body = []
    for value in shown:
        cells = [html.escape(_name(field, encoder, value)), _percent(ids[value], total)]
        for task in range(len(rates)):
            width = 8 * rates[task, value] / highest[task]
            cells.append(
                "<span class='bar' "
                f"style='width:{width:.2f}em'></span>{100 * rates[task, value]:.2f} %"
            )
        body.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _name(field: FieldInfo, encoder: Encoder, value: int) -> str:
    """Returns what an id stands for."""
    if value == 0:
        return "missing or rare"
    if field.edges is not None:
        low = f"above {field.edges[value - 2]:g}" if value > 1 else ""
        high = f"up to {field.edges[value - 1]:g}" if value <= len(field.edges) else ""
        return ", ".join(filter(None, (low, high))) or "any number"
    return str(encoder.values[value - 1]) if isinstance(encoder, Vocabulary) else f"hash {value}"


def _note(data: Prepared) -> str:
    rows = {split: min(info.rows, MOST_ROWS) for split, info in data.manifest.splits.items()}
    about = ", ".join(f"about {count:,} of {split}" for split, count in rows.items())
    return (
        f"Counted in {about}. Drift is the total variation distance to the training rows: the "
        "share of rows whose "
        f"value would have to change, of the {2 * SHOWN} most frequent values and all others."
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / max(1, whole):.2f} %"
