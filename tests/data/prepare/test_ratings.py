"""Schemas of rating data, on small files in the form of those that docs/data.md downloads."""

import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema

ROWS = 200
STARS = [row % 5 + 1 for row in range(ROWS)]


def labels(folder, names):
    """Return the sorted pairs of labels over all splits."""
    tables = [pq.read_table(folder / f"{split}.parquet", columns=names) for split in ("train", "validation", "test")]
    return sorted(zip(*(pa.concat_tables(tables)[name].to_pylist() for name in names), strict=True))


def expected():
    return sorted((int(stars >= 4), int(stars == 5)) for stars in STARS)


def test_insteval(tmp_path):
    """The first column of the CSV file is the number of the row and has no name; ids are in quotes."""
    header = '"","s","d","studage","lectage","service","dept","y"'
    rows = [f'"{row + 1}","{row % 20}","{row % 30}","2","1","0","{row % 3}",{STARS[row]}' for row in range(ROWS)]
    path = tmp_path / "InstEval.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    manifest = prepare(load_schema("insteval"), [path], tmp_path / "out")
    assert sum(split.rows for split in manifest.splits.values()) == ROWS
    assert labels(tmp_path / "out", ["good", "very_good"]) == expected()


def test_movielens(tmp_path):
    """Ids and ages are integers, years are text, genres are separated by spaces."""
    columns = {
        "user_id": [row % 20 for row in range(ROWS)],
        "item_id": [row % 30 for row in range(ROWS)],
        "rating": STARS,
        "timestamp": list(range(ROWS)),
        "age": [20 + row % 20 for row in range(ROWS)],
        "gender": ["FM"[row % 2] for row in range(ROWS)],
        "occupation": ["artist"] * ROWS,
        "zip_code": ["V3N4P"] * ROWS,
        "movie_title": ["Toy Story"] * ROWS,
        "release_year": ["1995"] * ROWS,
        "class": ["Comedy", "Drama Romance War"] * (ROWS // 2),
    }
    path = tmp_path / "movielens.parquet"
    pq.write_table(pa.table(columns), path)
    prepare(load_schema("movielens"), [path], tmp_path / "out")
    assert labels(tmp_path / "out", ["liked", "five_stars"]) == expected()
    genres = pq.read_table(tmp_path / "out/train.parquet")["class"].to_pylist()
    assert {len(tokens) for tokens in genres} == {1, 3}
