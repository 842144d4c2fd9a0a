"""The relatedness network, its loss and the temperature (paper, Eqs. 8–12)."""

from collections.abc import Sequence

from torch import Tensor, nn

from adaftr_fast.nn.log_loss import log_loss
from adaftr_fast.nn.mlp import Tower


class RelatednessNetwork(nn.Module):
    """Predicts the relatedness of two tasks for each instance, from the element-wise product of
    their inputs.

        v_rel = v_1 * v_2                (Eq. 8)
        y_rel = sigmoid(MLP(v_rel))      (Eq. 9)

    ``forward`` returns the logit of y_rel.

    Args:
        in_features: v, width of the tasks' inputs.
        hidden: widths of the MLP's layers.

    Shape:
        - v_1, v_2: [B, v]
        - Output: [B]
    """

    def __init__(self, in_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.tower = Tower(in_features, hidden)

    def forward(self, v_1: Tensor, v_2: Tensor) -> Tensor:
        logit: Tensor = self.tower(v_1 * v_2)[1]
        return logit


def relatedness_loss(
    logit: Tensor,
    y_1: Tensor,
    y_2: Tensor,
    weight: Tensor | None = None,
    weight_mean: Tensor | None = None,
) -> Tensor:
    """Computes the binary cross-entropy of the logit [B] against 1[y_1 = y_2], averaged over B
    (Eqs. 10, 11).

    ``weight`` [B] and ``weight_mean`` are those of :func:`log_loss`.
    """
    same = (y_1 == y_2).to(logit)
    return log_loss(logit[:, None], same[:, None], weight, weight_mean).squeeze(0)


def temperature(relatedness: Tensor, tau_min: float, tau_max: float) -> Tensor:
    """Computes tau = (tau_max - tau_min) (1 - y_rel) + tau_min for y_rel in [0, 1] (Eq. 12)."""
    return (tau_max - tau_min) * (1 - relatedness) + tau_min
