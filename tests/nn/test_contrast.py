"""The losses between two tasks' representations, against their equations."""

import pytest
import torch
import torch.nn.functional as F

import adaftr_fast as af
from adaftr_fast.nn.contrast import ALIGNMENTS

A = torch.randn(20, 6)
B = torch.randn(20, 6)
RELATEDNESS = torch.rand(20)


def test_adaptive_temperature_follows_eq_12():
    contrast = af.AdaptiveInfoNCE(0.1, 0.7)
    tau = 0.6 * (1 - RELATEDNESS) + 0.1
    torch.testing.assert_close(contrast(A, B, RELATEDNESS), af.adaptive_infonce(A, B, tau))
    torch.testing.assert_close(
        contrast.temperature(torch.tensor([0.0, 1.0])), torch.tensor([0.7, 0.1])
    )


def test_scalar_temperature_is_learned_within_the_range():
    contrast = af.AdaptiveInfoNCE(0.1, 0.7, tau="scalar")
    assert contrast.temperature().item() == pytest.approx(0.4)
    contrast(A, B).backward()
    assert contrast.logit.grad.abs() > 0
    with torch.no_grad():
        contrast.logit.fill_(100.0)
    assert contrast.temperature().item() == pytest.approx(0.1)


def test_fixed_temperature_normalisation_and_options():
    contrast = af.AdaptiveInfoNCE(tau=0.05, normalize=True, reduction="sum")
    assert not list(contrast.parameters())
    loss, stats = contrast(A, B, return_stats=True)
    cosine = F.normalize(A) @ F.normalize(B).T
    torch.testing.assert_close(
        loss, F.cross_entropy(cosine / 0.05, torch.arange(20), reduction="sum")
    )
    torch.testing.assert_close(stats.positive_logit, cosine.diagonal() / 0.05)


def test_alignment_losses_by_hand():
    """h_1 . h_2 is 1 and 2; with the other row's h_2 it is 4 and 0."""
    h_1 = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    h_2 = torch.tensor([[1.0, 0.0], [4.0, 1.0]])
    expected = {
        "positive": -F.logsigmoid(torch.tensor([1.0 - 4.0, 2.0 - 0.0])),
        "alignment": -F.logsigmoid(torch.tensor([1.0, 2.0])),
        "mse": torch.tensor([0.0, (16 + 1) / 2]),
        "mae": torch.tensor([0.0, (4 + 1) / 2]),
    }
    assert set(ALIGNMENTS) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(ALIGNMENTS[name](h_1, h_2), value, msg=name)


def test_alignment_losses_are_finite_for_large_representations():
    for align in ALIGNMENTS.values():
        assert align(1e4 * A, 1e4 * B).isfinite().all()


def test_compiles_to_one_graph():
    contrast = af.AdaptiveInfoNCE()
    compiled = torch.compile(contrast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(A, B, RELATEDNESS), contrast(A, B, RELATEDNESS))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"tau_min": 0.0}, None, "0 < tau_min <= tau_max"),
        ({"tau_min": 2.0}, None, "0 < tau_min <= tau_max"),
        ({"tau": "learned"}, None, "tau must be"),
        ({"tau": -0.1}, None, "tau must be"),
        ({}, (A, B), "if and only if tau is 'adaptive'"),
        ({"tau": 0.1}, (A, B, RELATEDNESS), "if and only if tau is 'adaptive'"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        af.AdaptiveInfoNCE(**arguments)(*options or ())
