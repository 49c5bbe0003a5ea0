"""Sizes and lengths of cells -> floating-point operations of scFoundation. Loads no torch.

in   ScfoundationSizes, how many positions the decoder has; of every cell, how many tokens the
     encoder sees and how many are targets
out  operations of the matrix products, a multiplication and an addition counted as two

Counted as in scfm.model.flops, and as useless: what is computed again in the backward pass, which
the random features always are. Those features are a product with a matrix that does not learn: its
backward pass is one product, not two. Oracle: torch.utils.flop_counter.
"""

import numpy as np
from jaxtyping import Int

from scfm.model.config import ScfoundationSizes
from scfm.model.flops import BACKWARD


def batch_flops(
    sizes: ScfoundationSizes,
    n_positions: int,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> float:
    """Operations of one forward and backward pass over these cells.

    ``visible`` counts the tokens the encoder sees ([T], [S] and shown expressed genes), ``targets``
    those that are guessed, ``n_positions`` the vocabulary's genes and two.
    """
    parts = flops_by_part(sizes, n_positions, visible, targets)
    return BACKWARD * sum(parts.values()) - parts["features"]


def flops_by_part(
    sizes: ScfoundationSizes,
    n_positions: int,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> dict[str, float]:
    """Operations of one forward pass: embedding, encoder, decoder, and its random features.

    "features" are the projections on random directions alone; reading them is the decoder's.
    """
    v, t = (np.asarray(lengths, dtype=np.float64) for lengths in (visible, targets))
    assert v.shape == t.shape == (len(v),), "one length of each kind a cell"
    n_visible, d = float(v.sum()), sizes.d_model
    everywhere, asked = float(len(v)) * n_positions, float(t.sum())
    # every block asks of all positions, the last one of the targets alone
    queries = (sizes.n_decoder_layers - 1) * everywhere + asked
    keys = sizes.n_decoder_layers * everywhere
    inner = sizes.n_decoder_heads * sizes.d_head
    square = 2.0 * sizes.d_decoder * inner
    return {
        "embedding": (n_visible + 1) * 2.0 * sizes.n_bins * (sizes.n_bins + d),
        "encoder": sizes.n_layers * (n_visible * 24.0 * d * d + 4.0 * d * float(v @ v)),
        "decoder": (
            # into the decoder: all positions once, the zero, the mask, what was encoded
            (n_positions + 2 + n_visible) * 2.0 * d * sizes.d_decoder
            + keys * 2 * square
            + queries * (2 * square + 16.0 * sizes.d_decoder**2)
            # sums over keys, and queries reading them; one more column for the weights' sum
            + (keys + queries) * 2.0 * sizes.features * (inner + sizes.n_decoder_heads)
            + asked * 2.0 * sizes.d_decoder
        ),
        "features": (keys + queries) * 2.0 * sizes.features * inner,
    }
