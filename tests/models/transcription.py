"""The papers' equations, transcribed to plain PyTorch and evaluated on a model's weights in float64.

A *_inputs function computes each task's v of Eq. 2 from the embedded features e [B, F*E]. A
*_towers function returns (every layer's output per task, logits [B, T]). Gradients of the results
are those of the equations.
"""

import torch
import torch.nn.functional as F
from torch import relu, sigmoid

from tests.models.inputs import SIZES


def mlp(linears, x):
    """Returns every layer's output after ReLU."""
    outputs = []
    for linear in linears:
        x = relu(F.linear(x, linear.weight, linear.bias))
        outputs.append(x)
    return outputs


def tower(module, x):
    """Returns the logits [B] of a tower."""
    return F.linear(mlp(module.mlp.layers, x)[-1], module.logit.weight, module.logit.bias)[:, 0]


def embedded(embedding, ids):
    field_offsets = torch.tensor([0, *SIZES[:-1]]).cumsum(0)
    return embedding.weight[ids.long() + field_offsets].flatten(1)


def experts(module, x):
    """Returns each expert's output [B, v], computed one expert at a time."""
    outputs = []
    width = module.first.out_features // module.num_experts
    for i in range(module.num_experts):
        rows = slice(i * width, (i + 1) * width)
        h = relu(F.linear(x, module.first.weight[rows], module.first.bias[rows]))
        for weight, bias in zip(module.weights, module.biases):
            h = relu(h @ weight[i] + bias[i])
        outputs.append(h)
    return outputs


def gated(gate, x, outputs, rows=slice(None)):
    """Mixes outputs by the gate's weights, of which some rows are a task's."""
    weights = F.linear(x, gate.weight[rows], gate.bias[rows]).softmax(1)  # [B, k]
    return sum(weights[:, i : i + 1] * output for i, output in enumerate(outputs))


def shared_bottom_inputs(model, e):
    return [mlp(model.bottom.layers, e)[-1]] * len(model.task_names)


def mmoe_inputs(model, e):
    outputs = experts(model.experts, e)
    k = model.experts.num_experts
    tasks = range(len(model.task_names))
    return [gated(model.gates, e, outputs, slice(t * k, (t + 1) * k)) for t in tasks]


def ple_inputs(model, e):
    tasks = len(model.task_names)
    own = [e] * tasks
    shared = e
    for layer in model.layers:
        of_task = [experts(layer.experts[t], own[t]) for t in range(tasks)]
        of_all = experts(layer.experts[tasks], shared)
        everything = [output for outputs in (*of_task, of_all) for output in outputs]
        own = [gated(layer.gates[t], own[t], of_task[t] + of_all) for t in range(tasks)]
        if layer is not model.layers[-1]:
            shared = gated(layer.gates[tasks], shared, everything)
    return own


def plain_towers(model, v):
    hidden = [mlp(each.mlp.layers, x) for each, x in zip(model.towers, v)]
    return hidden, logits(model, hidden)


def stitched_towers(model, v):
    x = v
    hidden = [[] for _ in v]
    for layer, unit in enumerate(model.stitches):
        x = [mlp([each.mlp.layers[layer]], of)[0] for each, of in zip(model.towers, x)]
        x = [sum(unit.alpha[t, s] * x[s] for s in range(len(x))) for t in range(len(x))]
        for t, each in enumerate(x):
            hidden[t].append(each)
    return hidden, logits(model, hidden)


def connected_towers(model, v):
    hidden = []
    for t, each in enumerate(model.towers):
        x = v[t]
        outputs = []
        upstream = [layer for layers in hidden for layer in layers]
        for j, linear in enumerate(each.mlp.layers):
            z = F.linear(x, linear.weight, linear.bias)
            at = 0
            for i, u in enumerate(upstream):
                connections = model.connections[t - 1]
                projection = connections.projections[j].weight[:, at : at + u.shape[1]]
                z = z + sigmoid(connections.edges[j, i]) * u @ projection.T
                at += u.shape[1]
            x = relu(z)
            outputs.append(x)
        hidden.append(outputs)
    return hidden, logits(model, hidden)


def esmm_inputs(model, e):
    return [mlp(bottom.layers, e)[-1] for bottom in model.bottoms]


def chained_towers(model, v):
    """Returns the logits of p_1, p_1 p_2, ... (ESMM paper, Eq. 1)."""
    hidden, conditional = plain_towers(model, v)
    p = sigmoid(conditional).cumprod(1)
    return hidden, p.log() - (1 - p).log()


def logits(model, hidden):
    return torch.cat(
        [
            F.linear(layers[-1], each.logit.weight, each.logit.bias)
            for each, layers in zip(model.towers, hidden)
        ],
        1,
    )


INPUTS = {
    "shared_bottom": shared_bottom_inputs,
    "cross_stitch": shared_bottom_inputs,
    "autoheri": shared_bottom_inputs,
    "mmoe": mmoe_inputs,
    "ple": ple_inputs,
    "esmm": esmm_inputs,
    "escm2_ips": esmm_inputs,
    "escm2_dr": esmm_inputs,
    "dcmt": esmm_inputs,
}
ENTIRE_SPACE = dict.fromkeys(["esmm", "escm2_ips", "escm2_dr", "dcmt"], chained_towers)
# Other models have plain_towers.
TOWERS = {"cross_stitch": stitched_towers, "autoheri": connected_towers} | ENTIRE_SPACE


def represent(name, model, ids):
    """Returns a backbone's (e, v per task, hidden per task and layer, logits [B, T])."""
    e = embedded(model.embedding, ids)
    v = INPUTS[name](model, e)
    return e, v, *TOWERS.get(name, plain_towers)(model, v)


def average(values, weight=None):
    return values.mean() if weight is None else (values * weight).sum() / weight.sum()


def log_loss(p, y):
    return -y * p.log() - (1 - y) * (1 - p).log()


def cross_entropy(p, y, weight=None):
    """Computes Eqs. 4 and 11, averaged."""
    return average(log_loss(p, y), weight)


def escm2_risks(model, e, v, hidden, labels, weight=None):
    """Computes R_IPS, or R_DR and the loss of d^, of the ESCM2 paper: summed over stages, averaged
    over rows.
    """
    conditional = sigmoid(logits(model, hidden))
    rates = conditional.cumprod(1)
    risks = {}
    for t in range(1, labels.shape[1]):
        propensity = rates[:, t - 1].clamp(min=model.config.propensity_min)
        odds = labels[:, t - 1] / propensity  # o / o^
        d = log_loss(conditional[:, t], labels[:, t])
        rows = {"counterfactual": odds * d}
        if len(model.imputation):
            d_hat = tower(model.imputation[t - 1], e).exp().log1p()
            rows = {
                "counterfactual": d_hat + odds * (d - d_hat),
                "imputation": odds * (d - d_hat) ** 2,
            }
        for name, each in rows.items():
            risks[name] = risks.get(name, 0.0) + average(each, weight)
    return risks


def dcmt_risks(model, e, v, hidden, labels, weight=None):
    """Computes DCMT's loss of p and p* over all impressions, and its constraint: summed over
    stages, averaged.
    """
    conditional = sigmoid(logits(model, hidden))
    rates = conditional.cumprod(1)
    least = model.config.propensity_min
    risks = {"counterfactual": 0.0, "constraint": 0.0}
    for t in range(1, labels.shape[1]):
        o = labels[:, t - 1]
        r = labels[:, t]
        p = conditional[:, t]
        star = sigmoid(tower(model.twins[t - 1], v[t]))
        click = rates[:, t - 1]
        clicked = log_loss(p, r) / click.clamp(min=least)
        others = log_loss(star, 1 - r) / (1 - click).clamp(min=least)
        risks["counterfactual"] += average(torch.where(o > 0, clicked, others), weight)
        risks["constraint"] += model.config.constraint_weight * average(
            (1 - (p + star)).abs(), weight
        )
    return risks


def relatedness(network, v_1, v_2):
    """Computes Eqs. 8 and 9."""
    return sigmoid(tower(network.tower, v_1 * v_2))


def eq_12(y_rel, low=0.05, high=1.0):
    """Computes the temperature from the relatedness."""
    return (high - low) * (1 - y_rel) + low


def infonce(h_1, h_2, tau, weight=None, block=0):
    """Computes Eqs. 6 and 13, averaged; tau is [B] or a number, and 0 rows of a block are the
    batch.
    """
    z = h_1 @ h_2.T / torch.as_tensor(tau, dtype=h_1.dtype).expand(len(h_1))[:, None]
    number = torch.arange(len(h_1)) // (block or len(h_1))
    z = z.masked_fill(number[:, None] != number, -torch.inf)
    return average(-(z.diag().exp() / z.exp().sum(1)).log(), weight)


def simplified(h_1, h_2, weight=None):
    """Computes Eq. 7 with BPR's sigmoid, averaged; the negative r' is the row after r."""
    difference = (h_1 * h_2).sum(1) - (h_1 * h_2.roll(-1, 0)).sum(1)
    return average(-sigmoid(difference).log(), weight)


CONTRASTS = {
    "positive": simplified,
    "alignment": lambda a, b, weight=None: average(-sigmoid((a * b).sum(1)).log(), weight),
    "mse": lambda a, b, weight=None: average(((a - b) ** 2).mean(1), weight),  # Eq. 5
    "mae": lambda a, b, weight=None: average((a - b).abs().mean(1), weight),
}


def adaftr_losses(built, backbone, data, pairs, tau=eq_12, layer=1, contrast="infonce"):
    """Computes Eqs. 5-13, weighted and summed over the pairs; ``tau`` maps y_rel [B] (or None) to a
    temperature. Returns the terms that AdaFTR adds, and the temperatures.
    """
    _, v, hidden, _ = represent(backbone, built.backbone, data.ids)
    y = data.labels
    losses = {"contrast": 0.0}
    temperatures = []
    for p, (a, b) in enumerate(pairs):
        h_a = hidden[a][layer - 1]
        h_b = hidden[b][layer - 1]
        if contrast != "infonce":
            losses["contrast"] += built.config.beta * CONTRASTS[contrast](h_a, h_b, data.weight)
            continue
        y_rel = None
        if len(built.relatedness):
            y_rel = relatedness(built.relatedness[p], v[a], v[b])
            same = (y[:, a] == y[:, b]).to(y)  # Eq. 10
            related = built.config.alpha * cross_entropy(y_rel, same, data.weight)
            losses["relatedness"] = losses.get("relatedness", 0.0) + related
        temperatures.append(tau(y_rel))
        mean = infonce(h_a, h_b, temperatures[-1], data.weight, built.config.contrast_rows)
        losses["contrast"] += built.config.beta * mean
    return losses, temperatures
