"""Labels of a data set in terms of the ontology: the report, the CSV to edit, what is refused."""

import csv

import pytest

from scfm.data.cell_labels import (
    given_mapping,
    read_mapping,
    refuse_none_found,
    terms_of_labels,
)
from scfm.data.cell_ontology import CellOntology
from scfm.errors import LabelError, MissingFileError, OutputError


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.load()


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_report_counts_each_way(ontology):
    counts = {"B cell": 5, "NK": 3, "DC": 2, "mine": 4, "HSC": 1, "weird": 7, "NA": 6}
    found = terms_of_labels(counts, ontology, {"mine": "CL:0000084"}, n_without=2)
    assert [f.how for f in found.found] == [
        *("exact", "synonym", "common", "mapped", "ambiguous", "not found")
    ]
    assert found.n_without == 8
    assert found.terms["mine"] == "CL:0000084"
    assert found.labels_by("common") == ["DC"]
    text = str(found)
    assert "1 exact (5 cells)" in text
    assert "8 cells without a label" in text
    assert "'HSC' may mean" in text
    assert "'weird' is not found" in text
    assert found.to_dict()["labels"][1]["name"] == "natural killer cell"


def test_the_csv_is_edited_and_given_again(ontology, tmp_path):
    first = terms_of_labels({"HSC": 2, "NK, bright": 9, "B": 1}, ontology)
    path = first.write(tmp_path / "mapping.csv")
    rows = rows_of(path)
    assert [row["label"] for row in rows] == ["B", "HSC", "NK, bright"]  # to be mended last
    assert "hepatic stellate cell" in rows[1]["near"]
    path.write_text(
        "label,term,note\nHSC,CL:0000037,\n"
        '"NK, bright","CD16-negative, CD56-bright natural killer cell, human",by name\nB,,\n'
    )
    again = terms_of_labels(
        {"HSC": 2, "NK, bright": 9, "B": 1}, ontology, given_mapping(path, ontology)
    )
    assert [f.how for f in again.found] == ["mapped", "mapped", "common"]
    assert again.terms["NK, bright"] == "CL:0000938"
    assert not again.missing


def test_a_mapping_goes_before_everything(ontology):
    given = given_mapping({"B cell": "type B pancreatic cell", "NA": "CL:0000000"}, ontology)
    found = terms_of_labels({"B cell": 1, "NA": 1}, ontology, given)
    assert found.terms == {"B cell": "CL:0000169", "NA": "CL:0000000"}
    assert found.n_without == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("label,id\nB,CL:0000236\n", "has columns label, id; wanted label and term"),
        ("", r"has columns \(none\)"),
        ("label,term\nB,CL:0000236\nT,CL:1234567\n", "line 3: 'CL:1234567' is not found"),
        ("label,term\nH,HSC\n", "line 2: 'HSC' may mean"),
        ("label,term\nB,CL:0000236\nB,CL:0000084\n", "'B' is mapped to CL:0000236 and to"),
    ],
)
def test_mappings_that_are_refused(ontology, tmp_path, text, told):
    path = tmp_path / "mapping.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=told):
        read_mapping(path, ontology)


def test_no_such_mapping(ontology, tmp_path):
    with pytest.raises(MissingFileError, match="scfm ontology map"):
        given_mapping(tmp_path / "none.csv", ontology)


def test_labels_that_are_codes_or_unknown_are_refused(ontology):
    with pytest.raises(LabelError, match="All 3 labels of 'leiden' are numbers"):
        refuse_none_found(terms_of_labels({"0": 1, "1": 1, "2.0": 1}, ontology), "'leiden'")
    with pytest.raises(
        LabelError, match=r"None of the 1 labels of x is known.*nearest: keratocyte"
    ):
        refuse_none_found(terms_of_labels({"Kera": 1}, ontology), "x")
    refuse_none_found(terms_of_labels({"NA": 1}, ontology), "x")  # no labels: said elsewhere


def test_a_csv_that_cannot_be_written(ontology, tmp_path):
    with pytest.raises(OutputError):
        terms_of_labels({"B": 1}, ontology).write(tmp_path / "none" / "mapping.csv")
