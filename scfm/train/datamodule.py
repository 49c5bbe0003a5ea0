"""A pool of cells -> batches on the device, in an order that one integer describes.

in   CellPool, which of its cells train and which are held out
out  packed CellBatch of torch tensors, from any step on

The loader runs in the training process: on a CPU worker processes cost more than tokenization
does, since batches are copied between processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Int

from scfm.batch import CellBatch
from scfm.data.order import CellOrder
from scfm.errors import ConfigError
from scfm.tokens.pool import CellPool

HELD_OUT_BATCH = 64  # cells
VALIDATION_EPOCH = 2**31  # no training epoch: held-out cells keep one draw of targets for ever


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How cells are dealt out."""

    batch_size: int = 64  # cells an optimiser step sees, over all processes and accumulation
    held_out_share: float = 0.05  # random cells kept for the validation loss
    max_held_out: int = 1024  # cells; more would only slow validation down

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"loader.batch_size must be at least 1, got {self.batch_size}")
        if self.max_held_out < 0:
            raise ValueError(f"loader.max_held_out must be at least 0, got {self.max_held_out}")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"loader.held_out_share must be in [0, 1), got {self.held_out_share}")


class CellLoader:
    """One process's share of the training stream: ``n_batches`` batches from ``first`` on."""

    def __init__(
        self,
        pool: CellPool,
        cells: Int[np.ndarray, " cell"],
        order: CellOrder,
        n_batches: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.pool, self.cells, self.order, self.n_batches = pool, cells, order, n_batches
        self.rank, self.world_size = rank, world_size
        self.first = 0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[CellBatch]:
        for step in range(self.first, self.n_batches):
            place, epoch = self.order.batch(step, self.rank, self.world_size)
            yield self.pool.training(self.cells[place], epoch).map(torch.from_numpy)


class HeldOutLoader:
    """The held-out cells with the same targets every time, in batches of a fixed size.

    Every process judges all of them: they are few, and so the figure cannot hang on how many
    processes there are.
    """

    def __init__(self, pool: CellPool, cells: Int[np.ndarray, " cell"]):
        self.pool, self.cells, self.batch_size = pool, cells, HELD_OUT_BATCH

    def __len__(self) -> int:
        return -(-len(self.cells) // self.batch_size)

    def __iter__(self) -> Iterator[CellBatch]:
        for first in range(0, len(self.cells), self.batch_size):
            cells = self.cells[first : first + self.batch_size]
            epoch = np.full(len(cells), VALIDATION_EPOCH)
            yield self.pool.training(cells, epoch).map(torch.from_numpy)


class CellDataModule(L.LightningDataModule):
    """Deals training and held-out cells to the processes of a trainer.

    Its state is the number of micro-batches taken, so a run goes on with exactly the cells it had
    not seen, on any number of processes that divides the batch.
    """

    def __init__(
        self,
        pool: CellPool,
        training_cells: Int[np.ndarray, " training"],
        held_out_cells: Int[np.ndarray, " held_out"],
        config: LoaderConfig,
        *,
        total_steps: int,
        accumulate: int,
    ):
        super().__init__()
        self.pool, self.config = pool, config
        self.training_cells, self.held_out_cells = training_cells, held_out_cells
        self.total_steps, self.accumulate = total_steps, accumulate
        self.first_step = 0

    def train_dataloader(self) -> CellLoader:
        rank, world_size = self._place()
        if self.config.batch_size % (world_size * self.accumulate):
            raise ConfigError(
                f"loader.batch_size ({self.config.batch_size}) must divide by processes "
                f"({world_size}) x trainer.accumulate ({self.accumulate}), so that every process "
                "gets the same number of cells. Try --set loader.batch_size="
                f"{_round_up(self.config.batch_size, world_size * self.accumulate)}."
            )
        order = CellOrder(
            n_cells=len(self.training_cells),
            batch_size=self.config.batch_size // self.accumulate,
            seed=self.pool.seed,
        )
        n_batches = self.total_steps * self.accumulate
        loader = CellLoader(self.pool, self.training_cells, order, n_batches, rank, world_size)
        loader.first = self.first_step * self.accumulate
        return loader

    def val_dataloader(self) -> HeldOutLoader | list:
        if len(self.held_out_cells) == 0:
            return []
        return HeldOutLoader(self.pool, self.held_out_cells)

    def transfer_batch_to_device(
        self, batch: CellBatch, device: torch.device, dataloader_idx: int
    ) -> CellBatch:
        return batch.map(lambda x: x.to(device, non_blocking=True))

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"optimiser_steps": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first_step = state_dict["optimiser_steps"]

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
