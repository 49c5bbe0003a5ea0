"""Small genomes, made in the test."""

from collections.abc import Mapping
from itertools import pairwise
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


def write_bigwig(path: Path, values: Mapping[str, np.ndarray]) -> Path:
    """A bigWig of values a base; what is 0 is left out, as writers do."""
    import pybigtools

    def runs():
        for name in sorted(values):
            bounds = np.flatnonzero(np.diff(values[name])) + 1
            edges = [0, *bounds.tolist(), len(values[name])]
            for start, end in pairwise(edges):
                if values[name][start]:
                    yield name, start, end, float(values[name][start])

    writer = pybigtools.open(str(path), "w")
    writer.write({name: len(of_one) for name, of_one in values.items()}, runs())
    return path
