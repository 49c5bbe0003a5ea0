"""Bulk samples and cells told apart by their totals; real cells of every kind stay unwarned."""

import warnings

import anndata as ad
import numpy as np
import pytest

from scfm.data.bulk import warn_if_bulk, warn_if_cells
from scfm.errors import ScfmWarning


def test_bulk_given_as_cells_and_the_reverse():
    with pytest.warns(ScfmWarning, match=r"a given as single cells|a was given as single cells"):
        warn_if_bulk(np.array([2e7, 4e7, 3e4]), "a")
    said = r"b was given as bulk samples.* median of 3,000 counts.* by scfm\.tl\.embed"
    with pytest.warns(ScfmWarning, match=said):
        warn_if_cells(np.array([3000, 2000, 2e7]), "b")


@pytest.mark.parametrize("totals", [[], [1e6, 1e6], [3e5, 2e5]])
def test_what_totals_do_not_tell_is_not_warned_of(totals):
    with warnings.catch_warnings(action="error"):
        warn_if_bulk(np.array(totals), "a")
        warn_if_cells(np.array(totals), "a")


def test_real_cells_are_cells(shared_data, demo_cells):
    folder = demo_cells if shared_data is None else shared_data / "rna"
    files = [path for path in sorted(folder.glob("*.h5ad")) if path.stat().st_size < 6e6]
    assert files
    for path in files:  # among them the deepest: full-length reads by C1
        totals = np.asarray(ad.read_h5ad(path).X.sum(1)).ravel()
        with warnings.catch_warnings(action="error"):
            warn_if_bulk(totals, path.name)
