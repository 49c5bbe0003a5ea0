"""Tables of markers: CSV, YAML and mappings say the same; what is none is refused."""

import pytest

from scfm.data.cell_ontology import CellOntology
from scfm.data.marker_table import Markers, marker_table
from scfm.errors import InputError, MissingFileError

CSV = "cell_type,gene,term\nB,MS4A1,CL:0000236\nB,CD79A,\nB,CD3D-,\nT, CD3D ,\n,X,\n"
YAML = "T: [CD3D]\nB: [MS4A1, CD79A, CD3D-, MS4A1]\n"


def test_three_forms_of_one_table(tmp_path):
    (tmp_path / "m.csv").write_text(CSV)
    (tmp_path / "m.yaml").write_text(YAML)
    expected = {"B": Markers(("MS4A1", "CD79A"), ("CD3D",)), "T": Markers(("CD3D",))}
    given = {"T": ["CD3D"], "B": ("MS4A1", "CD79A", "CD3D-")}
    for source in (tmp_path / "m.csv", str(tmp_path / "m.yaml"), given):
        table = marker_table(source)
        assert dict(table.types) == expected
        assert list(table.types) == ["B", "T"]
        assert table.genes == ["MS4A1", "CD79A", "CD3D"]
    assert marker_table(tmp_path / "m.csv").terms == {"B": "CL:0000236"}
    assert marker_table(table) is table


def test_the_shipped_table_is_of_genes_and_terms_in_use():
    from scfm.tokens.vocab import GeneVocab

    table = marker_table()
    assert len(table.types) >= 10
    assert set(table.genes) <= set(GeneVocab.human().symbols)
    ontology = CellOntology.load()
    assert set(table.terms) == set(table.types)
    assert all(term in ontology for term in table.terms.values())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "type,gene\nB,MS4A1\n", "has columns type, gene. Wanted a CSV"),
        ("a.csv", "cell_type,gene\nB,MS4A1\n", "has 1 cell types"),
        ("a.csv", "cell_type,gene\nB,MS4A1\nT,CD3D-\n", "no gene speaks for 'T'"),
        ("a.yaml", "- MS4A1\n", "holds no mapping"),
        ("a.yaml", "B: MS4A1\nT: [CD3D]\n", "genes of 'B' .* are no list"),
        ("a.yaml", "B: [MS4A1\n", "not readable YAML"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        marker_table(tmp_path / name)


def test_no_such_file(tmp_path):
    with pytest.raises(MissingFileError, match="There is no table of markers"):
        marker_table(tmp_path / "no.csv")
