"""MMoE and AdaFTR against transcriptions of the paper's equations, and where each loss may move parameters."""

import numpy as np
import pytest
import torch

from adaftr_fast.data.batch import Batch
from adaftr_fast.models import AdaFTR, MMoE, ModelConfig, build_model
from adaftr_fast.nn.mlp import MLP, Experts

SIZES, TASKS = [7, 5, 11], ["click", "conversion"]


def batch(rows=40, seed=0, weighted=False):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, n, (rows,), generator=g) for n in SIZES], 1).int()
    click = torch.randint(0, 2, (rows,), generator=g)
    labels = torch.stack([click, click * torch.randint(0, 2, (rows,), generator=g)], 1).float()
    weight = torch.rand(rows, generator=g) if weighted else None
    return Batch(ids=ids, labels=labels, group=None, weight=weight)


def model(name="adaftr", **changes):
    torch.manual_seed(0)
    built = build_model(ModelConfig(name=name, **changes), SIZES, TASKS)
    torch.nn.init.normal_(built.get_submodule("embedding" if name == "mmoe" else "backbone.embedding").weight)
    return built.double()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mlp(linears, x):
    """Every layer's output after ReLU, in NumPy."""
    outputs = []
    for linear in linears:
        x = np.maximum(x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy(), 0)
        outputs.append(x)
    return outputs


def transcription(adaftr, data):
    """Eqs. 2-4 and 8-14 in NumPy float64: the losses by name, the logits and the temperature."""
    b, y = adaftr.backbone, data.labels.numpy().astype(float)
    table, starts = b.embedding.weight.detach().numpy(), np.cumsum([0, *SIZES[:-1]])
    e = table[data.ids.numpy() + starts].reshape(len(y), -1)
    experts = mlp([b.experts.first], e)[0].reshape(len(y), b.experts.num_experts, -1)
    gates = (e @ b.gates.weight.detach().numpy().T + b.gates.bias.detach().numpy()).reshape(len(y), 2, -1)
    gates = np.exp(gates) / np.exp(gates).sum(2, keepdims=True)
    v = [np.einsum("bk,bkv->bv", gates[:, t], experts) for t in (0, 1)]  # Eq. 3
    hidden = [mlp(tower.mlp.layers, v[t]) for t, tower in enumerate(b.towers)]
    logits = [h[-1] @ t.logit.weight.detach().numpy()[0] + t.logit.bias.item() for h, t in zip(hidden, b.towers)]

    def cross_entropy(p, label):
        return np.mean(-label * np.log(p) - (1 - label) * np.log(1 - p))

    network = adaftr.relatedness[0].tower
    rel = (
        mlp(network.mlp.layers, v[0] * v[1])[-1] @ network.logit.weight.detach().numpy()[0] + network.logit.bias.item()
    )
    y_rel = sigmoid(rel)  # Eq. 9
    tau = (1.0 - 0.05) * (1 - y_rel) + 0.05  # Eq. 12
    z = hidden[0][0] @ hidden[1][0].T / tau[:, None]
    contrast = np.mean(np.log(np.exp(z).sum(1)) - np.diag(z))  # Eq. 13
    dense = [p.detach().numpy() for n, p in b.named_parameters() if p.dim() > 1 and "embedding" not in n]
    losses = {
        "click": cross_entropy(sigmoid(logits[0]), y[:, 0]),
        "conversion": cross_entropy(sigmoid(logits[1]), y[:, 1]),
        "l2": b.l2 * (sum((p**2).sum() for p in dense) + (e**2).sum() / len(e)),
        "relatedness": adaftr.alpha * cross_entropy(y_rel, (y[:, 0] == y[:, 1]).astype(float)),
        "contrast": adaftr.beta * contrast,
    }
    return losses, np.stack(logits, 1), tau


def test_equations():
    adaftr, data = model(alpha=0.7, beta=0.3, l2=1e-3), batch()
    losses, logits, tau = transcription(adaftr, data)
    found = adaftr.loss(data)
    assert set(found) == set(losses)
    for name, value in losses.items():
        np.testing.assert_allclose(found[name].item(), value, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(adaftr(data.ids).detach().numpy(), logits, rtol=1e-10)
    np.testing.assert_allclose(adaftr.diagnostics(data)["tau/click-conversion"].detach().numpy(), tau, rtol=1e-10)


def moved_by(adaftr, name):
    adaftr.zero_grad()
    adaftr.loss(batch())[name].backward()
    moved = set()
    for parameter, p in adaftr.named_parameters():
        gradient = p.grad.to_dense() if p.grad is not None and p.grad.is_sparse else p.grad
        if gradient is not None and gradient.abs().sum() > 0:
            moved.add(parameter)
    return moved


def test_gradients_go_as_in_algorithm_1():
    adaftr = model()
    omega = {n for n, _ in adaftr.named_parameters() if n.startswith("relatedness")}
    shared = {"backbone.embedding.weight", "backbone.experts.first.weight", "backbone.gates.weight"}
    assert moved_by(adaftr, "relatedness") == omega
    contrast = moved_by(adaftr, "contrast")
    assert not contrast & omega
    assert shared | {f"backbone.towers.{t}.mlp.layers.0.weight" for t in (0, 1)} <= contrast
    assert not any(".layers.1." in n or ".logit." in n for n in contrast), "only layers up to h move"
    assert not moved_by(adaftr, "click") & (omega | {n for n in contrast if ".towers.1." in n})


def test_predictions_do_not_need_the_relatedness_network():
    adaftr, data = model(), batch()
    before = adaftr(data.ids)
    del adaftr.relatedness
    assert torch.equal(adaftr(data.ids), before)


def test_contrast_layer_picks_the_tower_layer():
    data = batch()
    losses = {layer: model(contrast_layer=layer).loss(data)["contrast"].item() for layer in (1, 2, 3)}
    assert len(set(losses.values())) == 3


def test_three_tasks_pair_the_first_with_each_other():
    torch.manual_seed(0)
    adaftr = build_model(ModelConfig(), SIZES, ["click", "view", "conversion"])
    data = batch()
    data = Batch(ids=data.ids, labels=torch.cat([data.labels, data.labels[:, :1]], 1), group=None)
    assert adaftr(data.ids).shape == (40, 3)
    assert set(adaftr.diagnostics(data)) == {"tau/click-view", "tau/click-conversion"}
    sum(adaftr.loss(data).values()).backward()


def test_sample_weights_weigh_every_mean():
    adaftr, data = model(), batch(weighted=True)
    kept = data.weight > 0.5
    hard = Batch(ids=data.ids, labels=data.labels, group=None, weight=kept.double())
    subset = Batch(ids=data.ids[kept], labels=data.labels[kept], group=None)
    for name in ("click", "conversion", "relatedness"):
        torch.testing.assert_close(adaftr.loss(hard)[name], adaftr.loss(subset)[name], check_dtype=False)


def test_experts_equal_separate_networks():
    torch.manual_seed(0)
    experts, x = Experts(6, 3, [5, 4]), torch.randn(9, 6)
    out = experts(x)
    for i in range(3):
        hidden = torch.relu(x @ experts.first.weight[5 * i : 5 * i + 5].T + experts.first.bias[5 * i : 5 * i + 5])
        expected = torch.relu(hidden @ experts.weights[0][i] + experts.biases[0][i])
        torch.testing.assert_close(out[:, i], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": -1}, r"model\.beta: expected a finite weight >= 0, got -1"),
        ({"l2": float("nan")}, r"model\.l2: expected a finite weight"),
        ({"alpha": float("inf")}, r"model\.alpha: expected a finite weight"),
        ({"num_experts": 0}, r"model\.num_experts: expected >= 1, got 0"),
        ({"expert_hidden": []}, r"model\.expert_hidden: expected one or more widths >= 1, got \[\]"),
        ({"tower_hidden": [8, 0]}, r"model\.tower_hidden: expected .*got \[8, 0\]"),
        ({"tau_min": 2.0}, r"model\.tau_min: expected 0 < tau_min <= tau_max, got 2\.0 and 1\.0"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(name="dnn"), r"model\.name: expected one of single_dnn, .*adaftr, got 'dnn'"),
        (lambda: AdaFTR(MMoE(SIZES, 4, ["click"])), "at least two tasks"),
        (lambda: AdaFTR(MMoE(SIZES, 4, TASKS), tau_min=0.0), "0 < tau_min"),
        (lambda: AdaFTR(MMoE(SIZES, 4, TASKS), contrast_layer=4), r"contrast_layer must be in 1\.\.3"),
        (lambda: MMoE(SIZES, 4, []), "at least one task"),
        (lambda: MMoE(SIZES, 4, TASKS, num_experts=0), "num_experts must be >= 1"),
        (lambda: MLP(3, []), "at least one width"),
    ],
)
def test_sizes_that_make_no_model(make, message):
    with pytest.raises(ValueError, match=message):
        make()
