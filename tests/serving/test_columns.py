import numpy as np
import pyarrow as pa
import pytest

from adaftr_fast.data.schema.types import TextFormat
from adaftr_fast.errors import DataError, ServingError
from adaftr_fast.serving.columns import output_columns

SCORES = np.array([[0.5, 0.1], [0.2, 0.3], [0.0, 0.0]], np.float32)
ROWS = pa.record_batch({"price": [10.0, 4.0, None], "word": ["a", "b", "c"]})


def made(columns):
    return dict(zip(columns.names(), (array.to_pylist() for array in columns.make(SCORES, ROWS))))


def test_p_cvr_is_p_ctcvr_over_p_ctr():
    found = made(output_columns(["click", "conversion"]))
    assert list(found) == ["p_ctr", "p_ctcvr", "p_cvr"]
    # at most 1; 0 if p_ctr is 0
    np.testing.assert_allclose(found["p_cvr"], [0.2, 1.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("tasks", "options", "names"),
    [
        ("income married", {}, "p_income p_married"),
        ("view click conversion", {}, "p_view p_ctr p_ctcvr p_cvr"),
        ("buy click", {"conversion": "buy"}, "p_ctcvr p_ctr p_cvr"),
        (
            "buy view click",
            {"conversion": "buy", "cvr": "output"},
            "p_cvr p_view p_ctr p_ctcvr",
        ),
        ("seen buy visit", {"funnel": ("visit", "buy")}, "p_seen p_ctcvr p_ctr p_cvr"),
        ("click conversion buy", {"funnel": ("click", "buy")}, "p_ctr p_conversion p_ctcvr p_cvr"),
        ("view visit buy", {"funnel": ("view", "visit", "buy")}, "p_view p_visit p_buy"),
        ("buy", {"funnel": ("visit", "buy")}, "p_buy"),  # exported alone
    ],
)
def test_columns_keep_the_order_of_tasks(tasks, options, names):
    """Two stages of the declared funnel are click and conversion."""
    assert output_columns(tasks.split(), **options).names() == names.split()


def test_the_bid_is_equation_16():
    columns = output_columns(["click", "conversion"], bid="price", bid_weight=2.0)
    assert columns.inputs() == ["price"]
    bids = made(columns)["bid"]
    np.testing.assert_allclose(bids[:2], [2 * 0.5 * 0.2 * 10, 2 * 0.2 * 1.0 * 4], rtol=1e-6)
    assert bids[2] is None  # no price
    np.testing.assert_allclose(
        made(output_columns(["click", "conversion"], bid="3"))["bid"], [0.3, 0.6, 0], rtol=1e-6
    )


def test_the_output_as_p_cvr_is_equation_16_as_printed():
    columns = output_columns(["click", "conversion"], bid="price", bid_weight=2.0, cvr="output")
    assert columns.names() == ["p_ctr", "p_cvr", "p_ctcvr", "bid"]
    found = made(columns)
    p_ctr, p_cvr = SCORES.T.tolist()
    assert found["p_ctr"] == p_ctr
    # not divided by p_ctr and not capped, also where it is above p_ctr
    assert found["p_cvr"] == p_cvr
    np.testing.assert_allclose(found["p_ctcvr"], [0.05, 0.06, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["bid"][:2], [2 * 0.5 * 0.1 * 10, 2 * 0.2 * 0.3 * 4], rtol=1e-6)
    assert found["bid"][2] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"click": "clic"}, "--click: expected one of click, buy, got 'clic'"),
        ({"bid": "1"}, "--click and --conversion must name two of the tasks"),
        ({"cvr": "output"}, "--click and --conversion must name two"),
        (
            {"conversion": "buy", "cvr": "product"},
            "--cvr: expected quotient or output, got 'product'",
        ),
        ({"conversion": "buy", "bid": "-1"}, "--bid: expected a price >= 0"),
        ({"conversion": "buy", "bid": "1", "bid_weight": float("nan")}, "--bid_weight: expected"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ServingError, match=message):
        output_columns(["click", "buy"], **options)


def test_prices_must_be_numeric():
    with pytest.raises(DataError, match="column word: expected numeric prices"):
        output_columns(["click", "conversion"], bid="word").make(SCORES, ROWS)


def test_prices_of_text_are_shown_as_they_are_written():
    columns = output_columns(["click", "conversion"], bid="price")
    rows = pa.record_batch({"price": ["1,5", "12.5", "x"]})
    with pytest.raises(
        DataError, match=r"price: .*: expected numbers with decimals.*, got '12.5'$"
    ):
        columns.make(SCORES, rows, TextFormat(decimal=","))
