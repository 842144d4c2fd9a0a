"""The parameters that each loss term updates, for every routing option."""

import pytest
import torch

from tests.models.inputs import BACKBONES, THREE, TWO, adaftr, batch


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
