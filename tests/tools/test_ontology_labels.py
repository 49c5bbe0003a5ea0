"""Labels in terms of the ontology, in an AnnData and while annotating; what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scfm.errors import ConfigError, LabelError, ScfmWarning
from scfm.tasks.back_off import THRESHOLD
from scfm.tasks.type_probabilities import TypeProbabilities
from scfm.tokens.vocab import GeneVocab
from scfm.tools.ontology_labels import (
    OntologyAnnotation,
    file_label_terms,
    map_labels,
    ontology_annotation,
    tidied,
    word_terms,
)


@pytest.fixture
def adata():
    labels = ["NK", "CD14+ Mono", None, "B", "NK", "mine/own", "NA"]
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels), "leiden": list("0123456")})
    return ad.AnnData(np.ones((7, 2), dtype=np.float32), obs=obs.set_index(obs.index.astype(str)))


def of(rows, classes=("B cell", "CD4 T cell", "CD8 T cell")):
    rows = np.asarray(rows, dtype=np.float64)
    return TypeProbabilities(classes, rows, np.zeros(len(rows), bool))


def test_terms_and_names_round_trip(adata, tmp_path):
    report = map_labels(adata, "cell_type", mapping={"mine/own": "T cell"})
    assert [f.how for f in report.found] == ["common", "common", "synonym", "mapped"]
    assert report.n_without == 2
    wanted = ["CL:0000623", "CL:0001054", np.nan, "CL:0000236", "CL:0000623", "CL:0000084", np.nan]
    path = tmp_path / "mapped.h5ad"
    adata.write_h5ad(path)
    again = ad.read_h5ad(path)
    for one in (adata, again):
        terms = one.obs["cell_type_ontology_term"]
        assert isinstance(terms.dtype, pd.CategoricalDtype)
        pd.testing.assert_series_equal(
            terms.astype(object), pd.Series(wanted, one.obs_names, dtype=object), check_names=False
        )
        assert one.obs["cell_type_ontology_name"].iloc[1] == "CD14-positive monocyte"
        made = one.uns["scfm"]["cell_type_ontology"]
        assert list(made["labels"]) == ["B", "CD14+ Mono", "NK", "mine/own"]
        assert made["ontology_version"] == report.ontology.version


def test_own_key_and_other_settings_are_kept(adata):
    adata.uns["scfm"] = {"X_scfm": {"a": 1}}
    map_labels(adata, "cell_type", key_added="cl")
    assert {"cl_ontology_term", "cl_ontology_name"} <= set(adata.obs)
    assert adata.uns["scfm"]["X_scfm"] == {"a": 1}


def test_refusals(adata):
    with pytest.raises(LabelError, match="no obs column 'type'"):
        map_labels(adata, "type")
    with pytest.raises(LabelError, match="All 7 labels of 'leiden' in AnnData are numbers"):
        map_labels(adata, "leiden")
    with pytest.raises(LabelError, match="'CL:1' is not found"):
        map_labels(adata, "cell_type", mapping={"NK": "CL:1"})
    with pytest.raises(ConfigError, match="key_added"):
        map_labels(adata, "cell_type", key_added="a/b")
    assert list(adata.obs) == ["cell_type", "leiden"]


def test_a_file_says_what_its_anndata_says(adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    assert file_label_terms(path, "cell_type").to_dict() == map_labels(adata, "cell_type").to_dict()


def test_annotation_backs_off_to_the_name_both_share():
    how = OntologyAnnotation.of(("B cell", "CD4 T cell", "CD8 T cell"), threshold=0.7)
    found = of([[0, 0.9, 0.1], [0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0, 0, 0]])
    columns = how.columns(found, "scfm")
    assert columns["scfm_ontology_name"].astype(str).tolist() == [
        *("CD4-positive, alpha-beta T cell", "mature alpha-beta T cell"),
        *("lymphocyte", "unknown"),
    ]
    assert columns["scfm_ontology_term"].isna().tolist() == [False, False, False, True]
    np.testing.assert_allclose(columns["scfm_ontology_confidence"], [0.9, 0.9, 1, 0], rtol=1e-6)
    assert how.settings()["ontology_terms"] == ["CL:0000236", "CL:0000624", "CL:0000625"]
    assert how.settings()["ontology_threshold"] == 0.7


def test_what_annotate_is_asked():
    classes = ("B cell", "mine")
    assert ontology_annotation(False, classes) is None
    assert ontology_annotation(None, classes) is None
    with pytest.warns(ScfmWarning, match="1 of 2 classes"):
        plain = ontology_annotation(True, classes, threshold=0.6)
    assert plain is not None
    assert plain.backing.threshold == 0.6
    mapped = ontology_annotation({"mine": "T cell"}, classes)
    assert mapped is not None
    assert mapped.backing.class_terms == ("CL:0000236", "CL:0000084")


def test_chunks_are_the_whole(rng, tmp_path):
    how = OntologyAnnotation.of(("B cell", "CD4 T cell", "CD8 T cell"))
    found = of(rng.dirichlet(np.ones(3), size=40))
    parts = [how.columns(found.part(np.arange(i, i + 10)), "k") for i in range(0, 40, 10)]
    together = tidied(pd.concat(parts, ignore_index=True))
    pd.testing.assert_frame_equal(together, tidied(how.columns(found, "k")))
    name = together["k_ontology_name"]
    other = pd.DataFrame({"k_cell_type": pd.Categorical(["a"], categories=["a", "b"])})
    assert list(tidied(other)["k_cell_type"].cat.categories) == ["a", "b"]
    assert set(name.cat.categories) == set(name)
    made = ad.AnnData(
        np.ones((40, 1), dtype=np.float32), obs=together.set_index(together.index.astype(str))
    )
    made.uns["scfm"] = {"k": how.settings()}
    made.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    assert again.obs["k_ontology_name"].astype(str).tolist() == name.astype(str).tolist()
    assert again.uns["scfm"]["k"]["ontology_threshold"] == THRESHOLD


def test_classes_without_a_term_are_told_and_speak_for_none():
    with pytest.warns(ScfmWarning, match=r"1 of 2 classes have no term.*'weird' is not found"):
        how = OntologyAnnotation.of(("B cell", "weird"), threshold=0.5)
    backed = how.backing.back_off(of([[0.3, 0.7], [0.6, 0.4]], ("B cell", "weird")))
    assert backed.labels().tolist() == ["unknown", "B cell"]
    with pytest.raises(LabelError, match="None of the 2 labels of the classes"):
        OntologyAnnotation.of(("odd", "weird"))
    with pytest.raises(ConfigError, match="threshold"):
        OntologyAnnotation.of(("B cell",), threshold=0.0)


def test_ids_that_came_with_the_classes_and_the_user_s_go_first():
    known = {"a": "CL:0000236", "b": "CL:0000084", "c": "CL:no"}
    with pytest.warns(ScfmWarning, match="'c' is not found"):
        how = OntologyAnnotation.of(("a", "b", "c"), known=known, mapping={"b": "monocyte"})
    assert how.backing.class_terms == ("CL:0000236", "CL:0000576", "")


def test_a_word_model_s_types_have_their_ids():
    """A word spelled like a gene bears its column; a tissue's id is none of a cell's."""
    vocab = GeneVocab(
        symbols=("CD3E",),
        ensembl_ids=("",),
        specials_after=("cell_type:CD3E", "B cell", "odd", "blood"),
        kinds=("cell_type", "cell_type", "cell_type", "tissue"),
        ontology_ids=("CL:0000084", "CL:0000236", "", "UBERON:0000178"),
    )
    assert word_terms(vocab) == {"CD3E": "CL:0000084", "B cell": "CL:0000236"}
