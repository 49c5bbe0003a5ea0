"""Sizes and lengths of sentences -> floating-point operations of scMulan. Loads no torch.

in   ScmulanSizes, the vocabulary's length; of every cell, how many words it has and how many of
     them are to be said
out  operations of the matrix products, a multiplication and an addition counted as two

Counted as in scfm.model.flops. All pairs of a cell's words count, as torch counts them, though a
causal kernel leaves out nearly half. Oracle: torch.utils.flop_counter.
"""

import numpy as np
from jaxtyping import Int

from scfm.model.config import ScmulanSizes
from scfm.model.flops import BACKWARD


def batch_flops(
    sizes: ScmulanSizes,
    n_words: int,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> float:
    """Operations of one forward and backward pass over these cells, the loss's heads included.

    ``visible`` counts all words of a sentence, ``targets`` those to be said, ``n_words`` the
    vocabulary's.
    """
    return BACKWARD * sum(flops_by_part(sizes, n_words, visible, targets).values())


def flops_by_part(
    sizes: ScmulanSizes,
    n_words: int,
    visible: Int[np.ndarray, " cell"] | list[int],
    targets: Int[np.ndarray, " cell"] | list[int],
) -> dict[str, float]:
    """Operations of one forward pass: of the decoder, and of the two heads at scored places.

    The word head is asked for every word, the value head for the cell's own targets alone.
    """
    v, t = (np.asarray(lengths, dtype=np.float64) for lengths in (visible, targets))
    assert v.shape == t.shape == (len(v),), "one length of each kind a cell"
    d = sizes.d_model
    return {
        "decoder": sizes.n_layers * (float(v.sum()) * 24.0 * d * d + 4.0 * d * float(v @ v)),
        "word_head": float(t.sum()) * 2.0 * d * n_words,
        "value_head": float(t @ t) * 2.0 * d,
    }
