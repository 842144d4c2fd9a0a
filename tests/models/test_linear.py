"""The model linear, the wide part made of it, and output biases at the rates."""

from dataclasses import replace

import pytest
import torch

from adaftr_fast.config.model import MODELS
from adaftr_fast.models import AdaFTR, ModelConfig, build_model
from adaftr_fast.models.esmm import ESMM
from adaftr_fast.nn.encoding import NumericEncoding
from tests.models.inputs import SIZES, THREE, TWO, batch, model

AGE = NumericEncoding("age", "standard", mean=1.0, std=2.0, low=-9.0, high=9.0, missing=True)


def test_linear_sums_a_weight_per_id_and_number():
    torch.manual_seed(0)
    built = build_model(ModelConfig(name="linear", l2=0.5), SIZES, TWO, dense=[AGE])
    torch.nn.init.normal_(built.numbers)
    ids = batch().ids
    ages = torch.linspace(-3, 3, 40)[:, None]
    ages[0] = float("nan")
    first_rows = torch.tensor([0, 7, 12])
    looked_up = built.embedding.weight[ids.long() + first_rows]  # [B, F, T]
    coded = torch.stack([(ages - 1) / 2, ages.isnan()], 2).nan_to_num(0.0)[:, 0]
    expected = looked_up.sum(1) + coded @ built.numbers.T + built.bias
    torch.testing.assert_close(built(ids, None, ages), expected)
    penalty = built.loss(replace(batch(), dense=ages))["l2"]
    squares = built.numbers.square().sum() + looked_up.square().sum() / 40
    torch.testing.assert_close(penalty, 0.5 * squares)
    for t, task in enumerate(TWO):
        torch.testing.assert_close(built.for_task(task)(ids, None, ages), expected[:, [t]])


@pytest.mark.parametrize("name", ["mmoe", "adaftr", "cross_stitch"])
def test_a_wide_part_is_added_and_a_linear_model_averaged(name):
    built = model(name, wide=True)
    deep = model(name)
    backbone = built.backbone if isinstance(built, AdaFTR) else built
    missing = built.load_state_dict(deep.state_dict(), strict=False).missing_keys
    assert missing
    assert all("wide." in each or "linear_model." in each for each in missing)
    ids = batch().ids
    towers = deep(ids) + backbone.wide(ids)
    torch.testing.assert_close(built(ids), (towers + backbone.linear_model(ids)) / 2)
    losses = built.loss(batch())
    assert losses["l2"] == deep.loss(batch())["l2"]
    alone = backbone.linear_model.log_losses(backbone.linear_model(ids), batch())
    torch.testing.assert_close(losses["linear"], sum(alone.values()))
    torch.testing.assert_close(losses["click"], backbone.log_losses(towers, batch())["click"])
    if name != "cross_stitch":
        torch.testing.assert_close(built.for_task("conversion")(ids), built(ids)[:, 1:])
    sum(built.loss(batch()).values()).backward()
    assert backbone.wide.embedding.weight.grad.is_sparse


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_starts_at_the_rates_predicts_about_them(name):
    torch.manual_seed(0)
    built = build_model(ModelConfig(name=name), SIZES, THREE)
    built.start_at([0.5, 0.1, 0.001])
    rates = built(batch().ids).sigmoid().mean(0)
    torch.testing.assert_close(rates, torch.tensor([0.5, 0.1, 0.001]), rtol=0.15, atol=0)
    if isinstance(built, ESMM):  # rows outside the funnel
        built.start_at([0.1, 0.2, 0.3])
        assert built(batch().ids).isfinite().all()
