"""Splits and pairs by construction; training on a screen whose truth is known."""

import numpy as np
import pytest
import torch

from scfm.errors import ConfigError, LabelError
from scfm.model.perturbation import PerturbationSizes
from scfm.objectives.perturbation import PerturbationObjective
from scfm.tasks.perturbation import (
    PerturbationConfig,
    correlations,
    fit_head,
    new_head,
    predicted_change,
    predicted_profile,
)
from scfm.tasks.perturbation_data import (
    CONTROL,
    choose_held_out,
    folds,
    halves_of_controls,
    pseudo_pairs,
    split_perturbations,
)
from scfm.train.optim import OptimConfig
from tests.perturbation_screen import N_VOCABULARY, simulated_screen
from tests.toys import toy_vocab

VOCAB = toy_vocab(N_VOCABULARY)
CONFIG = PerturbationConfig(
    head=PerturbationSizes(n_similar=0),
    objective=PerturbationObjective(loss="mse"),
    optim=OptimConfig(lr=3e-3, warmup_steps=20),
    cells_per_profile=8,
    steps=300,
    validate_every=30,
    accelerator="cpu",
)


@pytest.fixture
def screen(rng):
    return simulated_screen(rng)


@pytest.fixture
def split(screen):
    return split_perturbations(screen.cells, screen.cells.names[::5], seed=3)


def test_every_perturbation_has_one_use(screen, split):
    parts = (split.training, split.validation, split.held_out)
    assert sorted(name for part in parts for name in part) == sorted(screen.cells.names)
    assert set(split.held_out) == set(screen.cells.names[::5])


def test_control_halves_share_no_cell_and_have_equal_batches(screen, split):
    ours, theirs = split.training_controls, split.held_out_controls
    assert not set(ours) & set(theirs)
    assert sorted([*ours, *theirs]) == screen.cells.controls.tolist()
    for batch in (0, 1):
        sizes = [(screen.cells.batch[part] == batch).sum() for part in (ours, theirs)]
        assert abs(sizes[0] - sizes[1]) <= 1


def test_control_halves_are_the_same_for_every_fold(screen, split):
    for part, again in zip(split[3:], halves_of_controls(screen.cells, 3), strict=True):
        np.testing.assert_array_equal(part, again)


def test_folds_hold_everything_out_once():
    names = [f"g{i}" for i in range(25)]
    found = folds(names, 5, seed=1)
    assert sorted(name for fold in found for name in fold) == sorted(names)
    assert [len(fold) for fold in found] == [5] * 5
    assert folds(names, 5, seed=2) != found


def test_pairs_touch_no_held_out_cell_and_stay_within_a_batch(screen, split):
    cells = screen.cells
    held_out = {cells.names.index(name) for name in (*split.held_out, *split.validation)}
    for control, perturbed in pseudo_pairs(cells, split, n_pairs=16, n_cells=5, steps=20, seed=0):
        assert np.isin(control, split.training_controls).all()
        assert (cells.perturbation[control] == CONTROL).all()
        assert not set(cells.perturbation[perturbed].ravel()) & held_out
        assert (cells.perturbation[perturbed] == cells.perturbation[perturbed][:, :1]).all()
        assert (cells.batch[control] == cells.batch[perturbed]).all()


def test_pairs_hang_on_seed_and_step_alone(screen, split):
    def drawn(seed, steps):
        pairs = pseudo_pairs(screen.cells, split, n_pairs=8, n_cells=3, steps=steps, seed=seed)
        return [np.concatenate(pair).tolist() for pair in pairs]

    assert drawn(0, 3) == drawn(0, 5)[:3]
    assert drawn(0, 3) != drawn(1, 3)


def test_group_means_are_numpys(screen, rng):
    groups = rng.integers(len(screen.cells.perturbation), size=(4, 6))
    expected = screen.cells.dense(groups.ravel()).reshape(4, 6, -1).mean(1)
    np.testing.assert_allclose(screen.cells.group_means(groups), expected, rtol=1e-5)


def test_control_weights_have_the_perturbations_batches(screen, split):
    cells, name = screen.cells, split.held_out[0]
    weights = cells.control_weights(split.training_controls, name)
    share = cells.batch[cells.cells_of(name)].mean()
    found = weights[cells.batch[split.training_controls] == 1].sum()
    assert weights.sum() == pytest.approx(1)
    assert found == pytest.approx(share)


def test_held_out_cells_leave_no_trace(screen, split):
    """Train with the held-out perturbations' and control cells' expression destroyed."""
    config = PerturbationConfig(**{**vars(CONFIG), "steps": 40, "validate_every": 20})
    fitted = fit_head(screen.cells, split, screen.embeddings, VOCAB, config)
    unseen = np.concatenate(
        [*(screen.cells.cells_of(name) for name in split.held_out), split.held_out_controls]
    )
    table = screen.cells.expression.tolil()
    table[unseen] = 77.0
    object.__setattr__(screen.cells, "expression", table.tocsr())
    again = fit_head(screen.cells, split, screen.embeddings, VOCAB, config)
    for (name, ours), theirs in zip(
        fitted.head.state_dict().items(), again.head.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)  # rounding


@pytest.mark.parametrize("loss", ["mse", "gears"])
def test_a_linear_truth_is_learned(rng, loss):
    """Held-out changes, known exactly, are predicted better than by none or by the mean one."""
    screen = simulated_screen(rng, n_perturbations=40, offset=0.3)
    cells = screen.cells
    split = split_perturbations(cells, cells.names[::5], seed=0)
    config = PerturbationConfig(
        **{**vars(CONFIG), "steps": 350, "objective": PerturbationObjective(loss=loss)}
    )
    fitted = fit_head(cells, split, screen.embeddings, VOCAB, config)
    truth = np.stack([screen.effects[list(t)].sum(0) for t in cells.targets_of(split.held_out)])
    control = cells.mean(split.training_controls)
    found = predicted_change(fitted.head, control, cells.targets_of(split.held_out))
    mean = np.mean(
        [screen.effects[list(t)].sum(0) for t in cells.targets_of(split.training)], axis=0
    )
    errors = {
        "head": np.mean((found - truth) ** 2),
        "none": np.mean(truth**2),
        "mean": np.mean((mean - truth) ** 2),
    }
    assert errors["head"] < 0.6 * errors["mean"] < 0.6 * errors["none"], errors


def test_the_kept_weights_are_the_best_ones(screen, split):
    config = PerturbationConfig(**{**vars(CONFIG), "steps": 90})
    fitted = fit_head(screen.cells, split, screen.embeddings, VOCAB, config)
    best = min(error for _, error in fitted.curve)
    assert dict(fitted.curve)[fitted.best_step] == best
    errors = [
        np.mean(
            (
                predicted_profile(fitted.head, screen.cells, split, name)
                - screen.cells.mean(screen.cells.cells_of(name))
            )
            ** 2
        )
        for name in split.validation
    ]
    assert np.mean(errors) == pytest.approx(best, rel=1e-5)


def test_same_seed_same_head(screen, split):
    config = PerturbationConfig(**{**vars(CONFIG), "steps": 20, "validate_every": 10})
    torch.manual_seed(1)
    first = fit_head(screen.cells, split, screen.embeddings, VOCAB, config, seed=5)
    torch.manual_seed(2)  # what was drawn before cannot matter
    second = fit_head(screen.cells, split, screen.embeddings, VOCAB, config, seed=5)
    np.testing.assert_allclose(first.curve, second.curve, rtol=1e-5)


def test_profile_starts_from_training_controls_in_the_right_batches(screen, split):
    """An untrained head predicts the weighted mean control cell, to rounding."""
    head = new_head(
        screen.cells, split, screen.embeddings, VOCAB, PerturbationSizes(), seed=0
    ).eval()
    name = split.held_out[1]
    weights = screen.cells.control_weights(split.training_controls, name)
    expected = weights @ screen.cells.dense(split.training_controls)
    found = predicted_profile(head, screen.cells, split, name)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_correlations_are_numpys(rng):
    x = rng.normal(size=(30, 5))
    x[:, 2] = 4.0
    found = correlations(x)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(
        found[np.ix_(others, others)], np.corrcoef(x[:, others].T), rtol=1e-5, atol=1e-6
    )
    assert (found[2] == 0).all()


def test_unknown_held_out_names_are_refused(screen):
    with pytest.raises(ConfigError, match="--holdout names NOPE"):
        split_perturbations(screen.cells, ["NOPE"])


def test_too_few_perturbations_to_train_on(screen):
    with pytest.raises(ConfigError, match="2 of 24 perturbations are left"):
        split_perturbations(screen.cells, screen.cells.names[2:])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ConfigError, match="holdout-share"):
        choose_held_out(["A", "B"], share, 0)


def test_too_many_folds_are_refused():
    with pytest.raises(ConfigError, match="--folds is from 2 to the 3"):
        folds(["A", "B", "C"], 4, 0)


def test_too_few_control_cells(screen):
    cells = screen.cells
    controls = np.flatnonzero(cells.perturbation == CONTROL)
    cells.perturbation[controls[3:]] = -2
    with pytest.raises(LabelError, match="3 control cells"):
        halves_of_controls(cells, 0)
