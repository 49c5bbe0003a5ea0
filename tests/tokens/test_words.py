"""Words: which column they belong to and what they may be called; the published vocabulary."""

import hashlib

import numpy as np
import pytest

from scfm.errors import ConfigError, ModelError
from scfm.tokens.vocab import GeneVocab
from scfm.tokens.words import Words


@pytest.fixture
def vocab() -> GeneVocab:
    """CD4 is a gene and a type; "B cell" is a coarse and a fine type; two words differ in case."""
    return GeneVocab(
        symbols=("CD3E", "CD4"),
        ensembl_ids=("", ""),
        specials_before=("<E>",),
        specials_after=(
            *("Blood", "B cell", "T cell", "fine:CD4", "10X", "10x"),
            *("<PCT>", "<SPToken1>", "<SPToken2>"),
        ),
        kinds=(
            *("organ", "coarse,fine", "coarse", "fine", "assay", "assay"),
            *("special", "special", "special"),
        ),
        ontology_ids=("", "CL:0000236", "CL:0000084", "", "", "", "", "", ""),
    )


def test_ids_by_column_and_text(vocab):
    words = Words(vocab, ("coarse", "fine"))
    assert words.columns == {"organ": (3,), "coarse": (4, 5), "fine": (4, 6), "assay": (7, 8)}
    assert words.types == ("coarse", "fine")
    assert words.type_ids("fine") == (4, 6)
    for column, text, word in [
        ("organ", "Blood", 3),
        ("organ", " blood", 3),
        ("coarse", "B cell", 4),
        ("fine", "CL:0000236", 4),
        ("fine", "cl:0000236", 4),
        ("fine", "CD4", 6),
        ("fine", "fine:CD4", 6),
        ("assay", "10X", 7),
        ("assay", "10x", 8),
    ]:
        assert words.id_of(column, text) == word
    assert (words.end_id, words.annotate_id, words.generate_id, words.complete_id) == (0, 9, 10, 11)
    assert [words.text_of(i) for i in (2, 4, 6, 9)] == ["CD4", "B cell", "CD4", "<PCT>"]
    assert [words.ontology_id_of(i) for i in (4, 6)] == ["CL:0000236", ""]
    np.testing.assert_array_equal(words.is_gene(np.arange(5)), [False, True, True, False, False])


def test_columns_come_in_the_order_of_their_own_words():
    kinds = ("coarse,fine,all", "coarse", "organ", "fine,all", "special")
    vocab = GeneVocab(("A",), ("",), ("<E>",), ("B", "T", "Blood", "NK", "<PCT>"), kinds)
    assert list(Words(vocab).columns) == ["coarse", "organ", "fine", "all"]


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("coarse", "B cells", "none of the 2 words of coarse that the model knows; the nearest"),
        ("coarse", "T", "the nearest are 'T cell'"),
        ("organ", "T cell", "'T cell' is a word of coarse"),
        ("tissue", "Blood", "no words of 'tissue'; it has words of organ, coarse, fine, assay"),
    ],
)
def test_unknown_words_name_the_nearest(vocab, column, text, message):
    with pytest.raises(ConfigError, match=message):
        Words(vocab).id_of(column, text)


def test_a_letter_case_that_two_words_share_is_no_name(vocab):
    both = GeneVocab(("A",), ("",), ("<E>",), ("Smart-seq", "SMART-seq"), ("assay", "assay"))
    assert Words(both).find("assay", "smart-seq") is None
    with pytest.raises(ConfigError, match="the nearest are 'Smart-seq', 'SMART-seq'"):
        Words(both).id_of("assay", "smart-seq")
    assert Words(vocab).find("coarse", "b CELL") == 4


def test_types_are_columns_with_words(vocab):
    with pytest.raises(ConfigError, match="no words of 'subtype'"):
        Words(vocab, ("coarse", "subtype"))
    with pytest.raises(ModelError, match="knows 19,197 genes and no words"):
        Words(GeneVocab.human())


def test_words_travel_in_the_file_and_change_the_hash(vocab, tmp_path):
    vocab.save(tmp_path / "vocab.tsv")
    assert GeneVocab.load(tmp_path / "vocab.tsv") == vocab
    lines = (tmp_path / "vocab.tsv").read_text().splitlines()
    assert "B cell\tCL:0000236\tword:coarse,fine" in lines
    assert "<PCT>\t\tspecial" in lines
    plain = GeneVocab(vocab.symbols, vocab.ensembl_ids, ("<E>",), vocab.specials_after)
    all_special = GeneVocab(
        *(vocab.symbols, vocab.ensembl_ids, ("<E>",), vocab.specials_after),
        *(("special",) * 9, ("",) * 9),
    )
    assert plain == all_special != vocab
    assert plain.hash == all_special.hash != vocab.hash
    body = "<E>\t\tspecial\nCD3E\t\tgene\nCD4\t\tgene\n"
    body += "".join(f"{token}\t\tspecial\n" for token in vocab.specials_after)
    assert plain.hash == hashlib.sha256(body.encode()).hexdigest()  # as before there were words


@pytest.mark.parametrize(
    ("kinds", "ontology_ids", "message"),
    [
        (("organ",), (), "kinds go with its special tokens after the genes: got 1 and 2"),
        (("organ", ""), (), "'' cannot be a kind"),
        (("organ", "a,a"), (), "'a,a' cannot be a kind"),
        (("organ", "special"), ("", "CL:1"), "'<PCT>' is no word"),
    ],
)
def test_impossible_words(kinds, ontology_ids, message):
    with pytest.raises(ModelError, match=message):
        GeneVocab(("A",), ("",), ("<E>",), ("Blood", "<PCT>"), kinds, ontology_ids)


def test_the_published_vocabulary():
    # worked number J, and the ends of each block of item 2.2 of the specification
    vocab = GeneVocab.scmulan()
    assert (len(vocab), vocab.n_genes, vocab.gene_start) == (2222, 2000, 1)
    assert [vocab.id_of(token) for token in ("<E>", "A2M", "ZNF831")] == [0, 1, 2000]
    words = Words(vocab, ("cell_type", "cell_type"))
    for column, ids in {
        "organ": (2001, 2007),
        "cell_type": (2008, 2121),
        "age": (2122, 2154),
        "sample_status": (2155, 2160),
        "region": (2161, 2193),
        "seq_tech": (2194, 2203),
        "sex": (2204, 2205),
    }.items():
        assert (words.columns[column][0], words.columns[column][-1]) == ids
    assert words.id_of("organ", "Lung") == 2001
    assert words.id_of("organ", "heart") == 2007
    assert (words.id_of("sex", "F"), words.id_of("sex", "M")) == (2204, 2205)
    assert words.id_of("cell_type", "Unclassified") == 2010
    assert (words.annotate_id, words.generate_id, words.complete_id) == (2206, 2207, 2208)
    assert list(vocab.symbols) == sorted(vocab.symbols)
    assert vocab.ensembl_ids[vocab.symbols.index("CD3E")] == "ENSG00000198851"
