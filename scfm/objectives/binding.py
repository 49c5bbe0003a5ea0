"""Logits of binding and labels in three states -> loss.

in   logits (n, task); labels 1 bound, 0 not bound, -1 unknown
out  a scalar: the mean over all labels that are known; 0, with a gradient of 0, where none is

What is unknown (peaks called by the relaxed threshold only, chromosomes without labels) neither
pulls nor pushes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Labels = Int[Tensor, "window task"]
Logits = Float[Tensor, "window task"]


@dataclass(frozen=True, kw_only=True)
class BindingObjective:
    """What a binding model is trained on.

    Attributes
    ----------
    loss
        "bce": binary cross-entropy. "weighted": the same, bound windows of a TF weighing as much
        as its others together. "focal": windows that are easily told weigh less.
    largest_weight
        Of a bound window in the weighted loss.
    gamma
        Of the focal loss; 0 is binary cross-entropy.
    """

    loss: Literal["bce", "weighted", "focal"] = "bce"
    largest_weight: float = 10.0
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.largest_weight < math.inf:
            raise ValueError(
                f"objective.largest_weight must be at least 1, got {self.largest_weight}"
            )
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"objective.gamma must be at least 0, got {self.gamma}")

    def positive_weight(self, prevalence: Float[Tensor, " task"]) -> Float[Tensor, " task"]:
        """What a bound window weighs, by the share of windows that each TF is bound in."""
        share = prevalence.clamp(1e-6, 1 - 1e-6)
        return ((1 - share) / share).clamp(1 / self.largest_weight, self.largest_weight)


def binding_loss(
    logits: Logits,
    labels: Labels,
    objective: BindingObjective,
    positive_weight: Float[Tensor, " task"] | None = None,
) -> Float[Tensor, ""]:
    """The loss that ``objective`` names, in nats; ``positive_weight`` is for the weighted one."""
    is_known = labels >= 0
    truth = (labels == 1).float()
    scores = logits.float()
    weights = positive_weight if objective.loss == "weighted" else None
    losses = binary_cross_entropy_with_logits(scores, truth, reduction="none", pos_weight=weights)
    if objective.loss == "focal":
        losses = losses * focus(scores, truth, objective.gamma)
    known = torch.where(is_known, losses, 0.0)
    return known.sum() / is_known.sum().clamp(min=1)


def focus(logits: Logits, truth: Logits, gamma: float) -> Logits:
    """``(1 - p) ** gamma``, p being the probability given to what is true.

    Source: Lin et al. 2017, arXiv:1708.02002, without its class weights.
    """
    miss = torch.sigmoid(torch.where(truth > 0, -logits, logits))
    # the gradient of 0 ** gamma is none for gamma below 1
    return miss.clamp(min=1e-12) ** gamma
