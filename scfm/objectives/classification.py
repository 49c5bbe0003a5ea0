"""Scores of cell types -> loss, whatever the types' shares; and batches not to be told apart.

in   scores (n_cells, n_types), each cell's type; how many training cells each type has
out  a scalar: the mean over cells

Rare types, by option. "weights": a cell weighs n / (k n_type), so that every type counts alike
(King & Zeng 2001; scikit-learn's "balanced"). "logits": log of a type's share is added to its score
in training and not in use, which is least at the scores that are best for equal shares (Menon et
al. 2021, arXiv:2007.07314). "none": as the cells come.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Balance = Literal["weights", "logits", "none"]


class TypeBalance(NamedTuple):
    """What each type's cells weigh (mean 1 over the training cells), and what its score gains."""

    weight: Float[Tensor, " type"]
    gain: Float[Tensor, " type"]


def type_balance(n_cells: Int[Tensor, " type"], how: Balance) -> TypeBalance:
    """From the number of training cells of each type, one at least."""
    counts = n_cells.double()
    weight, gain = torch.ones_like(counts), torch.zeros_like(counts)
    if how == "weights":
        weight = counts.sum() / (len(counts) * counts)
    elif how == "logits":
        gain = (counts / counts.sum()).log()
    return TypeBalance(weight.float(), gain.float())


def type_loss(
    scores: Float[Tensor, "cell type"], truth: Int[Tensor, " cell"], balance: TypeBalance
) -> Float[Tensor, ""]:
    """Cross-entropy, weighted or adjusted, averaged over cells.

    The weights' mean is 1 over all training cells and not over these: so the loss of a global
    batch is the mean of its parts' losses, however they are dealt.
    """
    each = F.cross_entropy(scores + balance.gain, truth, reduction="none")
    return (balance.weight[truth] * each).mean()


class Reversed(torch.autograd.Function):
    """The same forwards; backwards the gradient with its sign turned, times ``strength``.

    Source: Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -ctx.strength * gradient, None


class BatchDiscriminator(nn.Module):
    """Guesses a cell's batch from its state and its type; the state is pushed to make that hard.

    It is told the type, so that what is pressed out is what tells batches apart within a type, and
    not the types themselves where batches differ in their shares (Long et al. 2018,
    arXiv:1705.10667).
    """

    def __init__(self, d: int, n_types: int, n_batches: int, d_hidden: int = 64):
        super().__init__()
        self.n_types = n_types
        self.hidden = nn.Linear(d + n_types, d_hidden)
        self.out = nn.Linear(d_hidden, n_batches)

    def forward(
        self, states: Float[Tensor, "cell d"], types: Int[Tensor, " cell"], strength: float
    ) -> Float[Tensor, "cell batch"]:
        told = F.one_hot(types, self.n_types).to(states.dtype)
        seen = torch.cat([Reversed.apply(states, strength), told], dim=1)
        return self.out(F.relu(self.hidden(seen)))


def batch_loss(
    scores: Float[Tensor, "cell batch"], batch: Int[Tensor, " cell"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the batch, over cells that have one (-1: none); the mean over all cells."""
    each = F.cross_entropy(scores, batch, ignore_index=-1, reduction="none")
    return each.mean()
