"""The gene tables that travel with the package: what a human or mouse name means.

in   scfm/data/resources/*.tsv.gz (sources and dates: SOURCES.md there), read once, when asked for
out  gene_table(species) for people; GeneNames(species) for alignment: name or Ensembl id -> gene
"""

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import pandas as pd

Species = Literal["human", "mouse"]

ENSEMBL_ID = re.compile(r"(ENS(?:MUS)?G\d{11})(\.\d+)?(?:_PAR_Y)?", re.ASCII)


@dataclass(frozen=True)
class GeneNames:
    """What the names of one species mean, as human genes.

    A human gene is written as its approved symbol; one that only Ensembl knows, as its Ensembl id.

    Attributes
    ----------
    approved
        Symbols in use, as they are. For mouse, those of genes with a human ortholog.
    other_names
        Current (newer than the HGNC list), previous and alias names of exactly one gene: kind,
        gene. Never a name that is in ``approved``.
    ambiguous
        Names of more than one gene.
    by_id
        Ensembl id without version to gene.
    unpaired
        Mouse symbols and ids without a one-to-one ortholog: known, but no human gene.
    """

    species: Species
    approved: dict[str, str]
    other_names: dict[str, tuple[str, str]]
    ambiguous: frozenset[str]
    by_id: dict[str, str]
    unpaired: frozenset[str] = frozenset()

    def knows(self, name: str) -> bool:
        """Whether ``name`` is in any of the tables."""
        match = ENSEMBL_ID.fullmatch(name)
        name = match[1] if match else name
        return (
            name in self.approved
            or name in self.by_id
            or name in self.other_names
            or name in self.ambiguous
            or name in self.unpaired
        )


@cache
def _read(name: str) -> tuple[list[str], ...]:
    """Columns of a shipped table. Ten times faster than pandas.read_csv on strings."""
    packed = (files("scfm.data") / "resources" / f"{name}.tsv.gz").read_bytes()
    cells = gzip.decompress(packed).decode().rstrip("\n").replace("\n", "\t").split("\t")
    width = _WIDTHS[name]
    return tuple(cells[width + column :: width] for column in range(width))


_WIDTHS = {
    "human_genes": 5,
    "human_names": 3,
    "mouse_genes": 3,
    "orthologs": 3,
    "scfoundation_genes": 1,
    "scmulan_tokens": 2,
}


def gene_table(species: Species = "human") -> pd.DataFrame:
    """All genes of a species, one a row; a fresh frame, yours to change.

    Parameters
    ----------
    species
        ``"human"``: columns symbol, ensembl_id, former_id, locus_group, biotype. HGNC's approved
        genes in code-point order of their symbol, then the genes that only Ensembl knows
        (locus_group ""). ``"mouse"``: ensembl_id, symbol, biotype, human_ortholog (approved
        symbol; "" without a one-to-one ortholog).

    Returns
    -------
    pandas.DataFrame
        Strings; unknown is "".
    """
    if species == "human":
        symbol, ensembl_id, former_id, locus_group, biotype = _read("human_genes")
        return pd.DataFrame(
            {
                "symbol": symbol,
                "ensembl_id": ensembl_id,
                "former_id": former_id,
                "locus_group": locus_group,
                "biotype": biotype,
            }
        )
    assert species == "mouse", species
    ensembl_id, symbol, biotype = _read("mouse_genes")
    human, _, mouse_id = _read("orthologs")
    pairs = dict(zip(mouse_id, human, strict=True))
    pairs.pop("", None)
    return pd.DataFrame(
        {
            "ensembl_id": ensembl_id,
            "symbol": symbol,
            "biotype": biotype,
            "human_ortholog": [pairs.get(gene_id, "") for gene_id in ensembl_id],
        }
    )


def scfoundation_symbols() -> tuple[str, ...]:
    """The 19,264 genes of the published scFoundation models, in their order."""
    (symbols,) = _read("scfoundation_genes")
    return tuple(symbols)


def scmulan_tokens() -> list[tuple[str, str]]:
    """The tokens of the published scMulan models in their order, each with what it is.

    "gene", "special", or the kind of metadata it is a word of: organ, cell_type, age,
    sample_status, region, seq_tech, sex.
    """
    return list(zip(*_read("scmulan_tokens"), strict=True))


def human_ensembl_ids(symbols: Sequence[str]) -> tuple[str, ...]:
    """The Ensembl id of each gene, by its approved or else any other name of one gene only.

    "" where the name is in no table, means several genes, or the gene has no id; and where two of
    the symbols would be one gene, for the one that is not its approved name.
    """
    names = gene_names("human")
    table = gene_table("human")
    table = table[table["locus_group"] != ""]  # Ensembl may bear a symbol of HGNC's twice
    id_of = dict(zip(table["symbol"], table["ensembl_id"], strict=True)) | {"": ""}
    own, ids = set(symbols), []
    for symbol in symbols:
        gene = names.approved.get(symbol) or names.other_names.get(symbol, ("", ""))[1]
        is_elsewhere = gene != symbol and gene in own
        gene_id = gene if ENSEMBL_ID.fullmatch(gene) else id_of[gene]
        ids.append("" if is_elsewhere else gene_id)
    return tuple(ids)


@cache
def gene_names(species: Species) -> GeneNames:
    """Look-up tables of a species, built once."""
    return _human_names() if species == "human" else _mouse_names()


def _human_names() -> GeneNames:
    symbols, ids, former_ids, groups, _ = _read("human_genes")
    n_approved = groups.index("")  # HGNC's genes come first
    genes = symbols[:n_approved] + ids[n_approved:]
    by_id = dict(zip(former_ids, genes, strict=True)) | dict(zip(ids, genes, strict=True))
    by_id.pop("", None)
    # several of Ensembl's own genes may bear one name (U6): any of them will do, none is HGNC's
    approved = dict(zip(symbols[n_approved:], ids[n_approved:], strict=True))
    approved |= dict(zip(genes[:n_approved], genes[:n_approved], strict=True))
    approved.pop("", None)
    rows = list(zip(*_read("human_names"), strict=True))
    other_names = {name: (kind, gene) for name, kind, gene in rows if "|" not in gene}
    # an approved gene's new name (C19orf48P, once C19orf48) that Ensembl gives a second gene, too
    for name in approved.keys() & other_names.keys():
        del approved[name]
    return GeneNames(
        species="human",
        approved=approved,
        other_names=other_names,
        ambiguous=frozenset(name for name, _, gene in rows if "|" in gene),
        by_id=by_id,
    )


def _mouse_names() -> GeneNames:
    ids, symbols, _ = _read("mouse_genes")
    human, mouse, mouse_ids = _read("orthologs")
    by_id = dict(zip(mouse_ids, human, strict=True))
    by_id.pop("", None)
    # the pairs' own spelling goes before today's: a symbol may have moved to another gene
    today = {
        symbol: by_id[gene_id]
        for gene_id, symbol in zip(ids, symbols, strict=True)
        if gene_id in by_id
    }
    by_symbol = today | dict(zip(mouse, human, strict=True))
    return GeneNames(
        species="mouse",
        approved=by_symbol,
        other_names={},
        ambiguous=frozenset(),
        by_id=by_id,
        unpaired=frozenset(ids).difference(by_id) | (frozenset(symbols) - by_symbol.keys() - {""}),
    )
