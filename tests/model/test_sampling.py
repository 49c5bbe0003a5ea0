"""The choice of the next word, against the definitions."""

import numpy as np
import pytest
import torch

from scfm.model.sampling import Decoding, choose, open_words, probabilities_of, uniform_draws

N_DRAWS = 40_000
P = [0.05, 0.5, 0.25, 0.15, 0.05]


def frequencies(how: Decoding, p: list[float] = P) -> np.ndarray:
    """How often each word is chosen, over draws spread evenly."""
    draws = (torch.arange(N_DRAWS, dtype=torch.float64) + 0.5) / N_DRAWS
    words = choose(torch.tensor([p], dtype=torch.float64).expand(N_DRAWS, -1), draws, how, 0)
    return np.bincount(words.numpy(), minlength=len(p)) / N_DRAWS


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({}, P),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 99}, P),
        ({"top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.51}, [0, 2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 1.0}, P),
        # of what top_k leaves, as that is the distribution by then
        ({"top_k": 2, "top_p": 0.66}, [0, 1, 0, 0, 0]),
        # after the softmax, not normalised: the others' probabilities keep their ratios
        ({"end_weight": 3.0}, [0.15 / 1.1, 0.5 / 1.1, 0.25 / 1.1, 0.15 / 1.1, 0.05 / 1.1]),
        ({"end_weight": 0.1}, [0.005 / 0.955, *(p / 0.955 for p in P[1:])]),
        # as released: top_k looks at it before it is weighed
        ({"top_k": 1, "end_weight": 1e6}, [0, 1, 0, 0, 0]),
    ],
)
def test_words_come_as_often_as_they_should(how, wanted):
    found = frequencies(Decoding(max_words=1, **how))
    np.testing.assert_allclose(found, wanted, atol=2 / N_DRAWS)


def test_probabilities_are_a_softmax_over_what_is_open(rng):
    logits = torch.tensor(rng.normal(size=(3, 6)))
    said = torch.zeros(3, 6, dtype=torch.bool)
    said[0, 2] = said[1, 4] = True
    found = probabilities_of(logits, open_words(said, (1, 2, 4)), temperature=0.7)
    for cell, choice in enumerate([[1, 4], [1, 2], [1, 2, 4]]):
        weights = np.exp(logits[cell, choice].numpy() / 0.7)
        wanted = np.zeros(6)
        wanted[choice] = weights / weights.sum()
        np.testing.assert_allclose(found[cell].numpy(), wanted, rtol=1e-12)


def test_where_nothing_is_open_all_is_zero():
    said = torch.ones(2, 4, dtype=torch.bool)
    said[1, 3] = False
    found = probabilities_of(torch.zeros(2, 4), open_words(said, None))
    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_the_last_draw_of_all_is_still_a_word():
    p = torch.tensor([[0.1, 0.2, 0.7, 0.0]], dtype=torch.float64) / 3
    just_below_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert choose(p, just_below_one, Decoding(max_words=1), 0).tolist() == [2]
    assert choose(p, torch.zeros(1, dtype=torch.float64), Decoding(max_words=1), 0).tolist() == [0]


def test_draws_are_of_seed_cell_and_step_alone():
    cells = np.array([5, 2**40, 0, 7])
    found = uniform_draws(3, cells, 11)
    assert found[1] == uniform_draws(3, cells[1:2], 11)[0]
    assert len({*found, *uniform_draws(3, cells, 12), *uniform_draws(4, cells, 11)}) == 12


def test_draws_are_uniform_over_cells_and_over_steps():
    of_cells = uniform_draws(0, np.arange(20_000), 0)
    of_steps = np.array([uniform_draws(0, np.array([1]), step)[0] for step in range(2_000)])
    for draws in (of_cells, of_steps):
        counts = np.bincount((draws * 20).astype(int), minlength=20)
        expected = len(draws) / 20
        assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi squared, 19 df, p = 0.001
        assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 4 / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_words": 0}, "max_words"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"end_weight": float("nan")}, "end_weight"),
        ({"allowed": (None, ())}, r"allowed\[1\]"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    with pytest.raises(ValueError, match=f"decoding.{said}|{said}"):
        Decoding(**{"max_words": 3, **wrong})
