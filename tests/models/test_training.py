"""Training with the fused ops and optimizers against plain PyTorch: Algorithm 1 by hand, and steps
of each model.
"""

import copy

import pytest
import torch
from torch import nn

from adaftr_fast.config import OptimizerConfig
from adaftr_fast.models import ModelConfig, build_model
from adaftr_fast.ops.embedding.reference.lookup import fused_embedding
from adaftr_fast.training.optimizers import build_optimizers
from tests.models import transcription as paper
from tests.models.inputs import MODELS, SIZES, THREE, TWO, adaftr, batch
from tests.ops.marks import on_threads

LR = 0.01


@pytest.fixture(autouse=True)
def one_thread():
    """Runs on one thread, because steps this small spend most of their time on thread
    synchronisation.
    """
    with on_threads(1):
        yield


def step(model, optimizers, data):
    terms = model.loss(data)
    for optimizer in optimizers:
        optimizer.zero_grad()
    sum(terms.values()).backward()
    for optimizer in optimizers:
        optimizer.step()
    return terms


def step_by_hand(hand, data, theta_optimizer, omega_optimizer):
    """Takes a step of Algorithm 1 with MMoE, line by line, in plain PyTorch."""
    y = data.labels
    config = hand.config
    e, v, h, logits = paper.represent("mmoe", hand.backbone, data.ids)  # lines 3-6
    y_rel = paper.relatedness(hand.relatedness[0], v[0].detach(), v[1].detach())

    omega_optimizer.zero_grad()  # lines 7-10
    (config.alpha * paper.cross_entropy(y_rel, (y[:, 0] == y[:, 1]).double())).backward()
    omega_optimizer.step()

    contrast = paper.infonce(h[0][0], h[1][0], paper.eq_12(y_rel).detach())  # lines 11-17
    tasks = sum(paper.cross_entropy(logits[:, t].sigmoid(), y[:, t]) for t in (0, 1))
    weights = hand.backbone.named_parameters()
    dense = sum(p.square().sum() for n, p in weights if p.dim() > 1 and "embedding" not in n)
    l2 = config.l2 * (dense + e.square().sum() / len(e))
    theta_optimizer.zero_grad()
    (tasks + config.beta * contrast + l2).backward()
    theta_optimizer.step()


def test_adaftr_steps_follow_algorithm_1():
    ours = adaftr(beta=0.1, l2=1e-3)
    hand = copy.deepcopy(ours)
    by_hand = [
        torch.optim.Adam(each.parameters(), lr=LR) for each in (hand.backbone, hand.relatedness)
    ]
    optimizers = build_optimizers(ours, OptimizerConfig(lr=LR))
    for number in range(3):
        data = batch(seed=number)
        step(ours, optimizers, data)
        step_by_hand(hand, data, *by_hand)
        ours.eval()  # applies deferred steps
        for (name, p), q in zip(ours.named_parameters(), hand.parameters()):
            torch.testing.assert_close(
                p, q, rtol=1e-9, atol=1e-11, msg=f"{name} after step {number + 1}"
            )
        ours.train()


class PlainEmbedding(nn.Module):
    """The reference look-up, with the dense gradient of autograd."""

    def __init__(self, fused):
        super().__init__()
        self.weight = nn.Parameter(fused.weight.detach().clone())
        self.offsets = fused.offsets

    def forward(self, ids, offsets=None):
        return fused_embedding(self.weight, ids, self.offsets)


def on_reference_ops(model):
    """Returns a copy of the model that uses PyTorch's ops only."""
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        if hasattr(module, "embedding"):
            module.embedding = PlainEmbedding(module.embedding)
    for contrast in getattr(plain, "contrasts", []):
        contrast.options["backend"] = "reference"
    return plain


TRAJECTORIES = [{"name": name} for name in MODELS]
TRAJECTORIES += [
    {"tau": "scalar"},
    {"contrast": "positive"},
    {"temperature_updates": "all", "beta": 0.1},
]


@pytest.mark.parametrize(
    "options", TRAJECTORIES, ids=lambda options: "-".join(map(str, options.values()))
)
def test_fused_and_reference_ops_train_equally(options):
    """float32, 20 steps: the losses differ by about 2e-7; 1e-5 allows for other
    instruction sets.
    """
    torch.manual_seed(0)
    fused = build_model(ModelConfig(**options), SIZES, THREE if options.get("name") else TWO)
    plain = on_reference_ops(fused)
    optimizers = build_optimizers(fused, OptimizerConfig(lr=LR))
    reference = [torch.optim.Adam(plain.parameters(), lr=LR)]
    totals = []
    for number in range(20):
        data = batch(150, len(fused.task_names), seed=number % 4, dtype=torch.float32)
        found = step(fused, optimizers, data)
        expected = step(plain, reference, data)
        for name, term in expected.items():
            torch.testing.assert_close(
                found[name], term, rtol=1e-5, atol=1e-6, msg=f"{name} at step {number}"
            )
        totals.append(sum(expected.values()).item())
    first, last = sum(totals[:4]), sum(totals[-4:])  # of the same four batches
    assert last < 0.99 * first, "the model did not learn, so the comparison is void"
