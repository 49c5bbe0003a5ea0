"""Genes a user names -> positions in a vocabulary, or a refusal with the nearest names.

in   symbols or Ensembl ids, in any mix; the vocabulary's symbols and Ensembl ids
out  positions, in the order named

A name is looked up as scfm.data.genes does it: the vocabulary's own symbol, an Ensembl id (version
stripped), HGNC's approved symbol, a previous symbol or an alias of exactly one gene.
"""

import difflib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from scfm.data.gene_reading import AMBIGUOUS, OUTSIDE, VocabularyGenes
from scfm.data.gene_tables import gene_names
from scfm.errors import ConfigError

NAMES_SHOWN = 5
NEAREST = 3


def find_genes(
    names: Sequence[str], symbols: Sequence[str], ensembl_ids: Sequence[str]
) -> Int[np.ndarray, " gene"]:
    """Positions of human genes by name.

    Raises ConfigError for no names, names that are no gene of the vocabulary (with the nearest
    ones), ambiguous aliases, and two names of one gene.
    """
    if isinstance(names, str):
        raise ConfigError(f"genes is the text {names!r}; wanted a list of names: [{names!r}].")
    if len(names) == 0:
        raise ConfigError("genes is empty; name at least one gene, or leave genes= out for all.")
    vocabulary, tables = VocabularyGenes(symbols, ensembl_ids), gene_names("human")
    found = [vocabulary.meaning(str(name), tables) for name in names]
    unknown = [(str(n), meaning) for n, meaning in zip(names, found, strict=True) if meaning < 0]
    if unknown:
        raise ConfigError(_unknown_message(unknown, symbols))
    first: dict[int, str] = {}
    for name, position in zip(names, found, strict=True):
        if position in first:
            raise ConfigError(
                f"genes names {symbols[position]} twice, as {first[position]!r} and {name!r}. "
                "Name each gene once."
            )
        first[position] = str(name)
    return np.array(found, dtype=np.int64)


def nearest_names(name: str, symbols: Sequence[str]) -> list[str]:
    """The vocabulary's symbols that look most like ``name``, whatever the letter case."""
    by_upper = {symbol.upper(): symbol for symbol in symbols}
    near = difflib.get_close_matches(name.upper(), by_upper, n=NEAREST, cutoff=0.6)
    return [by_upper[upper] for upper in near]


def _unknown_message(unknown: list[tuple[str, int]], symbols: Sequence[str]) -> str:
    lines = []
    for name, meaning in unknown[:NAMES_SHOWN]:
        if meaning == AMBIGUOUS:
            lines.append(f"{name!r} is a name of several genes: give the approved symbol")
        elif meaning == OUTSIDE:
            lines.append(f"{name!r} is a gene outside the vocabulary")
        else:
            near = nearest_names(name, symbols)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            lines.append(f"{name!r} is no gene of the vocabulary{hint}")
    more = len(unknown) - len(lines)
    lines += [f"and {more:,} more"] if more > 0 else []
    return (
        f"The model does not know {len(unknown):,} of the genes named:\n- "
        + "\n- ".join(lines)
        + "\nUse symbols or Ensembl ids; the model's vocab.tsv lists all it knows."
    )
