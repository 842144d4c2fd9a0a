"""The parameters that each loss term updates, for every routing option, and the gradient of the sum
of Eq. 14.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.models.inputs import BACKBONES, THREE, TWO, adaftr, batch, plain_mmoe, plain_tower


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
    built, joint = adaftr(backbone=backbone), adaftr(backbone=backbone, relatedness_updates="all")
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
    found, before = gradients(built, "contrast"), gradients(default, "contrast")
    assert set(found) == set().union(*({"o": omega, "b": below, "t": upto}[part] for part in moved))
    assert bool(omega) == ("contrast" not in options)
    if options.get("temperature_updates") != "all":  # tau passes no gradient below Omega
        for name in found.keys() & before.keys():
            torch.testing.assert_close(found[name], before[name], msg=name)


def joint_sum(w, data, config):
    """Computes Eq. 14 as printed, but for the squared norm, with MMoE in plain PyTorch: nothing is
    detached.
    """
    y = data.labels
    _, v = plain_mmoe(w, data.ids, "backbone.")
    h, p = zip(*(plain_tower(w, x, f"backbone.towers.{t}") for t, x in enumerate(v)))
    total = sum(F.binary_cross_entropy(p[t], y[:, t]) for t in range(len(p)))  # Eq. 4
    for t in range(1, len(p)):
        y_rel = plain_tower(w, v[0] * v[t], f"relatedness.{t - 1}.tower")[1]  # Eqs. 8, 9
        # Eqs. 10, 11
        total = total + config.alpha * F.binary_cross_entropy(y_rel, (y[:, 0] == y[:, t]).to(y_rel))
        tau = (config.tau_max - config.tau_min) * (1 - y_rel) + config.tau_min  # Eq. 12
        similarity = torch.exp(h[0] @ h[t].T / tau[:, None])
        # Eq. 13
        total = total - config.beta * torch.log(similarity.diag() / similarity.sum(1)).mean()
    return total


def test_all_updates_give_the_gradients_of_eq_14():
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
    copies = {name: p.detach().clone().requires_grad_() for name, p in zip(names, parameters)}
    expected_sum = joint_sum(copies, data, built.config)
    expected = torch.autograd.grad(expected_sum, list(copies.values()))
    found_sum = sum(built.loss(data).values())
    found = torch.autograd.grad(found_sum, parameters)
    torch.testing.assert_close(found_sum, expected_sum, rtol=1e-10, atol=0)
    for name, gradient, gradient_of_sum in zip(names, found, expected):
        torch.testing.assert_close(
            gradient.to_dense(), gradient_of_sum, rtol=1e-8, atol=1e-12, msg=name
        )


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
