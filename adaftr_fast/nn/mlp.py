"""Dense layers shared by the models."""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from adaftr_fast.nn.module_list import ModuleList
from adaftr_fast.nn.stacks import Stack, run_stacks


class MLP(nn.Module):
    """Applies linear layers, each followed by a ReLU, and returns every layer's output.

    Args:
        in_features: width of the input.
        hidden: widths of the layers, at least one.

    Shape:
        - Input: [B, in_features]
        - Output: a list with [B, width] per layer

    Raises:
        ValueError: ``hidden`` is empty or holds a width < 1.
    """

    def __init__(self, in_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"MLP: hidden must name at least one width >= 1, got {list(hidden)}")
        widths = [in_features, *hidden]
        self.layers = ModuleList(nn.Linear(i, o) for i, o in zip(widths, hidden))
        self.out_features = hidden[-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        return run_stacks([Stack([*self.layers])], [x])[0]


class Experts(nn.Module):
    """Applies k experts of the same shape, g_1 … g_k of Eq. 3, together.

    The first layers of all experts are computed as one product, and each deeper layer as one
    batched product.

    Args:
        in_features: width of the input.
        num_experts: k, the number of experts.
        hidden: widths of each expert's layers, at least one.

    Shape:
        - Input: [B, in_features]
        - Output: [B, k, hidden[-1]]

    Raises:
        ValueError: ``num_experts`` < 1, or ``hidden`` is empty or holds a width < 1.
    """

    def __init__(self, in_features: int, num_experts: int, hidden: Sequence[int]) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"Experts: num_experts must be >= 1, got {num_experts}")
        if not hidden or min(hidden) < 1:
            raise ValueError(
                f"Experts: hidden must name at least one width >= 1, got {list(hidden)}"
            )
        self.num_experts = num_experts
        self.out_features = hidden[-1]
        self.first = nn.Linear(in_features, num_experts * hidden[0])
        self.weights = nn.ParameterList()  # [k, in, out] each
        self.biases = nn.ParameterList()  # [k, 1, out] each
        for i, o in itertools.pairwise(hidden):
            bound = i**-0.5  # nn.Linear's initialisation
            self.weights.append(
                nn.Parameter(torch.empty(num_experts, i, o).uniform_(-bound, bound))
            )
            self.biases.append(nn.Parameter(torch.empty(num_experts, 1, o).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        return self._deepen(run_stacks([Stack([self.first])], [x])[0][0])

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, out_features={self.out_features}"

    def with_gates(self, gates: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        """Applies the experts and the gates to one input -> (experts [B, k, out], gate logits [B,
        out_features]).
        """
        (hidden,), (logits,) = run_stacks(
            [Stack([self.first]), Stack([gates], linear_end=True)], [x, x]
        )
        return self._deepen(hidden), logits

    def _deepen(self, first: Tensor) -> Tensor:
        """Applies the deeper layers to the first layers' outputs [B, k * h] -> [B, k, out]."""
        hidden: Tensor = first.unflatten(1, (self.num_experts, -1))  # [B, k, h]
        if not self.weights:
            return hidden
        hidden = hidden.transpose(0, 1)  # [k, B, h]
        for weight, bias in zip(self.weights, self.biases):
            hidden = torch.relu(torch.baddbmm(bias, hidden, weight))
        return hidden.transpose(0, 1)


class Tower(nn.Module):
    """Applies a task's own layers, f of Eq. 2: an :class:`MLP` and a linear layer that gives the
    logit.

    Args:
        in_features: width of the input.
        hidden: widths of the MLP's layers.

    Shape:
        - Input: [B, in_features]
        - Output: (a list with [B, width] per layer, logit [B])
    """

    def __init__(self, in_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp = MLP(in_features, hidden)
        self.logit = nn.Linear(self.mlp.out_features, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        (hidden,), (logit,) = run_towers([self], [x])
        return hidden, logit.squeeze(1)


def run_towers(
    towers: Iterable[Tower], inputs: Sequence[Tensor]
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Applies each tower to its input [B, in] -> (per tower every layer's output, per tower the
    logit [B, 1]).
    """
    stacks = [Stack([*tower.mlp.layers, tower.logit], linear_end=True) for tower in towers]
    outputs = run_stacks(stacks, inputs)
    return [layers[:-1] for layers in outputs], [layers[-1] for layers in outputs]
