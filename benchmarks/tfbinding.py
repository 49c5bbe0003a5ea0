"""TF binding: what training reaches on real windows, beside a plain network and other cells' ChIP.

One JSON line a question; with --out it is also written into a file, run by run.

windows  109 tasks on hg19 windows of 100 bp: mean AUPR and AUROC on chr2, chr9 and chr20 of a plain
         CNN and of seqacc, by seed; beside the average of other cells' ChIP for the same TF, and of
         both together by a logistic regression fitted on the validation chromosome
irf1     IRF1 ChIP against H3K27ac, 400 bp: ReLU and exponential, with and without augmentation
attack   CPU seconds of a training step under PGD, against a plain one, interleaved

All early decisions (the step whose weights are kept, the stack) are the validation part's.

    python benchmarks/tfbinding.py windows|irf1|attack [--data FOLDER] [--seeds 0 1 2]
        [--arms A B] [--out FILE]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from measure import commit, machine, report
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from scfm.batch import RegionBatch
from scfm.data.region_examples import open_regions
from scfm.data.region_sequences import SequenceRegions
from scfm.data.region_split import TEST, VALIDATION
from scfm.data.write import atomic_path
from scfm.model.dna import BindingModel, strand_logits
from scfm.model.dna_config import BindingConfig
from scfm.objectives.binding import BindingObjective, binding_loss
from scfm.tasks.tfbinding import fit_binding, predict_logits
from scfm.tasks.tfbinding_adversary import AdversaryConfig, disturbed
from scfm.tasks.tfbinding_augment import AugmentConfig
from scfm.tasks.tfbinding_run import (
    BindingTraining,
    FineTuningConfig,
    RegionLoaderConfig,
    SplitConfig,
    StoppingConfig,
)
from scfm.tasks.tfbinding_scores import task_scores
from scfm.tools.tfbinding_training import split_of
from scfm.train.loggers import LoggingConfig
from scfm.train.optim import OptimConfig
from scfm.train.settings import TrainConfig

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tf"
WINDOWS, IRF1 = "windows_hg19_100bp_labels.npz", "irf1_chip_400bp.h5"


class PlainTrunk(nn.Module):
    """The plain CNN: 64 filters of 19, pool 4, 96 of 7, pool 5, a dense layer of 256."""

    def __init__(self, length: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, 64, 19, padding=9),
            nn.ReLU(),
            nn.MaxPool1d(4),
            nn.Conv1d(64, 96, 7, padding=3),
            nn.ReLU(),
            nn.MaxPool1d(5),
            nn.Flatten(),
            nn.Linear(96 * (length // 4 // 5), 256),
            nn.ReLU(),
        )
        self.d_out = 256

    def forward(self, sequence: Tensor, signal: Tensor, cell: Tensor | None) -> Tensor:
        return self.layers(sequence)


def plain_cnn(examples: SequenceRegions) -> BindingModel:
    model = BindingModel(
        BindingConfig(length=examples.length, n_tracks=0, d_hidden=256, conv_l2=0.0), examples.tasks
    )
    model.trunk = PlainTrunk(examples.length)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def seqacc_windows(examples: SequenceRegions) -> BindingModel:
    config = BindingConfig(
        length=examples.length,
        n_tracks=0,
        first_filters=96,
        first_pool=5,
        second_pool=5,
        d_model=96,
        n_blocks=1,
        hidden_dropout=0.3,
    )
    return BindingModel(config, examples.tasks)


def training(steps: int, batch: int, *, lr: float, every: int, **more: Any) -> BindingTraining:
    settings: dict[str, Any] = {
        "loader": RegionLoaderConfig(batch_size=batch, background_ratio=None, prefetch=0),
        "optim": OptimConfig(lr=lr, weight_decay=0.01, gradient_clip=5.0),
        "train": TrainConfig(steps=steps, validate_every=every, accelerator="cpu"),
        "stopping": StoppingConfig(patience=0),
        "logging": LoggingConfig(every_n_steps=every),
    }
    return BindingTraining(**settings | more)


# Adam at a fixed rate without decay, five epochs of 43,467 windows by 128
ADAM = OptimConfig(
    lr=1e-3, weight_decay=0.0, beta2=0.999, warmup_steps=0, final_lr_share=1.0, gradient_clip=0
)
WINDOW_ARMS: dict[str, tuple[Callable[[SequenceRegions], BindingModel], BindingTraining]] = {
    "plain": (plain_cnn, training(1700, 128, lr=1e-3, every=170, optim=ADAM)),
    "seqacc": (seqacc_windows, training(1360, 128, lr=3e-3, every=170)),
}

EVOAUG = AugmentConfig(deletion=20, insertion=20, shift=20, mutation=0.05, at_once=2)
IRF1_STEPS, IRF1_FINE = 510, 170  # 6 and 2 epochs of 2,724 windows by 32


def irf1_arms() -> dict[str, tuple[Callable[[SequenceRegions], BindingModel], BindingTraining]]:
    """Activation by augmentation; as many steps either way, and the same pools. ReLU once more,
    under the pool that it is said to need."""

    def make(
        activation: Literal["relu", "exponential"], first_pool: int = 4, second_pool: int = 10
    ) -> Callable[[SequenceRegions], BindingModel]:
        return lambda examples: BindingModel(
            BindingConfig(
                length=examples.length,
                n_tracks=0,
                first_filters=32,
                first_activation=activation,
                first_pool=first_pool,
                second_pool=second_pool,
                d_model=48,
                n_blocks=1,
                d_hidden=96,
            ),
            examples.tasks,
        )

    plain = training(IRF1_STEPS + IRF1_FINE, 32, lr=2e-3, every=85)
    augmented = replace(
        training(IRF1_STEPS, 32, lr=2e-3, every=85),
        augment=EVOAUG,
        fine_tuning=FineTuningConfig(steps=IRF1_FINE, lr_share=0.1),
    )
    activations: tuple[Literal["relu", "exponential"], ...] = ("relu", "exponential")
    arms = {
        f"{activation}{suffix}": (make(activation), config)
        for activation in activations
        for suffix, config in (("", plain), ("+evoaug", augmented))
    }
    return arms | {"relu_pool25": (make("relu", 25, 4), plain)}


class Judge:
    """Trains arms and scores them on validation and test chromosomes."""

    def __init__(self, path: Path, split: SplitConfig):
        examples = open_regions(path)
        assert isinstance(examples, SequenceRegions)
        self.examples, self.split = examples, split_of(examples, split)
        parts = self.split.part_of(examples.chrom)
        self.rows = {"validation": parts == VALIDATION, "test": parts == TEST}
        self.labels = {name: examples.label_table[rows] for name, rows in self.rows.items()}

    def run(
        self, arm: str, make: Callable[..., BindingModel], config: BindingTraining, seed: int
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One seed of one arm: what is reported, and logits of validation and test."""
        torch.manual_seed(seed)
        model = make(self.examples)
        started = time.perf_counter()
        fitted = fit_binding(model, self.examples, self.split, replace(config, seed=seed))
        logits = {name: self.logits(fitted.model, name) for name in self.rows}
        found = {
            "arm": arm,
            "seed": seed,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": round(time.perf_counter() - started),
            "steps": [curve[-1][0] for curve in fitted.curves],
            "best": list(fitted.best),
            **{name: self.scores(logits[name], name) for name in logits},
        }
        return found, logits

    def logits(self, model: BindingModel, name: str) -> np.ndarray:
        region = np.flatnonzero(self.rows[name])
        return predict_logits(model, self.examples, region, np.full(len(region), -1))

    def scores(self, logits: np.ndarray, name: str, tasks: np.ndarray | None = None) -> Any:
        """Mean AUPR and AUROC, over all tasks or some."""
        chosen = np.arange(logits.shape[1]) if tasks is None else np.flatnonzero(tasks)
        names = tuple(self.examples.tasks[task] for task in chosen)
        found = task_scores(logits[:, chosen], self.labels[name][:, chosen], names)
        return {
            "aupr": round(found.mean_aupr, 4),
            "auroc": round(found.mean_auroc, 4),
            "prevalence": round(found.mean_prevalence, 4),
            "n_tasks": found.n_judged,
        }


def other_cells(judge: Judge, name: str) -> tuple[np.ndarray, np.ndarray]:
    """For each window and task the share of other cells that the same TF is bound in there; and
    which tasks have two other cells at least."""
    tfs = np.array([task.partition(":")[0] for task in judge.examples.tasks])
    same = (tfs[:, None] == tfs) & ~np.eye(len(tfs), dtype=bool)
    n_others = same.sum(1)
    return judge.labels[name] @ same.T / np.maximum(n_others, 1), n_others > 1


def stacked(judge: Judge, logits: dict[str, np.ndarray]) -> np.ndarray:
    """Logits and other cells' ChIP by a logistic regression a task, fitted on validation."""
    shares = {name: other_cells(judge, name) for name in logits}
    has_others = shares["test"][1]
    found = np.zeros_like(logits["test"], dtype=np.float64)
    for task in np.flatnonzero(has_others):
        inputs = {
            name: np.stack([logits[name][:, task], shares[name][0][:, task]], 1) for name in logits
        }
        truth = judge.labels["validation"][:, task]
        if truth.min() == truth.max():
            found[:, task] = shares["test"][0][:, task]
            continue
        fitted = LogisticRegression(C=10.0).fit(inputs["validation"], truth)
        found[:, task] = fitted.decision_function(inputs["test"])
    return found


def windows(data: Path, seeds: list[int], out: Path | None, arms: list[str] | None) -> dict:
    """See the module's text."""
    judge = Judge(data / WINDOWS, SplitConfig())
    shares, has_others = other_cells(judge, "test")
    others = judge.scores(shares, "test", has_others)
    found: dict[str, Any] = {"question": "windows", "other_cells": others, "runs": []}
    sums: dict[str, dict[str, np.ndarray]] = {}
    for seed in seeds:
        for arm, (make, config) in WINDOW_ARMS.items():
            if arms and arm not in arms:
                continue
            run, logits = judge.run(arm, make, config, seed)
            run["test_with_others"] = judge.scores(logits["test"], "test", has_others)
            run["stacked_with_others"] = judge.scores(stacked(judge, logits), "test", has_others)
            found["runs"].append(run)
            total = sums.setdefault(arm, {name: np.zeros_like(x) for name, x in logits.items()})
            for name, own in logits.items():
                total[name] += own
            found["summary"] = summary(found["runs"])
            found["mean_of_seeds"] = {
                arm: {
                    "test": judge.scores(total["test"], "test"),
                    "stacked_with_others": judge.scores(stacked(judge, total), "test", has_others),
                }
                for arm, total in sums.items()
            }
            write(out, found)
    return found


def irf1(data: Path, seeds: list[int], out: Path | None, arms: list[str] | None) -> dict:
    """See the module's text."""
    judge = Judge(data / IRF1, SplitConfig(validation_chroms=("valid",), test_chroms=("test",)))
    found: dict[str, Any] = {"question": "irf1", "runs": []}
    for seed in seeds:
        for arm, (make, config) in irf1_arms().items():
            if arms and arm not in arms:
                continue
            run, _ = judge.run(arm, make, config, seed)
            found["runs"].append(run)
            found["summary"] = summary(found["runs"])
            write(out, found)
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, least and most over seeds, by arm."""
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        found[arm] = {"n_seeds": len(own)}
        for score in ("aupr", "auroc"):
            values = [run["test"][score] for run in own]
            found[arm][score] = [round(float(np.mean(values)), 4), min(values), max(values)]
    return found


def attack(rounds: int, n: int = 16) -> dict[str, Any]:
    """See the module's text."""
    torch.manual_seed(0)
    model = BindingModel(BindingConfig(), tuple(map(str, range(33)))).train()
    optimizer = torch.optim.AdamW(model.parameters())
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(4, (n, 1000), generator=random)
    batch = RegionBatch(
        sequence=nn.functional.one_hot(codes, 4).transpose(1, 2).float(),
        signal=torch.rand(n, 1, 1000, generator=random),
        labels=torch.randint(0, 2, (n, 33), generator=random),
        region_index=torch.arange(n),
        group_index=torch.full((n,), -1),
    )

    def loss(shown: RegionBatch) -> Tensor:
        return binding_loss(strand_logits(model, shown), shown.labels, BindingObjective())

    def step(config: AdversaryConfig) -> float:
        started = time.process_time()  # of this process alone, on a machine that others use
        shown = disturbed(model, loss, batch, config, random)
        optimizer.zero_grad()
        loss(shown).backward()
        optimizer.step()
        return time.process_time() - started

    kinds = {
        "plain": AdversaryConfig(),
        "gaussian": AdversaryConfig(kind="gaussian", share=1.0),
        **{f"pgd_{n}": AdversaryConfig(kind="pgd", steps=n, share=1.0) for n in (1, 3, 5)},
        "pgd_5_of_half": AdversaryConfig(kind="pgd", steps=5, share=0.5),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):  # the first round warms up
        for name, config in kinds.items():
            seconds[name].append(step(config))
    plain = np.array(seconds["plain"][1:])
    ratios = {name: np.array(own[1:]) / plain for name, own in seconds.items()}
    return {
        "question": "attack",
        "windows": n,
        "base_pairs": 1000,
        "cpu_seconds_plain": round(float(np.median(plain)), 3),
        "times_a_plain_step": {
            name: [round(float(f(own)), 2) for f in (np.median, np.min, np.max)]
            for name, own in ratios.items()
        },
    }


def write(out: Path | None, found: dict[str, Any]) -> None:
    """The results so far, whole."""
    if out is not None:
        with atomic_path(out) as temporary:
            text = json.dumps({**found, "machine": machine(), "commit": commit()}, indent=1)
            temporary.write_text(text + "\n")


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=("windows", "irf1", "attack"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.question == "attack":
        found = attack(asked.rounds)
        write(asked.out, found)
    else:
        question = windows if asked.question == "windows" else irf1
        found = question(asked.data, asked.seeds, asked.out, asked.arms)
    report(found)


if __name__ == "__main__":
    main()
