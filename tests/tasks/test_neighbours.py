"""Neighbours against a plain loop, and everything a vote must not depend on."""

import math

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from scfm.errors import InputError, LabelError
from scfm.tasks.nearest import nearest
from scfm.tasks.neighbours import NeighbourClassifier, NeighbourConfig

PLAIN = NeighbourConfig(standardise=False)
FIELDS = ("label", "confidence", "runner_up", "similarity", "is_unknown")


@pytest.fixture
def cells(rng):
    centres = rng.normal(size=(4, 12))
    code = rng.integers(0, 4, 300)
    reference = centres[code] + rng.normal(scale=0.9, size=(300, 12))
    query = centres[rng.integers(0, 4, 90)] + rng.normal(scale=0.9, size=(90, 12))
    return reference, np.array(list("ABCD"), dtype=object)[code], query


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_loop(reference, labels, cell, k):
    """Votes as the docstring defines them, one neighbour after the other."""
    cosine = [float(r @ cell / np.linalg.norm(r) / np.linalg.norm(cell)) for r in reference]
    near = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]
    furthest = 1 - cosine[near[-1]]
    votes: dict[str, float] = {}
    for i in near:
        weight = math.exp(-(((1 - cosine[i]) / furthest) ** 2))
        votes[labels[i]] = votes.get(labels[i], 0.0) + weight
    ranked = [*sorted(votes, key=lambda label: -votes[label]), ""]
    similarity = sum(cosine[i] for i in near) / k
    return ranked[0], votes[ranked[0]] / sum(votes.values()), ranked[1], similarity


def same(one, other, rows=slice(None)):
    for name in FIELDS:
        ours, theirs = getattr(one, name), getattr(other, name)[rows]
        if ours.dtype == np.float64:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_matches_a_plain_loop(cells):
    reference, labels, query = cells
    found = NeighbourClassifier.fit(reference, labels, PLAIN).predict(query)
    for i, cell in enumerate(query):
        label, confidence, runner_up, similarity = by_loop(reference, labels, cell, 15)
        assert (found.label[i], found.runner_up[i]) == (label, runner_up)
        assert found.confidence[i] == pytest.approx(confidence, abs=1e-6)
        assert found.similarity[i] == pytest.approx(similarity, abs=1e-7)


def test_threshold_is_the_percentile_of_the_reference_without_itself(cells):
    reference, labels, _ = cells
    cosine = unit(reference) @ unit(reference).T
    np.fill_diagonal(cosine, -np.inf)
    own = np.sort(cosine, axis=1)[:, -15:].mean(1)
    config = NeighbourConfig(unknown_percentile=20.0, standardise=False)
    fitted = NeighbourClassifier.fit(reference, labels, config)
    assert fitted.min_similarity == pytest.approx(np.percentile(own, 20), abs=1e-8)
    assert fitted.predict(-reference[:5]).is_unknown.all()


def test_standardised_is_scikit_learns(cells):
    reference, labels, query = cells
    frame = NeighbourClassifier.fit(reference, labels).frame
    expected = StandardScaler().fit(reference).transform(query)
    np.testing.assert_allclose(frame.apply(query), expected, rtol=1e-10, atol=1e-12)


def test_depth_slope_is_that_of_an_analysis_of_covariance(cells, rng):
    """Oracle: least squares on depth and one indicator a label."""
    reference, labels, _ = cells
    depth = rng.normal(3.2, 0.3, len(labels))
    moved = reference + np.outer(depth, np.arange(12.0))
    names, code = np.unique(labels.astype(str), return_inverse=True)
    design = np.c_[depth, np.eye(len(names))[code]]
    expected = np.linalg.lstsq(design, moved, rcond=None)[0][0]
    found = NeighbourClassifier.fit(moved, labels, depth=depth).depth_slope
    np.testing.assert_allclose(found.slope, expected, rtol=1e-9, atol=1e-9)


def test_a_deeper_query_is_judged_as_if_it_were_not(cells, rng):
    reference, labels, query = cells
    slope, depth = 8 * rng.normal(size=12), rng.normal(3.0, 0.3, len(labels))
    moved = reference + np.outer(depth - 3, slope)
    voters = NeighbourClassifier.fit(moved, labels, depth=depth)
    as_is = voters.predict(query, np.full(len(query), 3.0)).label
    deeper = voters.predict(query + slope, np.full(len(query), 4.0)).label
    assert (as_is == deeper).mean() > 0.95
    unadjusted = NeighbourClassifier.fit(moved, labels).predict(query + slope).label
    assert (as_is == unadjusted).mean() < 0.8


def test_a_constant_dimension_says_nothing(cells):
    reference, labels, query = cells
    more = [np.c_[x, np.full(len(x), 7.0)] for x in (reference, query)]
    found = NeighbourClassifier.fit(more[0], labels).predict(more[1])
    same(found, NeighbourClassifier.fit(reference, labels).predict(query))


def test_a_dominant_direction_decides_less_when_standardised(cells, rng):
    """What depth does to an embedding: one direction, unrelated to the labels, that outweighs."""
    reference, labels, query = cells
    config = NeighbourConfig(unknown_percentile=0.0)
    alone = NeighbourClassifier.fit(reference, labels, config).predict(query).label
    depth = [np.c_[x, 60 * rng.normal(size=len(x)) + 60] for x in (reference, query)]
    agreement = {}
    for standardise in (True, False):
        config = NeighbourConfig(unknown_percentile=0.0, standardise=standardise)
        found = NeighbourClassifier.fit(depth[0], labels, config).predict(depth[1]).label
        agreement[standardise] = (found == alone).mean()
    assert agreement[True] > 0.85 > agreement[False]


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_nearest_does_not_hang_on_the_block(cells, block):
    reference, _, query = cells
    neighbour, cosine = nearest(unit(query), unit(reference), 15)
    blockwise, cosine_blockwise = nearest(unit(query), unit(reference), 15, block=block)
    np.testing.assert_array_equal(blockwise, neighbour)
    np.testing.assert_allclose(cosine_blockwise, cosine, rtol=0, atol=2e-9)


def test_a_cell_does_not_hang_on_the_others(cells):
    reference, labels, query = cells
    fitted = NeighbourClassifier.fit(reference, labels)
    whole = fitted.predict(query)
    same(fitted.predict(query[::-1]), whole, slice(None, None, -1))
    same(fitted.predict(query[40:41]), whole, slice(40, 41))


def test_order_and_scale_of_the_reference_do_not_matter(cells, rng):
    reference, labels, query = cells
    shuffled = rng.permutation(len(labels))
    scale = rng.uniform(1e-3, 1e3, size=(len(labels), 1))
    again = NeighbourClassifier.fit((scale * reference)[shuffled], labels[shuffled], PLAIN)
    same(again.predict(query), NeighbourClassifier.fit(reference, labels, PLAIN).predict(query))
    standard = NeighbourClassifier.fit(reference[shuffled], labels[shuffled])
    same(standard.predict(query), NeighbourClassifier.fit(reference, labels).predict(query))


def test_ties_fall_to_the_first_label_whatever_the_order(rng):
    # every reference cell points the same way: all neighbours tie, and so do the votes
    reference = np.ones((8, 3))
    labels = np.array(list("BABABABA"), dtype=object)
    config = NeighbourConfig(n_neighbours=3)
    for order in (np.arange(8), rng.permutation(8)):
        found = NeighbourClassifier.fit(reference, labels[order], config).predict(np.ones((2, 3)))
        assert found.label.tolist() == ["A", "A"]  # of eight equals, the three first by label
        assert found.runner_up.tolist() == ["", ""]
        np.testing.assert_allclose(found.confidence, 1)
    even = NeighbourClassifier.fit(reference, labels, NeighbourConfig(n_neighbours=8))
    found = even.predict(np.ones((1, 3)))
    assert (found.label[0], found.runner_up[0], found.confidence[0]) == ("A", "B", 0.5)


def test_a_cell_without_direction_is_unknown(cells):
    reference, labels, query = cells
    fitted = NeighbourClassifier.fit(reference, labels)
    found = fitted.predict(np.vstack([np.zeros(12), query[:1]]))
    assert found.is_unknown[0]
    assert (found.confidence[0], found.similarity[0]) == (0, 0)
    assert found.labels()[0] == "unknown"
    same(fitted.predict(query[:1]), found, slice(1, 2))


def test_unknown_by_confidence_and_only_on_request(cells):
    reference, labels, query = cells
    config = NeighbourConfig(min_confidence=0.7, unknown_percentile=0.0)
    found = NeighbourClassifier.fit(reference, labels, config).predict(query)
    np.testing.assert_array_equal(found.is_unknown, found.confidence < 0.7)
    assert 0 < found.is_unknown.sum() < len(query)
    named = found.labels("not sure")
    assert set(named[found.is_unknown]) == {"not sure"}
    np.testing.assert_array_equal(named[~found.is_unknown], found.label[~found.is_unknown])


def test_cells_that_cannot_vote_are_dropped_and_counted(cells):
    reference, labels, query = cells
    extra = np.vstack([reference, np.zeros((1, 12)), np.ones((5, 12))])
    names = np.array([*labels, "A", None, np.nan, "", "rare", "rare"], dtype=object)
    fitted = NeighbourClassifier.fit(extra, names, PLAIN)
    assert fitted.dropped == {
        "no label": 3,
        "embedding of zeros": 1,
        "label with fewer than 3 cells": 2,
    }
    assert fitted.classes == ("A", "B", "C", "D")
    same(fitted.predict(query), NeighbourClassifier.fit(reference, labels, PLAIN).predict(query))


def test_fewer_reference_cells_than_neighbours():
    fitted = NeighbourClassifier.fit(np.eye(3), np.array(["A", "A", "A"]))
    assert fitted.predict(np.eye(3)).label.tolist() == ["A", "A", "A"]
    alone = NeighbourConfig(min_cells=1)
    one = NeighbourClassifier.fit(np.ones((1, 3)), np.array(["A"]), alone)
    assert one.predict(np.ones((1, 3))).confidence[0] == 1


def test_no_query_cells(cells):
    reference, labels, _ = cells
    assert len(NeighbourClassifier.fit(reference, labels).predict(np.empty((0, 12))).label) == 0


@pytest.mark.parametrize(
    ("reference", "labels", "error", "message"),
    [
        (np.ones((3, 2)), [None] * 3, LabelError, "no labelled cell is left.*3 no label"),
        (np.ones((3, 2)), ["A"] * 2, InputError, "3 embedded cells and 2 labels"),
        (np.full((3, 2), np.nan), ["A"] * 3, InputError, "NaN or infinity in 3 of 3 cells"),
        (np.ones(3), ["A"] * 3, InputError, r"shape \(3,\); wanted \(cells, d\)"),
    ],
)
def test_unusable_references_are_refused(reference, labels, error, message):
    with pytest.raises(error, match=message):
        NeighbourClassifier.fit(reference, np.array(labels, dtype=object))


def test_another_number_of_dimensions_is_refused(cells):
    reference, labels, _ = cells
    with pytest.raises(InputError, match=r"has 5 dimensions, the reference's 12.*same model"):
        NeighbourClassifier.fit(reference, labels).predict(np.ones((2, 5)))


@pytest.mark.parametrize(
    "wrong",
    [{"n_neighbours": 0}, {"min_confidence": 1.1}, {"unknown_percentile": 100.0}, {"min_cells": 0}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NeighbourConfig(**wrong)
