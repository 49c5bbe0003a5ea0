"""scfm.tl.gene_modules: genes that a model holds alike, and how active each cell has them.

in   AnnData of raw counts, a model with a decoder over all genes
out  var["gene_modules"], obs["gene_modules_0"] ..., settings and comparison in uns["scfm"]

scFoundation's use (Hao et al. 2024, doi:10.1038/s41592-024-02305-7): context embeddings of variable
genes, averaged over 300 cells, a neighbour graph, Leiden.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from scfm.data.gene_choice import find_genes
from scfm.errors import ConfigError, InputError
from scfm.evaluate.gene_modules import compare_modules
from scfm.evaluate.log_counts import variable_genes
from scfm.model.base import CellModel
from scfm.tasks.decoding import check_decodes
from scfm.tasks.expression import gene_of_column, log_expression, measured_genes
from scfm.tasks.gene_context import mean_context
from scfm.tasks.gene_graph import leiden_modules
from scfm.tokens.inputs import open_input
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab
from scfm.tools.embedding import checked_key, model_id, scfm_uns, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

COMPARISONS = ("coexpression",)
N_VARIABLE = 2000
FEWEST_GENES = 10


def gene_modules(
    adata: "AnnData",
    model: CellModel | str | Path,
    *,
    genes: Sequence[str] | None = None,
    n_cells: int = 300,
    n_neighbours: int = 15,
    resolution: float = 1.0,
    key_added: str = "gene_modules",
    compare_with: str | None = None,
    seed: int = 0,
    layer: str | None = None,
    species: str = "auto",
    minimum_coverage: float = 0.5,
    copy: bool = False,
) -> "AnnData | None":
    """Group genes by their context embeddings, and score each cell's activity of each group.

    Parameters
    ----------
    adata
        Raw counts in X, ``layers["counts"]`` or ``raw``.
    genes
        Which genes, by symbol or Ensembl id; None: the 2,000 most variable, chosen from all
        cells, those that modules are judged by among them.
    n_cells
        Cells the embeddings are averaged over, drawn by the seed; at most half of the cells, so
        that others are left to judge by.
    n_neighbours, resolution
        Of the graph, by cosine, and of Leiden: more gives more modules.
    compare_with
        "coexpression": also group the genes by Pearson's r of log1p(cp10k) in the same cells, and
        say how alike the two groupings are and how well each holds in the other cells. A winner
        is named only where the 95 % interval of the difference, over those cells, excludes zero.

    Returns
    -------
    The copy if ``copy``, else None: ``adata`` gains ``var[key_added]`` (categorical, "0" the
    largest; missing for genes not asked for), ``obs[f"{key_added}_{module}"]`` (mean over the
    module's genes of log1p(cp10k) standardised over cells) and ``uns["scfm"][key_added]``.

    Needs igraph: pip install 'scfm[modules]'. Raises ModelError, ConfigError, InputError.
    """
    adata = adata.copy() if copy else adata
    model, key_added = as_model(model), checked_key(key_added)
    check_comparison(compare_with)
    check_decodes(model, "states")
    config = input_config(layer, species, minimum_coverage)
    member, report = open_input(adata, vocab_of(model), config, model.token_config)
    expression = log_expression(member)
    chosen = choose_genes(member, expression, genes)
    shown, others = deal_cells(member.source.n_cells, n_cells, seed)
    context = mean_context(model, member, shown)[chosen]
    modules = leiden_modules(
        context - context.mean(0), n_neighbours=n_neighbours, resolution=resolution, seed=seed
    )
    settings: dict[str, Any] = {
        "scfm_version": __version__,
        "weights_sha256": model_id(model),
        "n_cells": len(shown),
        "n_neighbours": n_neighbours,
        "resolution": resolution,
        "seed": seed,
        "n_modules": int(modules.max()) + 1,
        "n_genes": len(chosen),
        "genes": report.to_dict(),
    }
    if compare_with is not None:
        both = (expression[shown][:, chosen].toarray(), expression[others][:, chosen].toarray())
        settings["coexpression"] = compare_modules(
            modules, *both, n_neighbours=n_neighbours, resolution=resolution, seed=seed
        )
    write_modules(adata, member, expression, chosen, modules, key_added)
    adata.uns["scfm"] = {**scfm_uns(adata), key_added: settings}
    return adata if copy else None


def check_comparison(compare_with: str | None) -> None:
    """Raises ConfigError for what modules cannot be compared with."""
    if compare_with not in (None, *COMPARISONS):
        raise ConfigError(
            f"compare_with is {compare_with!r}; known are None and "
            f"{', '.join(map(repr, COMPARISONS))}."
        )


def choose_genes(
    member: PoolMember, expression: sp.csr_matrix, genes: Sequence[str] | None
) -> Int[np.ndarray, " chosen"]:
    """Positions of the genes asked for, or of the most variable; ascending, each once.

    Raises ConfigError for a gene that is unknown or not measured, InputError for too few.
    """
    vocab, measured = member.tokenizer.vocab, measured_genes(member)
    if genes is None:
        expressed = measured[np.diff(sp.csc_matrix(expression[:, measured]).indptr) > 0]
        chosen = expressed
        if len(expressed) > N_VARIABLE:
            chosen = expressed[variable_genes(expression[:, expressed], N_VARIABLE)]
    else:
        chosen = _named(vocab, measured, genes)
    if len(chosen) < FEWEST_GENES:
        raise InputError(f"There are {len(chosen)} genes to group; wanted at least {FEWEST_GENES}.")
    return chosen


def _named(
    vocab: GeneVocab, measured: Int[np.ndarray, " gene"], genes: Sequence[str]
) -> Int[np.ndarray, " chosen"]:
    found = np.sort(find_genes(genes, vocab.symbols, vocab.ensembl_ids))
    absent = [vocab.symbols[gene] for gene in np.setdiff1d(found, measured)]
    if absent:
        raise ConfigError(
            f"{len(absent)} of the genes asked for are not in this data: {', '.join(absent[:5])}. "
            "Leave them out."
        )
    return found


def deal_cells(
    n: int, n_cells: int, seed: int
) -> tuple[Int[np.ndarray, " shown"], Int[np.ndarray, " other"]]:
    """Cells to make modules with, and all others to judge them by; none is in both."""
    if n_cells < 1 or n < 4:
        raise ConfigError(f"n_cells is {n_cells} of {n:,} cells; wanted at least 1, of at least 4.")
    order = np.random.default_rng(seed).permutation(n)
    some = min(n_cells, n // 2)
    return np.sort(order[:some]), np.sort(order[some:])


def write_modules(
    adata: "AnnData",
    member: PoolMember,
    expression: sp.csr_matrix,
    chosen: Int[np.ndarray, " gene"],
    modules: Int[np.ndarray, " gene"],
    key: str,
) -> None:
    """Each gene's module into var, each cell's activity into obs; an earlier run's are dropped."""
    module_of = np.full(member.tokenizer.vocab.n_genes, -1)
    module_of[chosen] = modules
    names = [str(module) for module in range(int(modules.max()) + 1)]
    gene = gene_of_column(member)
    codes = np.where(gene >= 0, module_of[gene], -1)
    adata.var[key] = pd.Categorical.from_codes(codes, names)
    earlier = [
        c for c in adata.obs if str(c).startswith(f"{key}_") and str(c)[len(key) + 1 :].isdigit()
    ]
    scores = activity(expression[:, chosen].toarray(), modules)
    obs: Any = adata.obs
    columns = {f"{key}_{name}": scores[:, at] for at, name in enumerate(names)}
    adata.obs = obs.drop(columns=earlier).assign(**columns)


def activity(
    expression: Float[np.ndarray, "cell gene"], modules: Int[np.ndarray, " gene"]
) -> Float[np.ndarray, "cell module"]:
    """Mean over a module's genes of expression standardised over cells; float32."""
    mean, std = expression.mean(0), expression.std(0)
    z = (expression - mean) / np.where(std > 1e-12, std, np.inf)
    belongs = (modules[:, None] == np.arange(modules.max() + 1)).astype(np.float32)
    return (z @ (belongs / belongs.sum(0))).astype(np.float32)
