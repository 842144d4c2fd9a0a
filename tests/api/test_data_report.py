"""The page about a prepared folder, and the fields that it calls useless."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import adaftr_fast as af
from adaftr_fast.api.data_report import PAGE, Prepared, _count, _distance, page

ROWS = 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns a folder whose fields have one defect each, but for ``city`` and ``seen``."""
    rng = np.random.default_rng(0)
    table = {
        "city": [("Wien", "<b>Rom</b>")[n % 4 == 0] for n in range(ROWS)],
        "seen": [["a", "b"][: n % 3] for n in range(ROWS)],
        "price": rng.normal(size=ROWS),
        "code": ["free", *(f"{value:.3f}" for value in rng.normal(size=ROWS - 1))],
        "always": [1] * ROWS,
        "never": [7 if n % 50 == 0 else None for n in range(ROWS)],
        "key": [f"k{n}" for n in range(ROWS)],
        "item": [n % 20 for n in range(ROWS)],
        "click": [int(n % 4 == 0 or n % 5 == 0) for n in range(ROWS)],
        "conversion": [int(n % 5 == 1) for n in range(ROWS)],
    }
    folder = tmp_path_factory.mktemp("report")
    with pytest.warns(UserWarning, match="positive in 'conversion' but not in 'click'"):
        return af.prepare(
            pa.table(table),
            folder / "data",
            labels=["click", "conversion"],
            hash={"item": 9},
        )


def test_useless_fields_are_named_with_the_option_that_mends_them(data):
    found = {each.split()[0]: each for each in data.useless()}
    assert found.keys() == {"code", "always", "never", "key"}
    assert "holds numbers as text" in found["code"]
    assert "--dense code (in Python dense=['code']) reads the numbers" in found["code"]
    assert '--decimal , (decimal=",")' in found["code"]
    one = (
        "always has one value in all training rows; --ignore always (in Python ignore=['always']) "
        "leaves it out"
    )
    assert found["always"] == one
    assert re.search(r"missing in 9\d\.\d % of the training rows; --ignore never", found["never"])
    assert re.search(
        r"(\d+) values in \1 training rows, nearly one in each; --ignore key .* --time key "
        r".*hash={'key': N}",
        found["key"],
    )
    assert all(f"Useless as it is read: {each}" in data.notes() for each in data.useless())


def test_label_rates_are_those_of_the_rows(data):
    counted = _count(data, "train")
    rows = data.load("train")
    ids, clicked, _ = counted["city"]
    assert ids.sum() == data.manifest.splits["train"].rows == len(rows)
    wien, rome = 1, 2  # by their counts
    assert clicked[rome] == ids[rome]
    assert clicked.sum() == data.manifest.splits["train"].positives["click"]
    assert 0 < clicked[wien] / ids[wien] < 0.3
    tokens = counted["seen"][0]
    # a is in the rows of two lengths, b in those of one
    assert tokens[1] == pytest.approx(2 * tokens[2], rel=0.2)


def test_the_page_escapes_values_and_names_everything(data):
    text = (data.folder / PAGE).read_text()
    assert text == page(Prepared(data.folder))
    assert "&lt;b&gt;Rom" in text
    assert "<b>" not in text
    for name in ("city", "seen", "price", "item", "conversion"):
        assert name in text
    assert "Outside the funnel: " in text
    assert "hash " in text
    assert re.search(r">price</td><td[^>]*>dense, piecewise</td>", text)


def test_the_page_shows_the_rates_of_buckets(tmp_path):
    (tmp_path / "log.toml").write_text(
        """
name = "log"
labels = { click = "click" }
split = { train = {}, validation = {}, test = {} }
[fields]
price = { kind = "numeric", buckets = 2 }
"""
    )
    table = {"price": np.arange(100.0), "click": [int(n >= 50) for n in range(100)]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    dataset = tmp_path / "log.toml"
    data = af.prepare(tmp_path / "log.parquet", tmp_path / "data", dataset=dataset)
    text = (data.folder / PAGE).read_text()
    low, high = re.findall(r"<td>((?:up to|above) [\d.]+)</td><td>50.00 %</td>", text)
    assert low.removeprefix("up to ") == high.removeprefix("above ")


def test_drift_is_the_share_of_rows_that_would_have_to_change():
    same = np.array([[0, 50, 50]])
    moved = np.array([[20, 40, 40]])
    assert _distance(same, same) == 0
    assert _distance(same, moved) == pytest.approx(0.2)
