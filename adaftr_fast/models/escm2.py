"""ESCM2: ESMM with a counterfactual loss of the conversion rate (Wang et al., SIGIR'22).

Shapes: B batch, T tasks.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.models.base import MultiTaskModel, Representations
from adaftr_fast.models.esmm import ESMM, chain
from adaftr_fast.models.sizes import first_widths
from adaftr_fast.nn.encoding import NumericEncoding
from adaftr_fast.nn.log_loss import weighted_mean
from adaftr_fast.nn.mlp import Tower
from adaftr_fast.nn.module_list import ModuleList


class RiskOfConversions(ESMM):
    """Adds terms to the loss of :class:`ESMM`, which estimate the risk of p_cvr over all
    impressions.

    A subclass implements ``risks``, and names the modules that only they need in ``unserved``.
    Arguments and errors are those of :class:`ESCM2`.
    """

    unserved: frozenset[str]

    def make_layers(self, config: ModelConfig) -> None:
        super().make_layers(config)
        if len(self.task_names) < 2:
            raise ValueError(
                f"{type(self).__name__}: task_names must name at least two tasks, got "
                f"{self.task_names}"
            )
        self.config = config

    @abstractmethod
    def risks(self, seen: Representations, conditional: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms of each row [B] by name, summed over the stages after the first.

        ``conditional`` are the logits [B, T] of each stage's rate given the stage before.
        """

    def served(self) -> MultiTaskModel:
        served = copy.copy(self)  # with the same parameters
        served._modules = {
            name: module for name, module in self._modules.items() if name not in self.unserved
        }
        return served

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        embedded = self.embed(*batch.features)
        inputs = self.task_inputs(embedded)
        hidden, conditional = self.conditional_logits(inputs)
        seen = Representations(embedded, inputs, hidden, chain(conditional))
        losses = self.task_losses(seen, batch)
        for task in self.task_names[1:]:
            losses[task] = self.config.ctcvr_weight * losses[task]
        for name, risk in self.risks(seen, conditional, batch).items():
            losses[name] = self.config.counterfactual_weight * weighted_mean(
                risk, batch.weight, batch.weight_mean
            )
        return losses


class ESCM2(RiskOfConversions):
    """Extends :class:`ESMM` by the risk of p_cvr over all impressions, estimated from the clicked
    ones.

        L = L_ctr + lambda_c R + lambda_g L_ctcvr

    With a click o, its predicted rate o^ = p_ctr, a conversion r and the log loss d of p_cvr
    against r, the risk R is weighted by inverse propensities,

        R_IPS = mean(o d / o^)

    With ``imputation``, a network d^ >= 0 over the embeddings predicts the log loss where there is
    no click, and R is the doubly robust risk with the loss that trains d^:

        R_DR = mean(d^ + o (d - d^) / o^) + mean(o (d - d^)^2 / o^)

    R_IPS is unbiased if o^ is the probability of a click, R_DR if that or d^ is right.

    The publication leaves open, and is decided here: no gradient flows through o^, which is clamped
    to at least ``propensity_min``; d^ is the softplus of its network's output; R_DR and the loss of
    d^ update the conversion bottom and tower, the network of d^ and the embeddings, and not the
    click network.

    With more than two tasks, R is the sum over the stages after the first; o is the stage before.
    Serving computes the same function as ESMM's; d^ is part of checkpoints but not of exports.

    Args:
        num_embeddings: number of rows of each of the F fields.
        task_names: the T tasks, in the order of the funnel and of the label columns.
        config: the settings. The model reads those of :class:`ESMM`, ``counterfactual_weight``
            (lambda_c), ``ctcvr_weight`` (lambda_g) and ``propensity_min``.
        field_names: the F names that ``config.embedding_dims`` and ``config.attention`` refer to;
            needed only if they name any.
        dense: encodings of the dense fields, if there are any.
        imputation: whether R is R_DR, rather than R_IPS.

    Shape:
        - ids: [B, F], int32 or int64
        - Output: logits [B, T]

    Raises:
        ValueError: there are fewer than two tasks.
    """

    unserved = frozenset({"imputation"})

    def __init__(
        self,
        num_embeddings: Sequence[int],
        task_names: Sequence[str],
        config: ModelConfig,
        field_names: Sequence[str] | None = None,
        dense: Sequence[NumericEncoding] = (),
        *,
        imputation: bool,
    ) -> None:
        super().__init__(num_embeddings, task_names, config, field_names, dense)
        tasks = len(self.task_names)
        widths = [
            *first_widths(config, self.embedded_features, tasks, networks=tasks),
            *config.tower_hidden,
        ]
        imputed = self.task_names[1:] if imputation else []
        self.imputation = ModuleList(Tower(self.embedded_features, widths) for _ in imputed)

    def risks(self, seen: Representations, conditional: Tensor, batch: Batch) -> dict[str, Tensor]:
        reached = batch.labels[:, :-1]  # o, [B, T - 1]
        happened = batch.labels[:, 1:]  # r, [B, T - 1]
        propensity = seen.logits[:, :-1].detach().sigmoid().clamp_min(self.config.propensity_min)
        odds = reached / propensity
        error = F.binary_cross_entropy_with_logits(conditional[:, 1:], happened, reduction="none")
        if not self.imputation:
            return {"counterfactual": (odds * error).sum(1)}
        imputed = self._imputed(seen.embedded).to(error)
        surprise = error - imputed
        return {
            "counterfactual": (imputed + odds * surprise).sum(1),
            "imputation": (odds * surprise.square()).sum(1),
        }

    def _imputed(self, embedded: Tensor) -> Tensor:
        """Computes d^ [B, T - 1]."""
        logits = [tower(embedded)[1] for tower in self.imputation]
        return F.softplus(torch.stack(logits, 1))


inverse_propensities = partial(ESCM2, imputation=False)
doubly_robust = partial(ESCM2, imputation=True)
