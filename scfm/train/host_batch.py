"""The batch a step is made of, as it was before it went to the device.

in   a datamodule's micro-batches on their way to the device
out  the newest, still at hand in host memory

Which cells a step has, and how many tokens each of them, stands there: reading it off the device
would make the processor wait for the device at every step.
"""

from typing import Any

import lightning.pytorch as L

from scfm.train.datamodule import CellDataModule, MicroBatch


class HostBatches(L.Callback):
    """Keeps the micro-batch in training; other callbacks ask it."""

    def __init__(self) -> None:
        self.datamodule: CellDataModule | None = None
        self.newest: MicroBatch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        datamodule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(datamodule, CellDataModule)
        # Lightning's hook for this; in a module beside a datamodule it would come with a warning.
        datamodule.on_before_batch_transfer = self._keep
        self.datamodule = datamodule

    def _keep(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, MicroBatch):
            self.newest = batch
        return batch

    @property
    def batch(self) -> MicroBatch:
        assert self.newest is not None, "no training batch was dealt out yet"
        return self.newest

    @property
    def cells(self) -> list[int]:
        """Numbers in the pool of the cells that this process has in the micro-batch."""
        batch = self.batch
        return batch.cells.cell_index.tolist() if batch.n_cells else []
