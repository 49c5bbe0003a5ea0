"""A vocabulary of some data: its most variable genes, and its words, told apart and joined."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scfm.data.store import Store
from scfm.errors import ConfigError, GeneCoverageError, LabelError
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.rng import cell_keys
from scfm.tokens.sentence import SentenceTokenizer
from scfm.tokens.sentence_config import SentenceConfig
from scfm.tokens.sentence_vocab import sentence_vocab
from scfm.tokens.variable_genes import variable_genes
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.words import Words
from tests.toy_stores import write_store


@pytest.fixture(scope="module")
def data() -> ad.AnnData:
    """90 cells over 150 human genes, some of which vary; obs with words of every kind."""
    rng = np.random.default_rng(3)
    genes = rng.choice(np.array(GeneVocab.human().symbols), 150, replace=False)
    rates = rng.gamma(2, 1, (3, 150)) * np.where(
        rng.random(150) < 0.3, rng.gamma(0.3, 4, (3, 150)), 1
    )
    counts = rng.poisson(rates.repeat(30, axis=0))
    obs = pd.DataFrame(
        {
            "organ": ["Blood"] * 60 + ["unknown"] * 30,
            "coarse": ["T cell"] * 30 + ["B cell"] * 60,
            "fine": ["CD4"] * 30 + ["B cell"] * 30 + ["B lymphocyte"] * 20 + ["B cell"] * 10,
            "term": ["CL:0000624"] * 30 + ["CL:0000236"] * 50 + ["unknown"] * 10,
            "barcode": [f"b{i}" for i in range(90)],
            "none": ["NA"] * 90,
        },
        index=[f"c{i}" for i in range(90)],
    )
    return ad.AnnData(sp.csr_matrix(counts.astype("f4")), obs=obs, var=pd.DataFrame(index=genes))


def member_of(data):
    return open_input(data, GeneVocab.human(), InputConfig())[0]


def test_words_of_the_data(data):
    config = SentenceConfig(
        columns=("organ", "coarse", "fine"),
        types=("coarse", "fine"),
        ontology={"fine": "term"},
        n_genes=40,
    )
    vocab = sentence_vocab([member_of(data)], config)
    assert vocab.specials_before == ("<E>",)
    # a coarse and a fine "B cell" are one word; the fine one's two names are one id
    assert vocab.specials_after == (
        *("Blood", "B cell", "T cell", "CD4"),
        *("<PCT>", "<SPToken1>", "<SPToken2>"),
    )
    assert vocab.kinds == ("organ", "coarse,fine", "coarse", "fine", *["special"] * 3)
    assert vocab.ontology_ids == ("", "CL:0000236", "", "CL:0000624", "", "", "")
    assert list(vocab.symbols) == sorted(vocab.symbols)
    assert vocab.n_genes == 40
    member, report = open_input(data, vocab, InputConfig(), config)
    tokenizer = member.tokenizer
    assert isinstance(tokenizer, SentenceTokenizer)
    b_cell = vocab.id_of("B cell")
    assert (tokenizer._labels[30:, 1:] == b_cell).all()
    assert (tokenizer._labels[60:, 0] == -1).all()
    assert report.counts_covered < 0.5  # few genes hold few counts: their share is what counts


def test_a_word_spelled_like_a_gene_names_its_column(data):
    gene = data.var_names[0]
    named = data.copy()
    named.obs["fine"] = gene
    vocab = sentence_vocab([member_of(named)], SentenceConfig(columns=("fine",), genes="human"))
    assert vocab.specials_after[0] == f"fine:{gene}"
    words = Words(vocab)
    assert words.text_of(words.id_of("fine", gene)) == gene
    assert vocab.symbols == GeneVocab.human().symbols


def test_the_most_variable_genes_are_scanpy_s(data):
    found = variable_genes([member_of(data)], 40)
    theirs = sc.experimental.pp.highly_variable_genes(
        data, n_top_genes=40, flavor="pearson_residuals", inplace=False
    )
    expected = sorted(data.var_names[theirs["highly_variable"]])
    assert [GeneVocab.human().symbols[gene] for gene in found] == expected


def test_several_data_sets_give_one_vocabulary(data):
    parts = [data[:50].copy(), data[50:].copy()]
    config = SentenceConfig(columns=("coarse", "fine"), n_genes=40)
    both = sentence_vocab([member_of(part) for part in parts], config)
    assert both == sentence_vocab([member_of(data)], config)
    n_cells = (data.X > 0).sum(0)  # of genes seen in one or two cells nothing can be said
    assert len(variable_genes([member_of(data)], 10_000)) == (n_cells >= 3).sum()


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ("tissue", LabelError, "has no obs column 'tissue'"),
        ("none", ConfigError, "no value that says something"),
        ("barcode", ConfigError, "90 different values; a column of words may have 50"),
    ],
)
def test_columns_that_make_no_words(data, column, error, message, monkeypatch):
    monkeypatch.setattr("scfm.tokens.sentence_vocab.MOST_WORDS", 50)
    with pytest.raises(error, match=message):
        sentence_vocab([member_of(data)], SentenceConfig(columns=(column,), n_genes=10))


def test_a_column_of_ids_must_be_somewhere(data):
    config = SentenceConfig(columns=("fine",), ontology={"fine": "cl"}, n_genes=10)
    with pytest.raises(LabelError, match="has no obs column 'cl'"):
        sentence_vocab([member_of(data)], config)


def test_genes_that_are_missing_are_counted(data):
    config = SentenceConfig(columns=("fine",), n_genes=40)
    vocab = sentence_vocab([member_of(data)], config)
    is_known = data.var_names.isin(vocab.symbols)
    few = data[:, ~is_known | (np.cumsum(is_known) <= 12)].copy()
    with pytest.raises(GeneCoverageError, match=r"30\.0 % of the model's 40 genes are columns"):
        open_input(few, vocab, InputConfig(), config)
    member, report = open_input(few, vocab, InputConfig(minimum_coverage=0.25), config)
    assert report.missing == 28
    assert member.tokenizer.shown(member.source.rows(np.arange(90))).n_cells == 90


def test_a_store_gives_the_sentences_its_files_give(data, tmp_path):
    parts = {"one.h5ad": data[:50].copy(), "two.h5ad": data[50:, ::-1].copy()}
    obs = ("organ", "coarse", "fine", "term")
    path = write_store(tmp_path / "store", parts, obs=obs)
    store = Store(path)
    config = SentenceConfig(
        columns=("organ", "coarse", "fine"), types=("coarse", "fine"), ontology={"fine": "term"}
    )
    members = [member_of(part) for part in parts.values()]
    vocab = sentence_vocab(members, config)
    assert sentence_vocab([member_of(path)], config) == vocab
    in_store, _ = open_input(path, vocab, InputConfig(), config)
    datasets, rows = store.numbers("dataset"), store.numbers("row")
    for number, part in enumerate(parts.values()):
        cells = np.flatnonzero(datasets == number)
        keys = cell_keys(0, 0, np.arange(len(cells)))
        found = in_store.tokenizer.training(in_store.source.rows(cells), keys)
        of_file, _ = open_input(part, vocab, InputConfig(), config)
        expected = of_file.tokenizer.training(of_file.source.rows(rows[cells]), keys)
        for name in ("gene_ids", "values", "is_target", "target_values", "offsets"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
