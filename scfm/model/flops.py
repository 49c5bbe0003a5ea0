"""Sizes and lengths of cells -> floating-point operations of a training step. Loads no torch.

in   ModelSizes; of every cell, how many tokens are visible and how many are targets
out  operations of the matrix products, a multiplication and an addition counted as two

Only matrix products count, as in every published utilisation: norms, activations, softmax, loss,
optimiser and the gathering of embeddings are left out, and so is the value embedding's first
layer, which multiplies single numbers (torch does it elementwise). The backward pass of a product
is two products of its size, so forward and backward together are exactly three times the forward
pass: the only input that wants no gradient is that first layer's. What is computed again under
``train.recompute``, or inside a flash kernel's backward pass, is no useful work and is not
counted. Oracle: torch.utils.flop_counter (tests/model/test_flops.py).
"""

import numpy as np
from jaxtyping import Int

from scfm.model.config import ModelSizes

BACKWARD = 3  # forward and backward, as a multiple of the forward pass


def batch_flops(
    sizes: ModelSizes,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> float:
    """Operations of one forward and backward pass over these cells: three times the forward pass.

    ``visible`` counts the tokens the encoder sees ([CELL], [T], [S] and shown genes), ``targets``
    those that are guessed.
    """
    return BACKWARD * forward_flops(sizes, visible, targets)


def forward_flops(
    sizes: ModelSizes,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> float:
    """Operations of one forward pass over these cells, target predictions included."""
    return sum(flops_by_part(sizes, visible, targets).values())


def flops_by_part(
    sizes: ModelSizes,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> dict[str, float]:
    """Operations of one forward pass: of the embedding, encoder, decoder and head."""
    # float64: exact up to 2**53, and no int64 to overflow on a whole run's cells
    v, t = (np.asarray(lengths, dtype=np.float64) for lengths in (visible, targets))
    assert v.shape == t.shape == (len(v),), "one length of each kind a cell"
    n_cells, n_visible, n_targets = len(v), float(v.sum()), float(t.sum())
    d, bins = sizes.d_model, sizes.n_bins
    square, feedforward = 2.0 * d * d, 6.0 * d * sizes.d_feedforward
    # Attention is within cells: scores and weighted values take 2 d operations a pair each.
    self_block = n_visible * (4 * square + feedforward) + 4.0 * d * float(v @ v)
    cross_block = (
        n_targets * (2 * square + feedforward)  # q, out
        + n_visible * 2 * square  # k, v
        + 4.0 * d * float(t @ v)
    )
    return {
        # the wanted depth of every cell is embedded once more, for the cell head
        "embedding": (n_visible + n_cells) * 2.0 * bins * (bins + d),
        "encoder": sizes.n_layers * self_block,
        "decoder": (
            (n_targets + n_cells + n_visible) * square  # gene_in, depth_in, context_in
            + sizes.n_decoder_layers * cross_block
            + n_targets * 2.0 * d
        ),
        "head": (2 * n_cells + 2 * n_targets) * square + n_targets * 2.0 * d,
    }
