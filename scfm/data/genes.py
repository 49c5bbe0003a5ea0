"""Which column of the data is which gene of a vocabulary: said out loud, refused if too few.

in   var (names in its index and string columns), the vocabulary's symbols and Ensembl ids
out  GeneAlignment: column -> position among the vocabulary's genes, and a GeneReport

A name is looked up in this order, exactly as spelled: the vocabulary's own symbol; an Ensembl id,
version stripped; HGNC's approved symbol; Ensembl's symbol of today; a previous symbol of exactly
one gene; an alias of exactly one gene. A name of several genes is ambiguous and not used.

Two columns of one gene are duplicates: their counts add up (or are refused). So is a previous
symbol beside the approved one, as files merged over the years have it. An *alias* beside the
approved symbol is not used: whoever named the column knew the gene by its approved name, so the
other is probably another gene. "ABC-1" and "ABC.1", as scanpy and R make names unique, are "ABC"
where "ABC" is in the same column of names and the longer name is in no table.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Int

from scfm.data.counts import CountRows
from scfm.data.gene_reading import (
    AMBIGUOUS,
    OUTSIDE,
    UNRECOGNISED,
    Columns,
    Reading,
    VocabularyGenes,
    read_names,
    settle,
)
from scfm.data.gene_report import EXAMPLES, GeneReport, percent
from scfm.data.gene_tables import ENSEMBL_ID, Species, gene_names, gene_table
from scfm.errors import DuplicateGeneError, EmptyCellError, GeneCoverageError

__all__ = [
    "GeneAlignment",
    "GeneReport",
    "align",
    "covered",
    "gene_table",
    "require_coverage",
    "require_genes",
    "require_share",
]


@dataclass(frozen=True)
class GeneAlignment:
    """Columns of the data as genes of the vocabulary.

    Attributes
    ----------
    column_to_gene
        Position among the vocabulary's genes (not token id); -1 = not used.
    measured
        Positions of the genes the data measures, ascending.
    report
        What became of every column.
    """

    column_to_gene: Int[np.ndarray, " column"]
    measured: Int[np.ndarray, " gene"]
    report: GeneReport


def align(
    var: pd.DataFrame,
    symbols: Sequence[str],
    ensembl_ids: Sequence[str],
    *,
    species: Literal["auto", "human", "mouse"] = "auto",
    orthologs: bool = False,
    duplicates: Literal["sum", "refuse", "rounded_mean"] = "sum",
    name: str = "the data",
) -> GeneAlignment:
    """Find the vocabulary's genes among the columns of the data.

    Of ``var.index`` and every string column of ``var``, the one with the most names that are known
    genes is read; the index where they tie. Only columns it leaves open (a retired Ensembl id, an
    ambiguous symbol) are looked up in the next best, and only genes still free are taken there.

    Parameters
    ----------
    var
        One row a column of the counts.
    symbols, ensembl_ids
        The vocabulary's (human) genes in order; an id may be "".
    species
        ``"auto"`` takes the one whose tables recognise more of the names.
    orthologs
        Map mouse genes to their one-to-one human orthologs. No effect on human data.
    duplicates
        Several columns of one gene: ``"refuse"`` the data, or what becomes of their counts later
        on: their ``"sum"``, or the ``"rounded_mean"`` over the gene's columns.
    name
        The data, for messages.

    Raises
    ------
    GeneCoverageError
        No name is a gene of the vocabulary, or the data is mouse and ``orthologs`` is False.
    DuplicateGeneError
        Several columns of one gene and ``duplicates="refuse"``.
    """
    vocabulary = VocabularyGenes(symbols, ensembl_ids)
    readings = read_names(var, vocabulary, species)
    if readings[0].species == "mouse" and not orthologs:
        raise GeneCoverageError(_mouse_message(readings[0], species == "auto", name))
    columns = settle(readings, vocabulary)
    report = _report(columns, vocabulary, readings[0].species, species == "auto", name)
    if report.matched == 0:
        raise GeneCoverageError(_nothing_matched(report))
    if duplicates == "refuse" and report.duplicated:
        raise DuplicateGeneError(
            f"{report.duplicated:,} columns of {name} repeat a gene "
            f"({', '.join(report.examples['duplicated'])}). Sum their counts with "
            "duplicates='sum', or keep one column of each."
        )
    column_to_gene = np.maximum(columns.meanings, -1).astype(np.int32)
    measured = np.unique(column_to_gene[column_to_gene >= 0])
    return GeneAlignment(column_to_gene, measured, report)


def covered(alignment: GeneAlignment, rows: CountRows) -> float:
    """Share of the counts of ``rows`` that fall on matched columns, 0 to 1."""
    total = rows.counts.sum(dtype=np.float64)
    if total == 0:
        raise EmptyCellError(
            f"The {rows.n_cells:,} cells looked at in {alignment.report.name} have no counts. "
            "Filter them with scanpy.pp.filter_cells(adata, min_counts=1)."
        )
    is_matched = alignment.column_to_gene >= 0
    return float(rows.counts[is_matched[rows.indices]].sum(dtype=np.float64) / total)


def require_coverage(alignment: GeneAlignment, rows: CountRows, minimum: float = 0.5) -> GeneReport:
    """The report with ``counts_covered`` of ``rows``; GeneCoverageError below ``minimum``."""
    return require_share(alignment, covered(alignment, rows), minimum)


def require_share(
    alignment: GeneAlignment, share: float, minimum: float, what: str = "counts"
) -> GeneReport:
    """The same where the share that falls on matched columns is known, of counts or values."""
    report = replace(alignment.report, counts_covered=share)
    if share < minimum:
        raise GeneCoverageError(
            f"{percent(share)} of the {what} of {report.name} fall on genes the model knows; "
            f"wanted at least {percent(minimum)}. {_cause(report)}\n{report}"
        )
    return report


def require_genes(alignment: GeneAlignment, rows: CountRows, minimum: float = 0.5) -> GeneReport:
    """The same for a vocabulary of chosen genes, which hold few of any cell's counts.

    What must reach the minimum is the share of the vocabulary's genes that the data measure.
    """
    report = replace(alignment.report, counts_covered=covered(alignment, rows))
    share = 1 - report.missing / report.n_genes
    if share < minimum:
        raise GeneCoverageError(
            f"{percent(share)} of the model's {report.n_genes:,} genes are columns of "
            f"{report.name}; wanted at least {percent(minimum)}. "
            f"{report.likely_cause or _FEW_GENES}\n{report}"
        )
    return report


_FEW_GENES = (
    "Is this a panel, or were genes filtered out? Take the matrix with all genes; or, to go on "
    "with those there are, lower the minimum coverage."
)


def _report(
    columns: Columns, vocabulary: VocabularyGenes, species: Species, guessed: bool, name: str
) -> GeneReport:
    names, meanings = columns.names, columns.meanings
    is_matched = meanings >= 0
    genes, columns_of = np.unique(meanings[is_matched], return_counts=True)
    missing = np.setdiff1d(np.arange(len(vocabulary.symbols)), genes)
    renamed = _renamed(columns, vocabulary) if species == "human" else []
    unused = {
        "ambiguous": names[meanings == AMBIGUOUS],
        "outside_vocabulary": names[meanings == OUTSIDE],
        "unrecognised": names[meanings == UNRECOGNISED],
    }
    repeated = genes[columns_of > 1]
    examples = {
        "renamed": [f"{names[i]} -> {vocabulary.symbols[meanings[i]]}" for i in renamed[:EXAMPLES]],
        "duplicated": [
            f"{vocabulary.symbols[gene]}: {', '.join(names[meanings == gene])}"
            for gene in repeated[:EXAMPLES]
        ],
        "missing": [vocabulary.symbols[gene] for gene in missing[:EXAMPLES]],
    } | {kind: list(some[:EXAMPLES]) for kind, some in unused.items()}
    return GeneReport(
        name=name,
        species=species,
        species_guessed=guessed,
        orthologs=species == "mouse",
        id_kind=columns.sources,
        n_columns=len(meanings),
        n_genes=len(vocabulary.symbols),
        matched=int(is_matched.sum()),
        renamed=len(renamed),
        duplicated=int(is_matched.sum()) - len(genes),
        missing=len(missing),
        likely_cause=_likely_cause(unused["unrecognised"], len(meanings), species),
        examples={kind: tuple(some) for kind, some in examples.items() if some},
        **{kind: len(some) for kind, some in unused.items()},
    )


def _renamed(columns: Columns, vocabulary: VocabularyGenes) -> list[int]:
    """Columns matched under another symbol than the vocabulary's."""
    return [
        column
        for column in np.flatnonzero(columns.meanings >= 0).tolist()
        if columns.names[column] != vocabulary.symbols[columns.meanings[column]]
        and not ENSEMBL_ID.fullmatch(columns.names[column])
    ]


_LOOKS_LIKE = (
    (r"ENS(?:MUS)?T\d+.*", "transcript ids: sum the transcripts of each gene first"),
    (r"ENS[A-Z]{3}G\d+.*", "Ensembl ids of another species than human or mouse"),
    (
        r"(?:GRCh|GRCm|hg|mm)\d+_.*",
        "genes with a genome's name in front: keep one genome and strip the prefix",
    ),
    (r"(?:chr)?\w+[:_-]\d+[-_]\d+", "genomic intervals: scfm reads gene expression, not peaks"),
    (r"\d+(?:\.0)?", "numbers (row numbers or Entrez ids): put symbols or Ensembl ids there"),
    (r"HGNC:\d+", "HGNC ids: put symbols or Ensembl ids there"),
    (r".+[_|:]ENS(?:MUS)?G\d{11}.*", "two names in one: split them into two columns of var"),
    (r"ENS(?:MUS)?G\d{11}[_|:].+", "two names in one: split them into two columns of var"),
)


def _likely_cause(unrecognised: np.ndarray, n_columns: int, species: Species) -> str:
    """What most unrecognised names look like, where they are most of the data; else ""."""
    if 2 * len(unrecognised) <= n_columns:
        return ""

    def is_most(fits: Callable[[str], object]) -> bool:
        return 2 * sum(bool(fits(name)) for name in unrecognised) > len(unrecognised)

    other: Species = "mouse" if species == "human" else "human"
    if is_most(gene_names(other).knows):
        return f"Most names are {other} genes: leave the species to be guessed ('auto')."
    for pattern, cause in _LOOKS_LIKE:
        if is_most(re.compile(pattern, re.ASCII).fullmatch):
            return f"Most names look like {cause}."
    if is_most(lambda name: name.upper() in gene_names("human").approved):
        return (
            "Most names are human symbols in another letter case: "
            "spell them as HGNC does (var_names.str.upper())."
        )
    return ""


def _cause(report: GeneReport) -> str:
    """What to check first when too few counts are covered."""
    if report.likely_cause:
        return report.likely_cause
    if 2 * report.unrecognised > report.n_columns:
        return (
            f"Most names in {report.id_kind.partition(' in ')[2]} are in no table; scfm wants "
            "HGNC symbols or Ensembl gene ids in var.index or in a column of var."
        )
    if report.ambiguous + report.outside_vocabulary > report.matched:
        return (
            "Most columns are known genes outside the model's vocabulary (non-coding, "
            "immunoglobulin, pseudogenes, or without an ortholog): is this a panel, or another "
            "assay than mRNA counts?"
        )
    return (
        "Few columns carry most of the counts: look at the highest ones "
        "(scanpy.pl.highest_expr_genes); antibody tags, spike-ins or a non-coding RNA may be "
        "counted along. To go on all the same, lower the minimum coverage."
    )


def _nothing_matched(report: GeneReport) -> str:
    kinds = ("unrecognised", "outside_vocabulary", "ambiguous")
    shown = [name for kind in kinds for name in report.examples.get(kind, ())][:3]
    return (
        f"None of the {report.n_columns:,} columns of {report.name} is a gene the model knows: "
        f"{report.id_kind} begin {', '.join(map(repr, shown))}. {_cause(report)}"
    )


def _mouse_message(reading: Reading, guessed: bool, name: str) -> str:
    known = f"{reading.recognised:,} of {len(reading.unique):,} names in {reading.place}"
    found = f"looks like mouse: {known} are mouse genes" if guessed else "is mouse, as you said"
    otherwise = " If it is human, say species='human'." if guessed else ""
    return (
        f"{name} {found}; the model knows human genes. Map them by one-to-one orthologs: "
        "--set input.orthologs=true for scfm pretrain, --orthologs for the other commands, "
        f"orthologs=True in Python.{otherwise}"
    )
