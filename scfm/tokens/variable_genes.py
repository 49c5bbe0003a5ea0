"""Which genes vary most from cell to cell: the ones a sentence is made of.

in   PoolMembers opened with GeneVocab.human()
out  positions in that vocabulary

Normalised dispersions after Satija et al. 2015, doi:10.1038/nbt.3192, as scanpy's flavour "seurat"
has them: the log of variance over mean of counts per 10,000, compared with genes of like mean.
Moments are summed up block by block, so no more than a few thousand cells are held.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scfm.data.blocked import in_blocks
from scfm.errors import InputError
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab

CELLS_SAMPLED = 20_000
CHUNK_CELLS = 2048
FEWEST_CELLS, RAREST = 3, 0.001  # cells that express a gene, in number and as a share
N_BINS = 20


def variable_genes(members: Sequence[PoolMember], n_genes: int) -> Int[np.ndarray, " gene"]:
    """Positions in `GeneVocab.human` of the genes that vary most, ascending.

    In at most CELLS_SAMPLED cells spread over the data, among genes that 0.1 % of these (and 3)
    express: of others the dispersions say nothing. Where there are no more than wanted, all of
    them. Raises InputError for data without cells. Oracle: scanpy.pp.highly_variable_genes.
    """
    sums, n_sampled = np.zeros((3, GeneVocab.human().n_genes)), 0
    for member, share in _shares(members):
        for values, genes, n_cells in _samples(member, share):
            for moment, weights in zip(sums, (values, values**2, None), strict=True):
                moment += np.bincount(genes, weights=weights, minlength=len(moment))
            n_sampled += n_cells
    expressed = np.flatnonzero(sums[2] >= max(FEWEST_CELLS, RAREST * n_sampled))
    if len(expressed) <= n_genes:
        return expressed
    mean = sums[0, expressed] / n_sampled
    variance = (sums[1, expressed] / n_sampled - mean**2) * n_sampled / (n_sampled - 1)
    ranked = np.argsort(-normalised_dispersions(mean, variance), kind="stable")
    return np.sort(expressed[ranked[:n_genes]])


def normalised_dispersions(
    mean: Float[np.ndarray, " gene"], variance: Float[np.ndarray, " gene"]
) -> Float[np.ndarray, " gene"]:
    """How far a gene's log variance over mean is from that of genes of like mean, in deviations.

    A gene alone in its bin has 1, one that does not vary minus infinity. Means are above 0.
    """
    with np.errstate(divide="ignore"):
        dispersion = pd.Series(np.log(variance / mean)).replace(-np.inf, np.nan)
    bins = dispersion.groupby(pd.cut(np.log1p(mean), N_BINS, labels=False))
    centre, spread = (bins.transform(how).to_numpy() for how in ("mean", "std"))
    alone = np.isnan(spread)
    spread, centre = np.where(alone, centre, spread), np.where(alone, 0.0, centre)
    return ((dispersion - centre) / spread).fillna(-np.inf).to_numpy()


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


def _samples(member: PoolMember, n_cells: int):
    """(counts per 10,000, genes, number of cells) of cells spread over a member's blocks."""
    assert member.tokenizer.vocab == GeneVocab.human(), "open the data with GeneVocab.human()"
    source = in_blocks(member.source)
    first, size = source.blocks.first, source.blocks.n_cells
    n_blocks = min(len(first), max(1, round(n_cells / size.mean())))
    spread = np.linspace(0, len(first) - 1, n_blocks).round().astype(np.int64)
    first, size = first[spread], size[spread]
    cells = np.concatenate([np.arange(f, f + n) for f, n in zip(first, size, strict=True)])
    for start in range(0, len(cells), CHUNK_CELLS):
        shown = member.tokenizer.shown(source.rows(cells[start : start + CHUNK_CELLS]))
        genes = shown.gene_ids - member.tokenizer.vocab.gene_start
        is_gene = genes >= 0  # the special tokens come before the genes
        yield np.expm1(shown.values[is_gene].astype(np.float64)), genes[is_gene], shown.n_cells
