"""Prompts -> cells that a model of sentences makes up: which genes, in which bins.

in   a model of family scmulan, the words and genes of each prompt, how words are chosen
out  GeneratedCells: bins in CSR over the vocabulary's genes, one row a cell

Only genes and the end word may be said. A cell's draws hang on (seed, its number) alone, so neither
the number of cells nor how many go through the model together changes it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int

from scfm.errors import ConfigError, ModelError
from scfm.model.base import CellModel
from scfm.model.generate import complete
from scfm.model.sampling import Decoding
from scfm.model.scmulan import ScmulanModel
from scfm.tokens.pool import concatenate, renumber
from scfm.tokens.sentence_values import prompt_of
from scfm.tokens.words import Words

CHUNK_CELLS = 256  # between two reports of progress; the memory is bounded by max_tokens


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How words are chosen; as scfm.model.sampling.Decoding, where each is explained.

    Attributes
    ----------
    max_words
        Genes a cell has at most, the end word counted as one; None: as many as the model was
        trained on, and the end.
    max_tokens
        Words of all cells together that are kept at a time, at least one cell; None: 1 GiB.
    """

    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    end_weight: float = 1.0
    max_words: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        try:
            self.decoding(1, (0,))
        except ValueError as error:
            raise ConfigError(f"{str(error).removeprefix('decoding.')}.") from error

    def decoding(self, max_words: int, allowed: tuple[int, ...]) -> Decoding:
        """The choice of words, up to ``max_words`` of them unless the settings say otherwise."""
        return Decoding(
            max_words=max_words if self.max_words is None else self.max_words,
            top_k=self.top_k,
            top_p=self.top_p,
            temperature=self.temperature,
            end_weight=self.end_weight,
            allowed=(allowed,),
            seed=self.seed,
        )


@dataclass(frozen=True)
class GeneratedCells:
    """Cells in CSR over the vocabulary's genes; genes ascending, those of a prompt among them.

    Attributes
    ----------
    bins
        1 to n_bins: genes said with value 0 are not there.
    has_ended
        Whether the cell said the end word; else it was cut at ``max_words``.
    """

    indptr: Int[np.ndarray, " bound"]
    genes: Int[np.ndarray, " expressed"]
    bins: Int[np.ndarray, " expressed"]
    has_ended: Bool[np.ndarray, " cell"]


def generate_cells(
    model: CellModel,
    prompts: Sequence[Mapping[str, str | Sequence[str]]],
    genes: Mapping[str, int],
    n_cells: int,
    how: GenerateConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> GeneratedCells:
    """``n_cells`` cells of each prompt, prompt by prompt.

    Parameters
    ----------
    prompts
        The word of each column that is to be given.
    genes
        Bins that are given to every cell, 0 for not expressed.

    Raises ModelError for a model of another family, ConfigError for unknown words or genes (with
    the nearest), a prompt that contradicts itself, and a bin that there is not.
    """
    speaker = checked_speaker(model)
    assert speaker.vocab is not None
    if n_cells < 1 or not prompts:
        raise ConfigError(f"{n_cells} cells of {len(prompts)} prompts: there must be one.")
    options = {"columns": speaker.token_config.columns, "n_bins": speaker.config.sizes.n_bins}
    single = [prompt_of(words, genes, speaker.vocab, "generate", **options) for words in prompts]
    words = Words(speaker.vocab)
    start, end = speaker.vocab.gene_start, speaker.vocab.gene_start + speaker.vocab.n_genes
    allowed = (words.end_id, *range(start, end))
    decoding = how.decoding(speaker.config.max_genes + 1, allowed)
    speaker.eval()
    total, parts = len(prompts) * n_cells, []
    for first in range(0, total, CHUNK_CELLS):
        numbers = np.arange(first, min(first + CHUNK_CELLS, total))
        cells = concatenate([single[number // n_cells] for number in numbers])
        cells = renumber(cells, numbers)
        given = cells.map(lambda x: torch.from_numpy(x).to(speaker.device))
        said = complete(speaker, given, decoding, max_tokens=how.max_tokens)
        ids, values, offsets, has_ended = (
            array.cpu().numpy() for array in (said.words, said.values, said.offsets, said.has_ended)
        )
        of_cell = np.repeat(np.arange(len(numbers)), np.diff(offsets))
        given_to = np.repeat(np.arange(len(numbers)), np.diff(cells.offsets))
        parts.append(
            _expressed(
                np.concatenate([given_to, of_cell]),
                np.concatenate([cells.gene_ids, ids]) - start,
                np.concatenate([cells.values, values]),
                speaker.vocab.n_genes,
                has_ended,
            )
        )
        on_progress(int(numbers[-1]) + 1, total)
    return _joined(parts)


def checked_speaker(model: CellModel) -> ScmulanModel:
    """The model, if it says cells. Raises ModelError."""
    if not isinstance(model, ScmulanModel):
        raise ModelError(
            "Cells are generated by a model of family scmulan, which says them gene by gene; this "
            f"one is of family {model.config.model_type}. Train one (scfm pretrain --config "
            "scmulan-tiny), or convert the published one (scfm convert scmulan)."
        )
    return model


def _expressed(
    cell: np.ndarray,
    gene: np.ndarray,
    values: np.ndarray,
    n_genes: int,
    has_ended: np.ndarray,
) -> GeneratedCells:
    """What was given and what was said -> expressed genes, ascending within a cell."""
    bins = np.rint(values).astype(np.int64)
    is_some = (gene >= 0) & (gene < n_genes) & (bins > 0)
    cell, gene, bins = cell[is_some], gene[is_some], bins[is_some]
    order = np.lexsort((gene, cell))
    counts = np.bincount(cell, minlength=len(has_ended))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return GeneratedCells(indptr, gene[order].astype(np.int64), bins[order], has_ended)


def _joined(parts: list[GeneratedCells]) -> GeneratedCells:
    starts = np.cumsum([0, *(part.indptr[-1] for part in parts)])
    bounds = [part.indptr[1:] + at for part, at in zip(parts, starts, strict=False)]
    return GeneratedCells(
        np.concatenate([np.zeros(1, np.int64), *bounds]),
        np.concatenate([part.genes for part in parts]),
        np.concatenate([part.bins for part in parts]),
        np.concatenate([part.has_ended for part in parts]),
    )
