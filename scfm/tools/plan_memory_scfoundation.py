"""The memory of a training step of scFoundation, part by part. Loads no torch.

in   ScfoundationSizes, how a device computes, tokens and targets of one micro-batch
out  the segments of its forward pass, as scfm.tools.plan_memory has the default family's

The decoder runs over every gene of the vocabulary, so it is nearly all of the memory. Its random
features are made again in the backward pass whatever train.recompute is (model/performer.py).
"""

from scfm.model.config import ScfoundationSizes
from scfm.tools.plan_memory import ID, LOSS, SINGLE, Arithmetic, Segment, Tokens

STATISTICS = 2 * SINGLE  # mean and 1 / standard deviation of a row, kept by LayerNorm
AT_ONCE = {True: 2**22, False: 2**26}  # numbers of features, by whether it is on a CPU


def segments(
    sizes: ScfoundationSizes, how: Arithmetic, n: Tokens, recompute: str, n_positions: int
) -> list[Segment]:
    """The forward pass, in its order. ``n_positions`` are the vocabulary's genes and two."""
    positions = n.cells * n_positions
    return [
        _embedding(sizes, how, n),
        *([_encoder_block(sizes, how, n, recompute)] * sizes.n_layers),
        _decoder_input(sizes, positions, n_positions),
        *(
            [_decoder_block(sizes, how, n.cells, n_positions, positions, recompute)]
            * (sizes.n_decoder_layers - 1)
        ),
        _decoder_block(sizes, how, n.cells, n_positions, n.targets, recompute),
        _outputs(sizes, how, n),
    ]


def _embedding(sizes: ScfoundationSizes, how: Arithmetic, n: Tokens) -> Segment:
    bins = how.products * (2 if how.is_mixed else 1)
    softmax = SINGLE if how.is_mixed else how.products
    kept = n.visible * (sizes.n_bins * (SINGLE + bins + softmax) + ID + SINGLE)
    return Segment("embedding", kept, forward=n.visible * how.residual * sizes.d_model)


def _encoder_block(sizes: ScfoundationSizes, how: Arithmetic, n: Tokens, recompute: str) -> Segment:
    d, c, r = sizes.d_model, how.products, how.residual
    copies = 2 * c * d if how.is_mixed else 0  # autocast's, for the products in and after attention
    noise = 6 * d * (1 if how.fused_norm else c) + 4 * c * d if sizes.dropout else 0.0
    a_token = (
        r * d  # the stream, as it comes
        + c * (3 + 2) * d  # q, k, v; attention's result, once more where cells are joined
        + SINGLE * sizes.n_heads
        + 2 * (r * d + STATISTICS)  # what the norms take
        + r * d  # and what the first one makes
        + c * 4 * d
        + copies
        + noise
    )
    everything = n.visible * a_token
    products = n.visible * c * 10 * d
    return _block(
        "encoder", n.visible * r * d, products, everything, recompute, n.visible * 5 * c * d
    )


def _decoder_input(sizes: ScfoundationSizes, positions: float, n_positions: int) -> Segment:
    """The table of positions in the decoder's width; every cell's, once more a write, passes."""
    row = SINGLE * sizes.d_decoder
    passing = 2 * positions * row
    return Segment("decoder", n_positions * row, forward=passing, backward=passing)


def _decoder_block(
    sizes: ScfoundationSizes,
    how: Arithmetic,
    cells: float,
    n_positions: int,
    queries: float,
    recompute: str,
) -> Segment:
    d, c, r, keys = sizes.d_decoder, how.products, how.residual, cells * n_positions
    inner = sizes.n_decoder_heads * sizes.d_head
    copy = c * d if how.is_mixed else 0
    everything = keys * (r * d + STATISTICS + _normed(d, how) + copy + 2 * c * inner) + queries * (
        2 * c * inner  # q, and what it finds
        + r * d
        + STATISTICS
        + _normed(d, how)
        + 2 * copy
        + 8 * c * d  # the feed-forward before and after its nonlinearity
    )
    products = keys * 2 * c * inner + queries * c * (inner + 6 * d)
    of_a_cell = n_positions * sizes.n_decoder_heads * sizes.features
    features = 3 * min(AT_ONCE[not how.fused_norm], of_a_cell)
    passing = SINGLE * (features + 4 * inner * queries) + r * d * queries
    inputs = keys * r * d
    return _block("decoder", inputs, products, everything, recompute, passing)


def _normed(d: int, how: Arithmetic) -> float:
    """What LayerNorm makes: under autocast it comes out in float32, to be converted."""
    return (SINGLE if how.is_mixed else how.products) * d


def _outputs(sizes: ScfoundationSizes, how: Arithmetic, n: Tokens) -> Segment:
    """Two norms, the value, and the loss."""
    d = sizes.d_decoder
    kept = n.targets * (2 * (how.residual * d + STATISTICS) + _normed(d, how) + LOSS)
    return Segment("head", kept, backward=n.targets * 2 * SINGLE * d)


def _block(
    name: str, inputs: float, products: float, everything: float, recompute: str, passing: float
) -> Segment:
    kept = {"none": everything, "selective": inputs + products, "full": inputs}[recompute]
    again = max(everything - kept, 0.0)
    return Segment(name, kept, again=again, forward=passing + again, backward=passing)
