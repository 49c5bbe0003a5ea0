"""Small genomes, made in the test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def draw_letters(rng: np.random.Generator, n_bases: int) -> str:
    return "".join(rng.choice(list("ACGT"), n_bases))


def write_fasta(
    path: Path, chromosomes: Mapping[str, str], *, line_end: str = "\n", in_line: int = 60
) -> Path:
    """A FASTA as samtools likes it."""
    lines = []
    for name, text in chromosomes.items():
        lines.append(f">{name} of a test")
        lines += [text[i : i + in_line] for i in range(0, len(text), in_line)]
    path.write_bytes((line_end.join(lines) + line_end).encode())
    return path
