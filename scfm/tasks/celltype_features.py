"""What a classifier reads of cells, before it has learned: vectors of a frozen model, gene values.

in   a model, cells of a LabelledPool
out  Seen: vectors (n_cells, d), values (n_cells, n_tokens) in CSR
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int

from scfm.batch import CellBatch
from scfm.model.base import CellModel
from scfm.tasks.celltype_data import LabelledPool
from scfm.tasks.classification import shown_cells
from scfm.tokens.vocab import GeneVocab


@dataclass(frozen=True)
class Seen:
    """Some cells; either part has no columns where the classifier does not read it."""

    vectors: Float[np.ndarray, "cell d"] = field(repr=False)
    values: sp.csr_matrix = field(repr=False)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def n_tokens(self) -> int:
        """Columns of ``values``."""
        return sp.csr_matrix.get_shape(self.values)[1]

    def part(self, rows: Int[np.ndarray, " some"]) -> "Seen":
        return Seen(self.vectors[rows], self.values[rows])

    @classmethod
    def joined(cls, parts: Sequence["Seen"]) -> "Seen":
        values = sp.vstack([part.values for part in parts], format="csr")
        return cls(np.concatenate([part.vectors for part in parts]), sp.csr_matrix(values))


# cells of a pool, and the training epoch they are shown as in (None: as they are) -> Seen
Look = Callable[[Int[np.ndarray, " cell"], int | None], Seen]


def look_with(
    model: CellModel,
    pool: LabelledPool,
    pooling: str,
    features: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Look:
    """Cells of the pool by this model, in the order given."""
    assert model.vocab is not None, "models are loaded or built with a vocabulary"
    vocab, width = model.vocab, model.width(pooling) if features != "genes" else 0

    def look(cells: Int[np.ndarray, " cell"], epoch: int | None) -> Seen:
        model.eval()
        vectors = np.empty((len(cells), width), dtype=np.float32)
        places, values, done = [], [], 0
        for some, batch in shown_cells(pool, cells, epoch):
            if width:
                with torch.inference_mode():
                    shown = batch.map(lambda x: torch.from_numpy(x).to(model.device))
                    found = model.pool(model(shown), pooling)
                vectors[some] = found.float().cpu().numpy()
            places.append(some)
            values.append(gene_values(batch, vocab) if features != "embedding" else None)
            on_progress(done := done + len(some), len(cells))
        if features == "embedding" or not len(cells):
            return Seen(vectors, sp.csr_matrix((len(cells), 0)))
        stacked = sp.csr_matrix(sp.vstack(values, format="csr"))
        return Seen(vectors, stacked[np.argsort(np.concatenate(places))])

    return look


def gene_values(cells: CellBatch, vocab: GeneVocab) -> sp.csr_matrix:
    """What the cells' genes are shown with, in the column of the gene's token; NumPy arrays."""
    ids = np.asarray(cells.gene_ids)
    is_gene = (ids >= vocab.gene_start) & (ids < vocab.gene_start + vocab.n_genes)
    bounds = np.concatenate([[0], np.cumsum(is_gene)])[np.asarray(cells.offsets)]
    shown = np.asarray(cells.values)[is_gene].astype(np.float64)
    return sp.csr_matrix((shown, ids[is_gene], bounds), shape=(cells.n_cells, len(vocab)))
