"""A pool of cells -> batches on the device, in an order that two integers describe.

in   CellPool, which of its cells train and which are held out
out  packed batches of torch tensors, from any step on

The loader runs in the training process: on a CPU worker processes cost more than tokenization
does, since batches are copied between processes. One thread may prepare batches ahead.
"""

import difflib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_warn

from scfm.batch import CellBatch
from scfm.data.order import LANES, CellOrder, Weights
from scfm.data.split import Split
from scfm.errors import ConfigError, ScfmWarning
from scfm.tokens.pool import CellPool

HELD_OUT_BATCH = 64  # cells
KEPT_TOKENS = 2**23  # held-out batches up to this size stay in memory: 140 MB
VALIDATION_EPOCH = 2**31  # no training epoch: held-out cells keep one draw of targets for ever
NO_VALUE = "(none)"  # the class of cells that have no value in the column balanced by


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How cells are dealt out."""

    batch_size: int = 64  # cells an optimiser step sees, over all processes and accumulation
    batch_tokens: int | None = None  # instead: as many cells as surely stay within so many tokens
    lanes: int | None = None  # blocks that data on disk is drawn from; None: by the kind of data
    prefetch: int = 0  # batches that a thread prepares ahead
    balance: str | None = None  # obs column, or "dataset": each of its values equally often
    weights: dict[str, float] = field(default_factory=dict)  # of these values; 1 for others
    max_repeats: float = 10.0  # most often that a cell of a rare value comes in an epoch
    held_out_by: str | None = None  # obs column whose groups (donors) are held out whole
    held_out_share: float = 0.05  # of the cells, kept for the validation loss
    max_held_out: int = 1024  # cells judged; more would only slow validation down

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_tokens", "lanes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"loader.{name} must be at least 1, got {value}")
        for name in ("max_held_out", "prefetch"):
            if getattr(self, name) < 0:
                raise ValueError(f"loader.{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"loader.held_out_share must be in [0, 1), got {self.held_out_share}")
        if not 1 <= self.max_repeats < float("inf"):
            raise ValueError(f"loader.max_repeats must be at least 1, got {self.max_repeats}")
        if self.weights and self.balance is None:
            raise ValueError(
                "loader.weights are of the values of a column: name it with loader.balance"
            )
        for value, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"loader.weights.{value} must be at least 0, got {weight}")


class MicroBatch:
    """One process's cells of one micro-batch.

    No dataclass on purpose: Lightning's precision plugins look into those, and would round targets
    and depths to half precision. What is to be rounded the model knows.

    Attributes
    ----------
    cells
        Ready for the model.
    weight
        What their mean loss counts for, so that the mean over processes and micro-batches is the
        mean over the cells of the optimiser step. 1 where all parts are equal; 0 where the process
        had no cell and looks at another's, since all take part in the backward pass.
    """

    def __init__(self, cells: CellBatch, weight: float):
        self.cells, self.weight = cells, weight

    @property
    def n_cells(self) -> int:
        return self.cells.n_cells if self.weight else 0

    @property
    def n_tokens(self) -> int:
        return self.cells.n_tokens if self.weight else 0

    def map(self, convert: Callable[[Any], Any]) -> "MicroBatch":
        """The same with every array of the cells passed through ``convert``."""
        return MicroBatch(self.cells.map(convert), self.weight)


class HeldOutBatch:
    """Cells to be judged; closed to Lightning until they are on the device, as MicroBatch is."""

    def __init__(self, cells: CellBatch):
        self.cells = cells


class StepsOfCells:
    """Optimiser steps of a fixed number of cells, cut into micro-batches."""

    def __init__(self, batch_size: int, accumulate: int):
        self.batch_size, self.accumulate = batch_size, accumulate

    def cuts(self, start: int) -> list[int]:
        """Of the step that begins at ``start``: where its micro-batches begin, and its end."""
        parts = range(self.accumulate + 1)
        return [start + self.batch_size * part // self.accumulate for part in parts]


class StepsOfTokens:
    """Optimiser steps of as many cells of the order as stay within a number of tokens.

    Tokens are counted by their bound, which hangs on a cell's expressed genes alone; so a step's
    cells are known without reading them, and are the same on any number of processes.
    """

    def __init__(
        self, order: CellOrder, most_tokens: Int[np.ndarray, " cell"], budget: int, accumulate: int
    ):
        self.order, self.most_tokens = order, most_tokens
        self.budget, self.accumulate = budget, accumulate
        self._guess = 1 + int(1.5 * budget / most_tokens.mean())

    def cuts(self, start: int) -> list[int]:
        """Of the step that begins at ``start``: where its micro-batches begin, and its end.

        Micro-batches have about equally many tokens, and one cell at least.
        """
        ends = self._ends(start, self._guess)
        while ends[-1] <= self.budget:
            ends = self._ends(start, 2 * len(ends))
        n_cells = max(int(np.searchsorted(ends, self.budget, side="right")), self.accumulate)
        n_cells = min(n_cells, len(ends))
        aims = ends[n_cells - 1] * np.arange(1, self.accumulate) / self.accumulate
        inner = np.searchsorted(ends[:n_cells], aims, side="left") + 1
        # one cell at least on either side of every cut
        parts = np.arange(1, self.accumulate)
        inner = np.minimum(np.maximum(inner, parts), n_cells - self.accumulate + parts)
        inner = np.maximum.accumulate(inner - parts) + parts
        return [start, *(start + inner).tolist(), start + n_cells]

    def _ends(self, start: int, n: int) -> Int[np.ndarray, " place"]:
        """Tokens up to and with each of the next ``n`` cells."""
        cells, _ = self.order.stretch(start, max(n, self.accumulate))
        return np.cumsum(self.most_tokens[cells], dtype=np.int64)


class CellLoader:
    """One process's share of the training stream, micro-batch by micro-batch.

    Attributes
    ----------
    first_step
        The optimiser step to begin with.
    starts
        Positions in the order at which steps begin: the first's, and those dealt out so far.
    """

    def __init__(
        self,
        pool: CellPool,
        order: CellOrder,
        steps: StepsOfCells | StepsOfTokens,
        total_steps: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        start: int = 0,
        prefetch: int = 0,
    ):
        self.pool, self.order, self.steps, self.total_steps = pool, order, steps, total_steps
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.begin_at(first_step, start)

    def begin_at(self, first_step: int, start: int) -> None:
        """Begin with this step, at this position of the order."""
        self.first_step, self.starts = first_step, {first_step: start}

    def __len__(self) -> int:
        return self.total_steps * self.steps.accumulate

    def __iter__(self) -> Iterator[MicroBatch]:
        return ahead(self._batches(), self.prefetch) if self.prefetch else self._batches()

    def _batches(self) -> Iterator[MicroBatch]:
        for step in range(self.first_step, self.total_steps):
            cuts = self.steps.cuts(self.starts[step])
            self.starts[step + 1] = cuts[-1]
            for first, last in pairwise(cuts):
                yield self._micro_batch(first, last, cuts[-1] - cuts[0])

    def _micro_batch(self, first: int, last: int, step_cells: int) -> MicroBatch:
        cells, epochs = self.order.share(first, last - first, self.rank, self.world_size)
        parts = self.world_size * self.steps.accumulate
        weight = len(cells) * parts / step_cells
        if len(cells) == 0:
            cells, epochs = self.order.stretch(first, 1)
        return MicroBatch(self.pool.training(cells, epochs).map(torch.from_numpy), weight)

    def start_of(self, step: int) -> int:
        """Where a step begins that was begun or comes next; earlier ones are forgotten."""
        # a copy: the thread that prepares batches may add to it meanwhile
        for past in [known for known in list(self.starts) if known < min(step, self.total_steps)]:
            del self.starts[past]
        return self.starts[step]


def ahead(items: Iterator[Any], n: int) -> Iterator[Any]:
    """The same items, of which one thread makes up to ``n`` before they are asked for."""
    end = object()
    with_thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting: list[Future] = [with_thread.submit(next, items, end) for _ in range(n)]
        while (item := waiting.pop(0).result()) is not end:
            waiting.append(with_thread.submit(next, items, end))
            yield item
    finally:
        with_thread.shutdown(wait=True, cancel_futures=True)


class HeldOutLoader:
    """The held-out cells with the same targets every time, in batches of a fixed size.

    Every process judges all of them: they are few, and so the figure cannot hang on how many
    processes there are. They are read once and kept, unless they are many.
    """

    def __init__(self, pool: CellPool, cells: Int[np.ndarray, " cell"]):
        self.pool, self.cells, self.batch_size = pool, cells, HELD_OUT_BATCH
        self._kept: list[HeldOutBatch] = []

    def __len__(self) -> int:
        return -(-len(self.cells) // self.batch_size)

    def __iter__(self) -> Iterator[HeldOutBatch]:
        yield from self._kept
        for first in range(len(self._kept) * self.batch_size, len(self.cells), self.batch_size):
            cells = self.cells[first : first + self.batch_size]
            epoch = np.full(len(cells), VALIDATION_EPOCH)
            batch = HeldOutBatch(self.pool.training(cells, epoch).map(torch.from_numpy))
            if first == len(self._kept) * self.batch_size and self._has_room(batch):
                self._kept.append(batch)
            yield batch

    def _has_room(self, batch: HeldOutBatch) -> bool:
        kept = sum(other.cells.n_tokens for other in self._kept)
        return kept + batch.cells.n_tokens <= KEPT_TOKENS


class CellDataModule(L.LightningDataModule):
    """Deals training and held-out cells to the processes of a trainer.

    Its state is the number of steps taken and the position they have reached in the order, so a run
    goes on with exactly the cells it had not seen, on any number of processes.
    """

    def __init__(
        self,
        pool: CellPool,
        split: Split,
        config: LoaderConfig,
        *,
        total_steps: int,
        accumulate: int,
    ):
        super().__init__()
        self.pool, self.split, self.config = pool, split, config
        self.total_steps, self.accumulate = total_steps, accumulate
        self.order = training_order(pool, split, config)
        self.first_step = self.start = 0
        self.loader: CellLoader | None = None

    def train_dataloader(self) -> CellLoader:
        rank, world_size = self._place()
        self._require_enough(world_size)
        self.pool.keep_blocks(-(-self.order.lanes // world_size))
        self.loader = CellLoader(
            self.pool,
            self.order,
            self._steps(),
            self.total_steps,
            rank=rank,
            world_size=world_size,
            first_step=self.first_step,
            start=self.start,
            prefetch=self.config.prefetch,
        )
        return self.loader

    def val_dataloader(self) -> HeldOutLoader | list:
        if len(self.split.judged) == 0:
            return []
        return HeldOutLoader(self.pool, self.split.judged)

    def transfer_batch_to_device(
        self, batch: MicroBatch | HeldOutBatch, device: torch.device, dataloader_idx: int
    ) -> MicroBatch | CellBatch:
        opened = batch.cells if isinstance(batch, HeldOutBatch) else batch
        return opened.map(lambda x: x.to(device, non_blocking=True))

    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        step = self.trainer.global_step
        position = self.loader.start_of(step) if self.loader else self.start
        return {"optimiser_steps": step, "position": position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.first_step = state_dict["optimiser_steps"]
        # runs begun before there were token budgets counted steps alone
        self.start = state_dict.get("position", self.first_step * self.config.batch_size)
        if self.loader is not None:
            # fsdp and DeepSpeed read checkpoints late: Lightning has asked for the loader already
            self.loader.begin_at(self.first_step, self.start)

    def _steps(self) -> StepsOfCells | StepsOfTokens:
        if self.config.batch_tokens is None:
            return StepsOfCells(self.config.batch_size, self.accumulate)
        return StepsOfTokens(
            self.order, self.pool.most_tokens(), self.config.batch_tokens, self.accumulate
        )

    def _require_enough(self, world_size: int) -> None:
        """A cell for every micro-batch, and a lane for every process."""
        batch_size = self.config.batch_size if self.config.batch_tokens is None else None
        if batch_size is not None and batch_size < self.accumulate:
            raise ConfigError(
                f"loader.batch_size ({batch_size}) must be at least train.accumulate "
                f"({self.accumulate}): each micro-batch needs a cell. Try --set "
                f"loader.batch_size={self.accumulate}."
            )
        if batch_size is not None and batch_size < self.accumulate * world_size:
            rank_zero_warn(
                f"loader.batch_size ({batch_size}) is less than processes ({world_size}) x "
                f"train.accumulate ({self.accumulate}): some processes have nothing to do.",
                category=ScfmWarning,
            )
        if world_size > self.order.lanes and not self.order.is_single_file:
            raise ConfigError(
                f"loader.lanes ({self.order.lanes}) must be at least the number of processes "
                f"({world_size}): each reads lanes of its own. Start a new run with --set "
                f"loader.lanes={world_size * -(-LANES // world_size)}."
            )

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def training_order(pool: CellPool, split: Split, config: LoaderConfig) -> CellOrder:
    """The order of a pool's training cells. Raises ConfigError, LabelError for weights in vain."""
    selected = None if split.is_training.all() else split.is_training
    weights = None
    if config.balance is not None:
        codes, names = pool.column(config.balance)
        names = [*names, NO_VALUE]
        codes = np.where(codes < 0, len(names) - 1, codes)
        shares = np.array([config.weights.get(name, 1.0) for name in names])
        for value in config.weights:
            if value not in names:
                raise _unknown_value(value, config.balance, names)
        try:
            weights = Weights.mixing(codes, shares, selected, max_repeats=config.max_repeats)
        except ValueError as error:
            raise ConfigError(f"loader.weights leave no cell to train on: {error}.") from error
    return CellOrder(
        blocks=pool.blocks,
        seed=pool.seed,
        lanes=config.lanes or pool.lanes,
        selected=selected,
        weights=weights,
    )


def _unknown_value(value: str, column: str, names: list[str]) -> ConfigError:
    close = difflib.get_close_matches(value, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return ConfigError(
        f"loader.weights names '{value}', which is no value of '{column}'.{hint} There is: {shown}."
    )
