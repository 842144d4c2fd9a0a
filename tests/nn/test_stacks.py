"""Which dense layers the kernels compute, and which PyTorch computes."""

import copy

import pytest
import torch
from torch import nn

from adaftr_fast.nn.mlp import MLP
from adaftr_fast.nn.stacks import Stack, mix, run_stacks


@pytest.mark.parametrize("create_graph", [False, True])
def test_shared_layers_and_inputs_computed_from_one_another(create_graph):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4, requires_grad=True)
    y = 2 * x

    def squares(first, second):
        return first.square().sum() + second.pow(3).sum()

    found = squares(*(out[0] for out in run_stacks([Stack([layer]), Stack([layer])], [x, y])))
    expected = squares(layer(x).relu(), layer(y).relu())
    for at in (x, layer.weight, layer.bias):
        (own,) = torch.autograd.grad(found, at, create_graph=create_graph, retain_graph=True)
        torch.testing.assert_close(own, torch.autograd.grad(expected, at, retain_graph=True)[0])


@pytest.mark.parametrize("create_graph", [False, True])
def test_gate_logits_computed_from_the_experts(create_graph):
    torch.manual_seed(0)
    experts = torch.randn(5, 3, 4, requires_grad=True)
    logits = experts.sum(2, keepdim=True).transpose(1, 2).expand(-1, 2, -1)
    (own,) = torch.autograd.grad(
        sum(v.pow(3).sum() for v in mix(experts, logits)),
        experts,
        create_graph=create_graph,
        retain_graph=True,
    )
    expected = (logits.softmax(2) @ experts).pow(3).sum()
    torch.testing.assert_close(own, torch.autograd.grad(expected, experts)[0])


class Shifted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 100


def test_subclassed_unbiased_and_hooked_layers_are_called():
    mlp = MLP(3, [4, 2])
    x = torch.randn(5, 3)
    shifted, unbiased, hooked = (copy.deepcopy(mlp) for _ in range(3))
    shifted.layers[0] = Shifted(3, 4)
    assert (shifted(x)[0] > 50).all()
    unbiased.layers[0] = nn.Linear(3, 4, bias=False)
    torch.testing.assert_close(unbiased(x)[0], torch.relu(x @ unbiased.layers[0].weight.T))
    calls = []
    hooked.layers[1].register_forward_hook(lambda *_: calls.append(1))
    hooked(x)
    assert calls == [1]
    hooked = copy.deepcopy(mlp)
    hooked.layers[1].register_full_backward_pre_hook(lambda *_: calls.append(2))
    hooked(x)[-1].sum().backward()
    assert calls == [1, 2]


def test_function_transforms():
    mlp = MLP(3, [4, 2])
    x = torch.randn(5, 3)

    def loss(parameters, row):
        return torch.func.functional_call(mlp, parameters, (row[None],))[-1].square().sum()

    parameters = dict(mlp.named_parameters())
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    mlp(x)[-1].square().sum().backward()
    for name, parameter in mlp.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)
    primal, tangent = torch.func.jvp(lambda row: mlp(row)[-1], (x,), (torch.ones_like(x),))
    assert primal.shape == tangent.shape == (5, 2)
