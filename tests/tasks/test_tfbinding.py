"""Training a binding model: it learns what was planted, stops, goes on, and is dealt out."""

import dataclasses
import math
import os
import signal

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from scfm.data.region_sampling import balanced_order, look_at, numbers, pairs, part_examples
from scfm.data.region_split import TEST, TRAINING, split_regions
from scfm.errors import ConfigError, DivergedError, Interrupted
from scfm.model.dna import BindingModel, strand_logits, strand_mean, with_cells
from scfm.model.dna_config import BindingConfig
from scfm.objectives.binding import BindingObjective, binding_loss
from scfm.tasks.tfbinding import fit_binding, predict_logits
from scfm.tasks.tfbinding_adversary import AdversaryConfig, disturbed_logits
from scfm.tasks.tfbinding_augment import AugmentConfig
from scfm.tasks.tfbinding_data import RegionLoader
from scfm.tasks.tfbinding_module import BindingModule
from scfm.tasks.tfbinding_run import (
    BindingTraining,
    FineTuningConfig,
    RegionLoaderConfig,
    StoppingConfig,
)
from scfm.tasks.tfbinding_scores import task_scores
from scfm.train.checkpoint import CheckpointConfig, StepCheckpoint
from scfm.train.checkpoint_files import checkpoints
from scfm.train.datamodule import StepsOfCells
from scfm.train.loggers import LoggingConfig, read_metrics
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig
from tests.toys_regions import GroupedRegions, window_regions

SHAPE = BindingConfig(
    **{"length": 40, "n_tracks": 0, "first_filters": 16, "first_kernel": 9, "d_model": 16},
    **{"n_blocks": 1, "d_hidden": 16, "second_pool": 10, "kernel": 3, "hidden_dropout": 0.1},
    **{"track_filters": 4, "track_kernel": 5},
)
CONFIG = BindingTraining(
    optim=OptimConfig(lr=5e-3, warmup_steps=5, gradient_clip=5.0),
    loader=RegionLoaderConfig(batch_size=64, background_ratio=1.0, prefetch=0),
    train=TrainConfig(steps=60, validate_every=20, accelerator="cpu"),
    logging=LoggingConfig(every_n_steps=5),
)
SHORT = dataclasses.replace(
    CONFIG,
    train=TrainConfig(steps=6, validate_every=2, accelerator="cpu"),
    logging=LoggingConfig(every_n_steps=1),
)


def split_of(examples, **more):
    return split_regions(
        examples.chrom, validation=["chr2"], test=["chr3"], groups=examples.groups, **more
    )


def new_model(examples, **changes):
    torch.manual_seed(0)
    shape = {"length": examples.length, "n_tracks": len(examples.tracks)}
    return BindingModel(dataclasses.replace(SHAPE, **shape | changes), examples.tasks)


def judged(model, examples, split, part=TEST):
    region, group = pairs(examples, part_examples(examples, split, part))
    logits = predict_logits(model, examples, region, group)
    return task_scores(logits, examples.labels(region, group), examples.tasks)


def test_scores_are_scikit_learns(rng):
    scores, labels = rng.normal(size=(80, 3)), rng.integers(-1, 2, (80, 3))
    labels[:, 1] = -1
    found = task_scores(scores, labels, ("a", "b", "c"))
    for task in (0, 2):
        is_known = labels[:, task] >= 0
        truth, own = labels[is_known, task], scores[is_known, task]
        assert found.aupr[task] == average_precision_score(truth, own)
        assert found.auroc[task] == roc_auc_score(truth, own)
        assert found.prevalence[task] == truth.mean()
    assert math.isnan(found.aupr[1])
    assert found.n_judged == 2
    assert found.mean_aupr == (found.aupr[0] + found.aupr[2]) / 2
    assert found.to_dict()["tasks"]["b"]["aupr"] is None


def test_learns_planted_motifs(rng):
    examples = window_regions(rng, n=900, length=40)
    split = split_of(examples)
    fitted = fit_binding(new_model(examples), examples, split, CONFIG)
    scores = judged(fitted.model, examples, split)
    assert scores.mean_aupr > scores.mean_prevalence + 0.2
    assert fitted.validation_aupr == max(score for _, score in fitted.curves[0])
    assert (fitted.best[1], fitted.validation_aupr) in fitted.curves[0]


def test_learns_where_it_is_accessible(rng):
    """The same window is bound in one group and not in the other: DNA alone cannot tell."""
    examples = GroupedRegions.drawn(rng, n=600, length=40)
    split = split_of(examples)
    config = dataclasses.replace(CONFIG, objective=BindingObjective(loss="focal", gamma=1.0))
    fitted = fit_binding(new_model(examples), examples, split, config)
    region, group = pairs(examples, part_examples(examples, split, TEST))
    logits = predict_logits(fitted.model, examples, region, group)
    is_open = examples.is_open[region, group]
    assert roc_auc_score(is_open, logits.mean(1)) > 0.9


def test_held_out_groups_and_test_chromosomes_are_never_read(rng):
    examples = GroupedRegions.drawn(rng, n=120, length=40)
    split = split_of(examples, held_out_groups=["B"])
    seen = []

    class Watched(GroupedRegions):
        def batch(self, region, group):
            seen.extend(zip(region.tolist(), group.tolist(), strict=True))
            return super().batch(region, group)

    watched = Watched(examples.windows, examples.is_open)
    fit_binding(new_model(examples), watched, split, SHORT)
    assert {group for _, group in seen} == {0}
    assert "chr3" not in set(examples.chrom[[region for region, _ in seen]])


@pytest.mark.parametrize("changes", [{"first_activation": "relu", "first_pool": 4}, {"d_cell": 4}])
def test_prediction_is_the_strand_mean_and_leaves_the_model_alone(rng, changes):
    examples = GroupedRegions.drawn(rng, n=30, length=40, d_cell=changes.get("d_cell", 0))
    model = new_model(examples, **changes).train()
    model.trunk.dna.eval()
    region, group = pairs(examples, numbers(examples, np.ones(30, dtype=bool)))
    found = predict_logits(model, examples, region, group, batch_size=7)
    assert model.training
    assert not model.trunk.dna.training
    model.eval()
    batch = examples.batch(region, group).map(torch.from_numpy)
    with torch.no_grad():
        np.testing.assert_allclose(found, strand_mean(model, batch), rtol=1e-4, atol=1e-5)


def test_two_stages(rng):
    examples = window_regions(rng, n=300, length=40)
    config = dataclasses.replace(
        SHORT,
        augment=AugmentConfig(deletion=4, shift=4, mutation=0.05),
        fine_tuning=FineTuningConfig(steps=4, lr_share=0.2),
    )
    second = config.second_stage
    assert second.optim.lr == pytest.approx(0.2 * config.optim.lr)
    assert second.augment.chosen == ()
    fitted = fit_binding(new_model(examples), examples, split_of(examples), config)
    first, last = fitted.curves
    assert [step for step, _ in first] == [0, 2, 4, 6]
    assert [step for step, _ in last] == [0, 2, 4]
    # it begins where the first was best, and its best is kept only where it is better
    assert last[0][1] == pytest.approx(max(score for _, score in first))
    assert fitted.validation_aupr == max(score for curve in fitted.curves for _, score in curve)


def test_stops_when_it_rises_no_more(rng):
    examples = window_regions(rng, n=150, length=40)
    frozen = dataclasses.replace(
        SHORT,
        optim=OptimConfig(lr=1e-12),
        stopping=StoppingConfig(patience=2),
        train=TrainConfig(steps=50, validate_every=1, accelerator="cpu"),
    )
    model = new_model(examples, first_dropout=0.0, trunk_dropout=0.0, hidden_dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 0.0
    fitted = fit_binding(model, examples, split_of(examples), frozen)
    assert fitted.curves[0][-1][0] <= 4
    assert fitted.best == (0, 0)


@pytest.mark.parametrize("kind", ["gaussian", "pgd"])
def test_adversarial_training_runs_and_differs(rng, kind):
    examples = window_regions(rng, n=150, length=40)
    losses = {}
    for name in ("none", kind):
        config = dataclasses.replace(
            SHORT, adversary=AdversaryConfig(kind=name, eps=0.3, steps=2, share=1.0, after=2)
        )
        losses[name] = fit_binding(new_model(examples), examples, split_of(examples), config).curves
    assert losses["none"][0][:2] == losses[kind][0][:2]  # clean at first
    assert losses["none"][0][2:] != losses[kind][0][2:]


def test_scores_under_attack(rng):
    """With no room to move it is the plain prediction; with some, bound windows rank lower."""
    examples = window_regions(rng, n=150, length=40)
    model = new_model(examples).train()
    region, group = pairs(examples, np.arange(150))
    plain = predict_logits(model, examples, region, group)
    labels = examples.labels(region, group)
    auprs = [task_scores(plain, labels, examples.tasks).mean_aupr]
    for eps in (0.0, 0.1):
        config = AdversaryConfig(kind="pgd", eps=eps, steps=3, step_size=0.05)
        found = disturbed_logits(model, examples, region, group, config, batch_size=64)
        auprs.append(task_scores(found, labels, examples.tasks).mean_aupr)
        if eps == 0:
            np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert model.training
    assert auprs[2] < auprs[0] - 0.05


def test_cells_only_leaves_the_rest_as_it_was(rng):
    examples = GroupedRegions.drawn(rng, n=200, length=40, d_cell=4)
    plain = fit_binding(new_model(examples), examples, split_of(examples), SHORT).model
    plain.provenance = {"made_by": "a test"}
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    model = with_cells(plain, 4)
    config = dataclasses.replace(
        SHORT, cells_only=True, stopping=StoppingConfig(patience=0), optim=OptimConfig(lr=0.05)
    )
    fitted = fit_binding(model, examples, split_of(examples), config)
    after = fitted.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert fitted.curves[0][0][1] != fitted.curves[0][-1][1]
    with pytest.raises(ConfigError, match="reads none"):
        fit_binding(new_model(examples), examples, split_of(examples), config)


class _StopAt(Exception):
    pass


def test_goes_on_as_if_never_stopped(rng, tmp_path, monkeypatch):
    """Dropout, augmentation, order, weights and the best so far are those of a run not stopped."""
    examples = window_regions(rng, n=150, length=40)
    split = split_of(examples)
    config = dataclasses.replace(
        SHORT,
        augment=AugmentConfig(shift=4, mutation=0.05),
        checkpoints=CheckpointConfig(every_n_steps=3),
        fine_tuning=FineTuningConfig(steps=4),
    )
    whole = fit_binding(new_model(examples), examples, split, config, out=tmp_path / "whole")
    saved = StepCheckpoint.on_train_batch_start

    def stop(self, trainer, *rest):
        saved(self, trainer, *rest)
        if trainer.global_step == 4:
            self.wait(trainer)
            raise _StopAt

    monkeypatch.setattr(StepCheckpoint, "on_train_batch_start", stop)
    out = tmp_path / "stopped"
    with pytest.raises(_StopAt):
        fit_binding(new_model(examples), examples, split, config, out=out)
    monkeypatch.setattr(StepCheckpoint, "on_train_batch_start", saved)
    assert [path.name for path in checkpoints(out)]
    went_on = fit_binding(new_model(examples), examples, split, config, out=out, resume=True)
    assert went_on.curves == whole.curves
    assert went_on.best == whole.best
    for name, value in whole.model.state_dict().items():
        assert torch.equal(went_on.model.state_dict()[name], value), name
    for folder in (".", "fine_tuning"):
        rows = [read_metrics(run / folder / "metrics.csv") for run in (tmp_path / "whole", out)]
        assert rows[0] == rows[1]
        assert rows[0][-1]["val_aupr"]
    # a finished run that is asked to go on finds nothing left to do
    again = fit_binding(new_model(examples), examples, split, config, out=out, resume=True)
    assert again.curves == whole.curves


def test_interrupted_says_how_to_go_on(rng, tmp_path, monkeypatch):
    examples = window_regions(rng, n=150, length=40)
    plain = BindingModule.training_step

    def kill(self, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(BindingModule, "training_step", kill)
    with pytest.raises(Interrupted, match=r"scfm finetune tfbinding --out .* --resume"):
        fit_binding(new_model(examples), examples, split_of(examples), SHORT, out=tmp_path / "run")
    assert checkpoints(tmp_path / "run")


def test_processes_and_micro_batches_make_up_a_step(rng):
    """However a step is divided, its windows and the mean over its known labels are the same."""
    examples = GroupedRegions.drawn(rng, n=90, length=40)
    number = part_examples(examples, split_of(examples), TRAINING)
    order = balanced_order(look_at(examples, number), number, seed=0, background_ratio=1.0)
    model = new_model(examples, hidden_dropout=0.0).eval()

    def mean_loss(world_size, accumulate):
        total, seen = 0.0, []
        for rank in range(world_size):
            loader = RegionLoader(
                examples, order, StepsOfCells(24, accumulate), 2, rank=rank, world_size=world_size
            )
            for batch in loader:
                seen += batch.regions.region_index.tolist()
                regions = batch.regions
                loss = binding_loss(
                    strand_logits(model, regions), regions.labels, BindingObjective()
                )
                total += batch.weight * float(loss.detach())
        return total / (world_size * accumulate), sorted(seen)

    loss, seen = mean_loss(1, 1)
    for world_size, accumulate in ((2, 1), (1, 3), (3, 2)):
        other, also_seen = mean_loss(world_size, accumulate)
        assert also_seen == seen
        assert other == pytest.approx(loss, rel=1e-5)


def test_weights_count_known_labels(rng):
    class Patchy(GroupedRegions):
        def labels(self, region, group):
            found = super().labels(region, group)
            found[np.asarray(region) % 3 == 0] = -1
            return found

    drawn = GroupedRegions.drawn(rng, n=90, length=20)
    examples = Patchy(drawn.windows, drawn.is_open)
    number = part_examples(examples, split_of(examples), TRAINING)
    table = look_at(examples, number)
    table = dataclasses.replace(
        table, kind=np.where(table.kind == 2, 1, table.kind).astype(np.int8)
    )
    order = balanced_order(table, number, seed=0, background_ratio=None)
    loader = RegionLoader(examples, order, StepsOfCells(20, 4), 1)
    batches = list(loader)
    known = [int((b.regions.labels >= 0).sum()) for b in batches]
    assert [b.weight for b in batches] == pytest.approx([4 * k / sum(known) for k in known])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": TrainConfig(strategy="fsdp")}, "train.strategy=ddp"),
        ({"train": TrainConfig(compile=True)}, "not for binding models"),
        ({"checkpoints": CheckpointConfig(keep_best=1)}, "keep_best"),
        ({"train": TrainConfig(accumulate=40)}, "at least 80"),
    ],
)
def test_settings_that_cannot_be(rng, change, message):
    examples = window_regions(rng, n=30, length=40)
    config = dataclasses.replace(SHORT, **change)
    with pytest.raises(ConfigError, match=message):
        fit_binding(new_model(examples), examples, split_of(examples), config)


def test_data_that_does_not_fit_the_model(rng):
    examples = window_regions(rng, n=30, length=40)
    other = dataclasses.replace(examples, tasks=("X", "Y"))
    with pytest.raises(ConfigError, match="The model knows 2 tasks"):
        fit_binding(new_model(examples), other, split_of(examples), SHORT)
    longer = window_regions(rng, n=30, length=60)
    with pytest.raises(ConfigError, match="windows of 40 bases"):
        fit_binding(new_model(examples), longer, split_of(longer), SHORT)


def test_nothing_to_validate_by(rng):
    examples = window_regions(rng, n=60, length=40)
    labels = examples.label_table.copy()
    labels[examples.chrom == "chr2"] = 1
    full = dataclasses.replace(examples, label_table=labels)
    with pytest.raises(ConfigError, match="both bound and unbound"):
        fit_binding(new_model(full), full, split_of(full), SHORT)


def test_divergence_is_said(rng):
    examples = window_regions(rng, n=60, length=40)
    model = new_model(examples)
    torch.nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(DivergedError, match=r"optim\.lr"):
        fit_binding(model, examples, split_of(examples), SHORT)
