"""Types from scores of words: by hand, and by going through all pairs of words."""

import numpy as np
import pytest

from scfm.tasks.type_calls import TypeLogits, call_types, probabilities


def test_two_levels_by_hand():
    """P(coarse) = (.6, .4); after the first, P(fine) = (.5, .3, .2)."""
    coarse, fine = np.log([[0.6, 0.4]]), np.log([[0.5, 0.3, 0.2]])
    found = call_types(TypeLogits((coarse, fine)))
    assert (found.coarse[0], found.fine[0]) == (0, 0)
    np.testing.assert_allclose(found.coarse_confidence, [0.6])
    np.testing.assert_allclose(found.confidence, [0.3])
    # the other coarse type (.4) is likelier than another fine one (.6 * .3)
    assert (found.runner_up_level[0], found.runner_up[0]) == (0, 1)
    sure = call_types(TypeLogits((np.log([[0.9, 0.1]]), fine)))
    assert (sure.runner_up_level[0], sure.runner_up[0]) == (1, 1)  # .9 * .3 beats .1


def test_one_level_is_a_softmax(rng):
    logits = rng.normal(size=(20, 5)).astype(np.float32)
    found = call_types(TypeLogits((logits,)), temperature=2.0)
    share = np.sort(probabilities(logits, 2.0), 1)
    np.testing.assert_array_equal(found.fine, logits.argmax(1))
    np.testing.assert_array_equal(found.fine, found.coarse)
    np.testing.assert_allclose(found.confidence, share[:, -1])
    np.testing.assert_array_equal(found.runner_up, logits.argsort(1)[:, -2])


def test_temperature_changes_no_call(rng):
    logits = TypeLogits((rng.normal(size=(30, 4)), rng.normal(size=(30, 6))))
    calls = [call_types(logits, t) for t in (0.3, 1.0, 5.0)]
    for call in calls[1:]:
        np.testing.assert_array_equal(call.fine, calls[0].fine)
    assert (calls[0].confidence > calls[1].confidence).all()
    assert (calls[1].confidence > calls[2].confidence).all()
    np.testing.assert_allclose(call_types(logits, 1e6).confidence, 1 / 24, rtol=1e-4)


def test_a_word_that_cannot_be_said_has_no_chance():
    logits = TypeLogits((np.array([[0.0, -np.inf]]), np.array([[-np.inf, 1.0, -np.inf]])))
    found = call_types(logits)
    assert (found.coarse[0], found.fine[0], found.confidence[0]) == (0, 1, 1.0)
    assert (found.runner_up_level[0], found.runner_up[0]) == (-1, -1)


@pytest.mark.parametrize("n_levels", [1, 2])
def test_parts_and_joining_change_nothing(rng, n_levels):
    logits = TypeLogits(tuple(rng.normal(size=(9, 3 + i)) for i in range(n_levels)))
    again = TypeLogits.joined([logits.part(np.arange(4)), logits.part(np.arange(4, 9))])
    whole, parts = call_types(logits), call_types(again)
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(array, getattr(parts, name))
