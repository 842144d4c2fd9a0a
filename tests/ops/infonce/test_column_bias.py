"""The option column_bias of adaptive_infonce."""

import pytest
import torch
import torch.nn.functional as F

import adaftr_fast as af
from tests.ops.infonce.inputs import DTYPES, inputs, loss_and_gradients
from tests.ops.infonce.losses import literal
from tests.tolerances import assert_as_accurate

POSITIVE = torch.arange(0, 33, 3)  # of 11 rows and 40 candidates


def drawn(dtype):
    a, b, tau = inputs(11, 40, 12)
    bias = -5 + 3 * torch.randn(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [a.to(dtype), b.to(dtype), tau, bias]


def written_out(a, b, tau, bias):
    return literal(a, b, tau, positive_index=POSITIVE, column_bias=bias)


def ours(a, b, tau, bias):
    return af.adaptive_infonce(a, b, tau, positive_index=POSITIVE, column_bias=bias)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients(dtype, size):
    """The half types hold tau and the bias as sums of two terms: of one, a large bias would lose digits."""
    a, b, tau, bias = drawn(dtype)
    exact = [a.double(), b.double(), tau.float().double(), (size * bias).float().double()]
    found = loss_and_gradients(ours, exact, dtype)
    truth = loss_and_gradients(written_out, exact, torch.float64)
    pytorch = loss_and_gradients(written_out, exact, torch.promote_types(dtype, torch.float32))
    for what, own, true, eager in zip(("loss", "h_ctr", "h_cvr", "tau", "bias"), found, truth, pytorch, strict=True):
        assert_as_accurate(own, true, eager, dtype, what)


@pytest.mark.parametrize("tau", [1, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_a_common_tau_and_the_statistics(tau):
    a, b, _, bias = drawn(torch.float64)
    logits = a @ b.T / tau + bias
    loss, stats = af.adaptive_infonce(a, b, tau, positive_index=POSITIVE, column_bias=bias, return_stats=True)
    torch.testing.assert_close(loss, F.cross_entropy(logits, POSITIVE))
    torch.testing.assert_close(stats.lse, logits.logsumexp(1))
    torch.testing.assert_close(stats.positive_logit, logits[torch.arange(11), POSITIVE])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"column_bias": torch.zeros(11)}, ValueError, r"column_bias must have shape \(40,\), got \(11,\)"),
        ({"column_bias": torch.zeros(40).long()}, TypeError, "column_bias must be floating point, got torch.int64"),
        ({"column_bias": torch.zeros(40), "symmetric": True}, ValueError, "column_bias requires symmetric=False"),
    ],
)
def test_bad_input(options, error, message):
    a, b, tau, _ = drawn(torch.float32)
    with pytest.raises(error, match=message):
        af.adaptive_infonce(a, b, tau.float(), positive_index=POSITIVE, **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("transform", [lambda f: f, torch.func.grad, lambda f: lambda x: torch.vmap(f)(x[None])])
def test_a_bias_that_is_not_finite_is_refused(bad, transform):
    a, b, tau, bias = drawn(torch.float64)
    transform(lambda x: ours(a, b, tau, x))(bias)
    bias[[7, 9]] = bad
    with pytest.raises(RuntimeError, match=r"column_bias must be finite \(row_group .* got column_bias\[7\] = -?[ni]"):
        transform(lambda x: ours(a, b, tau, x))(bias)


def test_a_bias_that_is_not_finite_is_refused_within_a_graph():
    a, b, tau, bias = drawn(torch.float64)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(a, b, tau, bias), ours(a, b, tau, bias))
    with pytest.raises(RuntimeError, match="column_bias must be finite"):
        compiled(a, b, tau, bias.log())
