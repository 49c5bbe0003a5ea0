"""Which cells are held out.

in   how many cells there are, how many to hold out at most
out  cell numbers, ascending; the rest train
"""

import numpy as np
from jaxtyping import Int


def held_out_cells(
    n_cells: int, share: float, most: int, seed: int
) -> Int[np.ndarray, " held_out"]:
    """A random ``share`` of the cells, but no more than ``most``, drawn from all of them alike.

    The same numbers for the same arguments. Held-out cells come from the same donors and runs as
    the others: good to watch a loss curve with, optimistic as a measure of quality.
    """
    n_held_out = min(round(share * n_cells), most)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5EED])))
    return np.sort(generator.choice(n_cells, n_held_out, replace=False, shuffle=False))
