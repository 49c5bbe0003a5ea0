"""Who tells the truth and who is started from: a screen whose two control halves differ.

The halves differ by a known offset, so any score that took the wrong half is another number.
"""

import numpy as np
import pytest
import scipy.sparse as sp

from scfm.evaluate.perturbation import judge_split, top_genes
from scfm.tasks.perturbation_data import CONTROL, PerturbationSplit, PerturbedCells

N_GENES, CELLS_EACH = 30, 8
BASE = 2 + np.arange(N_GENES) / 8  # of training control cells
OFFSET = np.repeat([1.0, 0.0], [10, 20])  # of held-out control cells, above BASE
# Above BASE, of every perturbation's cells; "held" is like held-out controls on columns 0 to 4 and
# 25 to 29, and like training controls on columns 5 to 9 and 25 to 29.
CHANGES = {
    "held": np.repeat([1.0, 0.0, 2.0, 0.0], [5, 5, 15, 5]),
    "train": np.where(np.arange(N_GENES) % 3 == 0, 0.5, 0.0),
    "valid": np.where(np.arange(N_GENES) % 4 == 1, 1.0, -0.25),
}


@pytest.fixture
def cells():
    """Cells around exact means: half of each group an eighth above, half below."""
    means = [BASE, BASE + OFFSET, *(BASE + change for change in CHANGES.values())]
    noise = np.resize([0.125, -0.125], (CELLS_EACH, 1))
    return PerturbedCells(
        expression=sp.csr_matrix(np.vstack([m + noise for m in means]).astype(np.float32)),
        genes=np.arange(N_GENES),
        perturbation=np.repeat([CONTROL, CONTROL, 0, 1, 2], CELLS_EACH),
        names=tuple(CHANGES),
        targets=((0,), (1,), (2,)),
        batch=np.zeros(5 * CELLS_EACH, np.int64),
        left_out={},
    )


@pytest.fixture
def split(cells):
    halves = cells.controls[:CELLS_EACH], cells.controls[CELLS_EACH:]
    return PerturbationSplit(("train",), ("valid",), ("held",), *halves)


def test_most_changed_genes_are_told_by_held_out_controls(cells, split):
    found = top_genes(cells, split, "held")
    assert sorted(found) == list(range(5, 25))  # by training controls 0 to 4, and 10 to 24


def test_scores_of_the_mean_change_by_hand(cells, split, rng):
    """Starts from training controls, changes as known perturbations do, validation's among them;
    the truth is told by held-out controls."""
    embeddings = rng.normal(size=(N_GENES, 4)).astype(np.float32)
    rows = {row["method"]: row for row in judge_split(cells, split, {}, embeddings)}
    mean_change = (CHANGES["train"] + CHANGES["valid"]) / 2
    squared = (mean_change - CHANGES["held"]) ** 2
    found = rows["mean_change"]
    assert found["mse"] == pytest.approx(squared.mean(), rel=1e-9)
    assert found["mse_top20"] == pytest.approx(squared[5:25].mean(), rel=1e-9)
    pearson = np.corrcoef(mean_change, CHANGES["held"] - OFFSET)[0, 1]
    assert found["pearson_change"] == pytest.approx(pearson, rel=1e-9)
    assert rows["no_change"]["mse"] == pytest.approx((CHANGES["held"] ** 2).mean(), rel=1e-9)
    assert rows["no_change"]["pearson_change"] == 0
