"""Steps that are not finite: stopped at or skipped, their cells named; losses that jump."""

import json
import warnings
from unittest.mock import Mock

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from scfm.errors import ConfigError, DivergedError, ScfmWarning
from scfm.tasks.pretrain import pretrain, resume
from scfm.tasks.pretrain_module import PretrainModule
from scfm.train.checkpoint_files import checkpoints
from scfm.train.datamodule import CellLoader
from scfm.train.guard import FiniteGuard, GuardConfig, own_norm, read_nonfinite
from scfm.train.host_batch import HostBatches
from scfm.train.loggers import read_metrics
from scfm.train.processes import AnotherSaysWhy
from scfm.train.progress import StepProgress
from scfm.train.spikes import LEAST, RATE, LossSpikes, RunningLoss
from tests.toys import toy_vocab
from tests.train.toy_runs import changed, toy_run
from tests.train.warm_processes import run_processes

BAD = 4  # the step that goes wrong


def not_a_number(loss):
    return loss * torch.nan


def no_gradient(loss):
    return loss + torch.sqrt(loss * 0)  # the loss as it was; its gradient is infinity times 0


@pytest.fixture
def dealt(monkeypatch) -> list[tuple[int, list[int]]]:
    """The (step, cells) of each micro-batch dealt out, from the loader itself."""
    found = []
    original = CellLoader._batches

    def batches(self):
        for number, batch in enumerate(original(self)):
            step = self.first_step + number // self.steps.accumulate + 1
            found.append((step, batch.cells.cell_index.tolist()))
            yield batch

    monkeypatch.setattr(CellLoader, "_batches", batches)
    return found


def spoil(monkeypatch, how, steps=(BAD,), micro_batch=0) -> None:
    """Pass the loss of a micro-batch of these steps through ``how``."""
    original = PretrainModule.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        is_it = batch_idx % self.trainer.accumulate_grad_batches == micro_batch
        return how(loss) if is_it and self.trainer.global_step + 1 in steps else loss

    monkeypatch.setattr(PretrainModule, "training_step", training_step)


def snapshots(monkeypatch) -> dict[int, list[torch.Tensor]]:
    """Weights and moments after each step."""
    found = {}

    def keep(self, trainer, module, outputs, batch, batch_idx):
        states = [v for s in trainer.optimizers[0].state.values() for v in s.values()]
        found[trainer.global_step] = [t.detach().clone() for t in (*module.parameters(), *states)]

    monkeypatch.setattr(StepProgress, "on_train_batch_end", keep)
    return found


def has_changed(before, after) -> bool:
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("how", "found"), [(not_a_number, "loss"), (no_gradient, "gradient")])
@pytest.mark.parametrize("due", ["logged", "saved"])
def test_the_step_is_named_and_nothing_after_it_is_saved(
    tmp_path, rng, monkeypatch, dealt, how, found, due
):
    """Found at the next row of the log, or when a checkpoint is to be written before that."""
    spoil(monkeypatch, how)
    every = {"logged": (5, 6), "saved": (100, 2)}[due]
    run = changed(
        toy_run(tmp_path, rng),
        logging={"every_n_steps": every[0]},
        checkpoints={"every_n_steps": every[1], "keep_last": 9},
    )
    with pytest.raises(DivergedError, match=rf"The {found} of step {BAD} .*nonfinite\.json"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    [entry] = read_nonfinite(tmp_path / "run" / "nonfinite.json")
    assert (entry["step"], entry["action"], entry["not_finite"]) == (BAD, "stopped", found)
    [part] = entry["micro_batches"]
    assert [cell["cell"] for cell in part["cells"]] == dict(dealt)[BAD]
    assert all(cell["source"] == run.data[0] for cell in part["cells"])
    assert [cell["row"] for cell in part["cells"]] == dict(dealt)[BAD]  # one file: rows are cells
    assert part["loss_is_finite"] == (found == "gradient")
    steps = [int(path.stem.split("=")[1]) for path in checkpoints(tmp_path / "run")]
    assert all(step < BAD for step in steps)
    assert (2 in steps) == (due == "saved")
    for path in checkpoints(tmp_path / "run"):
        state = torch.load(path / "state.pt", weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in state.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path, rng, monkeypatch):
    """Every loss and gradient is fine, the last update is not, and no later step would tell."""

    def overflow(self, trainer, module, *rest):
        if trainer.global_step == 6:
            next(module.parameters()).data.view(-1)[0] = torch.inf

    monkeypatch.setattr(StepProgress, "on_train_batch_end", overflow)
    with pytest.raises(DivergedError, match=r"The weights of step 6 .*optim\.lr"):
        pretrain(toy_run(tmp_path, rng), tmp_path / "run", vocab=toy_vocab())
    [entry] = read_nonfinite(tmp_path / "run" / "nonfinite.json")
    assert (entry["step"], entry["not_finite"]) == (6, "weights")
    assert not checkpoints(tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(("how", "accumulate"), [(not_a_number, 2), (no_gradient, 1)])
def test_a_skipped_step_leaves_weights_and_moments(
    tmp_path, rng, monkeypatch, dealt, how, accumulate
):
    """One bad micro-batch skips the whole optimiser step, and no other."""
    spoil(monkeypatch, how)
    after = snapshots(monkeypatch)
    run = changed(
        toy_run(tmp_path, rng), guard={"on_nonfinite": "skip"}, train={"accumulate": accumulate}
    )
    with pytest.warns(ScfmWarning, match=f"Step {BAD} is skipped.* 1 of at most 10"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    assert [step for step in range(2, 7) if not has_changed(after[step - 1], after[step])] == [BAD]
    [entry] = read_nonfinite(tmp_path / "run" / "nonfinite.json")
    parts = [[cell["cell"] for cell in part["cells"]] for part in entry["micro_batches"]]
    assert parts == [cells for step, cells in dealt if step == BAD]
    assert entry["action"] == "skipped"
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["skipped"] for row in rows] == ["0"] * (BAD - 1) + ["1"] * (7 - BAD)
    assert [row["gradient_norm"] == "nan" for row in rows] == [n == BAD for n in range(1, 7)]
    assert (tmp_path / "run" / "model").exists()


def test_too_many_skipped_steps_stop_the_run_and_a_resume_remembers(tmp_path, rng, monkeypatch):
    run = changed(
        toy_run(tmp_path, rng),
        guard={"on_nonfinite": "skip", "max_skipped": 2},
        checkpoints={"every_n_steps": 4},
    )
    with monkeypatch.context() as patch:
        spoil(patch, not_a_number, steps=(2, 3, 5))
        with (
            pytest.warns(ScfmWarning, match="is skipped"),
            pytest.raises(DivergedError, match=r"of step 5 .*2 steps were skipped before"),
        ):
            pretrain(run, tmp_path / "run", vocab=toy_vocab())
    entries = read_nonfinite(tmp_path / "run" / "nonfinite.json")
    assert [entry["step"] for entry in entries] == [2, 3, 5]
    spoil(monkeypatch, not_a_number, steps=(6,))
    with pytest.raises(DivergedError, match=r"of step 6 .*2 steps were skipped before"):
        resume(tmp_path / "run")
    entries = read_nonfinite(tmp_path / "run" / "nonfinite.json")
    assert [entry["step"] for entry in entries] == [2, 3, 5, 6]


def test_deepspeed_cannot_skip(tmp_path):
    with pytest.raises(ConfigError, match="on_nonfinite=skip does not work with deepspeed"):
        FiniteGuard(tmp_path, HostBatches(), GuardConfig(on_nonfinite="skip"), "deepspeed_2")
    FiniteGuard(tmp_path, HostBatches(), GuardConfig(), "deepspeed_2")


def test_own_norm_is_torchs(rng):
    tensors = [torch.from_numpy(rng.normal(size=n)) for n in (3, 0, 7)]
    flat = torch.cat(tensors)
    assert float(own_norm(tensors)) == pytest.approx(float(flat.norm()), rel=1e-6)
    assert float(own_norm(tensors, np.inf)) == pytest.approx(float(flat.abs().max()), rel=1e-6)
    assert own_norm([]) is None
    for bad in (np.nan, np.inf):
        assert not torch.isfinite(own_norm([*tensors, torch.tensor([bad])], np.inf))


@pytest.mark.multiprocess
def test_two_processes_stop_together_and_name_the_cells_of_both(tmp_path, rng):
    run = toy_run(tmp_path, rng)
    out = tmp_path / "run"
    asked = {
        **{"train.steps": 6, "train.accelerator": "cpu", "optim.lr": 1e30, "optim.warmup_steps": 0},
        **{"loader.batch_size": 8, "logging.every_n_steps": 3, "model.d_model": 16},
        **{"input.minimum_coverage": 0},
    }
    more = [word for key, value in asked.items() for word in ("--set", f"{key}={value}")]
    command = ["pretrain", "--config", "scfm-tiny", "--data", run.data[0], "--out", str(out)]
    done = run_processes(2, [*command, *more])
    assert done.returncode != 0
    assert done.stderr.count("is not finite: the run diverged") == 1
    [entry] = json.loads((out / "nonfinite.json").read_text())
    assert entry["step"] == 2
    assert [part["process"] for part in entry["micro_batches"]] == [0, 1]
    cells = [cell["cell"] for part in entry["micro_batches"] for cell in part["cells"]]
    assert len(set(cells)) == 8
    assert not checkpoints(out)


def test_running_mean_is_plain_then_exponential(rng):
    losses = rng.normal(5, 0.1, 60)
    running = RunningLoss(sigmas=1e9)
    for n, loss in enumerate(losses[: int(1 / RATE)], start=1):
        running.takes(float(loss))
        assert running.mean == pytest.approx(losses[:n].mean(), rel=1e-10)
        assert running.variance == pytest.approx(losses[:n].var(), rel=1e-8, abs=1e-12)
    for loss in losses[int(1 / RATE) :]:
        running.takes(float(loss))
    # the weights written out: the first 20 share what the later ones leave
    later = RATE * (1 - RATE) ** np.arange(39, -1, -1)
    weights = np.concatenate([np.full(20, (1 - RATE) ** 40 / 20), later])
    mean = weights @ losses
    assert running.mean == pytest.approx(mean, rel=1e-10)
    assert running.variance == pytest.approx(weights @ (losses - mean) ** 2, rel=1e-8)


def test_a_jump_is_a_spike_noise_is_not_and_a_new_level_is_learned(rng):
    noise = rng.normal(1, 0.05, 1000)
    running = RunningLoss(sigmas=6)
    assert not any(running.takes(float(loss)) for loss in noise)
    before = running.mean
    assert running.takes(3.0)
    assert running.mean < before + 6 * 0.1  # it enters as the bound, not as itself
    found = [running.takes(3.0) for _ in range(200)]
    assert found[0]
    assert not found[-1]
    early = RunningLoss(sigmas=6)
    assert not any(early.takes(loss) for loss in [1.0] * (LEAST - 1) + [50.0])


def fake_trainer() -> Mock:
    trainer = Mock(spec=L.Trainer)
    trainer.accumulate_grad_batches, trainer.global_step = 1, 0
    trainer._logger_connector = Mock(should_update_logs=True)
    trainer.loggers = [Mock()]
    return trainer


def test_a_spike_is_said_once_marked_and_known_after_a_resume(rng):
    losses = [*rng.normal(1, 0.05, 40), 3.0, 3.0, 1.0, 3.0, float("nan"), 1.0]
    marked = []
    for stop in (0, 41):  # never, and inside the spike
        trainer, callback = fake_trainer(), LossSpikes(6.0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step, loss in enumerate(losses, start=1):
                trainer.global_step, trainer.callback_metrics = step, {"loss": torch.tensor(loss)}
                callback.on_train_batch_end(trainer, Mock(spec=L.LightningModule), None, None, step)
                if step == stop:
                    saved = callback.state_dict()
                    callback = LossSpikes(6.0)
                    callback.load_state_dict(saved)
        calls = trainer.loggers[0].log_metrics.call_args_list
        marked.append([call.kwargs["step"] for call in calls])
        assert len(said) == 2
        assert "jumped to 3 at step 41" in str(said[0].message)
    assert marked == [[41, 42, 44]] * 2


def test_a_stopped_run_goes_on_by_skipping_as_its_error_says(tmp_path, rng, monkeypatch):
    spoil(monkeypatch, not_a_number)
    run = changed(toy_run(tmp_path, rng), checkpoints={"every_n_steps": 2})
    with pytest.raises(DivergedError, match=r"--resume --set guard\.on_nonfinite=skip"):
        pretrain(run, tmp_path / "run", vocab=toy_vocab())
    with (
        pytest.warns(ScfmWarning, match=r"guard\.on_nonfinite was stop .* goes on with skip"),
        pytest.warns(ScfmWarning, match=f"Step {BAD} is skipped"),
    ):
        resume(tmp_path / "run", ["guard.on_nonfinite=skip"])
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["skipped"] for row in rows] == ["", "", "0", "1", "1", "1"]


def test_what_is_kept_is_looked_at_every_hundred_steps(tmp_path):
    """However seldom steps are logged; two micro-batches a step."""
    trainer = fake_trainer()
    trainer.accumulate_grad_batches, trainer.world_size = 2, 1
    trainer.strategy.root_device, trainer.is_global_zero = torch.device("cpu"), False
    trainer._logger_connector.should_update_logs = False
    batches, module = Mock(HostBatches, cells=[]), Mock(L.LightningModule)
    guard = FiniteGuard(tmp_path, batches, GuardConfig(), "auto")
    most = 0

    def train():
        nonlocal most
        for batch in range(700):
            trainer.global_step = batch // 2
            bad = torch.tensor(torch.nan if batch == 2 * 249 else 1.0)  # of step 250
            guard.on_before_backward(trainer, module, bad)
            most = max(most, len(guard.seen))
            trainer.global_step = (batch + 1) // 2
            guard.on_train_batch_end(trainer, module, None, None, batch)

    with pytest.raises(AnotherSaysWhy, match="The loss of step 250 is not finite"):
        train()
    assert (most, trainer.global_step) == (200, 300)


def test_deepspeed_is_not_told_to_skip(tmp_path, monkeypatch):
    """Nor is a run whose weights an update of finite gradients spoiled."""
    for strategy, found, may in (
        *(("auto", "loss", True), ("auto", "weights", False), ("deepspeed_2", "loss", False)),
    ):
        guard = FiniteGuard(tmp_path, HostBatches(), GuardConfig(), strategy)
        monkeypatch.setattr(guard, "_record", lambda *_, found=found: (3, found))
        with pytest.raises(DivergedError, match="start a new run with a lower") as stopped:
            guard._stop(fake_trainer())
        assert ("on_nonfinite=skip" in str(stopped.value)) == may
