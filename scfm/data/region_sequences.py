"""Windows whose DNA is at hand, with labels and without cells: a RegionExamples in memory.

in   codes of the bases, labels, where the windows lie
out  RegionBatch without signal; the group of every example is -1
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, Int8, Integer, Shaped, UInt8

from scfm.batch import RegionBatch
from scfm.data.nucleotides import one_hot
from scfm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SequenceRegions:
    """Windows of DNA, all in memory at one byte a base.

    Attributes
    ----------
    name
        Of the source, for messages.
    tasks
        What ``label_table`` has columns for: a TF, or "TF:cell".
    chrom, start, end
        Where the regions lie, 0-based and half-open. Files without coordinates name a chromosome
        after each part of theirs ("train", "valid", "test"), so that these can be held out.
    codes
        A 0, C 1, G 2, T 3, other 4; the middle of a window is the middle of its region.
    label_table
        1 bound, 0 not bound, -1 unknown.
    source_row
        Which row of the file each region is.
    genome
        Name of the assembly; None where the file does not say.
    """

    name: str
    tasks: tuple[str, ...]
    chrom: Shaped[np.ndarray, " region"]
    start: Int[np.ndarray, " region"]
    end: Int[np.ndarray, " region"]
    codes: UInt8[np.ndarray, "region base"]
    label_table: Int8[np.ndarray, "region task"]
    source_row: Int[np.ndarray, " region"]
    genome: str | None = None

    @property
    def n_regions(self) -> int:
        return len(self.start)

    @property
    def length(self) -> int:
        """Bases a window."""
        return self.codes.shape[1]

    @property
    def tracks(self) -> tuple[str, ...]:
        return ()

    @property
    def groups(self) -> tuple[str, ...]:
        return ()

    def labels(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> Int8[np.ndarray, "example task"]:
        """Labels of these regions; ``group`` plays no part."""
        return self.label_table[region]

    def batch(
        self,
        region: Integer[np.ndarray, " example"],
        group: Integer[np.ndarray, " example"],
    ) -> RegionBatch:
        """One-hot windows and labels of these regions."""
        region = np.asarray(region, dtype=np.int64)
        return RegionBatch(
            sequence=one_hot(self.codes[region]),
            signal=np.zeros((len(region), 0, self.length), dtype=np.float32),
            labels=self.label_table[region],
            region_index=region,
            group_index=np.asarray(group, dtype=np.int64),
        )

    def cut(self, length: int | None) -> "SequenceRegions":
        """The middle ``length`` bases of every window. Raises ConfigError where it has fewer."""
        if length is None or length == self.length:
            return self
        if not 0 < length < self.length:
            raise ConfigError(
                f"{self.name}: windows of {length:,} bases were asked for, but its sequences have "
                f"{self.length:,}. Ask for at most that, or name the FASTA of the genome."
            )
        first = (self.length - length) // 2
        return replace(self, codes=np.ascontiguousarray(self.codes[:, first : first + length]))
