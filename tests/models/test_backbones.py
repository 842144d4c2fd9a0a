"""Predictions and losses of every model against its equations in float64."""

from dataclasses import replace

import pytest
import torch

from adaftr_fast.models import AdaFTR, Backbone, CrossStitch, SharedBottom
from adaftr_fast.models.esmm import chain
from tests.models import transcription as paper
from tests.models.inputs import DEEP, SIZES, SMALL, THREE, TWO, batch, model

EVERY = [name for name in DEEP if name != "single_dnn"]
RISKS = {"escm2_ips": paper.escm2_risks, "escm2_dr": paper.escm2_risks, "dcmt": paper.dcmt_risks}
ADDED = ("imputation.", "twins.")  # networks that ESMM does not have
PROPENSITY_TERMS = ("counterfactual", "imputation", "constraint")
SHAPES = [{}, {"expert_hidden": [6, 5], "tower_hidden": [4, 3]}]


def close(found, expected, what=None):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=what)


@pytest.mark.parametrize("name", EVERY)
def test_representations_follow_the_equations(name):
    for tasks in (TWO, THREE, ["click"])[: 2 + (name not in RISKS)]:
        for options in SHAPES:
            built = model(name, tasks, **options)
            data = batch(tasks=len(tasks))
            seen = built.represent(data.ids)
            e, v, hidden, logits = paper.represent(name, built, data.ids)
            close(seen.embedded, e)
            for t in range(len(tasks)):
                close(seen.inputs[t], v[t], f"v of task {t}")
                for layer, expected in enumerate(hidden[t]):
                    close(seen.hidden[t][layer], expected, f"layer {layer} of task {t}")
            close(seen.logits, logits)
            close(built(data.ids), logits)


@pytest.mark.parametrize(
    ("layers", "each", "own", "shared"), [(1, 1, 1, None), (3, 2, 3, None), (2, 3, 1, 1)]
)
def test_ple_of_any_size(layers, each, own, shared):
    options = {
        "extraction_layers": layers,
        "num_experts": each,
        "task_experts": own,
        "shared_experts": shared,
    }
    built = model("ple", THREE, **options)
    data = batch()
    assert len(built.layers) == layers
    counts = [own] * 3 + [each if shared is None else shared]
    assert [experts.num_experts for experts in built.layers[-1].experts] == counts
    close(built(data.ids), paper.represent("ple", built, data.ids)[3])


@pytest.mark.parametrize("name", EVERY)
def test_losses_are_eq_4_and_a_mean_squared_norm(name):
    built = model(name, THREE, l2=1e-3, constraint_weight=0.3, ctcvr_weight=0.5)
    for data in (batch(tasks=3), batch(tasks=3, weighted=True)):
        e, v, hidden, logits = paper.represent(name, built, data.ids)
        y = data.labels
        weight = data.weight
        p = logits.sigmoid()
        expected = {
            task: paper.cross_entropy(p[:, t], y[:, t], weight) for t, task in enumerate(THREE)
        }
        expected["l2"] = 1e-3 * squares(built, e)
        if name in RISKS:
            risks = RISKS[name](built, e, v, hidden, y, weight)
            expected |= {term: 0.1 * risk for term, risk in risks.items()}
            expected |= {task: 0.5 * expected[task] for task in THREE[1:]}
        found = built.loss(data)
        assert set(found) == set(expected)
        for term, value in expected.items():
            close(found[term], value, term)


def squares(built, e):
    dense = (p for n, p in built.named_parameters() if p.dim() > 1 and "embedding" not in n)
    return sum(p.square().sum() for p in dense) + e.square().sum() / len(e)


@pytest.mark.parametrize("name", ["mmoe", "dcmt"])
def test_the_norm_is_not_squared_as_in_eq_14(name):
    built = model(name, l2=0.3, l2_form="norm")
    data = batch()
    e = paper.embedded(built.embedding, data.ids)
    expected = 0.3 * squares(built, e).sqrt()
    found = built.loss(data)["l2"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    parameters = [p for p in built.parameters() if p.dim() > 1]
    gradients, exact = (
        torch.autograd.grad(each, parameters, materialize_grads=True) for each in (found, expected)
    )
    for gradient, reference in zip(gradients, exact):
        torch.testing.assert_close(gradient.to_dense(), reference, rtol=1e-10, atol=1e-14)


def test_single_dnn_has_one_model_per_task():
    built = model("single_dnn", THREE, l2=1e-3)
    data = batch(tasks=3)
    norm = model("single_dnn", THREE, l2=0.3, l2_form="norm")
    penalties = []
    for t, (task, network) in enumerate(zip(THREE, built.networks)):
        logits = paper.represent("shared_bottom", network, data.ids)[3][:, 0]
        close(built(data.ids)[:, t], logits)
        close(
            built.loss(data)[task],
            paper.cross_entropy(logits.sigmoid(), data.labels[:, t]),
        )
        built.zero_grad()
        built.loss(data)[task].backward()
        assert all(
            (p.grad is not None) == n.startswith(f"networks.{t}.")
            for n, p in built.named_parameters()
        )
        own = replace(data, labels=data.labels[:, t : t + 1])
        penalties.append(network.loss(own)["l2"])
    close(built.loss(data)["l2"], sum(penalties))
    close(norm.loss(data)["l2"], sum(0.3 * (each / 1e-3).sqrt() for each in penalties))


def test_cross_stitch_starts_near_separate_towers():
    torch.manual_seed(0)
    stitched = CrossStitch(SIZES, THREE, SMALL)
    for unit in stitched.stitches:
        torch.testing.assert_close(unit.alpha.sum(1), torch.ones(3))
        torch.testing.assert_close(unit.alpha.diagonal(), torch.full((3,), 0.9))
        unit.alpha.data.copy_(torch.eye(3))
    plain = SharedBottom(SIZES, THREE, SMALL)
    plain.load_state_dict({n: p for n, p in stitched.state_dict().items() if "stitches" not in n})
    torch.testing.assert_close(stitched(batch().ids), plain(batch().ids))


@pytest.mark.parametrize("name", DEEP)
def test_every_weight_has_a_gradient(name):
    built = model(name, THREE)
    data = batch(tasks=3)
    sum(term for name, term in built.loss(data).items() if name != "l2").backward()
    missing = [
        n for n, p in built.named_parameters() if p.grad is None or not p.grad.to_dense().any()
    ]
    assert not missing


def test_the_logit_of_a_product_neither_overflows_nor_cancels():
    z = torch.tensor(
        [[-200.0, -300.0], [300.0, 200.0], [40.0, -40.0], [0.0, 60.0], [-1e30, 5.0], [-30.0, 30.0]]
    )
    # logit(p q) where p, q or both are next to 0 or 1
    exact = [-500.0, 200.0, -40.0, 0.0, -1e30, -30.0]
    z.requires_grad_()
    found = chain(z)
    torch.testing.assert_close(found[:, 1], torch.tensor(exact), rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:, 0], z[:, 0])
    found[:, 1].sum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad >= 0).all()
    torch.manual_seed(0)
    x = torch.randn(50, 3).double()
    torch.testing.assert_close(chain(x).sigmoid(), x.sigmoid().cumprod(1), rtol=1e-12, atol=0)


class Bare(Backbone):
    """Returns ``inputs`` from ``task_inputs``, and makes towers only if told to."""

    def __init__(self, inputs, towers=True):
        super().__init__(SIZES, TWO, SMALL)
        self.inputs = inputs
        if towers:
            self.towers = self.make_towers(self.embedded_features, [3])

    def task_inputs(self, embedded):
        return self.inputs(embedded)


def test_a_backbone_needs_a_tower_and_an_input_per_task():
    assert Bare(lambda x: [x, x])(batch().ids).shape == (40, 2)
    wrong = ((lambda x: [x], "1"), (lambda x: [x, x, x], "3"), (lambda x: x, "a tensor"))
    for inputs, got in wrong:
        message = f"Bare: task_inputs must return a list of 2, one per task, got {got}$"
        with pytest.raises(TypeError, match=message):
            Bare(inputs)(batch().ids)
    bare = Bare(lambda x: [x, x], towers=False)
    for use in (lambda: bare(batch().ids), lambda: AdaFTR(bare, SMALL)):
        with pytest.raises(TypeError, match=r"Bare: towers must be one Tower per task, 2, got 0$"):
            use()


@pytest.mark.parametrize("name", RISKS)
def test_the_served_part_has_the_weights_of_esmm(name):
    built = model(name)
    ids = batch().ids
    served = built.served()
    names = set(built.state_dict())
    assert set(served.state_dict()) == set(model("esmm").state_dict())
    assert torch.equal(served(ids), built(ids))
    assert set(built.state_dict()) == names
    assert built.loss(batch())


@pytest.mark.parametrize("name", RISKS)
def test_the_propensity_has_no_gradient_and_a_lower_bound(name):
    built = model(name)
    data = batch()
    terms = built.loss(data)
    sum(value for n, value in terms.items() if n in PROPENSITY_TERMS).backward()
    moved = {
        n for n, p in built.named_parameters() if p.grad is not None and p.grad.to_dense().any()
    }
    assert not any(n.startswith(("towers.0.", "bottoms.0.")) for n in moved)
    assert {
        n for n, _ in built.named_parameters() if n.startswith(("towers.1.", "bottoms.1.", *ADDED))
    } <= moved
    e, v, hidden, _ = paper.represent(name, built, data.ids)
    built.config = replace(built.config, propensity_min=0.9)
    for term, risk in RISKS[name](built, e, v, hidden, data.labels).items():
        close(built.loss(data)[term], 0.1 * risk, term)
        assert term == "constraint" or built.loss(data)[term] != terms[term]


@pytest.mark.parametrize(("name", "kind"), [("escm2_ips", "ESCM2"), ("dcmt", "DCMT")])
def test_a_risk_of_conversions_needs_two_tasks(name, kind):
    with pytest.raises(
        ValueError, match=rf"{kind}: task_names must name at least two tasks, got \['click'\]"
    ):
        model(name, ["click"])


def test_dcmt_learns_the_conversion_rate_from_rows_without_a_click():
    data = replace(batch(), labels=torch.zeros(40, 2, dtype=torch.float64))

    def gradients(**options):
        built = model("dcmt", **options)
        terms = built.loss(data)
        (terms["counterfactual"] + terms["constraint"]).backward()
        return {
            n: bool(p.grad is not None and p.grad.to_dense().any())
            for n, p in built.named_parameters()
        }

    assert gradients()["towers.1.logit.weight"]
    assert not gradients(constraint_weight=0.0)["towers.1.logit.weight"]
    assert gradients(constraint_weight=0.0)["twins.0.logit.weight"]
