"""A tiny scMulan, its vocabulary of genes and words, and cells it can read, for the tests."""

import anndata as ad
import numpy as np
import torch

from scfm.model.config import ScmulanSizes
from scfm.model.scmulan import ScmulanModel
from scfm.tokens.vocab import GeneVocab
from tests.toys import toy_adata, toy_vocab

SCMULAN_SIZES = ScmulanSizes(d_model=32, n_layers=2, n_heads=4, n_bins=10)

# "Neuron" is a coarse type and a fine one: said once
WORDS = (
    ("Blood", "organ", ""),
    ("Heart", "organ", ""),
    ("Lymphocyte", "lineage", "CL:0000542"),
    ("Neuron", "lineage,cell_type", "CL:0000540"),
    ("A", "cell_type", "CL:0000236"),
    ("B", "cell_type", "CL:0000084"),
    ("Unclassified", "cell_type", ""),
)
TASKS = ("<PCT>", "<SPToken1>", "<SPToken2>")
TYPES = ("lineage", "cell_type")


def scmulan_vocab(n_genes: int = 50) -> GeneVocab:
    """The end word, the toy genes, words of organ, lineage and cell_type, the task words."""
    genes = toy_vocab(n_genes)
    return GeneVocab(
        symbols=genes.symbols,
        ensembl_ids=genes.ensembl_ids,
        specials_before=("<E>",),
        specials_after=(*(word for word, _, _ in WORDS), *TASKS),
        kinds=(*(column for _, column, _ in WORDS), *("special" for _ in TASKS)),
        ontology_ids=(*(term for _, _, term in WORDS), *("" for _ in TASKS)),
    )


def toy_scmulan(
    vocab: GeneVocab | None = None,
    seed: int = 8,
    types: tuple[str, ...] = TYPES,
    **sizes: object,
) -> ScmulanModel:
    """A random scMulan whose weights are large enough for every path to matter.

    With this seed the toy cells are of all types.
    """
    torch.manual_seed(seed)
    chosen = ScmulanSizes(**{**vars(SCMULAN_SIZES), "initializer_range": 0.6, **sizes})  # pyright: ignore
    return ScmulanModel.from_scratch(vocab or scmulan_vocab(), chosen, types=types).eval()


def scmulan_adata(rng: np.random.Generator, n_cells: int = 40, n_genes: int = 50) -> ad.AnnData:
    """`toy_adata` with what the toy words are about in obs: organ, lineage and cell_type."""
    adata = toy_adata(rng, n_cells, n_genes)
    adata.obs["lineage"] = "Lymphocyte"
    adata.obs["organ"] = np.where(np.arange(n_cells) % 4 < 2, "Blood", "Heart")
    return adata
