"""The memory of a training step of scMulan, part by part. Loads no torch.

in   ScmulanSizes, how a device computes, words and targets of one micro-batch
out  the segments of its forward pass, as scfm.tools.plan_memory has the default family's

``Tokens.visible`` are all words of the sentences, ``targets`` those to be said. Logits are made a
chunk at a time, and again in the backward pass (scfm/objectives/sentence.py).
"""

from scfm.model.config import ScmulanSizes
from scfm.tools.plan_memory import ID, SINGLE, Arithmetic, Segment, Tokens

STATISTICS = 2 * SINGLE  # mean and 1 / standard deviation of a row, kept by LayerNorm
AT_ONCE = 2**23  # logits of a chunk, as scfm.objectives.sentence has it
LOGITS = 4  # of a chunk: as they come, in float32, their softplus, and their gradient


def segments(
    sizes: ScmulanSizes, how: Arithmetic, n: Tokens, recompute: str, n_words: int
) -> list[Segment]:
    """The forward pass, in its order. ``n_words`` is the vocabulary's length."""
    rows, d = n.visible, sizes.d_model
    return [
        Segment("embedding", rows * 2 * ID, forward=rows * how.residual * d),
        *([_block(sizes, how, rows, recompute)] * sizes.n_layers),
        _outputs(sizes, how, n, n_words),
    ]


def _block(sizes: ScmulanSizes, how: Arithmetic, rows: float, recompute: str) -> Segment:
    d, c, r = sizes.d_model, how.products, how.residual
    normed = SINGLE if how.is_mixed else c  # autocast's norms come out in float32, to be converted
    copies = 2 * c * d if how.is_mixed else 0
    noise = 2 * d * (c + 1) if sizes.dropout else 0.0
    a_word = (
        2 * (r * d + STATISTICS + normed * d)  # what the norms take and make
        + copies
        + c * (3 + 2) * d  # q, k, v; attention's result, once more where cells are joined
        + SINGLE * sizes.n_heads
        + c * 8 * d  # the feed-forward before and after its nonlinearity
        + noise
    )
    inputs, products = rows * r * d, rows * c * 10 * d
    kept = {"none": rows * a_word, "selective": inputs + products, "full": inputs}[recompute]
    again = max(rows * a_word - kept, 0.0)
    passing = rows * 5 * c * d
    return Segment("decoder", kept, again=again, forward=passing + again, backward=passing)


def _outputs(sizes: ScmulanSizes, how: Arithmetic, n: Tokens, n_words: int) -> Segment:
    """The last norm and its cells, the places that words are said from, the value head's rows of
    these words, and a chunk of logits."""
    d = sizes.d_model
    kept = n.visible * ((how.residual + SINGLE) * d + STATISTICS) + n.targets * 2 * SINGLE * d
    logits = n.targets * n_words * SINGLE
    if n.targets * n_words <= AT_ONCE:  # one chunk: not made again
        return Segment("head", kept + logits, forward=logits, backward=(LOGITS - 1) * logits)
    logits = AT_ONCE * SINGLE * LOGITS
    return Segment("head", kept, forward=logits / 2, backward=logits + n.visible * SINGLE * d)
