"""Motifs of TFs -> how well each window matches the motif of each TF.

in   a MEME file (plain or .gz), TF names, windows as codes
out  log-odds of the best hit on either strand, by TF; which motif stands for which TF

A motif's name is matched to a TF by HGNC: its symbol, an alias or a previous symbol of one gene.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import conv1d

from scfm.data.gene_tables import GeneNames, gene_names
from scfm.data.nucleotides import UNKNOWN, one_hot
from scfm.errors import MissingFileError, UnreadableFileError

BACKGROUND = 0.25  # probability of each base where nothing binds
PSEUDO = 1e-3  # added to every probability of a motif, or a zero would forbid a base for good
STEP = 0.01  # bits, of the scores whose distribution is summed
HIT_P = 5e-5  # chance of a hit at a random place, as chromVAR calls one
AT_ONCE = 2048  # windows scanned together
HOCOMOCO = re.compile(r"\.H1\d.*$")
SPECIES = re.compile("_(HUMAN|MOUSE)$")
WIDTH = re.compile(r"\bw=\s*(\d+)")

LogOdds = Float[np.ndarray, "4 width"]


@dataclass(frozen=True)
class Motifs:
    """Of each TF its motif's name and log-odds (A, C, G, T) in bits."""

    names: Mapping[str, str]
    log_odds: Mapping[str, LogOdds]

    def sentence(self, tfs: Sequence[str]) -> str:
        """Which TFs have one, for a reader."""
        without = [tf for tf in tfs if tf not in self.names]
        told = f"{len(tfs) - len(without)} of {len(tfs)} TFs have a motif"
        return f"{told}; none: {', '.join(without)}." if without else f"{told}."


def read_motifs(path: str | Path, tfs: Sequence[str]) -> Motifs:
    """The motif of each of these TFs that has one.

    Of several the one of most information; a dimer's only where the TF has none of its own. Raises
    MissingFileError, UnreadableFileError.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There is no file {path}. Give motifs in MEME format.")
    matrices = _matrices(path)
    gene = gene_names("human")
    wanted: dict[str, list[str]] = {}
    for tf in tfs:
        wanted.setdefault(_symbol(tf, gene), []).append(tf)
    best: dict[str, tuple[tuple[bool, float], str]] = {}
    for name, matrix in matrices.items():
        parts = _parts(name)
        for tf in {tf for part in parts for tf in wanted.get(_symbol(part, gene), ())}:
            rank = (len(parts) == 1, _information(matrix))
            if tf not in best or rank > best[tf][0]:
                best[tf] = (rank, name)
    names = {tf: best[tf][1] for tf in tfs if tf in best}
    return Motifs(names, {tf: log_odds(matrices[name]) for tf, name in names.items()})


def log_odds(matrix: Float[np.ndarray, "4 width"]) -> LogOdds:
    """Bits by which a base speaks for the motif rather than for any sequence."""
    smoothed = (matrix + PSEUDO) / (matrix + PSEUDO).sum(0)
    return np.log2(smoothed / BACKGROUND)


def best_hits(
    motifs: Motifs,
    codes: UInt8[np.ndarray, "window base"],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Float[np.ndarray, " window"]]:
    """Log-odds, in bits, of the best place for each TF's motif on either strand.

    A place with an unknown base is none; a window without a place has the motif's least log-odds.
    """
    n = len(codes)
    found = {tf: np.empty(n, dtype=np.float32) for tf in motifs.log_odds}
    for start in range(0, n, AT_ONCE):
        some = codes[start : start + AT_ONCE]
        hot = torch.from_numpy(one_hot(some))
        is_unknown = torch.from_numpy((some == UNKNOWN)[:, None].astype(np.float32))
        for tf, matrix in motifs.log_odds.items():
            found[tf][start : start + len(some)] = _best(hot, is_unknown, matrix)
        on_progress(start + len(some), n)
    return found


def _best(
    hot: torch.Tensor, is_unknown: torch.Tensor, matrix: LogOdds
) -> Float[np.ndarray, " window"]:
    width, least = matrix.shape[1], float(matrix.min(0).sum())
    if width > hot.shape[2]:
        return np.full(len(hot), least, dtype=np.float32)
    strands = np.stack([matrix, matrix[::-1, ::-1]]).astype(np.float32)
    with torch.inference_mode():
        score = conv1d(hot, torch.from_numpy(strands)).amax(1)
        n_unknown = conv1d(is_unknown, torch.ones(1, 1, width))[:, 0]
        return score.where(n_unknown < 0.5, torch.tensor(least)).amax(1).numpy()


def hit_threshold(matrix: LogOdds, p: float = HIT_P) -> float:
    """The log-odds that a random place reaches with a chance of at most ``p``, to 0.01 bit.

    The distribution of the score is summed column by column (Staden 1989).
    """
    steps = np.round(matrix / STEP).astype(np.int64)
    low = steps.min(0)
    chance = np.ones(1)
    for column, least in zip(steps.T, low, strict=True):
        longer = np.zeros(len(chance) + int(column.max() - least))
        for step in column - least:
            longer[step : step + len(chance)] += BACKGROUND * chance
        chance = longer
    at_least = np.cumsum(chance[::-1])[::-1]
    reached = np.flatnonzero(at_least <= p)
    # a short motif has no score so rare: then only its very best word is a hit
    first = int(reached[0]) if len(reached) else len(chance) - 1
    # a score may lie below its rounded one by half a step in every column
    return float((first + low.sum() - matrix.shape[1] / 2) * STEP)


def _information(matrix: Float[np.ndarray, "4 width"]) -> float:
    """Bits, over all columns."""
    smoothed = (matrix + PSEUDO) / (matrix + PSEUDO).sum(0)
    return float((smoothed * np.log2(smoothed / BACKGROUND)).sum())


def _matrices(path: Path) -> dict[str, Float[np.ndarray, "4 width"]]:
    """Probabilities by the motif's name. Format: MEME's minimal one, meme-suite.org."""
    try:
        packed = path.read_bytes()
        lines = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode().splitlines()
        found: dict[str, np.ndarray] = {}
        name = ""
        for at, line in enumerate(lines):
            if line.startswith("MOTIF"):
                name = " ".join(line.split()[1:])
            elif line.startswith("letter-probability matrix") and (width := WIDTH.search(line)):
                rows = [line.split() for line in lines[at + 1 : at + 1 + int(width[1])]]
                found[name] = np.array(rows, dtype=np.float64).reshape(int(width[1]), 4).T
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UnreadableFileError(f"{path} is not in MEME format: {error}.") from error
    if not found:
        raise UnreadableFileError(f"{path} holds no motif in MEME format.")
    return found


def _parts(name: str) -> list[str]:
    """The TFs of "MA0099.2 FOS::JUN" (JASPAR) or "AHR.H12CORE.0.P.B" (HOCOMOCO)."""
    last = HOCOMOCO.sub("", name.split()[-1]).split("(")[0].upper()
    return [part for part in SPECIES.sub("", last).split("::") if part]


def _symbol(name: str, gene: GeneNames) -> str:
    """The approved symbol that a name means, or the name itself."""
    for spelled in (name, name.upper()):
        found = gene.approved.get(spelled) or gene.other_names.get(spelled, ("", ""))[1]
        if found:
            return found
    return name.upper()
