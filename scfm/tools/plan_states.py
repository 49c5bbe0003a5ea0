"""Parameters, strategy, precision -> bytes that stay on a device from step to step.

in   parameters by part of the model, how the processes share them
out  weights, gradients, optimiser states, and what the strategy works with
"""

from dataclasses import dataclass

from scfm.model.base import CellModel
from scfm.tasks.pretrain_run import PretrainRun
from scfm.tools.plan_memory import SINGLE
from scfm.train.settings import TrainConfig

DEEPSPEED_BUCKET = 500_000_000  # numbers, DeepSpeed's own default of reduce_bucket_size


@dataclass(frozen=True)
class Parameters:
    """How many there are.

    Attributes
    ----------
    by_part
        Of the model's modules: embedding, encoder, decoder, head.
    largest
        Of the largest single tensor.
    cast
        Of those that autocast converts to half precision: layers, and the value embedding's bins.
    largest_block
        Of the largest transformer block.
    in_blocks
        Of all transformer blocks.
    """

    by_part: dict[str, int]
    largest: int
    cast: int
    largest_block: int
    in_blocks: int

    @property
    def total(self) -> int:
        return sum(self.by_part.values())


@dataclass(frozen=True)
class States:
    """Bytes on one device that do not depend on the batch.

    ``gathered`` are whole weights, gradients and buckets that a sharding strategy holds for a
    moment; ``optimiser_step`` is what the optimiser works with, when activations are gone;
    ``new_gradients`` are those of ``gradients`` that are freed before each backward pass.
    """

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    optimiser_step: float
    new_gradients: float


def weightless(run: PretrainRun) -> CellModel:
    """The run's model without memory (meta device), for its family's genes."""
    import torch

    with torch.device("meta"):
        return run.new_model(run.vocab())


def count_parameters(model: CellModel) -> Parameters:
    """How many a model has, by part."""
    from torch import nn

    from scfm.model.embed import ValueEmbedding

    parts = {
        name.removeprefix("cell_"): sum(p.numel() for p in part.parameters())
        for name, part in model.named_children()
    }
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    values = [m for m in model.modules() if isinstance(m, ValueEmbedding)]
    spread = {id(value.spread) for value in values}  # stays in float32
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in spread]
    cast = sum(layer.weight.numel() for layer in linear) + sum(v.bins.numel() for v in values)
    return Parameters(
        by_part=parts,
        largest=max(p.numel() for p in model.parameters()),
        cast=cast,
        largest_block=max(blocks),
        in_blocks=sum(blocks),
    )


def states(
    p: Parameters, train: TrainConfig, processes: int, device: str, *, bucket: int | None = None
) -> States:
    """What stays on each of ``processes`` devices of kind "cpu" or "cuda".

    ``bucket`` is DeepSpeed's reduce_bucket_size, where the machine settings name one.
    """
    w = 2 if train.precision == "bf16-true" else 4
    if train.zero_stage is not None:
        return _deepspeed(p, train, processes, w, bucket or DEEPSPEED_BUCKET)
    n = processes if train.strategy == "fsdp" else 1
    gathered = 0.0
    if train.strategy == "fsdp":
        # What lies outside the blocks stays whole from forward to backward, as does its gradient;
        # of the blocks, one is used while the next is fetched.
        outside = p.total - p.in_blocks
        gathered = w * (2 * outside + 3 * p.largest_block)
    # A CPU updates tensor by tensor, CUDA all at once: one more array of the states' size.
    step = p.total * w / n if device == "cuda" else 2 * w * p.largest / n
    in_buckets = train.strategy in ("ddp", "auto") and processes > 1
    return States(
        weights=p.total * w / n,
        gradients=p.total * w / n,
        optimiser=2 * p.total * w / n,
        gathered=gathered,
        optimiser_step=step,
        new_gradients=0.0 if in_buckets else p.total * w / n,
    )


def _deepspeed(p: Parameters, train: TrainConfig, processes: int, w: int, bucket: int) -> States:
    """ZeRO: the optimiser holds a float32 copy of the weights and its two states, in shards."""
    stage, n = train.zero_stage or 1, processes
    outside = train.offload in ("optimizer", "parameters")
    weights = p.total * w / (n if stage == 3 else 1)
    gradients = p.total * w / (1 if stage == 1 else n)
    gathered = float(bucket * w)
    if stage == 3:
        gathered += w * (2 * (p.total - p.in_blocks) + 3 * p.largest_block)
    return States(
        weights=0.0 if train.offload == "parameters" else weights,
        gradients=0.0 if outside and stage > 1 else gradients,
        optimiser=0.0 if outside else 3 * SINGLE * p.total / n,
        gathered=gathered,
        optimiser_step=0.0 if outside else SINGLE * p.total / n,
        new_gradients=0.0,
    )


def checkpoint_bytes(p: Parameters, train: TrainConfig) -> float:
    """A checkpoint of the whole run: weights and optimiser states."""
    w = 2 if train.precision == "bf16-true" else 4
    if train.zero_stage is not None:
        return p.total * (w + 3 * SINGLE)
    return p.total * 3 * w
