"""Whether totals are those of single cells or of bulk samples: a warning where they belie it.

in   total counts of cells or samples
out  nothing, or one ScfmWarning

A model's depth tokens carry the total, so one kind given as the other is embedded far from its own.
Medians: single cells by UMI have 1e3 to 3e4 counts, those of full-length protocols 1e5 to 3e6 reads
(Pollen et al. 2014: 2.8e5, though its deepest cells reach 1e7, so a median is asked for). Bulk
libraries are sequenced to 1e7 reads and more, 3'-tag ones to 3e6 or so. Between the two limits
below totals say nothing: values per million, too, sum up to 1e6.
"""

import warnings

import numpy as np
from jaxtyping import Num

from scfm.errors import ScfmWarning

CELLS_BELOW = 1e5  # a median below is never that of bulk samples
BULK_ABOVE = 5e6  # a median above is never that of single cells


def warn_if_bulk(totals: Num[np.ndarray, " cell"], name: str) -> None:
    """ScfmWarning where what was given as single cells has the totals of bulk samples.

    ``totals`` are raw counts of each cell; ``name`` is the data, for the message.
    """
    if len(totals) and np.median(totals) > BULK_ABOVE:
        warnings.warn(
            f"{name} was given as single cells, but its {len(totals):,} rows have a median of "
            f"{np.median(totals):,.0f} counts, as bulk samples have. If they are bulk samples, "
            "give them as such: scfm.tl.drug_features(..., recipe='bulk').",
            ScfmWarning,
            stacklevel=3,
        )


def warn_if_cells(totals: Num[np.ndarray, " cell"], name: str) -> None:
    """ScfmWarning where what was given as bulk samples has the totals of single cells.

    ``totals`` are raw counts of each sample; ``name`` is the data, for the message.
    """
    if len(totals) and np.median(totals) < CELLS_BELOW:
        warnings.warn(
            f"{name} was given as bulk samples, but its {len(totals):,} rows have a median of "
            f"{np.median(totals):,.0f} counts, as single cells have. If they are single cells, "
            "embed them by scfm.tl.embed (recipe='scad_cell' is for cells of log1p values).",
            ScfmWarning,
            stacklevel=3,
        )
