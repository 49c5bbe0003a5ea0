"""Augmentations: one map for bases and accessibility; attacks stay within their bound."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scfm.tasks.tfbinding_augment as augmentation
from scfm.batch import RegionBatch
from scfm.model.dna import BindingModel, reverse_complement, strand_logits
from scfm.model.dna_config import BindingConfig
from scfm.objectives.binding import BindingObjective, binding_loss
from scfm.tasks.tfbinding_adversary import AdversaryConfig, attacked, disturbed
from scfm.tasks.tfbinding_augment import (
    AugmentConfig,
    apply,
    augment,
    deleted,
    generator,
    inserted,
    inverted,
    mutated,
    shifted,
    turned,
)

LENGTH = 50
GEOMETRY = {"deletion": 9, "insertion": 9, "shift": 9, "inversion": 9}


def numbered(rng, n=64, length=LENGTH):
    """Random bases, and as accessibility the position each base is at."""
    codes = rng.integers(0, 4, (n, length))
    sequence = np.eye(4, dtype=np.float32)[codes].transpose(0, 2, 1)
    place = np.broadcast_to(np.arange(length, dtype=np.float32), (n, 1, length))
    return RegionBatch(
        sequence=torch.from_numpy(np.ascontiguousarray(sequence)),
        signal=torch.from_numpy(place.copy()),
        labels=torch.zeros(n, 1, dtype=torch.int8),
        region_index=torch.arange(n),
        group_index=torch.full((n,), -1),
    )


def codes_of(batch):
    return batch.sequence.argmax(1)


@pytest.mark.parametrize(
    "config",
    [
        *(AugmentConfig(**{name: most}) for name, most in GEOMETRY.items()),
        AugmentConfig(**GEOMETRY, at_once=4),
        AugmentConfig(**GEOMETRY, at_once=3, is_exact=False),
        AugmentConfig(reverse_complement=1.0),
    ],
    ids=lambda c: "+".join(c.chosen) or "strand",
)
def test_bases_and_accessibility_stay_in_step(config, rng):
    """Each base is the one that its accessibility is of, or its complement, or is new."""
    batch = numbered(rng)
    found = augment(batch, config, generator(1, 2))
    assert (found.sequence.sum(1) == 1).all()
    source = found.signal[:, 0].long()
    old = codes_of(batch).gather(1, source)
    new = codes_of(found)
    is_kept, is_turned = new == old, new == 3 - old
    n_other = (~is_kept & ~is_turned).sum(1)
    assert (n_other <= (config.deletion + config.insertion) * config.at_once).all()
    # neighbours stay neighbours, forwards or backwards, but at the ends of a few segments
    steps = source.diff(dim=1)
    assert ((steps.abs() != 1).sum(1) <= 4 * max(GEOMETRY.values())).all()
    assert not torch.equal(found.sequence, batch.sequence)


def test_the_other_strand_is_the_models(rng):
    batch = numbered(rng)
    found = apply(batch, turned(64, LENGTH), generator(0))
    other = reverse_complement(batch)
    assert torch.equal(found.sequence, other.sequence)
    assert torch.equal(found.signal, other.signal)


def drawn(monkeypatch, size, at):
    """Segments of this size at this place, whatever the generator."""
    segment = torch.tensor([[size]]), torch.tensor([[at]])
    monkeypatch.setattr(augmentation, "_draw_segment", lambda *_: segment)


def test_deletion_in_letters(monkeypatch):
    drawn(monkeypatch, 3, 4)
    found = deleted(1, 10, 3, generator(0))
    # 0123 456 789 -> one new base before, 456 gone, two after
    assert found.source[0].tolist() == [0, 0, 1, 2, 3, 7, 8, 9, 9, 9]
    assert found.is_new[0].tolist() == [True] + [False] * 7 + [True] * 2


def test_insertion_in_letters(monkeypatch):
    drawn(monkeypatch, 3, 4)
    found = inserted(1, 10, 3, generator(0))
    # 0123 ... 456789, cut by one before and two after
    assert found.source[0].tolist() == [1, 2, 3, 4, 4, 4, 4, 5, 6, 7]
    assert found.is_new[0].tolist() == [False] * 3 + [True] * 3 + [False] * 4


def test_inversion_in_letters(monkeypatch):
    drawn(monkeypatch, 3, 4)
    found = inverted(1, 10, 3, generator(0))
    assert found.source[0].tolist() == [0, 1, 2, 3, 6, 5, 4, 7, 8, 9]
    assert found.is_turned[0].tolist() == [False] * 4 + [True] * 3 + [False] * 3


def test_shift_is_a_roll(rng):
    batch = numbered(rng)
    places = shifted(64, LENGTH, 9, generator(5))
    found = apply(batch, places, generator(0))
    by = -places.source[:, 0] % LENGTH
    assert len(set(by.tolist())) > 5
    for i in range(64):
        assert torch.equal(found.sequence[i], batch.sequence[i].roll(int(by[i]), -1))
        assert torch.equal(found.signal[i], batch.signal[i].roll(int(by[i]), -1))


def test_mutation_changes_its_share_of_bases_alone(rng):
    batch = numbered(rng, n=400)
    batch.sequence[0, :, :10] = 0  # N stays N
    found = augment(batch, AugmentConfig(mutation=0.1, reverse_complement=0), generator(1))
    assert torch.equal(found.signal, batch.signal)
    assert (found.sequence[0, :, :10] == 0).all()
    share = float((codes_of(found)[1:] != codes_of(batch)[1:]).float().mean())
    n = 399 * LENGTH
    # round(0.1 / 0.75 * 50) = 7 sites, of which a quarter are silent
    assert abs(share - 7 / LENGTH * 0.75) < 4 * (0.1 * 0.9 / n) ** 0.5
    assert (mutated(batch.sequence, 0.75, generator(0)).sum(1) <= 1).all()


def test_noise_is_on_bases_alone(rng):
    batch = numbered(rng)
    found = augment(batch, AugmentConfig(noise=0.2, reverse_complement=0), generator(1))
    assert torch.equal(found.signal, batch.signal)
    assert abs(float((found.sequence - batch.sequence).std()) - 0.2) < 0.01


def test_how_many_at_once(rng):
    config = AugmentConfig(shift=9, noise=0.2, mutation=0.5, reverse_complement=0, at_once=1)
    batch = numbered(rng, n=300)
    found = augment(batch, config, generator(4))
    is_moved = (found.signal != batch.signal).any(2)[:, 0]
    is_noisy = (found.sequence.sum(1) - 1).abs().amax(1) > 1e-3
    assert not (is_moved & is_noisy).any()
    # a shift by 0 is drawn once in 19
    assert abs(float(is_moved.float().mean()) - 1 / 3 * 18 / 19) < 0.1
    assert abs(float(is_noisy.float().mean()) - 1 / 3) < 0.1


def test_draws_are_a_function_of_seed_and_place(rng):
    batch = numbered(rng)
    config = AugmentConfig(**GEOMETRY, mutation=0.1)
    one, two, other = (augment(batch, config, generator(7, step)) for step in (3, 3, 4))
    assert torch.equal(one.sequence, two.sequence)
    assert not torch.equal(one.sequence, other.sequence)


def test_the_second_stage_is_plain():
    config = AugmentConfig(**GEOMETRY, mutation=0.1, reverse_complement=0.3)
    assert config.plain == AugmentConfig(reverse_complement=0.3)
    assert config.plain.chosen == ()


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = BindingConfig(
        **{"length": LENGTH, "n_tracks": 1, "first_filters": 8, "track_filters": 2},
        **{"d_model": 8, "n_blocks": 1, "d_hidden": 8},
    )
    return BindingModel(config, ("A",)).train()


def loss_of(model):
    return lambda b: binding_loss(strand_logits(model, b), b.labels, BindingObjective())


def test_attack_stays_in_bounds_and_raises_the_loss(model, rng):
    batch, config = numbered(rng), AdversaryConfig(kind="pgd", eps=0.1, steps=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    found = attacked(model, loss_of(model), batch, config)
    hook.remove()
    assert len(passes) == config.steps
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # norms too
    assert all(p.grad is None for p in model.parameters())
    difference = (found - batch.sequence).abs()
    assert float(difference.max()) <= 0.1 + 1e-6
    model.eval()
    loss = loss_of(model)
    noise = batch.sequence + 0.1 * torch.randn(batch.sequence.shape).sign()
    losses = [
        float(loss(replace(batch, sequence=s)).detach()) for s in (batch.sequence, noise, found)
    ]
    assert losses[2] > max(losses[:2])


def test_one_step_is_the_sign_of_the_gradient(model, rng):
    batch = numbered(rng)
    config = AdversaryConfig(kind="pgd", eps=0.1, steps=1, step_size=0.05)
    found = attacked(model, loss_of(model), batch, config)
    model.eval()
    at = batch.sequence.clone().requires_grad_()
    loss_of(model)(replace(batch, sequence=at)).backward()
    torch.testing.assert_close(found, batch.sequence + 0.05 * at.grad.sign())


def test_a_share_is_disturbed(model, rng):
    batch = numbered(rng)
    config = AdversaryConfig(kind="gaussian", eps=0.2, share=0.25)
    found = disturbed(model, loss_of(model), batch, config, generator(0))
    assert torch.equal(found.sequence[16:], batch.sequence[16:])
    assert abs(float((found.sequence[:16] - batch.sequence[:16]).std()) - 0.2) < 0.02
    assert torch.equal(found.signal, batch.signal)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugmentConfig(mutation=1.5), "at most 1"),
        (lambda: AugmentConfig(deletion=-1), "at least 0"),
        (lambda: AugmentConfig(at_once=0), "at least 1"),
        (lambda: AdversaryConfig(share=0.0), r"\(0, 1\]"),
        (lambda: AdversaryConfig(steps=0), "at least 1"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
