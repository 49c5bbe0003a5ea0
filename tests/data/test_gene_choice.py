"""Genes by name: symbols, ids, former names; refusals that help."""

import pytest

from scfm.data.gene_choice import find_genes, nearest_names
from scfm.errors import ConfigError
from scfm.tokens.vocab import GeneVocab


@pytest.fixture(scope="module")
def vocab():
    return GeneVocab.human()


def find(vocab, *names):
    return find_genes(names, vocab.symbols, vocab.ensembl_ids).tolist()


def test_symbols_ids_and_former_names(vocab):
    tp53, sept2 = vocab.symbols.index("TP53"), vocab.symbols.index("SEPTIN2")
    assert find(vocab, "SEPTIN2", "TP53") == [sept2, tp53]
    assert find(vocab, "ENSG00000141510.18") == [tp53]
    assert find(vocab, "SEPT2") == [sept2]


def test_nearest_names_whatever_the_letter_case(vocab):
    assert "TP53" in nearest_names("tp53", vocab.symbols)
    with pytest.raises(ConfigError, match="TP53"):
        find(vocab, "Tp53")


def test_many_unknown_names_are_counted(vocab):
    with pytest.raises(ConfigError, match="(?s)9 of the genes named.*and 4 more"):
        find(vocab, *(f"qqqq{i}" for i in range(9)))


def test_none_is_an_error(vocab):
    with pytest.raises(ConfigError, match="empty"):
        find(vocab)
