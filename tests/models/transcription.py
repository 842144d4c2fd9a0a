"""The papers' equations, transcribed to NumPy float64 and evaluated on a model's weights.

A *_inputs function computes each task's v of Eq. 2 from the embedded features e [B, F*E]. A
*_towers function returns (every layer's output per task, logits [B, T]).
"""

import numpy as np
from torch import nn

from tests.models.inputs import SIZES


def array(x) -> np.ndarray:
    return x.detach().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def relu(x):
    return np.maximum(x, 0)


def affine(linear: nn.Linear, x):
    y = x @ array(linear.weight).T
    return y if linear.bias is None else y + array(linear.bias)


def mlp(linears, x) -> list[np.ndarray]:
    """Returns every layer's output after ReLU."""
    outputs = []
    for linear in linears:
        x = relu(affine(linear, x))
        outputs.append(x)
    return outputs


def embedded(embedding, ids) -> np.ndarray:
    field_offsets = np.cumsum([0, *SIZES[:-1]])
    return array(embedding.weight)[ids.numpy() + field_offsets].reshape(len(ids), -1)


def experts(module, x) -> list[np.ndarray]:
    """Returns each expert's output [B, v], computed one expert at a time."""
    outputs, width = [], module.first.out_features // module.num_experts
    for i in range(module.num_experts):
        rows = slice(i * width, (i + 1) * width)
        h = relu(x @ array(module.first.weight)[rows].T + array(module.first.bias)[rows])
        for weight, bias in zip(module.weights, module.biases):
            h = relu(h @ array(weight)[i] + array(bias)[i])
        outputs.append(h)
    return outputs


def gated(gate_logits, outputs) -> np.ndarray:
    weights = softmax(gate_logits)  # [B, k]
    return sum(weights[:, i : i + 1] * output for i, output in enumerate(outputs))


def shared_bottom_inputs(model, e):
    return [mlp(model.bottom.layers, e)[-1]] * len(model.task_names)


def mmoe_inputs(model, e):
    outputs, k = experts(model.experts, e), model.experts.num_experts
    logits = affine(model.gates, e)
    return [gated(logits[:, t * k : (t + 1) * k], outputs) for t in range(len(model.task_names))]


def ple_inputs(model, e):
    tasks = len(model.task_names)
    own, shared = [e] * tasks, e
    for layer in model.layers:
        of_task = [experts(layer.experts[t], own[t]) for t in range(tasks)]
        of_all = experts(layer.experts[tasks], shared)
        everything = [output for outputs in (*of_task, of_all) for output in outputs]
        if layer is not model.layers[-1]:
            shared_next = gated(affine(layer.gates[tasks], shared), everything)
        own = [gated(affine(layer.gates[t], own[t]), of_task[t] + of_all) for t in range(tasks)]
        shared = shared_next if layer is not model.layers[-1] else None
    return own


def plain_towers(model, v):
    hidden = [mlp(tower.mlp.layers, x) for tower, x in zip(model.towers, v)]
    return hidden, logits(model, hidden)


def stitched_towers(model, v):
    x, hidden = v, [[] for _ in v]
    for layer, unit in enumerate(model.stitches):
        x = [relu(affine(tower.mlp.layers[layer], each)) for tower, each in zip(model.towers, x)]
        alpha = array(unit.alpha)
        x = [sum(alpha[t, s] * x[s] for s in range(len(x))) for t in range(len(x))]
        for t, each in enumerate(x):
            hidden[t].append(each)
    return hidden, logits(model, hidden)


def connected_towers(model, v):
    hidden = []
    for t, tower in enumerate(model.towers):
        x, outputs = v[t], []
        upstream = [layer for layers in hidden for layer in layers]
        for j, linear in enumerate(tower.mlp.layers):
            z = affine(linear, x)
            if t > 0:
                connections = model.connections[t - 1]
                p = sigmoid(array(connections.edges)[j])
                projection = array(connections.projections[j].weight)
                at = 0
                for i, u in enumerate(upstream):
                    z = z + p[i] * u @ projection[:, at : at + u.shape[1]].T
                    at += u.shape[1]
            x = relu(z)
            outputs.append(x)
        hidden.append(outputs)
    return hidden, logits(model, hidden)


def esmm_inputs(model, e):
    return [mlp(bottom.layers, e)[-1] for bottom in model.bottoms]


def chained_towers(model, v):
    """Returns the logits of p_1, p_1 p_2, ... (ESMM paper, Eq. 1)."""
    hidden = [mlp(tower.mlp.layers, x) for tower, x in zip(model.towers, v)]
    p = np.cumprod(sigmoid(logits(model, hidden)), 1)
    return hidden, np.log(p) - np.log(1 - p)


def logits(model, hidden):
    return np.concatenate(
        [affine(tower.logit, layers[-1]) for tower, layers in zip(model.towers, hidden)], 1
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


def cross_entropy(p, y, weight=None):
    """Computes Eqs. 4 and 11, averaged."""
    return np.average(-y * np.log(p) - (1 - y) * np.log(1 - p), weights=weight)


def escm2_risks(model, e, v, hidden, labels, weight=None):
    """Computes R_IPS, or R_DR and the loss of d^, of the ESCM2 paper: summed over stages, averaged
    over rows.
    """
    conditional = sigmoid(logits(model, hidden))
    rates = np.cumprod(conditional, 1)
    risks = {}
    for t in range(1, labels.shape[1]):
        o = labels[:, t - 1]
        r = labels[:, t]
        p = conditional[:, t]
        propensity = np.maximum(rates[:, t - 1], model.config.propensity_min)
        d = -r * np.log(p) - (1 - r) * np.log(1 - p)
        rows = {"counterfactual": o * d / propensity}
        if len(model.imputation):
            tower = model.imputation[t - 1]
            d_hat = np.log1p(np.exp(affine(tower.logit, mlp(tower.mlp.layers, e)[-1])[:, 0]))
            rows = {
                "counterfactual": d_hat + o * (d - d_hat) / propensity,
                "imputation": o * (d - d_hat) ** 2 / propensity,
            }
        for name, each in rows.items():
            risks[name] = risks.get(name, 0.0) + np.average(each, weights=weight)
    return risks


def dcmt_risks(model, e, v, hidden, labels, weight=None):
    """Computes DCMT's loss of p and p* over all impressions, and its constraint: summed over
    stages, averaged.
    """
    conditional = sigmoid(logits(model, hidden))
    rates, least = np.cumprod(conditional, 1), model.config.propensity_min
    risks = {"counterfactual": 0.0, "constraint": 0.0}
    for t in range(1, labels.shape[1]):
        twin = model.twins[t - 1]
        o = labels[:, t - 1]
        r = labels[:, t]
        p = conditional[:, t]
        star = sigmoid(affine(twin.logit, mlp(twin.mlp.layers, v[t])[-1])[:, 0])
        rows = np.empty(len(o))
        for row in range(len(o)):
            click = rates[row, t - 1]
            if o[row]:
                rows[row] = -np.log(p[row] if r[row] else 1 - p[row]) / max(click, least)
            else:  # the label is 1 - r
                rows[row] = -np.log(1 - star[row] if r[row] else star[row]) / max(1 - click, least)
        risks["counterfactual"] += np.average(rows, weights=weight)
        risks["constraint"] += model.config.constraint_weight * np.average(
            np.abs(1 - (p + star)), weights=weight
        )
    return risks


def relatedness(network, v_1, v_2):
    """Computes Eqs. 8 and 9."""
    tower = network.tower
    return sigmoid(affine(tower.logit, mlp(tower.mlp.layers, v_1 * v_2)[-1])[:, 0])


def infonce(h_1, h_2, tau, weight=None, block=0):
    """Computes Eqs. 6 and 13, averaged; tau is [B] or a number, and 0 rows of a block are the
    batch.
    """
    z = h_1 @ h_2.T / np.broadcast_to(tau, len(h_1))[:, None]
    number = np.arange(len(h_1)) // (block or len(h_1))
    z = np.where(number[:, None] == number, z, -np.inf)
    return np.average(-np.log(np.exp(np.diag(z)) / np.exp(z).sum(1)), weights=weight)


def simplified(h_1, h_2, weight=None):
    """Computes Eq. 7 with BPR's sigmoid, averaged; the negative r' is the row after r."""
    rows = np.arange(len(h_1))
    negatives = h_2[(rows + 1) % len(rows)]
    difference = (h_1 * h_2).sum(1) - (h_1 * negatives).sum(1)
    return np.average(-np.log(sigmoid(difference)), weights=weight)


CONTRASTS = {
    "positive": simplified,
    "alignment": lambda a, b, weight=None: np.average(
        -np.log(sigmoid((a * b).sum(1))), weights=weight
    ),
    "mse": lambda a, b, weight=None: np.average(((a - b) ** 2).mean(1), weights=weight),  # Eq. 5
    "mae": lambda a, b, weight=None: np.average(np.abs(a - b).mean(1), weights=weight),
}
