"""scfm.tl.generate: words -> an AnnData of cells that a model makes up.

in   a model of family scmulan; organ, cell type, ... and genes the cells shall have
out  AnnData: log1p of counts per 10,000 or counts in X, the prompt in obs, settings in uns["scfm"]
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm.errors import ConfigError, ModelError, ScfmWarning
from scfm.model.base import CellModel
from scfm.model.scmulan import ScmulanModel
from scfm.tasks.generation import GenerateConfig, GeneratedCells, checked_speaker, generate_cells
from scfm.tokens.bin_values import counts_from_values, values_from_bins
from scfm.tokens.words import Words
from scfm.tools.embedding import model_id, vocab_of
from scfm.tools.loading import as_model
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

Values = Literal["normalised", "counts"]
Prompt = Mapping[str, str | Sequence[str]]


def generate(
    model: CellModel | str | Path,
    prompt: Prompt | None = None,
    *,
    each: str | None = None,
    genes: Mapping[str, int] | None = None,
    n_cells: int = 100,
    values: str = "normalised",
    depth: int = 2000,
    seed: int = 0,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    end_weight: float = 1.0,
    max_words: int | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> "AnnData":
    """Make up cells that are as the words say.

    Parameters
    ----------
    model
        Of family scmulan: from :func:`scfm.load`, or a path or hub id.
    prompt
        A word for some of the model's columns, ``{"organ": "Heart", "cell_type": "Fibroblast"}``:
        as the data spell it, in any letter case, or a Cell Ontology id. Without any the model says
        cells as it has seen them.
    each
        A column: ``n_cells`` cells of every word it has, beside those of ``prompt``.
    genes
        Bins of genes that every cell shall have, 0 (not expressed) to the model's ``n_bins`` (as
        the cell's most expressed gene).
    values
        "normalised": X is log1p of counts per 10,000 (nats), float32. "counts": X is a multinomial
        draw of ``depth`` molecules.
    depth
        Counts of a cell on the model's genes.
    top_k, top_p, temperature, end_weight
        How the next word is chosen: among the ``top_k`` likeliest, among the likeliest that
        together have probability ``top_p``; the logits divided by ``temperature``; the probability
        of the end multiplied by ``end_weight``, of which values below 1 make longer cells.
    max_words
        Words a cell has at most; None: as many as the model was trained on.
    max_tokens
        Words of all cells together that are kept at a time: bounds the memory, changes no cell.

    Returns
    -------
    AnnData over all the model's genes. ``obs`` has a column for every word of the prompt,
    ``scfm_prompt`` (all of it as text), ``scfm_n_genes``, and ``scfm_ended``: False for a cell that
    was cut at ``max_words``. ``layers["scfm_bins"]`` has what the model said.

    A model says bins, not values. Those of a cell become values by the one scale at which its
    counts per 10,000 sum to 10,000 times the share of counts that the model's genes have in the
    cells it was trained on (1 where the model does not know it); see scfm.tokens.bin_values.

    Raises ModelError for a model of another family, ConfigError for a word or gene it does not know
    (with the nearest), a prompt that contradicts itself and impossible settings. Warns of cells
    that express nothing.
    """
    speaker = checked_speaker(as_model(model))
    how = GenerateConfig(
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        temperature=temperature,
        end_weight=end_weight,
        max_words=max_words,
        max_tokens=max_tokens,
    )
    _check(values, depth)
    prompts = _prompts(speaker, prompt or {}, each)
    share = known_share(speaker)
    given = dict(genes or {})
    cells = generate_cells(speaker, prompts, given, n_cells, how, on_progress=on_progress)
    adata = _as_anndata(speaker, cells, values, depth, seed, share or 1.0)
    _describe(adata, speaker, prompts, given, n_cells, cells)
    adata.uns["scfm"] = {
        "generate": _settings(speaker, prompt or {}, each, given, how, values, depth, share)
    }
    _warn_of_empty(cells)
    return adata


def known_share(model: CellModel) -> float | None:
    """Mean share of a training cell's counts on the model's genes; None where it is not known."""
    share = model.provenance.get("share_in_vocabulary")
    if share is None:
        return None
    if not 0 < float(share) <= 1:
        raise ModelError(
            f"The model's provenance says that its genes have {share} of the counts; a share is in "
            "(0, 1]. Mend share_in_vocabulary, or take it out."
        )
    return float(share)


def _check(values: str, depth: int) -> None:
    if values not in get_args(Values):
        raise ConfigError(f"values is '{values}'; known are {', '.join(get_args(Values))}.")
    if depth < 1:
        raise ConfigError(f"depth must be at least 1 count a cell, got {depth}.")


def _prompts(model: ScmulanModel, prompt: Prompt, each: str | None) -> list[dict[str, Any]]:
    """One prompt, or one for every word of a column."""
    words = Words(vocab_of(model))
    if each is None:
        return [dict(prompt)]
    if each in prompt:
        raise ConfigError(
            f"The prompt contradicts itself: it names a word of {each}, and asks for each of them. "
            "Leave one out."
        )
    return [{**prompt, each: words.text_of(word)} for word in words.type_ids(each)]


def _as_anndata(
    model: ScmulanModel, cells: GeneratedCells, values: str, depth: int, seed: int, share: float
) -> "AnnData":
    import anndata as ad

    vocab, n_cells = vocab_of(model), len(cells.has_ended)
    x = values_from_bins(cells.indptr, cells.bins, model.config.sizes.n_bins, share=share)
    if values == "counts":
        x = counts_from_values(cells.indptr, x, depth, seed=seed)

    def matrix(data: np.ndarray) -> sp.csr_matrix:
        parts = (data, cells.genes.copy(), cells.indptr.copy())
        found = sp.csr_matrix(parts, shape=(n_cells, vocab.n_genes))
        found.eliminate_zeros()
        return found

    var = pd.DataFrame({"ensembl_id": list(vocab.ensembl_ids)}, index=pd.Index(vocab.symbols))
    obs = pd.DataFrame(index=pd.Index([f"generated_{i}" for i in range(n_cells)]))
    layers = {"scfm_bins": matrix(cells.bins.astype(np.int8))}
    return ad.AnnData(matrix(x.astype(np.float32)), obs=obs, var=var, layers=layers)


def _describe(
    adata: "AnnData",
    model: ScmulanModel,
    prompts: list[dict[str, Any]],
    genes: Mapping[str, int],
    n_cells: int,
    cells: GeneratedCells,
) -> None:
    """What each cell was asked to be, as the data the model knows spell it, and what became."""
    words = Words(vocab_of(model))
    spelled = [
        {column: words.text_of(_only_id(words, column, text)) for column, text in prompt.items()}
        for prompt in prompts
    ]
    for column in spelled[0]:
        named = np.repeat([prompt[column] for prompt in spelled], n_cells)
        adata.obs[column] = pd.Categorical(named)
    also = [f"{gene}={value}" for gene, value in genes.items()]
    texts = ["; ".join([*(f"{k}={v}" for k, v in p.items()), *also]) for p in spelled]
    adata.obs["scfm_prompt"] = pd.Categorical(np.repeat(texts, n_cells))
    adata.obs["scfm_n_genes"] = np.diff(cells.indptr)
    adata.obs["scfm_ended"] = cells.has_ended


def _only_id(words: Words, column: str, text: str | Sequence[str]) -> int:
    """The id of a column's word, which prompt_of has found to be one."""
    return words.id_of(column, text if isinstance(text, str) else text[0])


def _settings(
    model: ScmulanModel,
    prompt: Prompt,
    each: str | None,
    genes: Mapping[str, int],
    how: GenerateConfig,
    values: str,
    depth: int,
    share: float | None,
) -> dict[str, Any]:
    """What made the cells: enough to make them again."""
    settings: dict[str, Any] = {
        "scfm_version": __version__,
        "weights_sha256": model_id(model),
        "prompt": {k: v if isinstance(v, str) else list(v) for k, v in prompt.items()},
        "each": each,
        "genes": dict(genes),
        "values": values,
        "n_bins": model.config.sizes.n_bins,
        "depth": depth if values == "counts" else None,
        "share_in_vocabulary": share or 1.0,
        "share_is_known": share is not None,
        **vars(how),
        "max_words": model.config.max_genes + 1 if how.max_words is None else how.max_words,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _warn_of_empty(cells: GeneratedCells) -> None:
    n_empty = int((np.diff(cells.indptr) == 0).sum())
    if n_empty:
        warnings.warn(
            f"{n_empty:,} of {len(cells.has_ended):,} generated cells express no gene: the model "
            "ended them at once, or said only zeros. Try a lower end_weight (--end-weight 0.1).",
            ScfmWarning,
            stacklevel=3,
        )
