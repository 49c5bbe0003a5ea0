"""Examples of binding -> batches on the device, in an order that one integer describes.

in   RegionExamples, a CellOrder over them
out  RegionBatches of torch tensors, from any step on, dealt to the processes of a trainer
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Int

from scfm.batch import RegionBatch
from scfm.data.order import CellOrder
from scfm.data.region_examples import RegionExamples
from scfm.data.region_sampling import pairs
from scfm.train.datamodule import StepsOfCells, ahead

Examples = Int[np.ndarray, " example"]


class RegionMicroBatch:
    """One process's windows of one micro-batch.

    No dataclass on purpose: Lightning's precision plugins look into those.

    Attributes
    ----------
    regions
        Ready for the model.
    weight
        What their mean loss counts for, so that the mean over processes and micro-batches is the
        mean over the known labels of the optimiser step.
    """

    def __init__(self, regions: RegionBatch, weight: float):
        self.regions, self.weight = regions, weight

    def map(self, convert: Callable[[Any], Any]) -> "RegionMicroBatch":
        """The same with every array of the windows passed through ``convert``."""
        return RegionMicroBatch(self.regions.map(convert), self.weight)


class RegionLoader:
    """One process's share of the training stream, micro-batch by micro-batch."""

    def __init__(
        self,
        examples: RegionExamples,
        order: CellOrder,
        steps: StepsOfCells,
        total_steps: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        prefetch: int = 0,
    ):
        self.examples, self.order, self.steps = examples, order, steps
        self.total_steps, self.first_step = total_steps, first_step
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch

    def __len__(self) -> int:
        return self.total_steps * self.steps.accumulate

    def __iter__(self) -> Iterator[RegionMicroBatch]:
        return ahead(self._batches(), self.prefetch) if self.prefetch else self._batches()

    def _batches(self) -> Iterator[RegionMicroBatch]:
        for step in range(self.first_step, self.total_steps):
            cuts = self.steps.cuts(step * self.steps.batch_size)
            known = self._n_known(cuts[0], cuts[-1])
            for first, last in pairwise(cuts):
                yield self._micro_batch(first, last, known)

    @property
    def _parts(self) -> int:
        return self.world_size * self.steps.accumulate

    def _n_known(self, first: int, last: int) -> int:
        """Known labels of the whole step, which its processes and micro-batches share."""
        if self._parts == 1:
            return 0
        number, _ = self.order.stretch(first, last - first)
        return int((self.examples.labels(*pairs(self.examples, number)) >= 0).sum())

    def _micro_batch(self, first: int, last: int, known: int) -> RegionMicroBatch:
        number, _ = self.order.share(first, last - first, self.rank, self.world_size)
        batch = self.examples.batch(*pairs(self.examples, number))
        weight = (batch.labels >= 0).sum() * self._parts / known if known else 1.0
        return RegionMicroBatch(batch.map(torch.from_numpy), float(weight))


class RegionDataModule(L.LightningDataModule):
    """Deals training windows to the processes of a trainer.

    Its state is the number of steps taken: a run goes on with exactly the windows that come next,
    on any number of processes.
    """

    def __init__(
        self,
        examples: RegionExamples,
        order: CellOrder,
        *,
        batch_size: int,
        accumulate: int,
        total_steps: int,
        prefetch: int,
    ):
        super().__init__()
        self.examples, self.order = examples, order
        self.steps = StepsOfCells(batch_size, accumulate)
        self.total_steps, self.prefetch, self.first_step = total_steps, prefetch, 0

    def train_dataloader(self) -> RegionLoader:
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return RegionLoader(
            self.examples,
            self.order,
            self.steps,
            self.total_steps,
            rank=rank,
            world_size=world_size,
            first_step=self.first_step,
            prefetch=self.prefetch,
        )

    def transfer_batch_to_device(
        self, batch: RegionMicroBatch, device: torch.device, dataloader_idx: int
    ) -> RegionMicroBatch:
        return batch.map(lambda x: x.to(device, non_blocking=True))

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"optimiser_steps": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first_step = state_dict["optimiser_steps"]
