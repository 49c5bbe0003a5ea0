"""Letters of DNA <-> small codes <-> one-hot rows.

in   text, bytes or one-hot arrays
out  codes A 0, C 1, G 2, T 3, anything else 4; one-hot over A, C, G, T, all 0 where the code is 4
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, UInt8

from scfm.data.compiled import compiled
from scfm.errors import InputError

LETTERS = "ACGT"
UNKNOWN = 4

# Lower case is a mark of repeats in many FASTA files, not another base.
CODES = np.full(256, UNKNOWN, dtype=np.uint8)
for _code, _letter in enumerate(LETTERS):
    CODES[[ord(_letter), ord(_letter.lower())]] = _code
_SPELLED = np.frombuffer(b"ACGTN", dtype=np.uint8)


def encode(sequences: Sequence[str] | np.ndarray, name: str) -> UInt8[np.ndarray, "window base"]:
    """Sequences of one length as codes; an empty one is all unknown.

    Raises InputError where lengths differ; ``name`` is the source's, for the message.
    """
    as_bytes = np.char.encode(np.asarray(sequences, dtype=str), "ascii", "replace")
    lengths = np.char.str_len(as_bytes)
    present = np.unique(lengths[lengths > 0])
    if len(present) > 1:
        raise InputError(
            f"{name}: sequences of {present[0]:,} to {present[-1]:,} bases; all have to have one "
            "length. Cut or resize the regions first."
        )
    if not len(present):
        raise InputError(f"{name}: all {len(as_bytes):,} sequences are empty.")
    letters = as_bytes.astype(f"S{present[0]}").view(np.uint8)
    return CODES[letters].reshape(len(as_bytes), int(present[0]))


def decode(codes: UInt8[np.ndarray, " base"]) -> str:
    """Codes as capital letters, N where unknown."""
    return _SPELLED[codes].tobytes().decode("ascii")


def one_hot(codes: UInt8[np.ndarray, "window base"]) -> Float[np.ndarray, "window 4 base"]:
    """float32, all 0 where the code is unknown."""
    out = np.zeros((len(codes), 4, codes.shape[1]), dtype=np.float32)
    _fill(np.ascontiguousarray(codes), out)
    return out


def codes_of_one_hot(
    hot: Num[np.ndarray, "window 4 base"], name: str
) -> UInt8[np.ndarray, "window base"]:
    """The codes a one-hot array was made of. Raises InputError where a column is no base."""
    total = hot.sum(axis=1)
    if not (((hot == 0) | (hot == 1)).all() and (total <= 1).all()):
        raise InputError(
            f"{name}: is not one-hot: every position has to be one 1 among A, C, G, T, or four 0."
        )
    return np.where(total == 0, UNKNOWN, hot.argmax(axis=1)).astype(np.uint8)


def gc_share(codes: UInt8[np.ndarray, "window base"]) -> Float[np.ndarray, " window"]:
    """Share of G and C among the known bases; NaN where none is known."""
    n_known = (codes != UNKNOWN).sum(axis=1)
    n_gc = ((codes == 1) | (codes == 2)).sum(axis=1)
    return np.divide(n_gc, n_known, out=np.full(len(codes), np.nan), where=n_known > 0)


@compiled
def _fill(codes, out):
    for window in range(codes.shape[0]):
        for base in range(codes.shape[1]):
            code = codes[window, base]
            if code < 4:
                out[window, code, base] = 1.0
