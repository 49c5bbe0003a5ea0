"""Files of labelled cells -> one table of counts and labels that all methods of a run share.

in   one data set, or a reference and a query; their obs columns of labels; a mapping of labels
out  LabelledCells: raw counts in CSR on the genes both sets have, a label for each cell

Cells without a label are left out and counted. Genes of two sets are matched by today's Ensembl
ids where names are known (scfm.data.identity), so that symbols meet ids.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Int, Shaped

from scfm.data.counts import CountRows
from scfm.data.gene_reading import VocabularyGenes, read_names
from scfm.data.identity import identify
from scfm.data.read import open_counts
from scfm.data.split import missing_column
from scfm.errors import GeneCoverageError, LabelError, ScfmWarning
from scfm.evaluate.celltype import CommonLabels, common_labels
from scfm.tokens.vocab import GeneVocab

if TYPE_CHECKING:
    from anndata import AnnData

MOST_CODES = 200  # distinct numbers in a label column beyond which it is a measurement
FEWEST_CELLS = 2  # of a label: one cell cannot be learned from and judged
CHUNK_CELLS = 4096
MOSTLY_UNIQUE = 0.9  # share of differing texts from which a column of var names genes
FEWEST_SHARED = 50  # genes; of fewer no method can tell types apart


@dataclass(frozen=True)
class LabelledCells:
    """Cells with their raw counts and labels.

    Attributes
    ----------
    counts
        Raw counts of all columns.
    genes
        One key a column: an Ensembl id where the gene is known. All differ.
    names
        Every column's names as the file has them: its index and other columns of text.
    rows
        Row of each cell in the source, where cells without a label were left out.
    left_out
        Cells left out, by reason or by their own label.
    """

    name: str
    counts: sp.csr_matrix = field(repr=False)
    genes: list[str] = field(repr=False)
    names: list[tuple[str, ...]] = field(repr=False)
    species: str
    obs: pd.DataFrame = field(repr=False)
    labels: Shaped[np.ndarray, " cell"] = field(repr=False)
    rows: Int[np.ndarray, " cell"] = field(repr=False)
    left_out: Mapping[str, int]

    @property
    def n_cells(self) -> int:
        return len(self.labels)

    def part(self, kept: Bool[np.ndarray, " cell"], why: str) -> "LabelledCells":
        """The cells that are kept; the others are counted under ``why``."""
        n_lost = int((~kept).sum())
        at = np.flatnonzero(kept)
        return LabelledCells(
            *(self.name, self.counts[at], self.genes, self.names, self.species),
            *(self.obs.iloc[at], self.labels[at], self.rows[at]),
            {**self.left_out, **({why: n_lost} if n_lost else {})},
        )

    def groups(self, column: str) -> Shaped[np.ndarray, " cell"]:
        """An obs column as text, "" where a cell has no value. Raises LabelError without it."""
        if column not in self.obs:
            raise missing_column(column, self.name, [str(known) for known in self.obs.columns])
        values = self.obs[column].astype(object)
        return values.where(values.notna(), "").astype(str).to_numpy(dtype=object)


def read_labelled(
    data: "str | Path | AnnData",
    label_key: str,
    *,
    mapping: Mapping[str, str] | None = None,
    layer: str | None = None,
    species: str = "auto",
) -> LabelledCells:
    """Read a data set into memory (CSR) with its labels.

    ``mapping`` puts labels in common terms; an empty one leaves the cells out. Raises LabelError
    where the column is absent, holds measurements or fewer than two labels; warns where labels look
    like codes.
    """
    with open_counts(data, layer=layer) as source:
        obs, name = source.obs, Path(source.name).name
        if label_key not in obs:
            raise missing_column(label_key, name, [str(known) for known in obs.columns])
        labels = text_labels(obs[label_key], label_key, name)
        found = mapped(labels, mapping, name)
        rows = np.flatnonzero(found.is_kept)
        counts = _matrix(list(source.chunks(CHUNK_CELLS)), len(source.var))[rows]
        genes, kind = gene_keys(source.var, species)
    cells = LabelledCells(
        *(name, counts, genes, _names(source.var), kind, obs.iloc[rows]),
        *(found.labels[rows].astype(str).astype(object), rows, found.left_out),
    )
    return cells


def text_labels(column: Any, label_key: str, name: str) -> Shaped[np.ndarray, " cell"]:
    """Labels as text, None where a cell has none. Refuses measurements, warns of codes."""
    values = column.astype(object)
    is_missing = (values.isna() | (values.astype(str).str.strip() == "")).to_numpy()
    texts = values.astype(str).to_numpy(dtype=object)
    distinct = sorted(set(texts[~is_missing]))
    numbers: Any = pd.to_numeric(pd.Series(distinct, dtype=object), errors="coerce")
    if len(distinct) and bool(numbers.notna().all()):
        if len(distinct) > MOST_CODES or bool((numbers % 1 != 0).any()):
            raise LabelError(
                f"obs['{label_key}'] of {name} holds {len(distinct):,} different numbers such as "
                f"{distinct[0]}: a measurement, not cell types. Name the column of types: --label."
            )
        warnings.warn(
            f"obs['{label_key}'] of {name} holds codes ({', '.join(distinct[:5])} ...), not names. "
            "Scores hold, but no reader will know what they are of: map them first, "
            f"adata.obs['names'] = adata.obs['{label_key}'].astype(str).map({{...}}).",
            category=ScfmWarning,
            stacklevel=2,
        )
    texts[is_missing] = None
    return texts


def mapped(
    labels: Shaped[np.ndarray, " cell"], mapping: Mapping[str, str] | None, name: str
) -> CommonLabels:
    """Labels in common terms; without a mapping their own."""
    if mapping is None:
        mapping = {str(label): str(label) for label in labels if label is not None}
    return common_labels(labels, mapping, name=name)


def require_classes(
    cells: LabelledCells, label_key: str, fewest: int = FEWEST_CELLS
) -> LabelledCells:
    """Without labels of too few cells; LabelError where fewer than two labels are left."""
    names, n_cells = np.unique(cells.labels.astype(str), return_counts=True)
    for label in names[n_cells < fewest]:
        cells = cells.part(cells.labels != label, f"{label} (fewer than {fewest} cells)")
    left = sorted(set(cells.labels))
    if len(left) < 2:
        what = f"only '{left[0]}'" if left else "no label"
        raise LabelError(
            f"{cells.name}: {what} is left in obs['{label_key}'] with at least {fewest} cells; "
            "wanted two labels or more, or there is nothing to tell apart. Name another column "
            "with --label."
        )
    return cells


def on_shared_genes(
    reference: LabelledCells, query: LabelledCells
) -> tuple[Int[np.ndarray, " gene"], Int[np.ndarray, " gene"]]:
    """Columns of either set that hold the genes both measure, in the reference's order.

    Raises GeneCoverageError for different species, or where hardly any gene is shared.
    """
    if reference.species != query.species:
        raise GeneCoverageError(
            f"{reference.name} is {reference.species} and {query.name} is {query.species}; wanted "
            "one species. If that is a mistake of the guess, say which: --species human."
        )
    pairs = _matched(reference, query)
    ours, theirs = np.array(list(pairs), np.int64), np.array(list(pairs.values()), np.int64)
    if len(ours) < FEWEST_SHARED:
        raise GeneCoverageError(
            f"{reference.name} and {query.name} share {len(ours)} genes; wanted at least "
            f"{FEWEST_SHARED}. The first has {', '.join(reference.genes[:3])} ..., the second "
            f"{', '.join(query.genes[:3])} .... Look at both: scfm info FILE."
        )
    return ours, theirs


def _matched(reference: LabelledCells, query: LabelledCells) -> dict[int, int]:
    """Column of the query by column of the reference, ascending: by key, else by the same name.

    Names alone would miss a gene that was renamed, keys alone those that no table knows, such as
    the clone names of unnamed transcripts.
    """
    place = {gene: at for at, gene in enumerate(query.genes)}
    pairs = {i: place[gene] for i, gene in enumerate(reference.genes) if gene in place}
    taken = set(pairs.values())
    by_name = {
        name: at
        for at, names in reversed(list(enumerate(query.names)))
        for name in names
        if at not in taken
    }
    for i, names in enumerate(reference.names):
        found = next((by_name[name] for name in names if name in by_name), None)
        if i not in pairs and found is not None and found not in taken:
            pairs[i] = found
            taken.add(found)
    return dict(sorted(pairs.items()))


def _names(var: pd.DataFrame) -> list[tuple[str, ...]]:
    """The index, and columns whose texts name genes: nearly all differ, unlike a biotype's."""
    columns = [var.index.astype(str)]
    for column in var.columns:
        if not pd.api.types.is_numeric_dtype(var[column]):
            texts = var[column].astype(str)
            if texts.nunique() > MOSTLY_UNIQUE * len(texts):
                columns.append(pd.Index(texts))
    return list(zip(*columns, strict=True))


def _matrix(parts: list[CountRows], n_columns: int) -> sp.csr_matrix:
    blocks = [sp.csr_matrix((p.counts, p.indices, p.indptr), (p.n_cells, n_columns)) for p in parts]
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def gene_keys(var: pd.DataFrame, species: str) -> tuple[list[str], str]:
    """Keys of the columns and the species, "unknown" where no name is known."""
    vocabulary = VocabularyGenes(GeneVocab.human().symbols, GeneVocab.human().ensembl_ids)
    reading = read_names(var, vocabulary, species)[0]  # pyright: ignore[reportArgumentType]
    kind = "mouse" if reading.species == "mouse" else "human"
    return identify(var, kind, vocabulary).keys, kind if reading.recognised else "unknown"
