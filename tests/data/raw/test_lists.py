"""Text columns that hold lists are found, and others are not taken for lists."""

import itertools
import random

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import find_separator, infer_schema
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError

DRAW = random.Random(0)
ROWS = 400
GENRES = ["Action", "Comedy", "Drama", "Horror", "Sci-Fi", "Romance", "War", "Film noir"]
WORDS = ["red", "blue", "old", "new", "great", "small", "house", "river", "king", "night", "road"]
CITIES = [f"{word.title()}{end}" for end in ("ville", "ton") for word in WORDS]
LISTS = [DRAW.sample(GENRES, DRAW.choice([1, 1, 2, 3, 4])) for _ in range(ROWS)]
COUNTRIES = {
    "USA": ["Texas", "Ohio", "Utah"],
    "France": ["Bretagne", "Alsace"],
    "Spain": ["Madrid", "Navarra"],
}


def joined(lists, separator):
    return [separator.join(tokens) for tokens in lists]


def column(values):
    return pa.chunked_array([pa.array(values, pa.string())])


def fields_of(path, **options):
    return infer_schema([path], ["click"], **options)["fields"]


@pytest.fixture
def log(tmp_path):
    """A log with tags, of which some are missing, and a title; beside it as parquet, and with tags
    as categories.
    """
    titles = [f"{DRAW.choice(WORDS)}, {DRAW.choice(WORDS)} and {number}" for number in range(ROWS)]
    tags = [None if number % 9 == 0 else text for number, text in enumerate(joined(LISTS, "|"))]
    table = pa.table(
        {
            "tags": tags,
            "title": titles,
            "price": [0.5] * ROWS,
            "click": [n % 2 for n in range(ROWS)],
        }
    )
    csv.write_csv(table, tmp_path / "log.csv")
    pq.write_table(table, tmp_path / "log.parquet")
    encoded = pa.array(tags, pa.large_string()).dictionary_encode()
    pq.write_table(table.set_column(0, "tags", encoded), tmp_path / "categories.parquet")
    return tmp_path / "log.csv"


def test_tags_are_found_with_their_separator():
    for separator in ("|", ", ", " | "):
        assert find_separator(column([None, "", *joined(LISTS, separator)])) == separator
        assert find_separator(column(joined(map(sorted, LISTS), separator))) == separator


def test_other_text_is_not_taken_for_lists():
    """Text that is not a list although it has marks."""
    states = [f"{state}, {country}" for country in COUNTRIES for state in COUNTRIES[country]]
    places = [f"{city}, {state}" for state in states for city in CITIES]
    numbers = [DRAW.randint(0, 9999999) for _ in range(ROWS)]
    titles = [f"{DRAW.choice(WORDS)}, {DRAW.choice(WORDS)}, and {n}" for n in range(ROWS)]
    names = [
        f"{DRAW.choice(WORDS)}, {DRAW.choice(WORDS)}{', Jr.' * (n % 4 == 0)}" for n in range(ROWS)
    ]
    tags = joined(LISTS, "|")
    for values in (
        titles,
        names,
        DRAW.choices(places, k=300) + states * 20 + [*COUNTRIES] * 20,
        [" | ".join(["Home", f"Room {n % 7}", f"Thing {n}"][: 1 + n % 3]) for n in range(ROWS)],
        [f"{n % 31},{n % 29}" if n % 5 else "7" for n in numbers],
        [f"{n:,}" for n in numbers],
        ["|".join(each) for each in itertools.product(GENRES, GENRES, GENRES)],
        [str(tokens) for tokens in LISTS],
        tags[:15],
        [text if number % 6 == 0 else "Drama" for number, text in enumerate(tags)],
        ["", None],
    ):
        assert find_separator(column(values)) is None, values[:9]


def test_detected_lists_are_warned_of_and_can_be_switched_off(log):
    how = (
        r"read as lists separated by '\|'; --multi tags= \(in Python multi=\{'tags': ''\}\) reads "
        r"it as one value"
    )
    for path in (log, log.with_name("log.parquet"), log.with_name("categories.parquet")):
        with pytest.warns(UserWarning, match=rf"{path.name}: tags: {how}") as warned:
            fields = fields_of(path)
        assert len(warned) == 1
        assert fields["tags"] == {"kind": "categorical", "tokens": "all", "separator": "|"}
        assert (fields["title"], fields["price"]) == (
            "categorical",
            {"kind": "dense", "encoding": "piecewise"},
        )
        assert fields_of(path, multi={"tags": "", "price": ""})["tags"] == "categorical"
    assert fields_of(log, group="tags", keep_group=True)["tags"] == "categorical"
    with pytest.warns(UserWarning, match=r"multi: tags: none of the first values holds ';'"):
        assert fields_of(log, multi={"tags": ";"})["tags"]["separator"] == ";"


def test_given_separators_need_no_evidence(log):
    fields = fields_of(log, multi={"title": " and ", "tags": "|"})
    assert fields["title"] == {"kind": "categorical", "tokens": "all", "separator": " and "}
    source = infer_schema([log], ["click"], multi={"title": " ", "tags": "|"})
    manifest = prepare(parse_schema(source), [log], log.parent / "out")
    assert manifest.num_embeddings[0] == len(GENRES) + 1
    assert [field.multiple for field in manifest.fields] == [True, True]


def test_wrong_columns_and_separators_are_named(log):
    for multi, message in (
        ({"tag": "|"}, "no column 'tag'; the file has tags, title"),
        (
            {"click": "|"},
            "multi: 'click' is not a field: it is a label, the time, the weight, or l",
        ),
        ({"tags": 1}, "multi: tags: expected a separator, or '' for one value, got 1"),
        ({"tags": None}, "multi: tags: expected a separator, or '' for one value, got None"),
    ):
        with pytest.raises(DataError, match=message):
            fields_of(log, multi=multi)


def test_the_delimiter_separates_lists_in_quotes_only(tmp_path):
    lines = [f'"{text}",{n},{n % 2}' for n, text in enumerate(joined(LISTS, ","))]
    (tmp_path / "log.csv").write_text("\n".join(["tags,price,click", *lines]))
    assert fields_of(tmp_path / "log.csv", multi={"tags": ","})["tags"]["separator"] == ","
    with pytest.raises(
        DataError, match=r"multi: price: ',' separates the columns, and no value holds it"
    ):
        fields_of(tmp_path / "log.csv", multi={"price": ",", "tags": ","})


def test_columns_that_hold_no_text_are_named(tmp_path):
    table = pa.table({"seen": [[1], [2]], "place": [{"a": 1}, {"a": 2}], "click": [0, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    for name, got in (("seen", "list<element: int64>"), ("place", "struct")):
        with pytest.raises(DataError, match=f"multi: {name}: expected a column of text, got {got}"):
            fields_of(tmp_path / "log.parquet", multi={name: "|"})
