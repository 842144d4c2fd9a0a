"""DCMT: ESMM with a conversion rate that is learned from all impressions (Zhu et al., ICDE'23).

Shapes: B batch, T tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models.base import Representations
from adaftr_fast.models.escm2 import RiskOfConversions
from adaftr_fast.nn.mlp import Tower, run_towers
from adaftr_fast.nn.module_list import ModuleList


class DCMT(RiskOfConversions):
    """Extends :class:`ESMM` by a twin of the conversion tower, which predicts that a click does not
    convert.

        L = L_ctr + w_cvr (E + lambda |1 - (p + p*)|) + w_ctcvr L_ctcvr

    The conversion tower gives the factual rate p = p_cvr, its twin the counterfactual rate p*. With
    a click o, its predicted rate o^ = p_ctr, a conversion r and the log loss e, the clicked rows
    train p on r, and the others train p* on 1 - r. Both are weighted by inverse propensities:

        E = mean(o e(r, p) / o^ + (1 - o) e(1 - r, p*) / (1 - o^))

    The constraint, a mean too, pulls p + p* to 1, so p learns from the rows without a click.

    Decided here: both towers read one bottom, and no wide part is added to their logits; no
    gradient flows through o^, and o^ and 1 - o^ are clamped to at least ``propensity_min``; the
    weights of the propensities are not normalised by their sum; and the defaults of w_cvr, w_ctcvr
    and lambda.

    With more than two tasks, both terms are sums over the stages after the first; o is the stage
    before. Serving computes the same function as ESMM's; the twin is part of checkpoints but not of
    exports.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the funnel and of the label columns.
        config: the settings. The model reads those of :class:`ESMM`, ``counterfactual_weight``
            (w_cvr), ``constraint_weight`` (lambda), ``ctcvr_weight`` (w_ctcvr) and
            ``propensity_min``.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Raises:
        ValueError: there are fewer than two tasks.
    """

    unserved = frozenset({"twins"})

    def make_layers(self, config: ModelConfig) -> None:
        super().make_layers(config)
        width = self.bottoms[0].out_features
        self.twins = ModuleList(Tower(width, config.tower_hidden) for _ in self.task_names[1:])

    def risks(self, seen: Representations, conditional: Tensor, batch: Batch) -> dict[str, Tensor]:
        reached = batch.labels[:, :-1]  # o, [B, T - 1]
        happened = batch.labels[:, 1:]  # r, [B, T - 1]
        propensity = seen.logits[:, :-1].detach().sigmoid()
        factual = conditional[:, 1:]
        twin = torch.cat(run_towers(self.twins, seen.inputs[1:])[1], 1).to(factual.dtype)
        error = F.binary_cross_entropy_with_logits(factual, happened, reduction="none")
        twin_error = F.binary_cross_entropy_with_logits(twin, 1 - happened, reduction="none")
        least = self.config.propensity_min
        weighted = reached * error / propensity.clamp_min(least)
        weighted = weighted + (1 - reached) * twin_error / (1 - propensity).clamp_min(least)
        distance = (factual.neg().sigmoid() - twin.sigmoid()).abs()  # |1 - (p + p*)|
        return {
            "counterfactual": weighted.sum(1),
            "constraint": self.config.constraint_weight * distance.sum(1),
        }
