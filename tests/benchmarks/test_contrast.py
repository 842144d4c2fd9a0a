"""The rows, models and tables of the study of the contrast's rows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp, ttest_rel

import adaftr_fast as af
from adaftr_fast.config import ModelConfig
from adaftr_fast.nn.relatedness import relatedness_loss
from benchmarks import RESULTS
from benchmarks.contrast import tables
from benchmarks.contrast.models import Contrast, reweighted
from benchmarks.contrast.rows import CHOSEN, GRID, PARTS, SETTINGS, variants
from benchmarks.contrast.runs import schema_of
from benchmarks.paper.catalog import TITLES
from benchmarks.paper.results import holm
from tests.models.inputs import SIZES, TWO, batch

NAMES = ("validation click", "validation conversion", "test click", "test conversion")


def cases(part, sets, seeds=4):
    """Returns random scores of the rows of a part."""
    numbers = np.random.default_rng(0)
    return [
        {"set": name, "backbone": backbone, "row": row.title, "seed": seed, "scores": scores}
        for name in sets
        for backbone in PARTS[part].backbones
        for row in variants(PARTS[part], backbone, 2)
        for seed in PARTS[part].seeds[:seeds]
        for scores in [{score: 70 + numbers.normal() for score in NAMES}]
    ]


def scores(found, name, row, score):
    return [case["scores"][score] for case in found if (case["set"], case["row"]) == (name, row)]


@pytest.mark.parametrize("name", PARTS)
def test_the_options_of_all_rows_are_valid(name):
    part = PARTS[name]
    for backbone in part.backbones:
        first, *others = variants(part, backbone, 2)
        assert first.title == TITLES[backbone]
        models = [ModelConfig(**row.changes) for row in others]
        assert all(model.backbone == backbone for model in models)
        assert len({str(model) for model in models}) == len(models) == len(part.rows)


def test_logs_of_other_rates_have_other_keys():
    schemas = [schema_of(name) for name in PARTS["sparsity"].sets]
    rates = [schema.generate.rates["conversion"] for schema in schemas]
    assert rates == [0.0002, 0.001, 0.003, 0.01, 0.033, 0.05]
    # which the keys of runs read
    sources = [schema.source["generate"]["rates"]["conversion"] for schema in schemas]
    assert sources == rates


def test_the_grid_shows_the_means_that_choose():
    found = cases("grid", ("flights", "synthetic"), seeds=2)
    mean = np.mean([
        np.subtract(scores(found, name, f"{setting}, k = "
f"{CHOSEN}", score), scores(found, name, "MMoE", score))
        for name in ("flights", "synthetic") for setting in SETTINGS for score in NAMES[:2]
    ])  # fmt: skip
    assert tables.means(found)[CHOSEN] == pytest.approx(mean)
    assert f"**{mean:+.3f}**" in tables.grid(found)
    assert tables.grid(found).count("\n") == 1 + 2 * len(SETTINGS) * 2 + 1


def test_the_chosen_number_of_rows_has_the_largest_mean():
    means = tables.means(
        json.loads((RESULTS / "contrast.json").read_text(encoding="utf-8"))["cases"]
    )
    assert max(means, key=means.get) == CHOSEN


def test_p_is_corrected_for_all_parts_together():
    found = cases("confirm", ("flights",)) + cases("temperature", ("synthetic",))
    for case in found:
        if case["set"] == "synthetic":
            case["scores"] |= {
                f"expected {task}": case["scores"][f"test {task}"]
                for task in ("click", "conversion")
            }
    compared = tables.comparisons(found)
    of_flights = [test for test in compared if test.name == "flights"]
    assert len(of_flights) == 2 * len(PARTS["confirm"].rows)  # tasks
    for test in of_flights:
        pair = (scores(found, "flights", row, test.score) for row in (test.row, test.against))
        assert compared[test][0].p == pytest.approx(ttest_rel(*pair).pvalue)
    assert [p for _, p in compared.values()] == holm([each.p for each, _ in compared.values()])
    assert {test.score for test in compared if test.name == "synthetic"} == {
        "expected click",
        "expected conversion",
    }


def test_equal_is_the_larger_p_of_two_one_sided_tests():
    found = cases("confirm", ("flights",))
    row, against = (f"recommended, k = {k:,}" for k in (CHOSEN, GRID[-1]))
    each = np.subtract(*(scores(found, "flights", name, "test click") for name in (row, against)))
    p = max(
        ttest_1samp(each, end, alternative=side).pvalue
        for end, side in ((-0.05, "greater"), (0.05, "less"))
    )
    line = next(
        x for x in tables.equal(found).splitlines() if x.startswith(f"| flights | MMoE | {row} |")
    )
    shown = f"{each.mean():+.3f} ± {each.std(ddof=1):.3f} ({(each > 0).sum()} of {len(each)})"
    assert line.split(" | ")[3:5] == [shown, f"{p:.4f}"]


def contrast(rows=0, **options):
    torch.manual_seed(0)
    return Contrast(SIZES, TWO, ModelConfig(contrast_rows=rows, options=options)).double()


def arguments(model, data):
    """Returns the arguments of the contrast."""
    seen = model.backbone.represent(*data.features)
    related = model._relatedness_for_tau(seen, model._relatedness_logits(seen, detach=True))[0]
    return [*model._contrasted(seen), model.contrasts[0].temperature(related)]


def test_rows_of_the_part_why():
    """Masks leave out negatives, orders put similar rows into one block or apart, and clicked rows
    alone relate.
    """
    data = replace(batch(), group=torch.arange(40) % 7)
    for mask, options in (("group", {"row_group": data.group}), ("above", {"ignore_above": 0.0})):
        model = contrast(mask=mask)
        expected = model.beta * af.adaptive_infonce(*arguments(model, data), **options)
        torch.testing.assert_close(model.loss(data)["contrast"], expected)
    model = contrast(rows=8, order="together")
    h = arguments(model, data)[0].detach()
    together, apart = (model._order(h, each) for each in (False, True))
    spread = [h[rows].view(5, 8, -1).var(1).mean() for rows in (together, torch.arange(40), apart)]
    assert spread[0] < spread[1] < spread[2]
    assert sorted(apart.tolist()) == sorted(together.tolist()) == list(range(40))
    assert model.loss(data)["contrast"].isfinite()
    model, (click, conversion) = contrast(relatedness="clicked"), data.labels.unbind(1)
    logit = model._relatedness_logits(model.backbone.represent(*data.features), detach=True)[0]
    clicked = click == 1
    expected = relatedness_loss(logit[clicked], click[clicked], conversion[clicked])
    torch.testing.assert_close(model.loss(data)["relatedness"], expected)


def test_negatives_are_reweighted():
    """Alike and without a prior they are those of L_cl; else those of the papers, summed by hand."""
    logits = 3 * torch.rand(6, 6, dtype=torch.float64)
    expected = -logits.log_softmax(1).diagonal()
    torch.testing.assert_close(reweighted(logits, prior=0.0, hardness=0.0), expected)
    prior, hardness = 0.1, 1.0
    for row, loss in enumerate(reweighted(logits, prior=prior, hardness=hardness)):
        others = torch.cat([logits[row, :row], logits[row, row + 1 :]])
        importance = (hardness * others).exp()
        seen = (importance * others.exp()).sum() / importance.mean()
        positive = logits[row, row].exp()
        negatives = ((seen - prior * 5 * positive) / (1 - prior)).clamp(min=5.0)
        torch.testing.assert_close(loss, -(positive / (positive + negatives)).log())
    model = contrast(loss="hard")
    data = batch()
    h, other, tau = arguments(model, data)
    loss = model.beta * reweighted(h @ other.T / tau[:, None], prior=0.1, hardness=1.0).mean()
    torch.testing.assert_close(model.loss(data)["contrast"], loss)
