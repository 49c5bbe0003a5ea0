"""What the sentences of cells are made of: the ``tokens:`` section of a run of family scmulan."""

from dataclasses import dataclass, field
from typing import Literal

MOST_COLUMNS = 30  # of words: subsets of a cell's words are drawn as the bits of one number

NO_WORD = ("", "NA", "nan", "unknown", "Unclassified")


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """How a cell becomes a sentence: which words there are, and what a training example asks for.

    A training example is one of three sentences, drawn for each cell and epoch: "annotate", all
    genes and <PCT>, to say the cell's types; "generate", some of the cell's words and <SPToken1>,
    to say its genes; "complete", genes, some words and <SPToken2>, to say the other words. Every
    subset of words is equally likely. A cell that lacks a type word is not annotated but completed;
    one without any word is generated from nothing.

    Attributes
    ----------
    columns
        obs columns whose values become words, in the order in which prompts name them.
    types
        Those of them that name a cell's type, coarse first.
    ontology
        For a column, the obs column of its ontology ids: names of one id become one word.
    no_word
        Values that say nothing, in any letter case.
    genes
        "variable": the ``n_genes`` that vary most in the data the vocabulary is made of, by
        Pearson residuals;
        "human": all of `GeneVocab.human`.
    n_bins
        Bins of a gene's value, between 0 and the cell's largest.
    max_genes
        Genes of a training example; of more a uniform subset is kept. In use all are shown.
    gene_order
        Of a training example. The model has no positions, but it sees only what was said before.
    prompt_order
        In use: "reversed" is from the last id to the first, as released.
    annotate_share, generate_share, complete_share
        How often which sentence is drawn.

    Source: Bian et al. 2024 (scMulan), doi:10.1101/2024.01.25.577152. Of its training nothing is
    released; the shares and the draws of subsets are ours.
    """

    columns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    ontology: dict[str, str] = field(default_factory=dict)
    no_word: tuple[str, ...] = NO_WORD
    genes: Literal["variable", "human"] = "variable"
    n_genes: int = 2000
    n_bins: int = 10
    max_genes: int = 1550
    gene_order: Literal["shuffled", "sorted", "reversed"] = "shuffled"
    prompt_order: Literal["reversed", "sorted"] = "reversed"
    annotate_share: float = 0.4
    generate_share: float = 0.4
    complete_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("columns", "types", "no_word"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_columns()
        for name in ("n_genes", "n_bins", "max_genes"):
            if getattr(self, name) < 1:
                raise ValueError(f"tokens.{name} must be at least 1, got {getattr(self, name)}")
        shares = (self.annotate_share, self.generate_share, self.complete_share)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                "tokens.annotate_share, generate_share and complete_share must be at least 0 and "
                f"together 1, got {', '.join(map(str, shares))}"
            )

    def _check_columns(self) -> None:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"tokens.columns names a column twice: {', '.join(self.columns)}")
        if len(self.columns) > MOST_COLUMNS:
            raise ValueError(
                f"tokens.columns may name {MOST_COLUMNS} columns, got {len(self.columns)}"
            )
        for column in self.columns:
            if not column or "," in column or not column.isprintable():
                raise ValueError(
                    f"tokens.columns: {column!r} cannot make words: wanted a printable name "
                    "without a comma"
                )
        for key, named in (("types", self.types), ("ontology", tuple(self.ontology))):
            if unknown := [column for column in named if column not in self.columns]:
                raise ValueError(
                    f"tokens.{key} names {', '.join(unknown)}, which is not among tokens.columns "
                    f"({', '.join(self.columns) or 'none'})"
                )
