"""GeneVocab: ids are positions, the hash is of the file's own bytes, an altered file is refused."""

import hashlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scfm.data.gene_tables import gene_names
from scfm.data.genes import GeneAlignment, align, gene_table
from scfm.errors import MissingFileError, ModelError
from scfm.tokens.vocab import GeneVocab


@pytest.fixture
def vocab() -> GeneVocab:
    return GeneVocab(symbols=("CD3E", "MS4A1", "NKG7"), ensembl_ids=("ENSG00000198851", "", "E3"))


def test_ids_are_positions(vocab):
    assert [vocab.id_of(token) for token in vocab.tokens] == list(range(len(vocab)))
    assert (vocab.pad_id, vocab.cell_id, vocab.target_depth_id, vocab.source_depth_id) == (
        0,
        1,
        2,
        3,
    )
    assert vocab.gene_start == 4
    assert vocab.n_genes == 3
    assert vocab.id_of("MS4A1") == vocab.gene_start + vocab.symbols.index("MS4A1")


def test_specials_after_the_genes():
    vocab = GeneVocab(
        symbols=("A", "B"),
        ensembl_ids=("", ""),
        specials_before=(),
        specials_after=("[T]", "[S]", "[PAD]"),
    )
    assert vocab.gene_start == 0
    assert (vocab.target_depth_id, vocab.source_depth_id, vocab.pad_id) == (2, 3, 4)
    with pytest.raises(ModelError, match=r"no token '\[CELL\]'"):
        _ = vocab.cell_id


def test_file_round_trips_and_bears_the_hash_of_its_body(vocab, tmp_path):
    path = tmp_path / "vocab.tsv"
    for original in (vocab, GeneVocab(("A",), ("",), ("[S]",), ("[PAD]", "[T]"))):
        original.save(path)
        assert GeneVocab.load(path) == original
        body = b"".join(
            line for line in path.read_bytes().splitlines(keepends=True) if line[:1] != b"#"
        )
        assert hashlib.sha256(body).hexdigest() == original.hash == GeneVocab.load(path).hash


def test_hash_tells_any_change(vocab):
    changed = [
        GeneVocab(vocab.symbols[::-1], vocab.ensembl_ids),
        GeneVocab(vocab.symbols, ("ENSG00000198851", "", "E4")),
        GeneVocab(vocab.symbols, vocab.ensembl_ids, specials_before=("[PAD]", "[CELL]")),
        GeneVocab(vocab.symbols, vocab.ensembl_ids, (), vocab.specials_before),
    ]
    assert len({vocab.hash, *(other.hash for other in changed)}) == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("MS4A1", "MS4A2", "was altered"),
        ("NKG7\tE3\tgene\n", "", "was altered"),
        ("# scfm-vocab 1", "# scfm-vocab 2", "begins with '# scfm-vocab 2"),
        ("# token\tensembl_id\tkind\n", "", "begins with"),
    ],
)
def test_altered_file_is_refused(vocab, tmp_path, old, new, message):
    path = tmp_path / "vocab.tsv"
    vocab.save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ModelError, match=message):
        GeneVocab.load(path)


def test_foreign_lines_with_a_right_hash_are_refused(tmp_path):
    path = tmp_path / "vocab.tsv"
    body = "A\t\tgene\n[PAD]\t\tspecial\nB\t\tgene\n"  # genes in two blocks
    stamp = hashlib.sha256(body.encode()).hexdigest()
    path.write_text(f"# scfm-vocab 1\n# sha256 {stamp}\n# token\tensembl_id\tkind\n{body}")
    with pytest.raises(ModelError, match="one block"):
        GeneVocab.load(path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(MissingFileError, match=r"No vocabulary at .*vocab\.tsv"):
        GeneVocab.load(tmp_path / "vocab.tsv")
    (tmp_path / "vocab.tsv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ModelError, match="no vocabulary file"):
        GeneVocab.load(tmp_path / "vocab.tsv")


@pytest.mark.parametrize(
    ("symbols", "ids", "message"),
    [
        (("A", "A"), ("", ""), "'A' is there twice"),
        (("A", "[PAD]"), ("", ""), r"'\[PAD\]' is there twice"),
        (("A", "B"), ("",), "2 symbols and 1 ids"),
        (("A\tB",), ("",), "cannot be a token"),
        (("#A",), ("",), "cannot be a token"),
        (("",), ("",), "cannot be a token"),
    ],
)
def test_impossible_vocabularies(symbols, ids, message):
    with pytest.raises(ModelError, match=message):
        GeneVocab(symbols=symbols, ensembl_ids=ids)


def test_unknown_token_names_the_wanted_spelling(vocab):
    with pytest.raises(ModelError, match=r"no token 'CD19' among its 3 genes \(CD3E"):
        vocab.id_of("CD19")


def test_human_vocabulary_is_coding_and_mitochondrial_genes_in_order():
    vocab = GeneVocab.human()
    assert vocab is GeneVocab.human()
    assert list(vocab.symbols) == sorted(vocab.symbols)
    table = gene_table("human")
    groups = table[table.locus_group != ""].set_index("symbol").locus_group[list(vocab.symbols)]
    other = groups[groups != "protein-coding gene"].index
    # the mitochondrial genome has 13 proteins, 22 transfer and 2 ribosomal RNAs
    assert len(other) == 24
    assert other.str.startswith("MT-").all()
    assert sum(symbol.startswith("MT-") for symbol in vocab.symbols) == 37
    assert len(set(vocab.ensembl_ids)) == vocab.n_genes
    assert all(gene_id.startswith("ENSG") and len(gene_id) == 15 for gene_id in vocab.ensembl_ids)
    for symbol, gene_id in [
        ("CD3E", "ENSG00000198851"),
        ("MS4A1", "ENSG00000156738"),
        ("KMT2A", "ENSG00000118058"),
        ("MT-CO1", "ENSG00000198804"),
    ]:
        assert vocab.ensembl_ids[vocab.symbols.index(symbol)] == gene_id
    # published models hang on this order: a change must be meant, and told in CHANGELOG.md
    assert vocab.n_genes == 19_197
    assert vocab.hash == "2b3bee5f184ebd478aa74a1cbec3d0ee443fdf3305c2fd707c86e721ce1a384f"


def test_scfoundations_genes_are_the_released_list():
    vocab = GeneVocab.scfoundation()
    assert vocab is GeneVocab.scfoundation()
    # ends and a few places of the published file (item 1.1 of the specification)
    assert (vocab.n_genes, len(vocab)) == (19_264, 19_267)
    assert [vocab.id_of(symbol) for symbol in ("A1BG", "A1CF", "A2M", "ZZEF1", "ZZZ3")] == [
        *(0, 1, 2),
        *(19_262, 19_263),
    ]
    assert vocab.gene_start == 0
    assert (vocab.target_depth_id, vocab.source_depth_id, vocab.pad_id) == (19_264, 19_265, 19_266)
    known = [gene_id for gene_id in vocab.ensembl_ids if gene_id]
    assert len(known) == len(set(known)) == 19_207
    for symbol, gene_id in [
        ("CD3E", "ENSG00000198851"),
        ("MT-CO1", "ENSG00000198804"),
        ("MT-CO1__chrM", ""),  # no data names a gene so, and two cannot be one
        ("ATP5MJ", "ENSG00000156411"),  # ATP5MPL in the older of our tables
    ]:
        assert vocab.ensembl_ids[vocab.id_of(symbol)] == gene_id
    # published models are saved with this hash
    assert vocab.hash == "cd3369540f94285bf87546e3ad3f5fa7890bb1ee74db6753e99934be66b1faf2"


def test_scfoundations_genes_are_found_by_old_and_new_symbols_and_by_id():
    vocab = GeneVocab.scfoundation()
    names = gene_names("human")
    place = {symbol: position for position, symbol in enumerate(vocab.symbols)}
    # renamed since 2020: the list has the new symbol of some of them, and the old of others
    pairs = [(new, old) for new, (kind, old) in names.other_names.items() if kind == "current"]
    pairs = [(new, old) for new, old in pairs if (new in place) != (old in place)]
    assert sum(new in place for new, _ in pairs) == 117
    wanted = np.array([place.get(new, place.get(old)) for new, old in pairs])
    ids = np.array(vocab.ensembl_ids)[wanted]

    def found(columns) -> GeneAlignment:
        return align(pd.DataFrame(index=columns), vocab.symbols, vocab.ensembl_ids)

    news, olds = (found([pair[side] for pair in pairs]) for side in (0, 1))
    np.testing.assert_array_equal(news.column_to_gene, wanted)
    np.testing.assert_array_equal(olds.column_to_gene, wanted)
    assert olds.report.renamed + news.report.renamed == len(pairs)
    assert olds.report.examples["renamed"]
    assert "renamed" in str(olds.report)
    has_id = ids != ""
    assert has_id.mean() > 0.95
    by_id = found([f"{gene_id}.2" for gene_id in ids[has_id]])
    np.testing.assert_array_equal(by_id.column_to_gene, wanted[has_id])
    assert (by_id.report.renamed, by_id.report.matched) == (0, has_id.sum())
    every = np.flatnonzero(np.array(vocab.ensembl_ids) != "")
    by_id = found([vocab.ensembl_ids[gene] for gene in every])
    np.testing.assert_array_equal(by_id.column_to_gene, every)


def test_scfoundations_genes_in_real_cells(shared_data, demo_cells):
    vocab = GeneVocab.scfoundation()
    folder = demo_cells if shared_data is None else shared_data / "rna"
    var = ad.read_h5ad(folder / "pbmc3k.h5ad", backed="r").var
    report = align(var, vocab.symbols, vocab.ensembl_ids).report
    assert report.n_genes - report.missing == 18_764  # of 19,264
    # all that matching by equal strings finds, as the original does
    assert len(set(var.index) & set(vocab.symbols)) == 17_695
    assert report.renamed == 1212
