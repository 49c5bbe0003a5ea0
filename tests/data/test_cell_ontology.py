"""The Cell Ontology: terms as the released list has them, and what people's names for them mean."""

import json
import lzma
import re
import runpy
from importlib.resources import files

import pytest
import zstandard

from scfm.data.cell_ontology import ROOT, CellOntology
from scfm.data.cell_spelling import key_of, keys_of, words_of
from tests.conftest import ROOT as REPOSITORY
from tests.toy_ontology import ID, toy_ontology

LISTED = "CL-ontology-v2026-03-26.json.zst"
BUILDER = REPOSITORY / "scripts" / "build_cell_ontology.py"


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.load()


@pytest.fixture(scope="module")
def listed(shared_data):
    """The released list, which has each term's ancestors worked out by its makers' reasoner."""
    if shared_data is None or not (shared_data / "genes" / LISTED).exists():
        pytest.skip("the released list is beside a development checkout only")
    packed = (shared_data / "genes" / LISTED).read_bytes()
    return json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(packed))


def test_terms_and_ancestors_are_the_released_ones(ontology, listed):
    for term in ontology.names:
        assert ontology.name(term) == listed[term]["label"]
        assert ontology.ancestors(term) == set(listed[term]["ancestors"])
        assert not listed[term]["deprecated"]
    left_out = {term for term in listed if term not in ontology and term not in ontology.replaced}
    assert all(re.search("cytoplasm|nucleus|chromatin", listed[t]["label"]) for t in left_out)


def test_the_table_is_made_again_byte_for_byte(shared_data, listed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "again.tsv.gz"
    monkeypatch.setattr(
        "sys.argv", ["build", str(shared_data / "genes" / LISTED), "--out", str(out)]
    )
    runpy.run_path(str(BUILDER), run_name="__main__")
    shipped = (files("scfm.data") / "resources" / "cell_ontology.tsv.xz").read_bytes()
    assert lzma.decompress(out.read_bytes()) == lzma.decompress(shipped)
    assert len(shipped) < 300_000
    assert "terms" in capsys.readouterr().out


def test_every_name_and_id_is_found_as_itself(ontology):
    for term, name in ontology.names.items():
        for text in (name, name.upper(), term, term.replace(":", "_")):
            assert ontology.find(text).term == term, text


def test_every_synonym_is_found_or_told_to_be_ambiguous(ontology):
    """A synonym may be another term's name (told by that) or a short form of ours; never lost."""
    others = 0
    for term, synonyms in ontology.synonyms.items():
        if re.search(r"\((Mmus|Primate|sensu .*)\)$", ontology.name(term)):
            continue
        for synonym in synonyms:
            found = ontology.find(synonym)
            is_told = found.how == "ambiguous" and len(found.near) > 1
            others += found.term != term and not is_told
            assert found.term or is_told, synonym
    assert others <= 10  # of six thousand


@pytest.mark.parametrize(
    ("text", "name", "how"),
    [
        ("B cells", "B cell", "exact"),
        ("t-CELLS", "T cell", "exact"),
        ("Monocytes", "monocyte", "exact"),
        ("CD14+ monocytes", "CD14-positive monocyte", "exact"),
        ("CD4+ αβ T cell", "CD4-positive, alpha-beta T cell", "exact"),
        ("Haematopoietic stem cell (HSC)", "hematopoietic stem cell", "exact"),
        ("Ionocyte cell", "ionocyte", "exact"),
        ("Dendritic", "dendritic cell", "exact"),
        ("http://purl.obolibrary.org/obo/CL_0000236", "B cell", "exact"),
        ("CL:0000003", "cell", "exact"),  # retired, replaced
        ("native cell", "cell", "synonym"),  # as it was called
        ("NK", "natural killer cell", "synonym"),
        ("pDCs", "plasmacytoid dendritic cell", "synonym"),
        ("DCs", "dendritic cell", "common"),
        ("T lymphocyte", "T cell", "synonym"),
        ("Treg", "regulatory T cell", "synonym"),
        ("B", "B cell", "common"),
        ("CD8 T", "CD8-positive, alpha-beta T cell", "common"),
        ("FCGR3A+ Mono", "CD14-low, CD16-positive monocyte", "common"),
        ("Alpha", "pancreatic A cell", "common"),  # not the mouse's retinal ganglion cell
        # a name of its own, though the B-1b cell's synonyms read alike without hyphens
        ("B-1 B cell", "B-1 B cell", "exact"),
        ("Bm2' B cell", "Bm2' B cell", "exact"),
        ("Bm2 B cell", "Bm2 B cell", "exact"),
    ],
)
def test_what_people_write(ontology, text, name, how):
    found = ontology.find(text)
    assert (ontology.names.get(found.term), found.how) == (name, how)


def test_what_may_mean_several_is_told_and_not_guessed(ontology):
    found = ontology.find("HSC")
    assert (found.term, found.how) == ("", "ambiguous")
    assert set(map(ontology.name, found.near)) == {
        "hematopoietic stem cell",
        "hepatic stellate cell",
    }


@pytest.mark.parametrize("text", ["", "3", "K562", "D", "CL:9999999", "CL:0000002", "cluster 7"])
def test_what_means_nothing_is_not_found(ontology, text):
    found = ontology.find(text)
    assert (found.term, found.how) == ("", "not found")


def test_a_slip_of_the_pen_is_near(ontology):
    found = ontology.find("Migratory dendriitic cell")
    assert found.how == "not found"
    assert ontology.name(found.near[0]) == "migratory dendritic cell"


def test_short_forms_are_terms_and_not_what_the_ontology_says_itself(ontology):
    bare = CellOntology(
        *(ontology.version, ontology.names, ontology.parents, ontology.synonyms),
        *(ontology.replaced, {}),
    )
    for short, terms in ontology.shorthand.items():
        assert ontology.find(short).term == (terms[0] if len(terms) == 1 else "")
        assert bare.find(short).term not in terms or len(terms) > 1, short


def test_labels_of_cellxgene_are_found(ontology, shared_data):
    """Oracle: a file that has each label's id, given by its curators."""
    if shared_data is None:
        pytest.skip("real data are beside a development checkout only")
    import anndata as ad

    obs = ad.read_h5ad(shared_data / "rna" / "placenta_cellxgene.h5ad", backed="r").obs
    found = {ontology.find(label).term for label in obs["cell_type"].cat.categories}
    theirs = set(map(ontology.resolve, obs["cell_type_ontology_term_id"].cat.categories))
    assert found == theirs
    assert "" not in found


def test_kinds_of_kinds():
    toy = toy_ontology()
    assert toy.ancestors(ID["killer T"]) == {
        ID[name] for name in ("T cell", "killer", "lymphocyte", "leukocyte", "cell")
    }
    assert toy.is_a(ID["killer T"], ID["killer"])
    assert toy.is_a(ID["killer"], ID["killer"])
    assert not toy.is_a(ID["killer"], ID["killer T"])
    assert [toy.depth(ID[name]) for name in ("cell", "leukocyte", "killer T")] == [0, 1, 4]
    assert toy.common([ID["CD4 T"], ID["CD8 T"]]) == ID["T cell"]
    assert toy.common([ID["CD4 T"], ID["B cell"]]) == ID["lymphocyte"]
    assert toy.common([ID["CD4 T"], ID["epithelial"]]) == ROOT
    assert toy.common([ID["CD4 T"]]) == ID["CD4 T"]
    with pytest.raises(ValueError, match="no terms"):
        toy.common([])


def test_a_kind_is_deeper_than_what_it_is_a_kind_of(ontology):
    for term in ontology.names:
        assert all(ontology.depth(a) < ontology.depth(term) for a in ontology.ancestors(term))
        assert ontology.common([term, ROOT]) == ROOT


def test_spelling():
    assert words_of("CD4+/CD25- T-cells") == ["cd4", "positive", "cd25", "negative", "t", "cells"]
    assert key_of("CD8\N{MINUS SIGN}") == key_of("CD8-negative")
    assert key_of("λδ") == "lambdadelta"
    assert keys_of("NK cells") == ["nkcells", "nkcellscell", "nkcell", "nk"]
    assert keys_of("") == []
