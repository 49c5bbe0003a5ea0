"""Backing off: counted by hand on a small ontology, and by enumeration on random probabilities."""

import numpy as np
import pytest

from scfm.data.cell_ontology import CellOntology
from scfm.errors import ConfigError, LabelError
from scfm.tasks.back_off import NO_TYPE, Backing, back_off
from scfm.tasks.type_probabilities import TypeProbabilities
from tests.toy_ontology import ID, toy_ontology

CLASSES = ("B cell", "CD4 T", "CD8 T", "epithelial", "killer T", "monocyte")
TERMS = {name: ID[name] for name in CLASSES}


def of(rows, outlier=None, classes=CLASSES) -> TypeProbabilities:
    rows = np.asarray(rows, dtype=np.float64)
    is_outlier = np.zeros(len(rows), bool) if outlier is None else np.asarray(outlier)
    return TypeProbabilities(tuple(classes), rows, is_outlier)


def test_by_hand():
    """Columns: B, CD4 T, CD8 T, epithelial, killer T, monocyte."""
    found = of(
        [
            [0.0, 0.9, 0.1, 0.0, 0.0, 0.0],  # sure
            [0.1, 0.5, 0.4, 0.0, 0.0, 0.0],  # one of two T cells
            [0.4, 0.3, 0.2, 0.0, 0.0, 0.1],  # B is the likeliest class, T cell .5: a lymphocyte
            [0.3, 0.1, 0.1, 0.0, 0.1, 0.4],  # a leukocyte, surely
            [0.2, 0.1, 0.1, 0.5, 0.0, 0.1],  # it is a cell
            [0.0, 0.2, 0.0, 0.0, 0.8, 0.0],  # of two kinds at once, deepest first
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # nothing was said
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # unlike all that was learned
        ],
        outlier=[False] * 7 + [True],
    )
    backed = back_off(found, TERMS, toy_ontology(), 0.8)
    assert backed.labels().tolist() == [
        *("CD4 T", "T cell", "lymphocyte", "leukocyte", "unknown", "killer T"),
        *("unknown", "unknown"),
    ]
    np.testing.assert_allclose(backed.confidence, [0.9, 0.9, 0.9, 1.0, 0.5, 0.8, 0, 0])
    assert backed.term[1] == ID["T cell"]
    assert backed.term[4] == ""


def test_a_killer_t_cell_speaks_for_both_its_kinds():
    backed = back_off(of([[0, 0.3, 0, 0, 0.7, 0]]), TERMS, toy_ontology(), 0.75)
    assert backed.labels().tolist() == ["T cell"]  # 1.0; killer has .7
    tie = back_off(of([[0, 0, 0, 0, 1.0, 0]]), TERMS | {"killer T": ID["T cell"]}, toy_ontology())
    assert tie.labels().tolist() == ["T cell"]


def test_of_terms_at_one_depth_the_most_probable_then_the_least_id():
    classes = {"a": ID["T cell"], "b": ID["killer"]}
    two = of([[0.4, 0.6], [0.6, 0.4], [0.5, 0.5]], classes=("a", "b"))
    backed = back_off(two, classes, toy_ontology(), 0.3)
    assert backed.labels().tolist() == ["killer", "T cell", "T cell"]


def enumerated(found, terms, ontology, threshold):
    """Every term of the whole ontology, one cell at a time, as the definition reads."""
    answers = []
    for row, is_outlier in zip(found.probabilities, found.is_outlier, strict=True):
        passing = []
        for term in set(ontology.names) - {ID["cell"]}:
            pairs = zip(found.classes, row, strict=True)
            sum_ = sum(p for name, p in pairs if terms[name] and ontology.is_a(terms[name], term))
            if sum_ >= threshold - 1e-9 and not is_outlier:
                passing.append((-ontology.depth(term), -round(sum_, 9), term))
        answers.append(min(passing)[2] if passing else "")
    return answers


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_as_the_definition_reads(rng, threshold):
    found = of(rng.dirichlet(np.full(6, 0.3), size=300), outlier=rng.random(300) < 0.1)
    terms = TERMS | {"epithelial": ""}  # one class has no term
    assert back_off(found, terms, toy_ontology(), threshold).term.tolist() == enumerated(
        found, terms, toy_ontology(), threshold
    )


def test_confidence_is_honest_where_probabilities_are(rng):
    """Labels drawn from the probabilities: a term is right as often as it says."""
    found = of(rng.dirichlet(np.full(6, 0.4), size=40_000))
    ontology = toy_ontology()
    truth = np.array(CLASSES)[(found.probabilities.cumsum(1) < rng.random((40_000, 1))).sum(1)]
    backed = back_off(found, TERMS, ontology, 0.7)
    is_right = np.array(
        [bool(t) and ontology.is_a(ID[c], t) for c, t in zip(truth, backed.term, strict=True)]
    )
    is_named = backed.codes >= 0
    assert 0.5 < is_named.mean() < 1
    assert is_right[is_named].mean() == pytest.approx(backed.confidence[is_named].mean(), abs=0.01)


def test_a_cell_does_not_hang_on_its_batch(rng):
    found = of(rng.dirichlet(np.full(6, 0.4), size=65))
    backing = Backing(CLASSES, tuple(TERMS.values()), toy_ontology())
    whole = backing.probabilities(found)
    parts = [backing.probabilities(found.part(np.array([row]))) for row in range(65)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_higher_thresholds_go_up_and_never_down(rng):
    found, ontology = of(rng.dirichlet(np.full(6, 0.4), size=200)), toy_ontology()
    before = back_off(found, TERMS, ontology, 0.55).term
    for threshold in (0.7, 0.9, 0.99):
        # above one half, terms that pass lie on no two branches of a tree
        after = back_off(found, TERMS, ontology, threshold).term
        depths = [[ontology.depth(t) if t else 0 for t in terms] for terms in (after, before)]
        assert np.all(np.array(depths[0]) <= depths[1])
        before = after


def test_what_every_cell_is_is_no_answer():
    """B or epithelial: "eukaryotic cell" passes, and says nothing."""
    ontology = CellOntology.load()
    terms = {"B": "CL:0000236", "E": "CL:0000066"}
    backed = back_off(of([[0.5, 0.5]], classes=("B", "E")), terms, ontology)
    assert backed.labels().tolist() == ["unknown"]
    assert not set(NO_TYPE) & set(backed.terms)
    assert all(term in ontology for term in NO_TYPE)
    told = Backing(("B", "E"), ("CL:0000236", "CL:0000066"), ontology, no_type=("CL:0000000",))
    assert told.back_off(of([[0.5, 0.5]], classes=("B", "E"))).labels()[0] == "eukaryotic cell"


def test_no_class_has_a_term():
    backed = back_off(of([[0.5, 0.5]], classes=("x", "y")), {}, toy_ontology())
    assert backed.labels().tolist() == ["unknown"]
    assert backed.confidence.tolist() == [0.0]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_impossible_thresholds(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        back_off(of([[1, 0, 0, 0, 0, 0]]), TERMS, toy_ontology(), threshold)


def test_terms_that_are_none():
    with pytest.raises(LabelError, match="CL:1: no term in use"):
        back_off(of([[1, 0, 0, 0, 0, 0]]), {"B cell": "CL:1"}, toy_ontology())
