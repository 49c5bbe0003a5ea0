"""Where a model and an objective meet: the loss of one batch, and what is logged of it.

in   a model of any family, packed cells with targets
out  BatchLosses
"""

from collections.abc import Mapping

import torch

from scfm.batch import CellBatch
from scfm.model.attention import Packing
from scfm.model.base import CellModel
from scfm.objectives.regression import mean_squared_error

# "loss", which is made small, and "loss_...", what it is made of: scalars. Of each guessed value
# "squared_error", "is_expressed" and "cell_of", for the loss by part (scfm.objectives.parts).
# A dict on purpose: fsdp looks for tensors in what is returned, and not into dataclasses.
BatchLosses = dict[str, torch.Tensor]


def guess_losses(
    model: CellModel, cells: CellBatch, weights: Mapping[str, float], zero_weight: float
) -> BatchLosses:
    """The squared error of the hidden genes' values, in each of the ways the model guesses them.

    The raw-depth value of hidden genes of a cell that may have been thinned: of the default family
    guessed twice, by asking the cell's other genes (query decoder) and from the cell's one state;
    of scFoundation once. The first of ``weights`` is the way whose errors are shown by part.
    """
    guesses = model.predict_targets(cells, model(cells))
    target = cells.target_values[cells.is_target]
    cell_of = Packing(cells.offsets).cell_of[cells.is_target]
    is_expressed = target > 0
    # 1 where all count alike: nothing to multiply by
    weight = None if zero_weight == 1 else torch.where(is_expressed, 1.0, zero_weight)
    losses = {
        way: mean_squared_error(guess, target, cell_of, cells.n_cells, weight)
        for way, guess in guesses.items()
    }
    main = guesses[next(iter(weights))]
    return {
        **{f"loss_{way}": loss for way, loss in losses.items()},
        "loss": torch.stack([weights[way] * loss for way, loss in losses.items()]).sum(),
        "squared_error": (main.float() - target).square().detach(),
        "is_expressed": is_expressed,
        "cell_of": cell_of,
    }
