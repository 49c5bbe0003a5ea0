"""Values that are log1p of normalised expression already -> rows of them, or a refusal.

in   an AnnData whose X, raw or layer holds log values, samples by genes
out  RawRows, a block at a time: natural log1p values in CSR rows over the matrix's columns

For recipes that were published on such values; everything else in scfm begins with raw counts.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from scfm.data.container import Candidate
from scfm.data.formats import open_anndata
from scfm.data.matrices import RawRows, SparseColumns, machine_numbers
from scfm.data.rawness import judge
from scfm.errors import CountsError, InputError

if TYPE_CHECKING:
    from anndata import AnnData

LOG2_SHARE = 1e-3  # by how much the sums of equal samples may differ


class LogValues:
    """Log1p values of one matrix of an AnnData.

    Attributes
    ----------
    place
        "X", "raw.X", "layers['log1p']".
    var
        One row a column.
    """

    def __init__(self, adata: "AnnData", layer: str | None = None):
        """Find the matrix and look at its values.

        Raises CountsError where it holds anything else than natural log1p values, naming the layer
        that does, if there is one.
        """
        candidates = open_anndata(adata).candidates
        chosen = _chosen(candidates, layer)
        self.place, self.var = chosen.label, chosen.read_var()
        matrix = chosen.open()
        found = judge(matrix.sample())
        if found.kind != "log":
            raise CountsError(f"{chosen.label} {found.found}. {_remedy(candidates, chosen)}")
        if _is_log2(matrix.sample()):
            raise CountsError(
                f"{chosen.label} looks like log2(x + 1): every sample sums to the same after "
                "2^x - 1. The recipe wants the natural logarithm: adata.X = adata.X * "
                "numpy.log(2)."
            )
        self._rows = matrix.load() if isinstance(matrix, SparseColumns) else matrix
        self.n_samples = self._rows.shape[0]

    def blocks(self) -> Iterator[RawRows]:
        """All samples in order, some at a time; every value is checked.

        Raises CountsError for a value that is negative or not finite.
        """
        for raw in self._rows.blocks():
            values = machine_numbers(raw.values)
            if not np.isfinite(values).all() or (values < 0).any():
                bad = values[~np.isfinite(values) | (values < 0)][0].item()
                raise CountsError(
                    f"{self.place} holds {bad:g}; log1p values are at least 0 and finite. Leave "
                    "such samples out, or begin with the counts."
                )
            yield RawRows(raw.indptr, raw.indices, values)


def _chosen(candidates: list[Candidate], layer: str | None) -> Candidate:
    if layer is None:
        return candidates[0]
    for candidate in candidates:
        if candidate.key == layer:
            return candidate
    raise InputError(
        f"There is no {layer!r}; layer= can be: {', '.join(c.key for c in candidates)}."
    )


def _remedy(candidates: list[Candidate], chosen: Candidate) -> str:
    for other in candidates:
        if other.label != chosen.label and judge(other.open().sample()).kind == "log":
            return f"{other.label} looks like log1p values: use layer={other.key!r}."
    return (
        "This recipe wants log1p of normalised expression: scanpy.pp.normalize_total(adata, "
        "target_sum=1e4), scanpy.pp.log1p(adata); or name the layer that holds it with layer=."
    )


def _is_log2(sample: RawRows) -> bool:
    """Whether samples sum to the same after 2^x - 1, and not after e^x - 1."""
    values = machine_numbers(sample.values).astype(np.float64)
    starts = sample.indptr[:-1][np.diff(sample.indptr) > 0]
    if len(starts) < 3:
        return False

    def agree(undone: np.ndarray) -> bool:
        sums = np.add.reduceat(undone, starts)
        return bool(np.ptp(sums) <= LOG2_SHARE * np.median(sums))

    return agree(np.exp2(values) - 1) and not agree(np.expm1(values))
