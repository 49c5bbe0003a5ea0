"""Sizes, lengths of cells, precision -> bytes of a training step, part by part. Loads no torch.

in   ModelSizes, how a device computes, tokens and targets of one micro-batch
out  what autograd keeps, when, and the most that is there at once

Derived tensor by tensor in docs/planning.md; held to what autograd really saves by
tests/tools/test_plan_memory.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from scfm.model.config import ModelSizes

ID, SINGLE = 8, 4  # bytes of an index and of a float32
TOKEN = 8 + 4 + 1 + 4  # bytes of a token in a CellBatch: id, value, is_target, target value
LOSS = 30  # bytes a target: differences, squares and cell numbers, for both losses


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes, as far as it decides what is kept.

    Attributes
    ----------
    weights
        Bytes of a stored weight, of its gradient and of each of its two optimiser states.
    products
        Bytes of what goes into and comes out of a matrix product.
    residual
        Bytes of the residual stream.
    fused_norm
        CUDA's one kernel for RMSNorm; elsewhere it is several steps in float32.
    packed_attention
        The kernel's result is packed as it comes; elsewhere cells are joined into another copy.
    padding
        Share by which queries, keys and values are padded for attention; None where they are not.
    """

    weights: int
    products: int
    residual: int
    fused_norm: bool
    packed_attention: bool
    padding: float | None = None

    @classmethod
    def of(cls, precision: str, device: str, attention: str = "auto") -> "Arithmetic":
        """That of train.precision on "cpu" or "cuda"."""
        weights, products, residual = {
            "32-true": (4, 4, 4),
            "bf16-mixed": (4, 2, 4),
            "bf16-true": (2, 2, 2),
        }[precision]
        on_gpu = device == "cuda"
        if attention == "auto":
            attention = "documents" if not on_gpu else "varlen" if products == 2 else "padded"
        return cls(
            weights=weights,
            products=products,
            residual=residual,
            fused_norm=on_gpu,
            packed_attention=attention == "varlen",
            padding=0.12 if attention == "padded" else None,  # at most 0.25, see attention.py
        )

    @property
    def is_mixed(self) -> bool:
        return self.products < self.weights

    def norm(self, width: int, source: int) -> int:
        """Kept of RMSNorm over a row of ``width`` numbers of ``source`` bytes each."""
        if not self.fused_norm:
            return 2 * SINGLE * width + SINGLE  # the row and it normalised, 1 / rms
        wide = SINGLE if self.is_mixed else source  # autocast runs norms in float32
        return wide * width + SINGLE


class Segment(NamedTuple):
    """One stretch of the forward pass: bytes kept, and what is there besides at its worst.

    ``kept`` outlives the stretch, ``again`` is made anew in its backward pass under recompute, and
    ``forward`` and ``backward`` are there for a moment only.
    """

    name: str
    kept: float
    again: float = 0.0
    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True)
class Tokens:
    """Cells, visible tokens and targets of one micro-batch."""

    cells: float
    visible: float
    targets: float


def segments(sizes: ModelSizes, how: Arithmetic, n: Tokens, recompute: str) -> list[Segment]:
    """The forward pass, in its order. ``recompute`` is train.recompute."""
    return [
        _embedding(sizes, how, n),
        *([_self_block(sizes, how, n, recompute)] * sizes.n_layers),
        _decoder_input(sizes, how, n),
        *([_cross_block(sizes, how, n, recompute)] * sizes.n_decoder_layers),
        _outputs(sizes, how, n),
    ]


def activation_bytes(sizes: ModelSizes, how: Arithmetic, n: Tokens, recompute: str) -> float:
    """All that autograd keeps of a forward pass."""
    return sum(segment.kept for segment in segments(sizes, how, n, recompute))


def most_in_pass(
    parts: list[Segment], *, gradients: float, new_gradients: float, table: float
) -> tuple[float, float]:
    """The most bytes at once of forward and of backward pass, activations and gradients.

    Forward, ``gradients`` are there from the step before. The backward pass begins without
    ``new_gradients`` of them (0 where they live in buckets) and makes them while what is kept goes:
    at once that of the gene ``table``, which the last part of the model looked up too, and a second
    one to be added to it; the others part by part.
    """
    kept = list(accumulate((part.kept for part in parts), initial=0.0))
    forward = max(before + p.kept + p.forward for before, p in zip(kept, parts, strict=False))
    early = min(table, new_gradients)
    backward, made = 0.0, gradients - new_gradients + early
    for before, part in reversed(list(zip(kept, parts, strict=False))):
        backward = max(backward, before + part.kept + part.again + part.backward + made)
        made += (new_gradients - early) / len(parts)
    return forward + gradients, backward + table


def _embedding(sizes: ModelSizes, how: Arithmetic, n: Tokens) -> Segment:
    bins = how.products * (2 if how.is_mixed else 1)  # into the mixing layer; cast once more after
    softmax = SINGLE if how.is_mixed else how.products
    a_token = sizes.n_bins * (SINGLE + bins + softmax) + ID + SINGLE
    # the wanted depth of every cell is embedded once more, for the cell head
    kept = (n.visible + n.cells) * a_token
    return Segment("embedding", kept, forward=n.visible * how.residual * sizes.d_model)


def _self_block(sizes: ModelSizes, how: Arithmetic, n: Tokens, recompute: str) -> Segment:
    d, c, rows = sizes.d_model, how.products, n.visible
    copies = 2 if how.is_mixed else 1  # autocast converts what two products take twice
    everything = rows * (
        how.norm(d, how.residual)
        + copies * c * d
        + _query(sizes, how)
        + _keys_values(sizes, how)
        + _attended(sizes, how)
        + _feedforward(sizes, how)
        + 2 * _dropout(sizes, how)
    )
    products = rows * c * (6 * d + 2 * sizes.d_feedforward) + rows * SINGLE * sizes.n_heads
    block = _block("encoder", rows * how.residual * d, products, everything, recompute)
    return block._replace(
        forward=_feedforward_forward(sizes, how, rows, recompute),
        backward=_feedforward_backward(sizes, how, rows),
    )


def _cross_block(sizes: ModelSizes, how: Arithmetic, n: Tokens, recompute: str) -> Segment:
    d, c = sizes.d_model, how.products
    everything = n.visible * _keys_values(sizes, how) + n.targets * (
        how.norm(d, c)
        + c * d
        + _query(sizes, how)
        + _attended(sizes, how)
        + _feedforward(sizes, how)
        + 2 * _dropout(sizes, how)
    )
    products = n.visible * c * 2 * d + n.targets * (
        c * (4 * d + 2 * sizes.d_feedforward) + SINGLE * sizes.n_heads
    )
    inputs = n.targets * c * d  # autocast leaves the decoder's stream, too, in half precision
    block = _block("decoder", inputs, products, everything, recompute)
    return block._replace(
        forward=_feedforward_forward(sizes, how, n.targets, recompute),
        backward=_feedforward_backward(sizes, how, n.targets),
    )


def _block(name: str, inputs: float, products: float, everything: float, recompute: str) -> Segment:
    """A block that keeps everything, its input and matrix products, or its input alone.

    What it does not keep is made again for its backward pass, one block at a time.
    """
    kept = {"none": everything, "selective": inputs + products, "full": inputs}[recompute]
    return Segment(name, kept, again=max(everything - kept, 0.0))


def _query(sizes: ModelSizes, how: Arithmetic) -> float:
    """A query row: its norm a head, and it as the kernel takes it."""
    d, heads = sizes.d_model, sizes.n_heads
    norm = heads * how.norm(d // heads, how.products)
    if how.padding is None:
        return norm + how.products * d
    return norm + (1 + how.padding) * (how.products * d + 2 * ID)


def _keys_values(sizes: ModelSizes, how: Arithmetic) -> float:
    """A key and value row: the key's norm, both as they come, both as the kernel takes them."""
    d, heads, c = sizes.d_model, sizes.n_heads, how.products
    norm = heads * how.norm(d // heads, c)
    # What the norm keeps of its input may be the keys as they come: a view of one array with the
    # values, which stays as a whole.
    keeps_both = c == SINGLE or (how.fused_norm and not how.is_mixed)
    if how.padding is None:
        return norm - keeps_both * c * d + 3 * c * d
    return norm + keeps_both * c * d + (1 + how.padding) * (2 * c * d + ID)


def _attended(sizes: ModelSizes, how: Arithmetic) -> float:
    """A row of attention's result, once more where cells are joined, and its log-sum-exp."""
    copies = 1 if how.packed_attention else 2 + (how.padding or 0.0)
    return copies * how.products * sizes.d_model + SINGLE * sizes.n_heads


def _feedforward(sizes: ModelSizes, how: Arithmetic) -> float:
    """A row: norm, input, gate and up, silu(gate), and its product with up."""
    d, hidden = sizes.d_model, sizes.d_feedforward
    return how.norm(d, how.residual) + how.products * (d + 4 * hidden)


def _feedforward_forward(sizes: ModelSizes, how: Arithmetic, rows: float, recompute: str) -> float:
    """What the layer needs at once where it is not kept: the stream twice, input and products."""
    if recompute == "none":
        return rows * how.residual * sizes.d_model
    hidden = how.products * (sizes.d_model + 4 * sizes.d_feedforward)
    return rows * (2 * how.residual * sizes.d_model + hidden)


def _feedforward_backward(sizes: ModelSizes, how: Arithmetic, rows: float) -> float:
    """Gradients of the stream, of the layer's result, and of three hidden vectors less the one
    that is done with."""
    hidden = 2 * how.products * sizes.d_feedforward
    return rows * (how.residual * sizes.d_model + how.products * sizes.d_model + hidden)


def _dropout(sizes: ModelSizes, how: Arithmetic) -> float:
    """A row of noise: CUDA keeps a truth value, a CPU a number."""
    if not sizes.dropout:
        return 0.0
    return sizes.d_model * (1 if how.fused_norm else how.products)


def _decoder_input(sizes: ModelSizes, how: Arithmetic, n: Tokens) -> Segment:
    d, c = sizes.d_model, how.products
    kept = n.visible * (how.norm(d, how.residual) + 2 * c * d) + n.targets * (c * d + 2 * ID)
    # In mixed precision the encoder's states are no factor of a product, but live while the
    # losses are computed, and so do the targets' gene embeddings.
    return Segment("decoder", kept + n.cells * (c * d + 3 * ID))


def _outputs(sizes: ModelSizes, how: Arithmetic, n: Tokens) -> Segment:
    """The decoder's last norm, the cell head and the losses."""
    d, c = sizes.d_model, how.products
    head = (4 + (1 if how.is_mixed else 0)) * c * d  # mixed: the genes are converted once more
    kept = n.targets * (how.norm(d, c) + c * d + head + LOSS) + n.cells * 2 * c * d
    alive = (n.visible + n.targets) * how.residual * d if how.is_mixed else 0.0
    return Segment("head", kept, forward=alive, backward=n.targets * 2 * c * d)


def batch_bytes(n: Tokens, batches: int) -> float:
    """So many packed micro-batches."""
    return batches * TOKEN * (n.visible + n.targets)


def by_name(parts: list[Segment]) -> Iterator[tuple[str, float]]:
    """Bytes kept by each part of the model."""
    for name in dict.fromkeys(part.name for part in parts):
        yield name, sum(part.kept for part in parts if part.name == name)
