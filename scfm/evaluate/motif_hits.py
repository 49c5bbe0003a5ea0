"""Motifs of TFs -> the best hit of each TF in every window.

in   a MEME file (plain or .gz), TF names, windows as codes
out  -log10 p of the best hit on either strand, by TF; which motif stands for which TF

Scanning is memelite's FIMO. A motif's name is matched to a TF by HGNC: its symbol, an alias or a
previous symbol of one gene.
"""

import gzip
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from scfm.data.gene_tables import GeneNames, gene_names
from scfm.errors import ConfigError, MissingFileError, UnreadableFileError

HITS_WANTED = 5.0  # in a random window, on average: so that nearly every window has one
AT_ONCE = 2048  # windows scanned together
HOCOMOCO = re.compile(r"\.H1\d.*$")
SPECIES = re.compile("_(HUMAN|MOUSE)$")


@dataclass(frozen=True)
class Motifs:
    """Probability matrices (4, width) by name, and the names that stand for each TF."""

    matrices: Mapping[str, Float[np.ndarray, "4 width"]]
    of_tf: Mapping[str, tuple[str, ...]]

    def sentence(self, tfs: Sequence[str]) -> str:
        """Which TFs have one, for a reader."""
        without = [tf for tf in tfs if tf not in self.of_tf]
        told = f"{len(self.of_tf)} of {len(tfs)} TFs have a motif"
        return f"{told}; none: {', '.join(without)}." if without else f"{told}."


def read_motifs(path: str | Path, tfs: Sequence[str]) -> Motifs:
    """The motifs of these TFs. Those of a single TF come before those of its dimers.

    Raises MissingFileError, UnreadableFileError, ConfigError where memelite is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"There is no file {path}. Give motifs in MEME format.")
    matrices = _read(path)
    names, wanted = gene_names("human"), {}
    for tf in tfs:
        wanted.setdefault(_symbol(tf, names), []).append(tf)
    single: dict[str, list[str]] = {}
    dimer: dict[str, list[str]] = {}
    for name in matrices:
        parts = _parts(name)
        for part in parts:
            for tf in wanted.get(_symbol(part, names), ()):
                (single if len(parts) == 1 else dimer).setdefault(tf, []).append(name)
    of_tf = {tf: tuple(single.get(tf) or dimer[tf]) for tf in tfs if tf in single or tf in dimer}
    used = {name for chosen in of_tf.values() for name in chosen}
    return Motifs({name: matrices[name] for name in used}, of_tf)


def best_hits(
    motifs: Motifs,
    codes: UInt8[np.ndarray, "window base"],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Float[np.ndarray, " window"]]:
    """-log10 p of the best hit of any of the TF's motifs; 0 where none comes near."""
    from memelite import fimo

    n, length = codes.shape
    names = sorted(motifs.matrices)
    best = {name: np.zeros(n, dtype=np.float32) for name in names}
    threshold = min(HITS_WANTED / (2 * length), 0.5)
    for start in range(0, n, AT_ONCE):
        some = codes[start : start + AT_ONCE]
        hot = (some[:, None, :] == np.arange(4)[None, :, None]).astype(np.int8)
        tables = fimo({name: motifs.matrices[name] for name in names}, hot, threshold=threshold)
        for name, table in zip(names, tables, strict=True):
            size = -np.log10(np.maximum(table["p-value"].to_numpy(dtype=np.float64), 1e-300))
            rows = start + table["sequence_name"].to_numpy(dtype=np.int64)
            np.maximum.at(best[name], rows, size.astype(np.float32))
        on_progress(start + len(some), n)
    return {
        tf: np.max([best[name] for name in chosen], axis=0)
        for tf, chosen in motifs.of_tf.items()
    }


def _read(path: Path) -> dict[str, Float[np.ndarray, "4 width"]]:
    try:
        from memelite.io import read_meme
    except ImportError as error:
        raise ConfigError(
            "Motifs need memelite, not installed here: pip install 'scfm[tf]'."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "motifs.meme"
        try:
            opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
            with opened as packed, plain.open("wb") as file:
                shutil.copyfileobj(packed, file)
            found = read_meme(str(plain))
        except (OSError, EOFError, ValueError) as error:
            raise UnreadableFileError(f"{path} is not in MEME format: {error}.") from error
    if not found:
        raise UnreadableFileError(f"{path} holds no motif in MEME format.")
    return found


def _parts(name: str) -> list[str]:
    """The TFs of "MA0099.2 FOS::JUN" (JASPAR) or "AHR.H12CORE.0.P.B" (HOCOMOCO)."""
    last = HOCOMOCO.sub("", name.split()[-1]).split("(")[0].upper()
    return [part for part in SPECIES.sub("", last).split("::") if part]


def _symbol(name: str, names: GeneNames) -> str:
    """The approved symbol that a name means, or the name itself."""
    for spelled in (name, name.upper()):
        found = names.approved.get(spelled) or names.other_names.get(spelled, ("", ""))[1]
        if found:
            return found
    return name.upper()
