"""Which genes vary most from cell to cell: the ones a sentence is made of.

in   PoolMembers opened with GeneVocab.human()
out  positions in that vocabulary

By the variance of analytic Pearson residuals, Lause et al. 2021, doi:10.1186/s13059-021-02451-7:
how far counts are from what depth and a gene's mean make expected, under a negative binomial. Of
sorted blood cells the 2,000 genes chosen so hold half of all counts, where as many by normalised
dispersions hold a sixth. Two passes, so no more than a chunk of cells is held.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scfm.data.blocked import in_blocks
from scfm.errors import InputError
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab

CELLS_SAMPLED = 20_000
CHUNK_CELLS = 256
FEWEST_CELLS, RAREST = 3, 0.001  # cells that express a gene, in number and as a share
OVERDISPERSION = 100.0  # theta


class _Sample(NamedTuple):
    """Some cells' raw counts of the human genes, in coordinates, and their totals."""

    cell: Int[np.ndarray, " nonzero"]
    gene: Int[np.ndarray, " nonzero"]
    counts: Float[np.ndarray, " nonzero"]
    totals: Float[np.ndarray, " cell"]


def variable_genes(members: Sequence[PoolMember], n_genes: int) -> Int[np.ndarray, " gene"]:
    """Positions in `GeneVocab.human` of the genes that vary most, ascending.

    In at most CELLS_SAMPLED cells spread over the data, among genes that 0.1 % of these (and 3)
    express: of others little can be said. Where there are no more than wanted, all of them. Raises
    InputError for data without cells. Oracle: scanpy's flavour "pearson_residuals".
    """
    shares = _shares(members)
    sums, n_expressing = np.zeros((2, GeneVocab.human().n_genes))
    n_sampled, total = 0, 0.0
    for sample in _samples(shares):
        sums += np.bincount(sample.gene, weights=sample.counts, minlength=len(sums))
        n_expressing += np.bincount(sample.gene, minlength=len(sums))
        n_sampled, total = n_sampled + len(sample.totals), total + sample.totals.sum()
    expressed = np.flatnonzero(n_expressing >= max(FEWEST_CELLS, RAREST * n_sampled))
    if len(expressed) <= n_genes:
        return expressed
    share = sums[expressed] / total
    residuals = (residuals_of(sample, expressed, share, n_sampled) for sample in _samples(shares))
    moments = sum(np.stack([r.sum(0), np.square(r).sum(0)]) for r in residuals)
    mean, square = np.asarray(moments) / n_sampled
    ranked = np.argsort(-(square - mean**2), kind="stable")
    return np.sort(expressed[ranked[:n_genes]])


def residuals_of(
    sample: _Sample,
    genes: Int[np.ndarray, " gene"],
    share: Float[np.ndarray, " gene"],
    n_cells: int,
) -> Float[np.ndarray, "cell gene"]:
    """Pearson residuals, clipped at the root of the number of all cells."""
    place = np.full(GeneVocab.human().n_genes, -1)
    place[genes] = np.arange(len(genes))
    is_wanted = place[sample.gene] >= 0
    counts = np.zeros((len(sample.totals), len(genes)))
    counts[sample.cell[is_wanted], place[sample.gene[is_wanted]]] = sample.counts[is_wanted]
    expected = sample.totals[:, None] * share
    spread = np.sqrt(expected + expected**2 / OVERDISPERSION)
    limit = np.sqrt(n_cells)
    return np.clip((counts - expected) / spread, -limit, limit)


def _shares(members: Sequence[PoolMember]) -> list[tuple[PoolMember, int]]:
    """How many cells of each member are looked at: in proportion, at least one."""
    sizes = np.array([member.source.n_cells for member in members])
    if sizes.sum() == 0:
        raise InputError("The data hold no cells to choose genes by.")
    wanted = sizes * min(1.0, CELLS_SAMPLED / sizes.sum())
    return [
        (member, max(1, round(share)))
        for member, n, share in zip(members, sizes, wanted, strict=True)
        if n
    ]


def _samples(shares: Sequence[tuple[PoolMember, int]]) -> Iterator[_Sample]:
    for member, n_cells in shares:
        yield from _of_member(member, n_cells)


def _of_member(member: PoolMember, n_cells: int) -> Iterator[_Sample]:
    """Cells spread over a member's blocks."""
    vocab = member.tokenizer.vocab
    assert vocab == GeneVocab.human(), "open the data with GeneVocab.human()"
    source = in_blocks(member.source)
    first, size = source.blocks.first, source.blocks.n_cells
    n_blocks = min(len(first), max(1, round(n_cells / size.mean())))
    spread = np.linspace(0, len(first) - 1, n_blocks).round().astype(np.int64)
    first, size = first[spread], size[spread]
    cells = np.concatenate([np.arange(f, f + n) for f, n in zip(first, size, strict=True)])
    for start in range(0, len(cells), CHUNK_CELLS):
        shown = member.tokenizer.shown(source.rows(cells[start : start + CHUNK_CELLS]))
        gene = shown.gene_ids - vocab.gene_start
        is_gene = gene >= 0  # the special tokens come before the genes
        cell = np.arange(shown.n_cells).repeat(np.diff(shown.offsets))[is_gene]
        totals = shown.library_size.astype(np.float64)
        share = np.expm1(shown.values[is_gene].astype(np.float64)) / 1e4
        yield _Sample(cell, gene[is_gene], share * totals[cell], totals)
