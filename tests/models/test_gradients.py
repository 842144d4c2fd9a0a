"""The parameters that each loss term updates, for every routing option, and the gradient of the sum of Eq. 14."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.inputs import BACKBONES, SIZES, THREE, TWO, adaftr, batch


def gradients(built, term, tasks=2):
    """Returns the gradients of ``term`` that are not zero, by parameter."""
    built.zero_grad()
    built.loss(batch(tasks=tasks))[term].backward()
    found = {n: p.grad.to_dense() for n, p in built.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def parts(built, layer=1):
    """Returns the parameters' names: Omega, below the towers, towers up to h, and towers above h."""
    names = [n for n, _ in built.named_parameters()]
    omega = {n for n in names if n.startswith("relatedness.")}
    towers = {n for n in names if ".towers." in n}
    upto = {n for n in towers if any(f".mlp.layers.{i}." in n for i in range(layer))}
    return omega, {n for n in names if n not in omega | towers}, upto, towers - upto


@pytest.mark.parametrize("backbone", BACKBONES)
def test_default_routing_follows_algorithm_1(backbone):
    built = adaftr(backbone=backbone)
    omega, below, upto, _ = parts(built)
    assert set(gradients(built, "relatedness")) == omega  # line 10
    assert set(gradients(built, "contrast")) == below | upto  # line 17


@pytest.mark.parametrize("backbone", BACKBONES)
def test_task_loss_updates_its_tower_and_shared_parameters(backbone):
    built = adaftr(backbone=backbone)
    _, below, _, _ = parts(built)
    for t, task in enumerate(TWO):
        # A PLE task does not read the other task's stream, nor the gates and last experts that compute it.
        unread = (f"layers.0.gates.{1 - t}.", f"layers.1.gates.{1 - t}.", f"layers.1.experts.{1 - t}.")
        read = {n for n in below if not n.startswith(tuple(f"backbone.{name}" for name in unread))}
        own = {n for n, _ in built.named_parameters() if f".towers.{t}." in n}
        assert set(gradients(built, task)) == read | own


@pytest.mark.parametrize("backbone", BACKBONES)
def test_relatedness_updates_all(backbone):
    built = adaftr(backbone=backbone, relatedness_updates="all")
    omega, below, upto, _ = parts(built)
    assert set(gradients(built, "relatedness")) == omega | below  # Eq. 14
    assert set(gradients(built, "contrast")) == below | upto


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_contrast_updates_towers_only(layer):
    built, default = (adaftr(contrast_layer=layer, contrast_updates=updates, beta=1.0) for updates in ("towers", "all"))
    _, below, upto, _ = parts(built, layer)
    moved, before = gradients(built, "contrast"), gradients(default, "contrast")
    assert set(moved) == upto
    assert set(before) == below | upto
    for name, gradient in moved.items():
        torch.testing.assert_close(gradient, before[name], msg=name)


@pytest.mark.parametrize("relatedness_updates", ["omega", "all"])
def test_contrast_updates_omega_through_tau(relatedness_updates):
    built = adaftr(temperature_updates="omega", relatedness_updates=relatedness_updates)
    default = adaftr()
    omega, below, upto, _ = parts(built)
    moved, before = gradients(built, "contrast"), gradients(default, "contrast")
    assert set(moved) == omega | below | upto
    for name in below | upto:  # tau passes no gradient below Omega
        torch.testing.assert_close(moved[name], before[name], msg=name)


@pytest.mark.parametrize("relatedness_updates", ["omega", "all"])
def test_contrast_updates_what_is_below_omega_through_tau(relatedness_updates):
    built = adaftr(temperature_updates="all", contrast_updates="towers", relatedness_updates=relatedness_updates)
    omega, below, upto, _ = parts(built)
    assert set(gradients(built, "contrast")) == omega | below | upto
    assert set(gradients(built, "relatedness")) == (omega if relatedness_updates == "omega" else omega | below)


def joint_sum(w, data, config):
    """Computes Eq. 14 as printed, but for the squared norm, with MMoE in plain PyTorch: nothing is detached."""
    y, offsets = data.labels, torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    e = F.embedding(data.ids + offsets, w["backbone.embedding.weight"]).flatten(1)
    expert = torch.relu(F.linear(e, w["backbone.experts.first.weight"], w["backbone.experts.first.bias"]))
    gate = F.linear(e, w["backbone.gates.weight"], w["backbone.gates.bias"]).view(len(e), -1, 3).softmax(2)
    v = [(gate[:, t, :, None] * expert.view(len(e), 3, -1)).sum(1) for t in range(gate.shape[1])]  # Eq. 3

    def tower(x, prefix):
        first, layer = None, 0
        while f"{prefix}.mlp.layers.{layer}.weight" in w:
            name = f"{prefix}.mlp.layers.{layer}"
            x = torch.relu(F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"]))
            first, layer = (x if first is None else first), layer + 1
        return first, F.linear(x, w[f"{prefix}.logit.weight"], w[f"{prefix}.logit.bias"])[:, 0].sigmoid()

    h, p = zip(*(tower(x, f"backbone.towers.{t}") for t, x in enumerate(v)))  # Eq. 2
    total = sum(F.binary_cross_entropy(p[t], y[:, t]) for t in range(len(p)))  # Eq. 4
    for t in range(1, len(p)):
        y_rel = tower(v[0] * v[t], f"relatedness.{t - 1}.tower")[1]  # Eqs. 8, 9
        total = total + config.alpha * F.binary_cross_entropy(y_rel, (y[:, 0] == y[:, t]).to(y_rel))  # Eqs. 10, 11
        tau = (config.tau_max - config.tau_min) * (1 - y_rel) + config.tau_min  # Eq. 12
        similarity = torch.exp(h[0] @ h[t].T / tau[:, None])
        total = total - config.beta * torch.log(similarity.diag() / similarity.sum(1)).mean()  # Eq. 13
    return total


@pytest.mark.parametrize("tasks", [TWO, THREE])
def test_all_updates_give_the_gradients_of_eq_14(tasks):
    built = adaftr(tasks=tasks, relatedness_updates="all", temperature_updates="all", alpha=0.7, beta=0.3, l2=0.0)
    data = batch(tasks=len(tasks))
    names, parameters = zip(*built.named_parameters())
    copies = {name: p.detach().clone().requires_grad_() for name, p in zip(names, parameters)}
    expected_sum = joint_sum(copies, data, built.config)
    expected = torch.autograd.grad(expected_sum, list(copies.values()))
    found_sum = sum(built.loss(data).values())
    found = torch.autograd.grad(found_sum, parameters)
    torch.testing.assert_close(found_sum, expected_sum, rtol=1e-10, atol=0)
    for name, gradient, gradient_of_sum in zip(names, found, expected):
        torch.testing.assert_close(gradient.to_dense(), gradient_of_sum, rtol=1e-8, atol=1e-12, msg=name)


def test_both_options_of_section_2_4_1():
    built = adaftr(temperature_updates="omega", contrast_updates="towers")
    omega, _, upto, _ = parts(built)
    assert set(gradients(built, "contrast")) == omega | upto


@pytest.mark.parametrize("contrast", ["positive", "alignment", "mse", "mae"])
def test_routing_of_other_contrasts(contrast):
    for updates in ("all", "towers"):
        built = adaftr(contrast=contrast, contrast_updates=updates)
        omega, below, upto, _ = parts(built)
        assert not omega
        assert set(gradients(built, "contrast")) == (upto | below if updates == "all" else upto)


def test_every_pair_updates_its_own_network():
    built = adaftr(tasks=THREE, pairs=["click-conversion", "view-conversion"])
    data = batch(tasks=3)
    seen = built.backbone.represent(data.ids)
    for p, logit in enumerate(built._relatedness_logits(seen, detach=True)):
        built.zero_grad()
        logit.sum().backward()
        moved = {n for n, parameter in built.named_parameters() if parameter.grad is not None}
        assert moved == {n for n, _ in built.named_parameters() if n.startswith(f"relatedness.{p}.")}
    _, below, upto, _ = parts(built)
    assert set(gradients(built, "contrast", tasks=3)) == below | upto
