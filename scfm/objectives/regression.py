"""Predicted and true values of hidden genes -> loss.

in   prediction, target (n_targets,) in log1p(cp10k), and which cell each target belongs to
out  a scalar
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def mean_squared_error(
    prediction: Float[Tensor, " target"],
    target: Float[Tensor, " target"],
    cell_of: Int[Tensor, " target"],
    n_cells: int,
    weight: Float[Tensor, " target"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error, averaged over a cell's targets and then over cells, in float32.

    ``weight`` is what each target counts for within its cell; None: all the same.

    Averaged in this order the loss of a global batch is the plain mean of its parts' losses,
    however cells are dealt to processes and accumulation steps, though cells have different
    numbers of targets. A cell without targets adds zero.
    """
    squared = (prediction.float() - target.float()).square()
    # nothing is multiplied by ones: autograd would keep them
    weighted = squared if weight is None else weight.float() * squared
    each = torch.ones_like(squared) if weight is None else weight.float()
    total = squared.new_zeros(n_cells).index_add(0, cell_of, weighted)
    share = squared.new_zeros(n_cells).index_add(0, cell_of, each)
    return (total / torch.where(share > 0, share, 1.0)).mean()
