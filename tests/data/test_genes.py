"""Alignment of gene names: facts of HGNC, real files, and invariances."""

import json
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from scfm.data.counts import CountRows
from scfm.data.genes import GeneReport, align, covered, gene_table, require_coverage
from scfm.errors import DuplicateGeneError, EmptyCellError, GeneCoverageError

# symbol, Ensembl id: from genenames.org
HUMAN = {
    "CD3E": "ENSG00000198851",
    "CD68": "ENSG00000129226",
    "IRF4": "ENSG00000137265",
    "KMT2A": "ENSG00000118058",
    "MARCHF1": "ENSG00000145416",
    "MT-CO1": "ENSG00000198804",
    "PTPRC": "ENSG00000081237",
    "SEPTIN9": "ENSG00000184640",
}
SYMBOLS, IDS = list(HUMAN), list(HUMAN.values())


def names(*index: str, **columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(index, dtype=object))


def aligned(var: pd.DataFrame, **options):
    """Symbol of each column, None where it is not used; and the report."""
    alignment = align(var, SYMBOLS, IDS, **options)
    return [
        SYMBOLS[gene] if gene >= 0 else None for gene in alignment.column_to_gene
    ], alignment.report


def rows_of(counts) -> CountRows:
    counts = np.asarray(counts)
    cells, columns = np.nonzero(counts)
    indptr = np.searchsorted(cells, np.arange(len(counts) + 1)).astype(np.int32)
    return CountRows(
        indptr, columns.astype(np.int32), counts[cells, columns], np.arange(len(counts))
    )


@pytest.fixture(scope="session")
def human_vocabulary():
    """Coding genes straight from the table: the real vocabulary is a rank above data."""
    table = gene_table("human")
    coding = table[(table.locus_group == "protein-coding gene") & (table.ensembl_id != "")]
    return coding.symbol.tolist(), coding.ensembl_id.tolist()


def real_var(shared_data, name: str) -> pd.DataFrame:
    if shared_data is None:
        pytest.skip("the larger real files are not beside this checkout")
    return ad.read_h5ad(shared_data / "rna" / name, backed="r").var


# One gene at a time


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("CD3E", "CD3E"),
        ("ENSG00000198851", "CD3E"),
        ("ENSG00000198851.12", "CD3E"),
        ("MLL", "KMT2A"),  # previous symbols
        ("MARCH1", "MARCHF1"),
        ("SEPT9", "SEPTIN9"),
        ("CD45", "PTPRC"),  # CD45 is a previous symbol and the name everyone uses
        ("RNF171", "MARCHF1"),  # an alias
        ("cd3e", None),  # no guessing by letter case
        ("ENSG00000198851x", None),
        ("MUM1", None),  # previous symbol of IRF4 and of PWWP3A
    ],
)
def test_one_name(name, gene):
    found, _ = aligned(names(name, "CD68"))
    assert found == [gene, "CD68"]


def test_every_column_is_counted_once():
    var = names("CD3E", "MLL", "MUM1", "TP53", "MALAT1", "gibberish", "SEPTIN9", "SEPT9")
    found, report = aligned(var, name="five kinds")
    assert found == ["CD3E", "KMT2A", None, None, None, None, "SEPTIN9", "SEPTIN9"]
    assert (report.matched, report.renamed, report.duplicated) == (4, 2, 1)
    assert (report.ambiguous, report.outside_vocabulary, report.unrecognised) == (1, 2, 1)
    assert report.missing == len(SYMBOLS) - 3
    assert report.examples == {
        "renamed": ("MLL -> KMT2A", "SEPT9 -> SEPTIN9"),
        "duplicated": ("SEPTIN9: SEPTIN9, SEPT9",),
        "ambiguous": ("MUM1",),
        "outside_vocabulary": ("TP53", "MALAT1"),
        "unrecognised": ("gibberish",),
        "missing": ("CD68", "IRF4", "MARCHF1", "MT-CO1", "PTPRC"),
    }


def test_measured_is_sorted_and_unique():
    alignment = align(names("SEPTIN9", "CD3E", "SEPT9", "zzz"), SYMBOLS, IDS)
    assert alignment.column_to_gene.dtype == alignment.measured.dtype == np.int32
    np.testing.assert_array_equal(alignment.column_to_gene, [7, 0, 7, -1])
    np.testing.assert_array_equal(alignment.measured, [0, 7])


def test_an_alias_beside_its_gene_is_another_gene():
    assert aligned(names("RNF171", "CD68"))[0] == ["MARCHF1", "CD68"]
    for own_name in ("MARCHF1", "MARCH1"):
        found, report = aligned(names("RNF171", own_name))
        assert found == [None, "MARCHF1"]
        assert report.examples["ambiguous"] == ("RNF171",)


def test_names_made_unique_are_duplicates():
    var = names("CD3E", "CD3E-1", "CD3E.2", "CD68-1", "MT-CO1", "CD3E-1-1")
    found, report = aligned(var)
    # CD68-1 has no CD68 beside it: it may be anything
    assert found == ["CD3E", "CD3E", "CD3E", None, "MT-CO1", None]
    assert report.duplicated == 2
    # KRTAP10-1 is a gene of its own, whatever KRTAP10 may be
    alignment = align(names("KRTAP10", "KRTAP10-1"), ["KRTAP10", "KRTAP10-1"], ["", ""])
    np.testing.assert_array_equal(alignment.column_to_gene, [0, 1])


def test_an_older_vocabulary_is_understood():
    """A published model may still say MLL: old and new files both find it."""
    alignment = align(names("KMT2A", "ENSG00000118058", "MLL"), ["CD3E", "MLL"], ["", ""])
    np.testing.assert_array_equal(alignment.column_to_gene, [1, 1, 1])
    # where the vocabulary has both, each name is its own
    alignment = align(names("KMT2A", "MLL"), ["MLL", "KMT2A"], ["", ""])
    np.testing.assert_array_equal(alignment.column_to_gene, [1, 0])


def test_names_of_no_known_gene_match_the_vocabulary_exactly():
    alignment = align(names("g2", "g0", "g7"), ["g0", "g1", "g2"], ["", "", ""])
    np.testing.assert_array_equal(alignment.column_to_gene, [2, 0, -1])


# Which column of var


@pytest.mark.parametrize(
    ("var", "source"),
    [
        (names("CD3E", "CD68"), "symbols in var.index"),
        (names("a", "b", gene_ids=IDS[:2]), "Ensembl ids in var['gene_ids']"),
        (
            names("a", "b", id=["ENSG00000198851.1", "ENSG00000129226.2"]),
            "Ensembl ids with version in var['id']",
        ),
        (
            names("0", "1", feature_name=pd.Categorical(["CD3E", "CD68"])),
            "symbols in var['feature_name']",
        ),
        (names("CD3E", "CD68", gene_ids=IDS[:2]), "symbols in var.index"),
        (names("0", "1", n=[3, 4], s=["CD3E", "CD68"], x=[None, 1.5]), "symbols in var['s']"),
    ],
)
def test_the_column_that_names_most_genes_is_read_and_named(var, source):
    found, report = aligned(var)
    assert found == ["CD3E", "CD68"]
    assert report.id_kind == source
    assert report.species == "human"


def test_open_columns_are_looked_up_in_the_next_best():
    five = ["CD3E", "CD68", "IRF4", "MARCHF1", "MT-CO1"]
    index = [*(HUMAN[gene] for gene in five), "ENSG00000999999", "ENSG00000999998"]
    var = names(*index, symbol=["CD3E", "?", "IRF4", "?", "?", "MLL", "CD68"])
    found, report = aligned(var)
    # CD68 is another column already: that a retired id bears its name may mean anything
    assert found == [*five, "KMT2A", None]
    assert report.id_kind == "Ensembl ids in var.index, 1 by var['symbol']"
    # an ambiguous symbol is settled by its id
    var = names("CD3E", "CD68", "MUM1", id=[HUMAN["CD3E"], "?", HUMAN["IRF4"]])
    assert aligned(var)[0] == ["CD3E", "CD68", "IRF4"]


def test_a_column_of_other_words_is_never_looked_up():
    var = names(*IDS[:4], "?", note=["x", "x", "x", "x", "KMT2A"])
    assert aligned(var)[0] == [*SYMBOLS[:4], None]


# Species


def test_mouse_is_refused_without_orthologs():
    for var in (names("Cd3e", "Cd68"), names("ENSMUSG00000032093", "ENSMUSG00000018774")):
        with pytest.raises(GeneCoverageError) as refusal:
            align(var, SYMBOLS, IDS, name="heart.h5ad")
        for wanted in (
            "heart.h5ad looks like mouse: 2 of 2",
            "--set input.orthologs=true for scfm pretrain, --orthologs for the other",
            "orthologs=True",
        ):
            assert wanted in str(refusal.value)
    with pytest.raises(GeneCoverageError, match="is mouse, as you said"):
        align(names("CD3E"), SYMBOLS, IDS, species="mouse")


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("Cd3e", "CD3E"),
        ("ENSMUSG00000032093", "CD3E"),
        ("ENSMUSG00000032093.8", "CD3E"),
        ("mt-Co1", "MT-CO1"),
        ("Sept9", None),  # the mouse list has Septin9; old mouse names are in no table
        ("Septin9", "SEPTIN9"),
        ("Xist", None),  # a gene, but none of the vocabulary
        ("CD68", None),  # the human spelling
    ],
)
def test_mouse_genes_by_orthologs(name, gene):
    found, report = aligned(names(name, "Ptprc", "Irf4"), orthologs=True)
    assert found == [gene, "PTPRC", "IRF4"]
    assert (report.species, report.species_guessed, report.orthologs) == ("mouse", True, True)


def test_orthologs_are_one_to_one():
    table = gene_table("mouse")
    paired = table.human_ortholog[table.human_ortholog != ""]
    assert paired.is_unique
    assert len(paired) > 16_000
    assert set(paired) <= set(gene_table("human").symbol)
    of = dict(zip(table.symbol, table.human_ortholog, strict=True))
    # Trf is transferrin; H2-K1, Ccl21a and Gstm1 are of families that do not pair one to one
    assert [of[gene] for gene in ("Trf", "H2-K1", "Ccl21a", "Gstm1")] == ["TF", "", "", ""]
    # Ensembl 105 said Atp5b; its id bears Atp5f1b now
    assert of["Atp5f1b"] == "ATP5F1B"


def test_orthologs_do_nothing_to_human_data():
    assert aligned(names("CD3E"), orthologs=True)[0] == ["CD3E"]
    assert not aligned(names("CD3E"), orthologs=True)[1].orthologs


def test_species_can_be_said():
    _, report = aligned(names("CD3E", "Irf4", "Ptprc"), species="human")
    assert (report.species, report.species_guessed, report.matched) == ("human", False, 1)


# Refusals


@pytest.mark.parametrize(
    ("index", "hint"),
    [
        (["foo", "bar"], "in no table; scfm wants HGNC symbols or Ensembl gene ids"),
        (["cd3e", "cd68"], r"another letter case.*str\.upper"),
        (["ENST00000361763", "ENST00000361763.9"], "transcript ids"),
        (["ENSRNOG00000001", "ENSRNOG00000002"], "another species than human or mouse"),
        (["GRCh38_CD3E", "GRCh38_CD68"], "strip the prefix"),
        (["chr1:1000-1500", "chr2:70-90"], "genomic intervals"),
        (["916", "968"], "Entrez"),
        (["HGNC:1674", "HGNC:1693"], "HGNC ids"),
        (["CD3E_ENSG00000198851", "CD68_ENSG00000129226"], "two names in one"),
        (["MALAT1", "XIST", "NEAT1"], "outside the model's vocabulary"),
    ],
)
def test_unrecognisable_names_are_refused_with_the_likely_cause(index, hint):
    with pytest.raises(GeneCoverageError, match=f"(?s)None of the {len(index)} columns.*{hint}"):
        align(names(*index), SYMBOLS, IDS)


def test_the_wrong_species_said_is_the_likely_cause():
    with pytest.raises(GeneCoverageError, match="Most names are mouse genes"):
        align(names("Cd3e", "Cd68"), SYMBOLS, IDS, species="human")
    with pytest.raises(GeneCoverageError, match="Most names are human genes"):
        align(names("CD3E", "CD68"), SYMBOLS, IDS, species="mouse", orthologs=True)


def test_no_columns_are_refused():
    with pytest.raises(GeneCoverageError, match="None of the 0 columns"):
        align(names(), SYMBOLS, IDS)


def test_duplicates_can_be_refused():
    var = names("SEPTIN9", "SEPT9", "CD3E")
    with pytest.raises(DuplicateGeneError, match=r"SEPTIN9: SEPTIN9, SEPT9.*duplicates='sum'"):
        align(var, SYMBOLS, IDS, duplicates="refuse")
    align(var[1:], SYMBOLS, IDS, duplicates="refuse")


def test_coverage_is_the_share_of_counts_on_matched_columns():
    alignment = align(names("CD3E", "x1", "MLL", "x2"), SYMBOLS, IDS)
    counts = np.array([[3, 1, 0, 4], [0, 1, 2, 0]])
    assert covered(alignment, rows_of(counts)) == pytest.approx(5 / 11)
    assert require_coverage(alignment, rows_of(counts), 0.4).counts_covered == pytest.approx(5 / 11)
    assert alignment.report.counts_covered is None
    with pytest.raises(GeneCoverageError, match=r"(?s)45\.5 % of the counts.*at least 50\.0 %"):
        require_coverage(alignment, rows_of(counts))
    with pytest.raises(EmptyCellError, match="filter_cells"):
        covered(alignment, rows_of(np.zeros((2, 4), dtype=int)))


@pytest.mark.parametrize(
    ("index", "hint"),
    [
        (["CD3E", "cd68", "irf4", "ptprc"], "another letter case"),
        (["CD3E", "a_1", "b_2", "c_3"], "in no table"),
        (["CD3E", "MALAT1", "XIST", "NEAT1"], "outside the model's vocabulary"),
        (["CD3E", "CD68", "IRF4", "MALAT1"], "highest_expr_genes"),
    ],
)
def test_low_coverage_names_the_likely_cause(index, hint):
    alignment = align(names(*index), SYMBOLS, IDS, name="data.h5ad")
    with pytest.raises(GeneCoverageError, match=f"(?s)of the counts of data.h5ad.*{hint}"):
        require_coverage(alignment, rows_of([[1, 1, 1, 100]]))


# The report


def full_report() -> GeneReport:
    var = names("CD3E", "MLL", "MUM1", "TP53", "gibberish" * 20, "SEPTIN9", "SEPT9")
    alignment = align(var, SYMBOLS, IDS, name="a.h5ad")
    return require_coverage(alignment, rows_of([[1] * 7]))


def test_report_prints_a_table_of_at_most_100_columns():
    lines = str(full_report()).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "Genes of a.h5ad"
    assert "human (guessed): symbols in var.index" in lines[1]
    assert "MLL -> KMT2A" in next(line for line in lines if "renamed" in line)
    assert lines[-1].split() == ["counts", "covered", "57.1", "%"]
    # numbers end in one column
    numbers = [line[: 2 + 20 + 8] for line in lines[2:-1]]
    assert all(line[-1].isdigit() for line in numbers)


@pytest.mark.parametrize("report", [full_report(), align(names("CD3E"), SYMBOLS, IDS).report])
def test_report_round_trips_through_json_and_h5ad(report, tmp_path):
    assert GeneReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    adata = ad.AnnData(np.ones((1, 1), dtype=np.float32), uns={"scfm": {"genes": report.to_dict()}})
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad").uns["scfm"]["genes"]
    assert GeneReport.from_dict(stored) == report
    assert str(GeneReport.from_dict(stored)) == str(report)
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["uns/scfm/genes/matched"][()] == report.matched


# Real files


@pytest.mark.parametrize(
    ("file", "source", "matched", "options"),
    [
        ("pbmc3k.h5ad", "symbols in var.index", 18_000, {}),
        ("zheng_facs_pbmc.h5ad", "Ensembl ids in var.index", 13_000, {}),
        ("onek1k_1000genes.h5ad", "Ensembl ids in var.index", 800, {}),
        ("placenta_cellxgene.h5ad", "symbols in var.index", 14_500, {}),
        (
            "mouse_heart_1k_v2.h5ad",
            "Ensembl ids in var['gene_ids']",
            15_500,
            {"orthologs": True},
        ),
        ("mouse_cortex_e175.h5ad", "symbols in var.index", 12_000, {"orthologs": True}),
    ],
)
def test_real_files(shared_data, human_vocabulary, file, source, matched, options):
    var = real_var(shared_data, file)
    alignment = align(var, *human_vocabulary, **options)
    report = alignment.report
    assert report.id_kind.startswith(source)
    assert report.species == ("mouse" if options else "human")
    assert matched <= report.matched <= len(human_vocabulary[0]) + report.duplicated
    used = report.ambiguous + report.outside_vocabulary + report.unrecognised
    assert report.matched + used == report.n_columns == len(var)
    assert len(alignment.measured) == report.matched - report.duplicated
    assert report.missing == report.n_genes - len(alignment.measured)
    if options:
        with pytest.raises(GeneCoverageError, match="--orthologs"):
            align(var, *human_vocabulary)


@pytest.mark.parametrize(
    ("file", "column"), [("zheng_facs_pbmc.h5ad", "symbol"), ("mouse_heart_1k_v2.h5ad", "gene_ids")]
)
def test_both_kinds_of_names_give_the_same_genes(shared_data, human_vocabulary, file, column):
    """Ids and symbols of one file, each alone, by tables that know nothing of each other."""
    var = real_var(shared_data, file)
    one, other = (
        align(names(*index), *human_vocabulary, orthologs=True).column_to_gene
        for index in (var.index, var[column].astype(str))
    )
    both = (one >= 0) & (other >= 0)
    assert both.sum() > 0.97 * max((one >= 0).sum(), (other >= 0).sum())
    # symbols that moved from one gene to another since: mouse Pgm1 and Pgm2, human ADORA3, ...
    assert (one != other)[both].sum() <= 4


def test_permuted_columns_permute_the_alignment(rng, human_vocabulary):
    """A real mixture: approved, old, ambiguous and unknown names, ids, repeats."""
    table = gene_table("human")
    index = np.array(
        [
            *rng.choice(table.symbol[:40_000], 3_000),
            *rng.choice(table.ensembl_id[:40_000], 300),
            *("MLL", "SEPT9", "SEPTIN9", "MUM1", "RNF171", "MARCHF1", "QARS", "CD3E", "CD3E-1"),
            *(f"novel{i}" for i in range(100)),
        ],
        dtype=object,
    )
    order = rng.permutation(len(index))
    symbols = rng.permutation(index)
    straight = align(names(*index, symbol=symbols), *human_vocabulary)
    permuted = align(names(*index[order], symbol=symbols[order]), *human_vocabulary)
    np.testing.assert_array_equal(permuted.column_to_gene, straight.column_to_gene[order])
    np.testing.assert_array_equal(permuted.measured, straight.measured)
    plain, other = straight.report.to_dict(), permuted.report.to_dict()
    del plain["examples"], other["examples"]
    assert plain == other


def test_permuted_vocabulary_permutes_the_genes(rng):
    var = names("CD3E", "MLL", "SEPT9", "ENSG00000129226", "x")
    order = rng.permutation(len(SYMBOLS))
    shuffled = align(var, [SYMBOLS[i] for i in order], [IDS[i] for i in order])
    straight = align(var, SYMBOLS, IDS).column_to_gene
    np.testing.assert_array_equal(
        np.where(shuffled.column_to_gene >= 0, order[shuffled.column_to_gene], -1), straight
    )


# The tables


def test_human_table():
    table = gene_table("human")
    known = table[table.locus_group != ""]
    assert known.symbol.is_unique
    assert known.ensembl_id[known.ensembl_id != ""].is_unique
    assert table.ensembl_id[table.ensembl_id != ""].is_unique
    assert list(known.symbol) == sorted(known.symbol)
    # two genes listed with one id: it stays with the gene that bears its name today
    assert table.set_index("symbol").ensembl_id[["TAS2R43", "TAS2R45"]].tolist() == [
        "ENSG00000255374",
        "",
    ]


def test_tables_are_small_and_the_import_is_light():
    from importlib.resources import files

    resources = list((files("scfm.data") / "resources").iterdir())
    packed = [file for file in resources if file.name.endswith((".gz", ".xz"))]
    assert sum(len(file.read_bytes()) for file in packed) < 1.5e6
    tables = [file for file in packed if file.name.endswith(".gz")]
    # bytes 4 to 8 of a gzip file are its time: none, or no two builds would be equal
    assert {file.read_bytes()[4:8] for file in tables} == {bytes(4)}
    code = (
        "import sys, scfm.data.genes, scfm.tokens.vocab\n"
        "print({'torch', 'scanpy', 'anndata'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
