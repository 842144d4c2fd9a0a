import decimal

import pyarrow as pa
import pytest

from adaftr_fast.data.encode.canonical import as_float64, canonical_values

NAN = float("nan")


def decimals(values, precision=22, scale=2):
    return pa.array([decimal.Decimal(value) for value in values], pa.decimal128(precision, scale))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([20000000004.0, None, NAN, -0.0]), [20000000004, None, None, 0]),
        (pa.array([1.5, 20000000004.0, -3.0, 1e19]), ["1.5", "20000000004", "-3", "1e+19"]),
        (pa.array([0.1, 7.0], pa.float32()), ["0.1", "7"]),
        (decimals(["12.00", "-3.00"]), [12, -3]),
        (
            decimals([str(2**63), str(2**63 + 1), "9007199254740993", "0.5"]),
            [str(2**63), str(2**63 + 1), str(2**53 + 1), "0.5"],
        ),
        (pa.array([2e-7, 1e-5]), ["2e-7", "0.00001"]),
        (pa.array(["2e-07", "1e-05", "2e-7", "ab-07"]), ["2e-7", "0.00001", "2e-7", "ab-07"]),
        (pa.array(["-0.0", "1000.00", "100", "1.00.00"]), ["0", "1000", "100", "1.00.00"]),
        (pa.array([True, None, False]), [1, None, 0]),
        (pa.array(["True", "true", "FALSE", "truE", "fale"]), ["1", "1", "0", "truE", "fale"]),
        (
            pa.array(["1000.0", "-7.0", "0.0", "2.0000000004e+10", "1e+18"]),
            ["1000", "-7", "0", "20000000004", "1" + "0" * 18],
        ),
        # stay as they are
        (pa.array(["007", "01.0", "1.50", "1e5", "x.0", "1.0.0", "ab+cd", "1.5e+00", "+7"]), ...),
        (pa.array(["", "a", None]), [None, "a", None]),
        (pa.array(["a", "1000.0", "b"]).slice(1), ["1000", "b"]),
        (pa.array(["1.0", "", "0"]).dictionary_encode(), ["1", None, "0"]),
        (pa.nulls(2), [None, None]),
        (pa.array([], pa.string()), []),
    ],
)
def test_a_value_has_one_form(values, expected):
    assert canonical_values(values).to_pylist() == (
        values.to_pylist() if expected is ... else expected
    )


def test_a_decimal_is_the_float_of_its_text():
    texts = ["0.1", "123.456", "0.0000001", "8765432109876.543"]
    assert as_float64(decimals(texts, 30, 10)).to_pylist() == [float(text) for text in texts]


@pytest.mark.parametrize("values", [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"\xff"])])
def test_values_without_a_form_raise(values):
    with pytest.raises(pa.ArrowException):
        canonical_values(values)
