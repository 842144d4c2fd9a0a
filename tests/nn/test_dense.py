import math

import numpy as np
import pytest
import torch

from adaftr_fast.nn.dense import DenseFields
from adaftr_fast.nn.encoding import NumericEncoding

ENCODINGS = [
    NumericEncoding("age", "standard", mean=40.0, std=12.5, low=18.0, high=90.0),
    NumericEncoding("spent", "log", mean=1.5, std=0.75, low=-2.0, high=9.0, missing=True),
    NumericEncoding(
        "heat", "piecewise", 5.0, 8.0, -3.0, 40.0, edges=[-3.0, 0.0, 0.5, 7.0, 40.0], missing=True
    ),
    NumericEncoding("same", "standard", mean=7.0, std=1.0, low=7.0, high=7.0),
    NumericEncoding("flat", "piecewise", mean=7.0, std=1.0, low=7.0, high=7.0),
]


def reference(encoding, x):
    """Computes the components of one number in float64, by the formulas as they are printed."""
    u = math.copysign(math.log1p(abs(x)), x) if encoding.kind == "log" else x
    u = encoding.mean if not math.isfinite(x) else min(max(u, encoding.low), encoding.high)
    if encoding.kind != "piecewise":
        return [(u - encoding.mean) / encoding.std]
    b = encoding.edges
    components = []
    for t in range(1, len(b)):  # Eq. 1 of Gorishniy et al.
        if u < b[t - 1] and t > 1:
            components.append(0.0)
        elif u >= b[t] and t < len(b) - 1:
            components.append(1.0)
        else:
            components.append((u - b[t - 1]) / (b[t] - b[t - 1]))
    return components


def expected(encodings, rows):
    missing = [
        [float(not math.isfinite(x)) for x, each in zip(row, encodings) if each.missing]
        for row in rows
    ]
    components = [
        [c for x, each in zip(row, encodings) for c in reference(each, x)] for row in rows
    ]
    return torch.tensor(
        [own + flags for own, flags in zip(components, missing)], dtype=torch.float64
    )


def numbers(rows=400):
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (rows, len(ENCODINGS))) * 10.0 ** random.integers(-3, 3, (rows, 1))
    for missing in (np.nan, np.inf, -np.inf):
        x[random.random(x.shape) < 0.05] = missing
    # the ends, and edges of bins
    x[:7, :] = np.array([-3.0, 0.0, 0.5, 7.0, 40.0, 18.0, 90.0])[:, None]
    return x.astype(np.float32)


def test_components_are_those_of_the_formulas():
    module = DenseFields(ENCODINGS)
    x = numbers()
    out = module(torch.from_numpy(x))
    assert out.shape == (len(x), module.out_features) == (400, 1 + 1 + 4 + 1 + 0 + 2)
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out.double(), expected(ENCODINGS, x.astype(np.float64)), rtol=1e-6, atol=1e-6
    )
    assert (out.std(0) > 0).tolist() == [True] * 6 + [False] + [True] * 2  # a constant is always 0


def test_every_number_has_finite_components():
    largest = torch.finfo(torch.float32).max
    tiny = torch.finfo(torch.float32).smallest_normal
    wide = NumericEncoding("wide", "standard", mean=0.0, std=1e-3, low=-largest, high=largest)
    ends = NumericEncoding(
        "ends", "piecewise", 0.0, 1.0, -largest, largest, edges=[-largest, largest]
    )
    narrow = NumericEncoding("narrow", "piecewise", 0.0, 1.0, 0.0, tiny / 4, edges=[0.0, tiny / 4])
    encodings = [*ENCODINGS, wide, ends, narrow]
    x = torch.tensor([math.inf, -math.inf, math.nan, largest, -largest, tiny, 0.0])
    out = DenseFields(encodings)(x[:, None].repeat(1, len(encodings)))
    assert out.isfinite().all()
    assert torch.equal(out[0], out[2])  # an infinite number is missing, as in prepared data
    assert torch.equal(out[1], out[2])
    assert not torch.equal(out[3], out[4])  # the ends of the training split


def test_there_are_no_parameters_and_no_saved_buffers():
    module = DenseFields(ENCODINGS)
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
    assert DenseFields([ENCODINGS[-1]])(torch.ones(3, 1)).shape == (3, 0)


@pytest.mark.parametrize(
    "values", [torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.int32)]
)
def test_other_inputs_raise(values):
    with pytest.raises(
        ValueError, match=r"DenseFields: values must be float32 \[B, 5\], got torch"
    ):
        DenseFields(ENCODINGS)(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"std": 0.0},
        {"mean": math.nan},
        {"high": math.inf},
        {"low": 2.0},
        {"edges": [0.0, 1.0, 1.0]},
    ],
    ids=str,
)
def test_statistics_that_no_data_have_raise(changes):
    with pytest.raises(ValueError, match="dense field x: expected"):
        NumericEncoding(
            **(
                {"name": "x", "kind": "standard", "mean": 1.0, "std": 1.0, "low": 0.0, "high": 2.0}
                | changes
            )
        )
