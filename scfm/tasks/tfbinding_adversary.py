"""Windows made harder to call, to train on: noise, or what the model itself finds hardest.

in   a model, a batch, how to attack
out  the bases of the batch, disturbed

The gradient's own direction (projected gradient descent without the projection: a disturbed base
is no base any more) on a model that stands still: dropout off, and the statistics of its norms
neither used up nor moved by windows that do not exist.

Source: Madry et al. 2018, arXiv:1706.06083; for genomics Koo et al. 2019, doi:10.1101/657437.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scfm.batch import RegionBatch
from scfm.data.region_examples import RegionExamples
from scfm.model.dna import BindingModel, binding_logits
from scfm.objectives.binding import BindingObjective, binding_loss
from scfm.tasks.tfbinding_augment import generator, with_noise

Sequence = Float[Tensor, "window 4 base"]


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """How windows are disturbed in training.

    Attributes
    ----------
    kind
        "none", "gaussian" noise, or "pgd".
    eps
        How far from the truth: the noise's standard deviation, or the largest change of a number.
    steps, step_size
        Of PGD, and what each moves; None: 2.5 eps over all of them, enough to reach the bound.
    share
        Of a batch's windows that are disturbed; the others stay clean.
    after
        Optimiser steps that all windows stay clean.
    """

    kind: Literal["none", "gaussian", "pgd"] = "none"
    eps: float = 0.05
    steps: int = 5
    step_size: float | None = None
    share: float = 0.5
    after: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"adversary.eps must be at least 0, got {self.eps}")
        if self.steps < 1 or self.after < 0:
            raise ValueError("adversary.steps must be at least 1, adversary.after at least 0")
        if not 0 < self.share <= 1:
            raise ValueError(f"adversary.share must be in (0, 1], got {self.share}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"adversary.step_size must be positive, got {self.step_size}")

    @property
    def moves(self) -> float:
        """What a step moves each number by."""
        return self.step_size or 2.5 * self.eps / self.steps


Loss = Callable[[RegionBatch], Float[Tensor, ""]]


def disturbed(
    model: nn.Module,
    loss: Loss,
    batch: RegionBatch,
    config: AdversaryConfig,
    random: torch.Generator,
) -> RegionBatch:
    """The batch with the first ``share`` of its windows disturbed; accessibility stays."""
    n = math.ceil(config.share * batch.n_windows)
    if config.kind == "none" or n == 0:
        return batch
    some = batch.map(lambda x: x[:n])
    if config.kind == "gaussian":
        sequence = with_noise(some.sequence, config.eps, random)
    else:
        sequence = attacked(model, loss, some, config)
    return replace(batch, sequence=torch.cat([sequence, batch.sequence[n:]]))


def attacked(model: nn.Module, loss: Loss, batch: RegionBatch, config: AdversaryConfig) -> Sequence:
    """Bases within ``eps`` of their own at which the loss is higher, by the sign of its gradient.

    Costs a forward and an input's backward pass a step; weights get no gradient.
    """
    low, high = batch.sequence - config.eps, batch.sequence + config.eps
    found = batch.sequence
    with standing_still(model), torch.enable_grad():
        for _ in range(config.steps):
            at = found.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(replace(batch, sequence=at)), at)
            found = (at.detach() + config.moves * gradient.sign()).clamp(low, high)
    return found.detach()


@contextmanager
def standing_still(model: nn.Module) -> Iterator[None]:
    """The model as it predicts; afterwards as it was."""
    was_training = [module.training for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in zip(model.modules(), was_training, strict=True):
            module.training = training


def disturbed_logits(
    model: BindingModel,
    examples: RegionExamples,
    region: Int[np.ndarray, " example"],
    group: Int[np.ndarray, " example"],
    config: AdversaryConfig,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> Float[np.ndarray, "example task"]:
    """Logits of these examples, all of them disturbed: what a model is worth under attack.

    The attack sees what is judged: both strands, and the labels.
    """
    config, place = replace(config, share=1.0), model.head.bias.device
    found = np.empty((len(region), len(model.tasks)), np.float32)

    def loss(batch: RegionBatch) -> Float[Tensor, ""]:
        return binding_loss(binding_logits(model, batch), batch.labels, BindingObjective())

    with standing_still(model):
        for first in range(0, len(region), batch_size):
            some = slice(first, first + batch_size)
            batch = examples.batch(region[some], group[some]).map(torch.from_numpy)
            batch = batch.map(lambda x: x.to(place))
            shown = disturbed(model, loss, batch, config, generator(seed, first))
            with torch.no_grad():
                found[some] = binding_logits(model, shown).float().cpu().numpy()
    return found
