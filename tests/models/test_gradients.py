"""The parameters that each loss term updates, for every routing option, and the gradient of the sum
of Eq. 14.
"""

import pytest
import torch

from tests.models import transcription as paper
from tests.models.inputs import BACKBONES, THREE, TWO, adaftr, batch


def gradients(built, term, tasks=2):
    """Returns the gradients of ``term`` that are not zero, by parameter."""
    built.zero_grad()
    built.loss(batch(tasks=tasks))[term].backward()
    found = {n: p.grad.to_dense() for n, p in built.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def parts(built, layer=1):
    """Returns the parameters' names: Omega, below the towers, and towers up to h."""
    names = [n for n, _ in built.named_parameters()]
    omega = {n for n in names if n.startswith("relatedness.")}
    towers = {n for n in names if ".towers." in n}
    upto = {n for n in towers if any(f".mlp.layers.{i}." in n for i in range(layer))}
    return omega, {n for n in names if n not in omega | towers}, upto


@pytest.mark.parametrize("backbone", BACKBONES)
def test_routing_with_every_backbone(backbone):
    built = adaftr(backbone=backbone)
    joint = adaftr(backbone=backbone, relatedness_updates="all")
    omega, below, upto = parts(built)
    assert set(gradients(built, "relatedness")) == omega  # line 10 of Algorithm 1
    assert set(gradients(joint, "relatedness")) == omega | below  # Eq. 14
    # line 17
    assert set(gradients(built, "contrast")) == set(gradients(joint, "contrast")) == below | upto
    for t, task in enumerate(TWO):
        # A PLE task does not read the other task's stream, nor the gates and last experts that
        # compute it.
        unread = (
            f"layers.0.gates.{1 - t}.",
            f"layers.1.gates.{1 - t}.",
            f"layers.1.experts.{1 - t}.",
        )
        read = {n for n in below if not n.startswith(tuple(f"backbone.{name}" for name in unread))}
        own = {n for n, _ in built.named_parameters() if f".towers.{t}." in n}
        assert set(gradients(built, task)) == read | own


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({"contrast_updates": "towers"}, "t"),
        ({"contrast_updates": "towers", "contrast_layer": 2}, "t"),
        ({"contrast_updates": "towers", "contrast_layer": 3}, "t"),
        ({"temperature_updates": "omega"}, "obt"),
        ({"temperature_updates": "omega", "relatedness_updates": "all"}, "obt"),
        # both options of Section 2.4.1
        ({"temperature_updates": "omega", "contrast_updates": "towers"}, "ot"),
        ({"temperature_updates": "all", "contrast_updates": "towers"}, "obt"),
        (
            {
                "temperature_updates": "all",
                "contrast_updates": "towers",
                "relatedness_updates": "all",
            },
            "obt",
        ),
        *(({"contrast": name}, "bt") for name in ("positive", "alignment", "mse", "mae")),
        ({"contrast": "mse", "contrast_updates": "towers"}, "t"),
    ],
)
def test_what_the_contrast_updates(options, moved):
    built = adaftr(**options)
    default = adaftr(
        **{name: options[name] for name in ("contrast", "contrast_layer") if name in options}
    )
    omega, below, upto = parts(built, options.get("contrast_layer", 1))
    found = gradients(built, "contrast")
    before = gradients(default, "contrast")
    assert set(found) == set().union(*({"o": omega, "b": below, "t": upto}[part] for part in moved))
    assert bool(omega) == ("contrast" not in options)
    if options.get("temperature_updates") != "all":  # tau passes no gradient below Omega
        for name in found.keys() & before.keys():
            torch.testing.assert_close(found[name], before[name], msg=name)


def test_all_updates_give_the_gradients_of_eq_14():
    """Nothing is detached; the squared norm is left out."""
    built = adaftr(
        tasks=THREE,
        relatedness_updates="all",
        temperature_updates="all",
        alpha=0.7,
        beta=0.3,
        l2=0.0,
    )
    data = batch(tasks=3)
    names, parameters = zip(*built.named_parameters())
    p = paper.represent("mmoe", built.backbone, data.ids)[3].sigmoid()
    expected_sum = sum(paper.cross_entropy(p[:, t], data.labels[:, t]) for t in range(3))  # Eq. 4
    expected_sum += sum(paper.adaftr_losses(built, "mmoe", data, [(0, 1), (0, 2)])[0].values())
    found_sum = sum(built.loss(data).values())
    torch.testing.assert_close(found_sum, expected_sum, rtol=1e-10, atol=0)
    found, expected = (torch.autograd.grad(each, parameters) for each in (found_sum, expected_sum))
    for name, gradient, exact in zip(names, found, expected):
        torch.testing.assert_close(gradient.to_dense(), exact, rtol=1e-8, atol=1e-12, msg=name)


def test_every_pair_updates_its_own_network():
    built = adaftr(
        tasks=THREE, pairs=["click-conversion", "view-conversion"], relatedness_updates="all"
    )
    omega, below, upto = parts(built)
    assert set(gradients(built, "relatedness", tasks=3)) == omega | below
    assert set(gradients(built, "contrast", tasks=3)) == below | upto
    for p, tau in enumerate(built.diagnostics(batch(tasks=3)).values()):
        moved = torch.autograd.grad(
            tau.sum(), built.parameters(), allow_unused=True, retain_graph=True
        )
        own = {
            n for (n, _), g in zip(built.named_parameters(), moved) if g is not None and n in omega
        }
        assert own == {n for n in omega if n.startswith(f"relatedness.{p}.")}
