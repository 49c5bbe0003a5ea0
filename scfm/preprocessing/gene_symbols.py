"""Data under whatever gene names -> the same cells over one list of genes, and what became of each.

in   an AnnData of raw counts, a list of genes
out  a new AnnData over those genes, columns of one gene settled; a report, one row a column

Models open data themselves and need none of this (`scfm.tl.embed` matches names as it reads). It is
for tools that want the list, and to see column by column what the matching did.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Int

from scfm.data.counts import CountRows
from scfm.data.gene_reading import (
    AMBIGUOUS,
    OUTSIDE,
    Columns,
    VocabularyGenes,
    read_names,
    settle,
)
from scfm.data.gene_tables import gene_names, human_ensembl_ids
from scfm.data.read import CountsSource, open_counts
from scfm.errors import ConfigError, DuplicateGeneError, GeneCoverageError
from scfm.tokens.shared_columns import rounded_mean
from scfm.tokens.vocab import GeneVocab
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

CHUNK_CELLS = 4096
NAMES_SHOWN = 5
UNCHANGED, CHANGED = "No Change", "Changed"
SEVERAL, ABANDONED = "Multiple Candidates", "Abandoned"


def unify_genes(
    adata: "AnnData",
    *,
    symbols: str | Sequence[str] = "human",
    collisions: Literal["rounded_mean", "sum", "refuse"] = "rounded_mean",
    missing: Literal["leave_out", "zero"] = "leave_out",
    layer: str | None = None,
) -> "tuple[AnnData, pd.DataFrame]":
    """The same cells over one list of human genes, and what became of each column.

    Names are looked up as everywhere in scfm (`scfm.data.genes`): the list's own symbol, an Ensembl
    id, HGNC's approved symbol, a previous symbol or an alias of one gene only. An alias of a gene
    that the data also name otherwise is probably another gene, and is not used.

    Parameters
    ----------
    adata
        Raw counts in X, layers["counts"] or raw. Not changed; read in chunks where it is backed.
    symbols
        ``"human"`` (`GeneVocab.human`), ``"scmulan"`` (the 2,000 genes of the published model), or
        a list of symbols.
    collisions
        Counts of several columns of one gene: their mean rounded half to even, as GeneSymbolUniform
        has it, so that what the original was shown can be made again; their ``"sum"``, which keeps
        every molecule; or ``"refuse"`` the data.
    missing
        Genes of the list that no column is: ``"leave_out"``, or columns of ``"zero"``, for tools
        that want the list whole. A zero then no longer means that a gene was looked for.
    layer
        As in `scfm.data.read.open_counts`.

    Returns
    -------
    anndata.AnnData
        X: raw counts, CSR, genes in the order of the list; obs and obsm copied; var: ``ensembl_id``
        and ``n_columns``, how many columns a gene was made of.
    pandas.DataFrame
        By column name: ``state`` ("No Change", "Changed", "Multiple Candidates", "Abandoned"),
        ``gene`` (of the list, "" for none), ``reason``.

    Raises
    ------
    ConfigError
        An unknown list or way.
    CountsError
        No raw counts.
    DuplicateGeneError
        Columns of one gene with ``collisions="refuse"``.
    GeneCoverageError
        No column is a gene of the list.

    Source: reference/GeneSymbolUniform/pyGSUni.py:46-293 of SuperBianC/scMulan.
    """
    import anndata as ad

    _check_choice("collisions", collisions, ("rounded_mean", "sum", "refuse"))
    _check_choice("missing", missing, ("leave_out", "zero"))
    listed, ensembl_ids = _list_of(symbols)
    vocabulary = VocabularyGenes(listed, ensembl_ids)
    source = open_counts(adata, layer=layer, keep_empty=True)
    columns = settle(read_names(source.var, vocabulary, "human"), vocabulary)
    n_columns = np.bincount(columns.meanings[columns.meanings >= 0], minlength=len(listed))
    _refuse(columns, n_columns, listed, collisions, source.name)
    kept = np.arange(len(listed)) if missing == "zero" else np.flatnonzero(n_columns)
    counts = _unified(source, columns.meanings, kept, n_columns, collisions)
    var = pd.DataFrame(
        {"ensembl_id": np.array(ensembl_ids, object)[kept], "n_columns": n_columns[kept]},
        index=pd.Index([listed[gene] for gene in kept]),
    )
    unified = ad.AnnData(counts, obs=source.obs.copy(), var=var)
    for key, value in adata.obsm.items():
        unified.obsm[key] = value.copy()
    unified.uns["scfm"] = {
        "unify_genes": {
            "symbols": symbols if isinstance(symbols, str) else "a list",
            "n_genes": len(listed),
            "collisions": collisions,
            "missing": missing,
            "counts_from": source.counts_from,
            "scfm": __version__,
        }
    }
    return unified, _report(columns, listed)


def _list_of(symbols: str | Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(symbols, str):
        _check_choice("symbols", symbols, ("human", "scmulan"))
        vocab = GeneVocab.human() if symbols == "human" else GeneVocab.scmulan()
        return vocab.symbols, vocab.ensembl_ids
    listed = tuple(map(str, symbols))
    twice = [symbol for symbol in dict.fromkeys(listed) if listed.count(symbol) > 1]
    if twice or not listed:
        raise ConfigError(
            f"symbols has {twice[0]!r} twice. Name each gene once."
            if twice
            else "symbols is an empty list. Name the genes, or take 'human'."
        )
    return listed, human_ensembl_ids(listed)


def _check_choice(name: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ConfigError(f"{name} is {found!r}; known are {', '.join(known)}.")


def _refuse(
    columns: Columns, n_columns: np.ndarray, listed: Sequence[str], collisions: str, name: str
) -> None:
    if not n_columns.any():
        raise GeneCoverageError(
            f"None of the {len(columns.names):,} columns of {name} is one of the {len(listed):,} "
            f"genes wanted: {columns.sources} begin {', '.join(map(repr, columns.names[:3]))}. Put "
            "HGNC symbols or Ensembl gene ids of human genes into var.index or a column of var."
        )
    if collisions == "refuse" and (n_columns > 1).any():
        shown = [
            f"{listed[gene]}: {', '.join(columns.names[columns.meanings == gene])}"
            for gene in np.flatnonzero(n_columns > 1)[:NAMES_SHOWN]
        ]
        raise DuplicateGeneError(
            f"{(n_columns > 1).sum():,} genes are several columns of {name} ({'; '.join(shown)}). "
            "Take collisions='sum' or 'rounded_mean', or keep one column of each."
        )


def _unified(
    source: CountsSource,
    meanings: Int[np.ndarray, " column"],
    kept: Int[np.ndarray, " kept"],
    n_columns: Int[np.ndarray, " gene"],
    collisions: str,
) -> sp.csr_matrix:
    place = np.full(len(n_columns), -1)
    place[kept] = np.arange(len(kept))
    used = np.flatnonzero(meanings >= 0)
    ones = np.ones(len(used), dtype=np.float64)
    shape = (len(meanings), len(kept))
    to_gene = sp.csr_matrix((ones, (used, place[meanings[used]])), shape=shape)
    parts = [_part(rows, to_gene) for rows in source.chunks(CHUNK_CELLS)]
    counts = sp.csr_matrix(sp.vstack(parts, format="csr"))
    if collisions == "rounded_mean":
        counts.data = rounded_mean(counts.data, n_columns[kept][counts.indices])
        counts.eliminate_zeros()
    counts.data = counts.data.astype(np.float32)
    return counts


def _part(rows: CountRows, to_gene: sp.csr_matrix) -> sp.csr_matrix:
    n_columns = len(to_gene.indptr) - 1
    shape = (rows.n_cells, n_columns)
    part = sp.csr_matrix((rows.counts.astype(np.float64), rows.indices, rows.indptr), shape=shape)
    summed = sp.csr_matrix(part @ to_gene)
    summed.sort_indices()
    return summed


def _report(columns: Columns, listed: Sequence[str]) -> pd.DataFrame:
    tables, rows = gene_names("human"), []
    for name, meaning in zip(columns.names, columns.meanings.tolist(), strict=True):
        gene = listed[meaning] if meaning >= 0 else ""
        kind, other = tables.other_names.get(name, ("", ""))
        if meaning >= 0:
            state = UNCHANGED if gene == name else CHANGED
            reason = "" if gene == name else (f"{kind} name" if kind else "another name")
        elif meaning == AMBIGUOUS and other:
            state, reason = SEVERAL, f"alias of {other}, which another column is"
        elif meaning == AMBIGUOUS:
            state, reason = SEVERAL, "a name of several genes"
        else:
            outside = meaning == OUTSIDE
            state, reason = ABANDONED, "a gene not on the list" if outside else "in no table"
        rows.append((state, gene, reason))
    frame = pd.DataFrame(rows, columns=pd.Index(["state", "gene", "reason"]))
    frame.index = pd.Index(columns.names, name="column")
    return frame
