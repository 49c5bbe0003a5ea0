"""Speed, utilisation and waiting: against counts by hand, clocks and data sheets."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from scfm.model.flops import batch_flops
from scfm.tasks.pretrain import pretrain
from scfm.tasks.pretrain_module import PretrainModule
from scfm.train.datamodule import CellLoader, MicroBatch
from scfm.train.host_batch import HostBatches
from scfm.train.loggers import read_metrics
from scfm.train.peaks import PEAKS, peak_flops
from scfm.train.throughput import Throughput, memory_peak, token_counts
from tests.toys import toy_cells, toy_vocab
from tests.train.toy_runs import changed, toy_run


def test_tokens_are_counted_cell_by_cell(rng):
    cells = toy_cells(rng, [5, 1, 17, 30])
    visible, targets = token_counts(cells)
    bounds = cells.offsets.tolist()
    by_hand = [int(cells.is_target[a:b].sum()) for a, b in pairwise(bounds)]
    assert targets.tolist() == by_hand
    assert (visible + targets).tolist() == [8, 4, 20, 33]


def dealt(monkeypatch, seconds: float = 0.0) -> list[MicroBatch]:
    """Micro-batches as the loader deals them, ``seconds`` late."""
    found = []
    original = CellLoader._batches

    def batches(self):
        for batch in original(self):
            time.sleep(seconds)
            found.append(batch)
            yield batch

    monkeypatch.setattr(CellLoader, "_batches", batches)
    return found


@pytest.mark.parametrize("accumulate", [1, 3])
def test_numbers_are_the_dealt_cells_over_one_time(tmp_path, rng, monkeypatch, accumulate):
    """Cells, tokens and operations of a row are of its steps, all over the same seconds."""
    batches = dealt(monkeypatch)
    run = changed(
        toy_run(tmp_path, rng),
        train={"accumulate": accumulate, "validate_every": 3},
        logging={"every_n_steps": 2, "peak_tflops": 0.5},
    )
    pretrain(run, tmp_path / "run", vocab=toy_vocab())
    for number, row in enumerate(read_metrics(tmp_path / "run" / "metrics.csv")):
        if not row["cells_per_s"]:
            continue  # validated at step 3, which is not logged
        of_row = batches[: 2 * accumulate]
        del batches[: 2 * accumulate]
        seconds = 16 / float(row["cells_per_s"])
        n_tokens = sum(batch.cells.n_tokens for batch in of_row)
        assert float(row["tokens_per_s"]) * seconds == pytest.approx(n_tokens, rel=1e-4), number
        operations = sum(batch_flops(run.model, *token_counts(batch.cells)) for batch in of_row)
        assert float(row["mfu"]) * seconds * 0.5e12 == pytest.approx(operations, rel=1e-4)
        assert 0 < float(row["data_wait"]) < 1
        assert 0.05 < float(row["memory_peak"]) < 100
    assert not batches


def test_waiting_for_data_is_told_from_computing_and_validating(tmp_path, rng, monkeypatch):
    """Sleeping loader, sleeping model, sleeping validation: each second is where it belongs."""
    dealt(monkeypatch, seconds=0.05)
    for hook, late in (("training_step", 0.1), ("validation_step", 0.5)):
        original = getattr(PretrainModule, hook)

        def slow(self, *args, original=original, late=late):
            time.sleep(late)
            return original(self, *args)

        monkeypatch.setattr(PretrainModule, hook, slow)
    run = changed(toy_run(tmp_path, rng), train={"validate_every": 1}, logging={"every_n_steps": 3})
    started = time.perf_counter()
    pretrain(run, tmp_path / "run", vocab=toy_vocab())
    passed = time.perf_counter() - started
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.csv") if r["data_wait"]]
    seconds = [24 / float(row["cells_per_s"]) for row in rows]
    waited = [s * float(row["data_wait"]) for s, row in zip(seconds, rows, strict=True)]
    assert len(rows) == 2
    assert min(waited) >= 3 * 0.05 * 0.999
    for row_seconds, row_waited in zip(seconds, waited, strict=True):
        assert row_seconds - row_waited >= 3 * 0.1 * 0.999
    assert sum(seconds) <= passed - 6 * 0.5
    assert not rows[0]["mfu"]  # no peak is known of a CPU


def test_figures_of_known_devices():
    """Lightning's table is the oracle where it has dense figures for tensor cores."""
    same = {
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100 sxm",
        "NVIDIA H100 PCIe": "h100 pcie",
        "NVIDIA L4": "l4",
        "NVIDIA L40": "l40",
    }
    for name, theirs in same.items():
        for precision, dtype in (("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)):
            wanted = pytest.approx(_lightnings(theirs, dtype))
            assert peak_flops(name, precision) == wanted, name
    assert peak_flops("NVIDIA H200", "bf16-true") == 989.4e12
    assert peak_flops("NVIDIA L40S", "bf16-mixed") == 362e12
    assert peak_flops("NVIDIA B200", "bf16-mixed") == 2250e12
    assert peak_flops("NVIDIA GeForce RTX 4090", "bf16-mixed") == 165.2e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16-mixed") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "32-true") == 15.7e12


def _lightnings(chip: str, dtype: torch.dtype) -> float:
    from lightning.fabric.utilities.throughput import _CUDA_FLOPS

    return _CUDA_FLOPS[chip][dtype]


def test_float32_products_are_tf32_only_where_asked_for():
    before = torch.get_float32_matmul_precision()
    try:
        for asked, wanted in (("highest", 19.5e12), ("high", 156e12), ("medium", 156e12)):
            torch.set_float32_matmul_precision(asked)
            assert peak_flops("NVIDIA A100-SXM4-40GB", "32-true") == wanted
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "L400"),
        *("NVIDIA GeForce RTX 4090 D", "AMD Instinct MI300X", ""),
    ],
)
def test_what_is_not_in_the_table_has_no_figure(name):
    assert peak_flops(name, "bf16-mixed") is None


def test_the_table_is_ordered_from_the_narrower_name_to_the_wider():
    names = [set(words) for words in PEAKS]
    for place, wider in enumerate(names):
        assert not [narrower for narrower in names[place + 1 :] if wider < narrower]


def test_memory_peak_is_what_was_held_at_most():
    before = memory_peak(torch.device("cpu"))
    held = np.ones(2**26)  # half a GiB
    during = memory_peak(torch.device("cpu"))
    del held
    assert before is not None
    # the kernel counts in batches of pages for each thread
    assert memory_peak(torch.device("cpu")) == pytest.approx(during, abs=0.05)
    assert during >= 0.5
    assert during - before <= 0.6


def test_a_process_without_a_cell_of_its_own_counts_nothing(rng):
    work = Throughput(HostBatches(), lambda visible, targets: 1.0).work
    work.add(MicroBatch(toy_cells(rng, [5]), 0.0))
    assert (work.cells, work.tokens, work.flops) == (0, 0, 0)


def test_what_is_kept_does_not_grow_between_logged_steps(rng):
    """Operations are added up at once, and nothing else is held of a batch."""
    batch = MicroBatch(toy_cells(rng, [5, 9]), 1.0)
    work = Throughput(HostBatches(), lambda visible, targets: float(visible @ targets)).work
    for _ in range(300):
        work.add(batch)
    visible, targets = token_counts(batch.cells)
    assert work.flops == 300 * float(visible @ targets)
    assert not [kept for kept in vars(work).values() if isinstance(kept, list | tuple | dict)]
