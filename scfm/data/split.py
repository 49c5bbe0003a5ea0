"""Which cells are held out.

in   cell numbers
out  a mask; the same cell is held out in every run with the same seed, whatever else changes
"""

import numpy as np
from jaxtyping import Bool, Int


def is_held_out(
    cell_index: Int[np.ndarray, " cell"], share: float, seed: int
) -> Bool[np.ndarray, " cell"]:
    """A random ``share`` of cells, drawn once from ``seed``.

    Held-out cells come from the same donors and runs as the others: good to watch a loss curve
    with, optimistic as a measure of quality.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5EED])))
    return generator.random(len(cell_index)) < share
