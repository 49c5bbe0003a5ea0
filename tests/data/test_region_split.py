"""Splits by chromosome and group; what overlaps is refused."""

import numpy as np
import pytest

from scfm.data.region_split import (
    NO_PART,
    RegionSplit,
    require_apart,
    split_regions,
)
from scfm.errors import ConfigError, InputError

CHROM = np.array(["chr1", "chr1", "chr2", "chr11", "chr20", "chrX"])


def test_split_by_chromosome():
    split = split_regions(CHROM, validation=["chr11"], test=["2", "chr20"])
    assert split.training_chroms == ("chr1", "chrX")
    assert split.test_chroms == ("chr2", "chr20")  # the regions' own spelling
    assert split.part_of(CHROM).tolist() == [0, 0, 2, 1, 2, 0]


def test_named_training_leaves_others_out():
    split = split_regions(CHROM, validation=["chr11"], test=["chr2"], training=["chr1"])
    assert split.part_of(CHROM).tolist() == [0, 0, 2, 1, NO_PART, NO_PART]


def test_groups():
    names = ("T", "B", "NK")
    split = split_regions(
        CHROM, validation=["chr11"], test=["chr2"], groups=names, held_out_groups=["NK"]
    )
    assert split.is_held_out(names).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"validation": ["chr11"], "test": ["chr7"]}, "No region lies on chr7"),
        ({"validation": ["chr11"], "test": ["11"]}, "on both sides"),
        ({"validation": [], "test": ["chr2"]}, "left for validation"),
        (
            {"validation": ["chr11"], "test": ["chr1", "chr2", "chr20", "chrX"]},
            "left for training",
        ),
        (
            {"validation": ["chr11"], "test": ["chr2"], "held_out_groups": ["Z"]},
            "names Z, which the data has no group of",
        ),
    ],
)
def test_refusals(asked, message):
    with pytest.raises(ConfigError, match=message):
        split_regions(CHROM, groups=("T", "B"), **asked)


def test_all_groups_held_out():
    with pytest.raises(ConfigError, match="leave one"):
        split_regions(
            CHROM,
            validation=["chr11"],
            test=["chr2"],
            groups=("T", "B"),
            held_out_groups=["T", "B"],
        )


def test_one_chromosome_under_two_names():
    with pytest.raises(ConfigError, match="on both"):
        RegionSplit(training_chroms=("chr2",), validation_chroms=("chr1",), test_chroms=("2",))


def brute_force(chrom, start, end, part):
    n = len(chrom)
    return any(
        chrom[i] == chrom[j]
        and part[i] != part[j]
        and NO_PART not in (part[i], part[j])
        and start[i] < end[j]
        and start[j] < end[i]
        for i in range(n)
        for j in range(i)
    )


def test_overlaps_as_brute_force_finds_them(rng):
    outcomes = set()
    for _ in range(150):
        n = int(rng.integers(2, 12))
        chrom = rng.choice(["chr1", "chr2"], n)
        start = rng.integers(0, 400, n)
        end = start + rng.integers(1, 60, n)
        part = rng.integers(-1, 3, n)
        wanted = brute_force(chrom, start, end, part)
        outcomes.add(wanted)
        if wanted:
            with pytest.raises(InputError, match="overlap"):
                require_apart(chrom, start, end, part)
        else:
            require_apart(chrom, start, end, part)
    assert outcomes == {True, False}


def test_windows_reach_beyond_their_regions():
    chrom, part = np.array(["chr1", "1"]), np.array([0, 2])
    start = np.array([100, 300])
    require_apart(chrom, start, start + 100, part)
    require_apart(chrom, start, start + 100, part, reach=50)
    with pytest.raises(InputError, match=r"chr1:100-200 \(training\) and of 1:300-400 \(test\)"):
        require_apart(chrom, start, start + 100, part, reach=51)


def test_stretches_of_one_chromosome():
    start = np.array([0, 50_000, 58_500, 61_000, 89_000, 91_000, 95_000])
    chrom = np.full(len(start), "chrIV")
    split = split_regions(chrom, validation=["IV:60,000-90000"], test=["chrIV:90000-100000"])
    assert split.validation_chroms == ("chrIV:60000-90000",)
    assert split.training_chroms == ("chrIV",)
    parts = split.part_of(chrom, start, start + 200)
    # 58,500 lies within two kilobases of the validation stretch
    assert parts.tolist() == [0, 0, NO_PART, 1, 1, 2, 2]
    straddling = split.part_of(chrom[:1], np.array([89_900]), np.array([90_100]))
    assert straddling.tolist() == [NO_PART]
    with pytest.raises(ConfigError, match="No region lies on chrV"):
        split_regions(chrom, validation=["chrV:0-10"], test=["chrIV:90000-100000"])
