"""Tiny vocabularies, cells and models for the tests. One place, so that no test grows its own."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scfm.batch import CellBatch
from scfm.model.config import ModelSizes, ScfoundationSizes, ScmulanSizes
from scfm.model.pretrained import ScfmModel
from scfm.model.scfoundation import ScfoundationModel
from scfm.model.scmulan import ScmulanModel
from scfm.tokens.vocab import GeneVocab

SIZES = ModelSizes(d_model=32, n_layers=2, n_heads=2, n_bins=10)
SCFOUNDATION_SIZES = ScfoundationSizes(
    **{"d_model": 32, "n_layers": 2, "n_heads": 2, "n_bins": 10, "dropout": 0.0},
    **{"d_decoder": 16, "n_decoder_layers": 2, "n_decoder_heads": 2, "d_head": 8},
)
SCMULAN_SIZES = ScmulanSizes(d_model=32, n_layers=2, n_heads=2)
WORDS = (
    *(("Blood", "organ"), ("Heart", "organ")),
    *(("Immune", "coarse,fine"), ("Muscle", "coarse"), ("T cell", "fine"), ("B cell", "fine")),
    *((word, "special") for word in ("<PCT>", "<SPToken1>", "<SPToken2>")),
)


def toy_vocab(n_genes: int = 50) -> GeneVocab:
    """The first genes of the human vocabulary, so that real names can be matched."""
    human = GeneVocab.human()
    return GeneVocab(symbols=human.symbols[:n_genes], ensembl_ids=human.ensembl_ids[:n_genes])


def toy_model(vocab: GeneVocab | None = None, seed: int = 0, **sizes: object) -> ScfmModel:
    """A random model whose weights are large enough for every path to matter."""
    torch.manual_seed(seed)
    chosen = ModelSizes(**{**vars(SIZES), "initializer_range": 0.3, **sizes})
    return ScfmModel.from_scratch(vocab or toy_vocab(), chosen).eval()


def scfoundation_vocab(n_genes: int = 50) -> GeneVocab:
    """The same genes in scFoundation's layout: genes first, then the special tokens."""
    toy = toy_vocab(n_genes)
    return GeneVocab(
        symbols=toy.symbols,
        ensembl_ids=toy.ensembl_ids,
        specials_before=(),
        specials_after=("[T]", "[S]", "[PAD]"),
    )


def toy_scfoundation(n_genes: int = 50, seed: int = 0, **sizes: object) -> ScfoundationModel:
    """A random scFoundation whose weights are large enough for every path to matter."""
    torch.manual_seed(seed)
    chosen = ScfoundationSizes(
        **{**vars(SCFOUNDATION_SIZES), "initializer_range": 0.3, **sizes}  # pyright: ignore
    )
    return ScfoundationModel.from_scratch(scfoundation_vocab(n_genes), chosen).eval()


def masked_cells(rng: np.random.Generator, lengths: list[int], n_genes: int = 50) -> CellBatch:
    """Random packed cells for scFoundation, of all kinds of tokens, with ``lengths`` genes each.

    In turn: shown, masked, random, kept, masked zero, kept zero, dropped, and one whose value is
    for the decoder alone.
    """
    vocab = scfoundation_vocab(n_genes)
    parts: dict[str, list[np.ndarray]] = {}
    for n in lengths:
        kind, real = np.arange(n) % 8, rng.uniform(0.5, 6, n)
        wrong = rng.uniform(0.5, 6, n)
        shown = np.select([kind == 2, np.isin(kind, (0, 3, 7))], [wrong, real], 0.0)
        cell = {
            "gene_ids": np.sort(rng.choice(n_genes, n, replace=False)),
            "values": shown,
            "is_target": np.isin(kind, (1, 2, 3, 4, 5, 7)),
            "is_hidden": np.isin(kind, (1, 4, 6, 7)),
            "target_values": np.where(np.isin(kind, (1, 2, 3, 7)), real, 0.0),
        }
        depths = {"gene_ids": [vocab.target_depth_id, vocab.source_depth_id], "values": [3.5, 3.0]}
        for name, array in cell.items():
            parts.setdefault(name, []).append(np.r_[depths.get(name, [0, 0]), array])
    dtypes = {"gene_ids": np.int64, "is_target": np.bool_, "is_hidden": np.bool_}
    tokens = {
        name: np.concatenate(p).astype(dtypes.get(name, np.float32)) for name, p in parts.items()
    }
    n_cells = len(lengths)
    return CellBatch(
        **tokens,
        offsets=np.cumsum([0] + [n + 2 for n in lengths]).astype(np.int32),
        library_size=np.full(n_cells, 3000, np.float32),
        source_depth=np.full(n_cells, 3.0, np.float32),
        target_depth=np.full(n_cells, 3.5, np.float32),
        cell_index=np.arange(n_cells),
    ).map(torch.from_numpy)


def toy_cells(
    rng: np.random.Generator, lengths: list[int], vocab: GeneVocab | None = None
) -> CellBatch:
    """Random packed cells of torch tensors with ``lengths`` genes each, a third of them targets."""
    vocab = vocab or toy_vocab()
    ids, values, targets = [], [], []
    for n in lengths:
        genes = np.sort(rng.choice(vocab.n_genes, n, replace=False)) + vocab.gene_start
        is_target = rng.random(n) < 1 / 3
        ids.append([vocab.cell_id, vocab.target_depth_id, vocab.source_depth_id, *genes])
        values.append([0, 3.5, 3.0, *np.where(is_target, 0, rng.uniform(0.5, 6, n))])
        targets.append([False] * 3 + list(is_target))
    is_target = np.concatenate(targets).astype(bool)
    n_cells = len(lengths)
    cells = CellBatch(
        gene_ids=np.concatenate(ids).astype(np.int64),
        values=np.concatenate(values).astype(np.float32),
        offsets=np.cumsum([0] + [n + 3 for n in lengths]).astype(np.int32),
        is_target=is_target,
        target_values=np.where(is_target, rng.uniform(0, 6, len(is_target)), 0).astype(np.float32),
        library_size=np.full(n_cells, 3000, np.float32),
        source_depth=np.full(n_cells, 3.0, np.float32),
        target_depth=np.full(n_cells, 3.5, np.float32),
        cell_index=np.arange(n_cells),
    )
    return cells.map(torch.from_numpy)


def toy_counts(rng: np.random.Generator, n_cells: int, n_genes: int) -> sp.csr_matrix:
    """Sparse raw counts with at least one count a cell."""
    dense = rng.poisson(0.7, size=(n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.6)
    dense[:, 0] += 1
    return sp.csr_matrix(dense.astype(np.int32))


def toy_adata(rng: np.random.Generator, n_cells: int = 40, n_genes: int = 50) -> ad.AnnData:
    """Raw counts of the toy vocabulary's genes in two kinds of cells, told apart by six genes."""
    symbols = list(toy_vocab(n_genes).symbols)
    counts = toy_counts(rng, n_cells, n_genes).toarray()
    is_b = np.arange(n_cells) % 2 == 1
    counts[is_b, 3:6] += 80
    counts[~is_b, 6:9] += 80
    return ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(np.where(is_b, "B", "A"))},
            index=[f"cell{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=symbols),
    )


def scmulan_vocab(n_genes: int = 50) -> GeneVocab:
    """The toy genes between the end word and a few words of organ, coarse and fine type."""
    toy = toy_vocab(n_genes)
    return GeneVocab(
        symbols=toy.symbols,
        ensembl_ids=toy.ensembl_ids,
        specials_before=("<E>",),
        specials_after=tuple(word for word, _ in WORDS),
        kinds=tuple(kind for _, kind in WORDS),
    )


def toy_scmulan(n_genes: int = 50, seed: int = 0, **sizes: object) -> ScmulanModel:
    """A random scMulan whose weights are large enough for every path to matter."""
    torch.manual_seed(seed)
    chosen = ScmulanSizes(
        **{**vars(SCMULAN_SIZES), "initializer_range": 0.3, **sizes}  # pyright: ignore
    )
    vocab = scmulan_vocab(n_genes)
    return ScmulanModel.from_scratch(vocab, chosen, types=("coarse", "fine")).eval()


def toy_sentences(
    rng: np.random.Generator, lengths: list[int], n_said: int = 0, n_genes: int = 50
) -> CellBatch:
    """Annotation prompts of ``lengths`` random genes; then ``n_said`` more genes and the end word.

    Without any said, prompts for inference; with them, training sentences.
    """
    task = scmulan_vocab(n_genes).id_of("<PCT>")
    ids, values, is_target = [], [], []
    for n in lengths:
        genes = rng.permutation(n_genes)[: n + n_said] + 1
        said = [*genes[n:], 0] if n_said else []
        bins = rng.integers(1, 11, n + n_said)
        ids += [*genes[:n], task, *said]
        values += [*bins[:n], 0, *bins[n:], *([0] if n_said else [])]
        is_target += [False] * (n + 1) + [True] * len(said)
    chosen = np.array(is_target, dtype=bool)
    bins = np.array(values, dtype=np.float32)
    n_cells, more = len(lengths), n_said + 1 if n_said else 0
    return CellBatch(
        gene_ids=np.array(ids, dtype=np.int64),
        values=bins,
        offsets=np.cumsum([0] + [n + 1 + more for n in lengths]).astype(np.int32),
        is_target=chosen,
        is_hidden=np.zeros_like(chosen) if n_said else None,
        target_values=np.where(chosen, bins, 0).astype(np.float32),
        library_size=np.full(n_cells, 3000, np.float32),
        source_depth=np.full(n_cells, 3.5, np.float32),
        target_depth=np.full(n_cells, 3.5, np.float32),
        cell_index=np.arange(n_cells),
    ).map(torch.from_numpy)
