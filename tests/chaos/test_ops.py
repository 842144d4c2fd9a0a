"""Whether the random cases of the ops find what is wrong."""

import math

import pytest
import torch

import adaftr_fast as af
from tests.chaos.ops import check
from tests.chaos.ops.inputs import assert_close
from tests.ops.marks import needs_extension


@needs_extension
@pytest.mark.parametrize("name", ["sigmoid", "targets"])
def test_nan_in_results_that_depend_on_no_nan_is_found(name, monkeypatch):
    options = {"spoiled": "nan"} | ({"margin": 0.1} if name == "targets" else {})
    case = {"op": name, "sizes": {"rows": 5, "columns": 6, "width": 8}, "options": options}

    def check_all():
        for seed in range(8):  # one spoils an anchor, on which the gradient of no other depends
            check(case | {"seed": seed})

    check_all()
    function = "sigmoid_contrast" if name == "sigmoid" else "adaptive_infonce"
    right = getattr(af, function)
    factors = {"reference": 1.0, "cpu": math.nan}
    wrong = lambda *x, backend, **given: right(*x, backend=backend, **given) * factors[backend]  # noqa: E731
    monkeypatch.setattr(af, function, wrong)
    with pytest.raises(AssertionError, match="not finite"):
        check_all()


def test_an_error_above_the_denormals_is_found():
    truth = torch.full((3,), 1e-35, dtype=torch.float64)
    with pytest.raises(AssertionError, match="error 1 against float64"):
        assert_close(
            2 * truth.float(),
            truth,
            truth.float(),
            torch.float32,
            torch.zeros_like(truth),
            "result",
        )
