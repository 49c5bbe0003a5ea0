"""Scores of cell types -> loss, whatever the types' shares; and cells of a type brought together.

in   scores (n_cells, n_types), each cell's type; how many training cells each type has. Of
     integration, the cells' vectors, types and batches
out  a scalar: the mean over cells

Rare types, by option. "weights": a cell weighs n / (k n_type), so that every type counts alike
(King & Zeng 2001; scikit-learn's "balanced"). "logits": log of a type's share is added to its score
in training and not in use, which is least at the scores that are best for equal shares (Menon et
al. 2021, arXiv:2007.07314). "none": as the cells come.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Balance = Literal["weights", "logits", "none"]
CONTRAST = 0.1  # temperature of cosines


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


def type_losses(
    scores: Float[Tensor, "cell type"], truth: Int[Tensor, " cell"], balance: TypeBalance
) -> Float[Tensor, " cell"]:
    """Cross-entropy of each cell, weighted or adjusted."""
    each = F.cross_entropy(scores + balance.gain, truth, reduction="none")
    return balance.weight[truth] * each


def type_loss(
    scores: Float[Tensor, "cell type"], truth: Int[Tensor, " cell"], balance: TypeBalance
) -> Float[Tensor, ""]:
    """The mean over cells of `type_losses`.

    The weights' mean is 1 over all training cells and not over these: so the loss of a global
    batch is the mean of its parts' losses, however they are dealt.
    """
    return type_losses(scores, truth, balance).mean()


def contrastive_loss(
    vectors: Float[Tensor, "cell d"],
    types: Int[Tensor, " cell"],
    batch: Int[Tensor, " cell"],
    temperature: float = CONTRAST,
) -> Float[Tensor, ""]:
    """How much nearer cells of other types are than cells of one's own type in other batches.

    Of each cell, the mean over cells of its type in other batches of -log of the share that one of
    them has among these and all cells of other types, by exp(cosine / temperature); the mean over
    cells, 0 for one that has no such company. Cells of the same type and batch neither attract nor
    repel: to push them away would be to keep batches apart. Supervised contrastive learning (Khosla
    et al. 2020, arXiv:2004.11362) but for that.
    """
    near = F.normalize(vectors.float(), dim=1)
    similarity = near @ near.T / temperature
    has_batch = batch >= 0
    is_same_type = types[:, None] == types
    is_company = is_same_type & (batch[:, None] != batch) & has_batch[:, None] & has_batch
    compared = similarity.masked_fill(is_same_type & ~is_company, -torch.inf)
    n_company = is_company.sum(1)
    has_any = n_company > 0
    # a cell alone in its type would have nothing to be compared with: its row is not looked at
    total = torch.where(has_any[:, None], compared, similarity).logsumexp(1, keepdim=True)
    log_share = torch.where(is_company, similarity - total, 0.0)
    each = -log_share.sum(1) / n_company.clamp_min(1)
    return each.mean()
