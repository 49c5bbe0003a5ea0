"""Scores on the hierarchy: counted by hand, by another definition, and their invariances."""

import numpy as np
import pytest

from scfm.data.cell_ontology import CellOntology
from scfm.errors import LabelError
from scfm.evaluate.hierarchy import hierarchical_sums, hierarchy_scores, outcome_of
from tests.toy_ontology import ID, PARENTS, toy_ontology


def terms(*names: str) -> np.ndarray:
    return np.array([ID.get(name, name) for name in names], dtype=object)


def scores(truth, predicted, **options):
    return hierarchy_scores(
        terms(*truth), terms(*predicted), toy_ontology(), n_bootstrap=20, **options
    )


def test_sets_by_hand():
    """CD4 T: itself, T cell, lymphocyte, leukocyte; B cell: itself and the last two."""
    toy = toy_ontology()
    assert hierarchical_sums(ID["CD4 T"], ID["B cell"], toy) == (2, 3, 4)
    assert hierarchical_sums(ID["CD4 T"], ID["T cell"], toy) == (3, 3, 4)
    assert hierarchical_sums(ID["CD4 T"], "", toy) == (0, 0, 4)
    assert hierarchical_sums(ID["CD4 T"], ID["epithelial"], toy) == (0, 1, 4)
    assert hierarchical_sums(ID["killer T"], ID["killer"], toy) == (3, 3, 5)


def test_scores_by_hand():
    """Said and true 4 + 3 + 2 + 0, said 4 + 3 + 3 + 1, true 4 + 4 + 4 + 3, and one unknown (2)."""
    found = scores(
        ["CD4 T", "CD4 T", "CD4 T", "B cell", "monocyte"],
        ["CD4 T", "T cell", "B cell", "epithelial", ""],
    )
    assert found.precision.value == pytest.approx(9 / 11)
    assert found.recall.value == pytest.approx(9 / 17)
    assert found.f1.value == pytest.approx(2 * 9 / (11 + 17))
    # CD4 T: 2 * 9 / (10 + 12); B cell: 0; monocyte: 0
    assert found.macro_f1.value == pytest.approx((18 / 22) / 3)
    shares = [found.exact, found.coarser, found.finer, found.wrong, found.unknown]
    assert [share.value for share in shares] == pytest.approx([0.2, 0.2, 0, 0.4, 0.2])
    assert "20.0% right but coarser" in str(found)
    assert found.to_dict()["f1"]["value"] == found.f1.value


def test_all_right_and_all_wrong():
    names = ["CD4 T", "B cell", "epithelial"]
    right = scores(names, names)
    assert (right.f1.value, right.exact.value, right.macro_f1.value) == (1, 1, 1)
    wrong = scores(["epithelial"] * 3, [*names[:2], "monocyte"])
    assert (wrong.f1.value, wrong.wrong.value) == (0, 1)
    silent = scores(names, ["", "", "cell"])
    assert (silent.f1.value, silent.precision.value, silent.unknown.value) == (0, 0, 1)


@pytest.mark.parametrize(
    ("truth", "predicted", "outcome"),
    [
        ("T cell", "T cell", "exact"),
        ("CD4 T", "lymphocyte", "coarser"),
        ("T cell", "CD4 T", "finer"),
        ("CD4 T", "CD8 T", "wrong"),
        ("CD4 T", "", "unknown"),
        ("CD4 T", "cell", "unknown"),
        ("cell", "cell", "exact"),
        ("cell", "T cell", "finer"),
    ],
)
def test_what_a_call_is_worth(truth, predicted, outcome):
    assert outcome_of(ID[truth], ID.get(predicted, ""), toy_ontology()) == outcome


def test_in_a_flat_ontology_it_is_plain_accuracy(rng):
    """Without levels a set is the term itself: F1 over all cells is the share that is right."""
    names = [f"t{i}" for i in range(4)]
    flat = CellOntology(
        *("flat", {"CL:0000000": "cell"} | {name: name for name in names}),
        {"CL:0000000": ()} | dict.fromkeys(names, ("CL:0000000",)),
        *({}, {}, {}),
    )
    truth = rng.choice(names, size=300).astype(object)
    predicted = rng.choice(names, size=300).astype(object)
    found = hierarchy_scores(truth, predicted, flat, n_bootstrap=20)
    share = (truth == predicted).mean()
    assert [found.f1.value, found.precision.value, found.exact.value] == pytest.approx([share] * 3)


def test_as_sets_of_every_cell(rng):
    """Oracle: scikit-learn's micro scores of the 0/1 matrix of cells by terms."""
    from sklearn.metrics import precision_recall_fscore_support

    toy = toy_ontology()
    names = [name for name in PARENTS if name != "cell"]
    truth, predicted = terms(*rng.choice(names, 200)), terms(*rng.choice([*names, ""], 200))
    columns = [ID[name] for name in names]
    matrices = [
        np.array([[bool(t) and toy.is_a(t, c) for c in columns] for t in side], dtype=int)
        for side in (truth, predicted)
    ]
    theirs = precision_recall_fscore_support(*matrices, average="micro")[:3]
    found = hierarchy_scores(truth, predicted, toy, n_bootstrap=20)
    ours = [found.precision.value, found.recall.value, found.f1.value]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_backing_off_rightly_trades_recall_for_precision():
    """CD8 for CD4 T shares three of four terms; T cell is three, all true, of four."""
    fine = scores(["CD4 T"] * 4, ["CD4 T", "CD4 T", "CD8 T", "CD8 T"])
    coarse = scores(["CD4 T"] * 4, ["T cell"] * 4)
    assert (fine.precision.value, fine.recall.value) == (3.5 / 4, 3.5 / 4)
    assert (coarse.precision.value, coarse.recall.value) == (1, 3 / 4)
    assert (fine.wrong.value, coarse.wrong.value) == (0.5, 0)


def test_intervals_are_over_donors_where_there_are_several(rng):
    truth = ["CD4 T"] * 40
    predicted = ["CD4 T"] * 20 + ["B cell"] * 20
    donors = np.repeat(["a", "b", "c", "d"], 10).astype(object)
    over = {"n_bootstrap": 400, "groups": donors, "over": "donor"}
    wide = hierarchy_scores(terms(*truth), terms(*predicted), toy_ontology(), **over)
    narrow = hierarchy_scores(terms(*truth), terms(*predicted), toy_ontology(), n_bootstrap=400)
    assert wide.exact.high - wide.exact.low > narrow.exact.high - narrow.exact.low
    assert wide.exact.low <= wide.exact.value <= wide.exact.high


def test_order_of_cells_does_not_matter(rng):
    names = [name for name in PARENTS if name != "cell"]
    truth, predicted = rng.choice(names, 50), rng.choice(names, 50)
    order = rng.permutation(50)
    one, two = scores(truth, predicted), scores(truth[order], predicted[order])
    assert one.f1.value == two.f1.value
    assert one.macro_f1.value == pytest.approx(two.macro_f1.value, rel=1e-12)


def test_what_is_refused():
    with pytest.raises(
        LabelError, match=r"1 predicted terms are none of the Cell Ontology toy: B\. Wanted"
    ):
        scores(["T cell"], ["B"])
    with pytest.raises(LabelError, match="2 cells have no true term"):
        scores(["T cell", "", ""], ["T cell"] * 3)
    with pytest.raises(LabelError, match="0 true"):
        scores([], [])
