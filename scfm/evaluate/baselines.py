"""The usual linear methods' labels for one reference and one query, from raw counts.

in   raw counts (CSR) of a labelled reference and of a query, and their gene names
out  one Prediction a baseline: labels for the query's cells

The methods are those of scfm.evaluate.type_baselines, which says what each does. Nothing is
fitted on the query.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from threadpoolctl import threadpool_limits

from scfm.errors import LabelError
from scfm.evaluate.celltype import Prediction
from scfm.evaluate.log_counts import CountTable, log1p_cp10k, shared_genes
from scfm.evaluate.type_baselines import BASELINES as METHODS
from scfm.evaluate.type_methods import Cells, Reference

KEYS = ("majority", "pca_knn", "pca_centred_knn", "pca_logistic", "hvg_logistic")
BASELINES = {method.key: method for method in METHODS if method.key in KEYS}


def baseline_predictions(
    reference: CountTable,
    labels: Shaped[np.ndarray, " reference"],
    query: CountTable,
    *,
    seed: int = 0,
    keys: Sequence[str] | None = None,
) -> dict[str, Prediction]:
    """Run the baselines (all of ``BASELINES``, or those named in ``keys``).

    With the bundled cells (3,874 sorted PBMC as reference, 2,592 of PBMC3k as query, 16,782 shared
    symbols, five labels) they reach, macro-F1 / accuracy: majority .125/.455; pca_knn .765/.679;
    pca_centred_knn .841/.817; pca_logistic .834/.848; hvg_logistic .859/.838.
    Raises GeneCoverageError where no gene is shared, LabelError where a cell has no label.
    """
    names = np.asarray(labels, dtype=object)
    if len(names) != reference.n_cells or any(not isinstance(n, str) for n in names):
        raise LabelError(
            f"the baselines need a text label for each of {reference.n_cells:,} reference "
            f"cells, got {sum(isinstance(n, str) for n in names):,} in {len(names):,}. "
            "Leave out the cells without a label first."
        )
    ours, theirs = shared_genes(reference.genes, query.genes)
    learned = Reference(Cells(log1p_cp10k(reference.counts, ours)), names.astype(str), seed)
    judged = Cells(log1p_cp10k(query.counts, theirs))
    found = {}
    # At these sizes threads wait for each other: one is several times cheaper and no slower.
    with threadpool_limits(1):
        for key in KEYS if keys is None else keys:
            method = BASELINES[key]
            label = method.fit(learned).predict(judged).label
            found[key] = Prediction(method.name, "baseline", label, method.note)
    return found
