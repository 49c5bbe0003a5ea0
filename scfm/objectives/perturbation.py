"""Predicted and measured expression of perturbed cells -> loss.

in   prediction, target (n_cells, n_genes) in log1p(cp10k), the perturbation of each cell
out  a scalar: the mean over perturbations, so that one of many cells weighs no more than another
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Expression = Float[Tensor, "cell gene"]


@dataclass(frozen=True, kw_only=True)
class PerturbationObjective:
    """What a perturbation head is trained on.

    Attributes
    ----------
    loss
        "gears": autofocus plus direction. "mse": squared error alone.
    gamma
        How much more the autofocus loss makes of large errors; 0 is squared error.
    direction_weight
        Of the direction loss beside it; GEARS' lambda.
    temperature
        Width, in log1p(cp10k), over which a change's direction goes from -1 to 1.
    """

    loss: Literal["gears", "mse"] = "gears"
    gamma: float = 2.0
    direction_weight: float = 0.1
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.direction_weight < 0:
            raise ValueError("objective.gamma and direction_weight must be at least 0")
        if not self.temperature > 0:
            raise ValueError(f"objective.temperature must be positive, got {self.temperature}")


def perturbation_loss(
    prediction: Expression,
    target: Expression,
    control: Float[Tensor, "#cell gene"],
    group: Int[Tensor, " cell"],
    objective: PerturbationObjective,
) -> Float[Tensor, ""]:
    """The loss that ``objective`` names; ``control`` is the mean control cell."""
    if objective.loss == "mse":
        return autofocus_loss(prediction, target, group, gamma=0.0)
    focus = autofocus_loss(prediction, target, group, gamma=objective.gamma)
    direction = direction_loss(
        prediction, target, control, group, temperature=objective.temperature
    )
    return focus + objective.direction_weight * direction


def autofocus_loss(
    prediction: Expression, target: Expression, group: Int[Tensor, " cell"], *, gamma: float
) -> Float[Tensor, ""]:
    """``|y - prediction| ** (2 + gamma)``, mean over genes, a perturbation's cells, perturbations.

    Source: GEARS, Roohani et al. 2024, doi:10.1038/s41587-023-01905-6, Methods, L_autofocus.
    With ``gamma`` = 0 the mean squared error a perturbation.
    """
    error = (prediction.float() - target.float()).abs()
    return mean_by_group(error.pow(2 + gamma).mean(1), group)


def direction_loss(
    prediction: Expression,
    target: Expression,
    control: Float[Tensor, "#cell gene"],
    group: Int[Tensor, " cell"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """``(sign(y - control) - s(prediction - control)) ** 2``, averaged as the autofocus loss.

    GEARS has s = sign, which has no gradient: written so, the term cannot train anything. Here
    ``s(x) = tanh(x / temperature)``, which is its sign as the temperature goes to zero.
    Source: GEARS, Roohani et al. 2024, doi:10.1038/s41587-023-01905-6, Methods, L_direction.
    """
    wanted = torch.sign(target.float() - control.float())
    found = torch.tanh((prediction.float() - control.float()) / temperature)
    return mean_by_group((wanted - found).square().mean(1), group)


def mean_by_group(values: Float[Tensor, " cell"], group: Int[Tensor, " cell"]) -> Float[Tensor, ""]:
    """The mean over the groups that occur of the mean over their cells."""
    present, place, n_cells = group.unique(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(present)).index_add(0, place, values)
    return (sums / n_cells).mean()
