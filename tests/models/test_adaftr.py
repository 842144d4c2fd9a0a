"""AdaFTR against the paper's equations in float64, with every backbone and option."""

from dataclasses import replace

import pytest
import torch

from adaftr_fast import adaptive_infonce
from adaftr_fast.models import AdaFTR, CrossStitch
from tests.models import transcription as paper
from tests.models.inputs import BACKBONES, SIZES, SMALL, THREE, TWO, adaftr, batch, model
from tests.tolerances import assert_same_bits


def assert_losses(built, data, expected):
    found = built.loss(data)
    assert set(found) - {*built.task_names, "l2"} == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=0, msg=name)
    for name, value in built.backbone.loss(data).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("backbone", [*BACKBONES, "cross_stitch"])
def test_eqs_8_to_14_with_every_backbone(backbone):
    for tasks, weighted in ((TWO, False), (THREE, True)):
        if backbone == "cross_stitch":  # towers that are connected
            config = replace(SMALL, alpha=0.7, beta=0.3, l2=1e-3)
            built = AdaFTR(CrossStitch(SIZES, tasks, config), config).double()
        else:
            built = adaftr(backbone=backbone, tasks=tasks, alpha=0.7, beta=0.3, l2=1e-3)
        data = batch(tasks=len(tasks), weighted=weighted)
        pairs = [(0, t) for t in range(1, len(tasks))]
        expected, temperatures = paper.adaftr_losses(built, backbone, data, pairs)
        assert_losses(built, data, expected)
        logits = paper.represent(backbone, built.backbone, data.ids)[3]
        torch.testing.assert_close(built(data.ids), logits, rtol=1e-9, atol=0)
        found = built.diagnostics(data)
        assert list(found) == [f"tau/click-{other}" for other in tasks[1:]]
        for tau, value in zip(found.values(), temperatures):
            torch.testing.assert_close(tau, value, rtol=1e-10, atol=0)


def test_scalar_tau():
    built = adaftr(tau="scalar", tau_min=0.1, tau_max=0.9, beta=0.2)
    data = batch()
    built.contrasts[0].logit.data.fill_(0.3)
    tau = 0.8 * (1 - torch.tensor(0.3).double().sigmoid()) + 0.1
    expected, _ = paper.adaftr_losses(built, "mmoe", data, [(0, 1)], lambda _: tau)
    assert_losses(built, data, expected)
    torch.testing.assert_close(built.diagnostics(data)["tau/click-conversion"], tau.expand(40))
    built.loss(data)["contrast"].backward()
    assert built.contrasts[0].logit.grad.abs() > 0


@pytest.mark.parametrize(
    ("options", "tau", "layer"),
    [
        ({"tau": "fixed", "tau_fixed": 0.3}, lambda _: 0.3, 1),
        ({"contrast_layer": 3}, paper.eq_12, 3),
        ({"contrast_rows": 2}, paper.eq_12, 1),
        ({"contrast_rows": 16}, paper.eq_12, 1),
        ({"contrast_rows": 100}, paper.eq_12, 1),
        (
            {"relatedness_updates": "all"},
            paper.eq_12,
            1,
        ),  # where gradients go does not change losses
        ({"contrast_updates": "towers", "temperature_updates": "omega"}, paper.eq_12, 1),
        ({"temperature_updates": "all"}, paper.eq_12, 1),
    ],
)
def test_options_of_the_contrast(options, tau, layer):
    built = adaftr(**options)
    data = batch(weighted=True)
    assert_losses(built, data, paper.adaftr_losses(built, "mmoe", data, [(0, 1)], tau, layer)[0])
    assert bool(built.diagnostics(data)) == ("tau" not in options)


@pytest.mark.parametrize("contrast", list(paper.CONTRASTS))
def test_contrasts_without_a_temperature(contrast):
    built = adaftr(contrast=contrast, tasks=THREE, contrast_rows=16)
    for weighted in (False, True):
        data = batch(tasks=3, weighted=weighted)
        expected, _ = paper.adaftr_losses(built, "mmoe", data, [(0, 1), (0, 2)], contrast=contrast)
        assert_losses(built, data, expected)
    assert not len(built.relatedness)
    assert built.diagnostics(data) == {}


def test_without_contrast_equals_the_backbone():
    built = adaftr(contrast="none")
    data = batch()
    assert_losses(built, data, {})
    assert [n.removeprefix("backbone.") for n, _ in built.named_parameters()] == [
        n for n, _ in model("mmoe").named_parameters()
    ]


def test_predictions_are_those_of_a_backbone_with_a_forward_of_its_own():
    class Doubled(CrossStitch):
        def forward(self, *features):
            return 2 * super().forward(*features)

    built = AdaFTR(Doubled(SIZES, TWO, SMALL), SMALL)
    data = batch(dtype=torch.float32)
    logits, diagnostics = built.diagnosed(data)
    assert torch.equal(logits, 2 * built.backbone.represent(data.ids).predicted())
    assert list(diagnostics) == ["tau/click-conversion"]


def test_contrast_epochs_let_beta_fall_to_zero():
    built = adaftr(beta=0.3, contrast_epochs=2.0, tau="fixed")
    data = batch()
    whole = built.loss(data)["contrast"]
    for epochs, share in ((0.0, 1.0), (0.5, 0.75), (1.75, 0.125)):
        assert not built.set_epoch(epochs)
        torch.testing.assert_close(built.loss(data)["contrast"], share * whole, rtol=1e-12, atol=0)
    assert built.set_epoch(2.0)  # the ops of the loss change
    assert_losses(built, data, {})  # it trains as its backbone
    assert not built.set_epoch(2.5)
    assert built.set_epoch(1.0)  # a second training from the beginning
    torch.testing.assert_close(built.loss(data)["contrast"], whole / 2, rtol=1e-12, atol=0)
    constant = adaftr(beta=0.3, tau="fixed")
    assert not constant.set_epoch(100.0)
    assert torch.equal(constant.loss(data)["contrast"], whole)
    assert not any("beta" in name for name in constant.state_dict())


@pytest.mark.parametrize(("precision", "autocast"), [("float32", True), ("bfloat16", False)])
def test_contrast_precision_is_that_of_the_contrast_alone(precision, autocast):
    built = adaftr(contrast_precision=precision, contrast_rows=16, tau="fixed").float()
    data = batch(dtype=torch.float32)
    dtype = getattr(torch, precision)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = built.loss(data)
            own = built.backbone.loss(data)
            h_a, h_b = (layers[0] for layers in built.backbone.represent(data.ids).hidden)
    finally:
        torch.set_float32_matmul_precision("highest")
    contrast = adaptive_infonce(h_a.to(dtype), h_b.to(dtype), built.config.tau_fixed, block=16)
    # the reference computes in float64 where products are IEEE; products of bfloat16 differ by more
    torch.testing.assert_close(found["contrast"], built.beta * contrast, rtol=1e-6, atol=0)
    assert_same_bits({name: found[name] for name in own}, own)


def test_pairs_name_anchor_and_other():
    built = adaftr(tasks=THREE, pairs=["view-click", "view-conversion"])
    data = batch(tasks=3)
    assert_losses(built, data, paper.adaftr_losses(built, "mmoe", data, [(1, 0), (1, 2)])[0])
    assert list(built.diagnostics(data)) == ["tau/view-click", "tau/view-conversion"]
