"""Labels of windows, against counting base by base."""

import gzip

import numpy as np
import pytest

from scfm.data.intervals import Intervals, covered_bases, holds_position, read_bed, tile
from scfm.data.region_labels import label_windows
from scfm.errors import ConfigError, InputError, MissingFileError, UnreadableFileError


def draw_intervals(rng, n, *, most=40, size=300) -> Intervals:
    start = rng.integers(0, size - most, n)
    chrom = rng.choice(["chr1", "chr2"], n)
    return Intervals(chrom, start, start + rng.integers(1, most, n))


def covered_by_hand(windows: Intervals, features: Intervals) -> list[int]:
    is_covered = {chrom: np.zeros(400, bool) for chrom in ("chr1", "chr2")}
    for chrom, start, end in zip(features.chrom, features.start, features.end, strict=True):
        is_covered[chrom][start:end] = True
    rows = zip(windows.chrom, windows.start, windows.end, strict=True)
    return [int(is_covered[chrom][start:end].sum()) for chrom, start, end in rows]


@pytest.mark.parametrize("n", [0, 1, 25])
def test_covered_bases(rng, n):
    windows, features = draw_intervals(rng, 60), draw_intervals(rng, n)
    assert covered_bases(windows, features).tolist() == covered_by_hand(windows, features)


def test_middles(rng):
    windows, features = draw_intervals(rng, 60), draw_intervals(rng, 15)
    middle = (features.start + features.end) // 2
    expected = [
        bool(((features.chrom == c) & (middle >= s) & (middle < e)).any())
        for c, s, e in zip(windows.chrom, windows.start, windows.end, strict=True)
    ]
    assert holds_position(windows, features).tolist() == expected
    one = Intervals(np.array(["chr1"]), np.array([0]), np.array([100]), np.array([99]))
    at = Intervals(np.array(["chr1"] * 2), np.array([90, 89]), np.array([100, 99]))
    assert holds_position(at, one).tolist() == [True, False]  # the summit, and half-open


def test_tiles():
    tiles = tile({"chr1": 1000, "chr2": 95, "chr3": 130}, 100, 50, margin=10)
    assert np.unique(tiles.chrom).tolist() == ["chr1", "chr3"]
    assert (tiles.end - tiles.start == 100).all()
    on_one = tiles.chrom == "chr1"
    assert tiles.start[on_one].tolist() == list(range(10, 891, 50))
    assert tiles.end[on_one].max() <= 990
    with pytest.raises(InputError, match="No window of 2,000 bases fits"):
        tile({"chr1": 1000}, 2000, 50)


def test_three_states():
    windows = Intervals(np.array(["chrI"] * 5), 100 * np.arange(5), 100 * np.arange(1, 6))
    strict = Intervals(np.array(["chr1", "chr2"]), np.array([40, 0]), np.array([160, 100]))
    lenient = Intervals(np.array(["1"] * 2), np.array([100, 249]), np.array([200, 351]))
    table, tfs = label_windows(windows, {"A": strict, "B": lenient}, {"A": lenient})
    assert tfs == ("A", "B")
    # 60 of 100 bases are more than half, wherever else it is lenient; 51 are, 50 are not
    assert table[:, 0].tolist() == [1, 1, -1, -1, 0]
    assert table[:, 1].tolist() == [0, 1, 1, 1, 0]
    half = Intervals(np.array(["chr1"]), np.array([0]), np.array([50]))
    with pytest.raises(InputError, match=r"no window lies more than 50%.*--overlap centre"):
        label_windows(windows, {"A": half})
    assert label_windows(windows, {"A": half}, share=0.49)[0][:, 0].tolist() == [1, 0, 0, 0, 0]
    centre, _ = label_windows(windows, {"A": half}, {"A": lenient}, rule="centre")
    assert centre[:, 0].tolist() == [1, -1, 0, -1, 0]  # middles at 25; 150 and 300


def test_refused_labels():
    windows = Intervals(np.array(["chr1"]), np.array([0]), np.array([100]))
    elsewhere = Intervals(np.array(["chr7"]), np.array([0]), np.array([100]))
    with pytest.raises(InputError, match=r"A: none of its 1 peaks.*have chr7, the windows chr1"):
        label_windows(windows, {"A": elsewhere})
    with pytest.raises(ConfigError, match="Relaxed peaks of B without conservative"):
        label_windows(windows, {"A": windows}, {"B": windows})


def test_bed(tmp_path):
    text = "#chrom\nbrowser x\ntrack name=x\nchr1\t5\t10\tp\n\nchr2 0 1 q\n"
    (tmp_path / "p.bed").write_text(text)
    (tmp_path / "p.bed.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("p.bed", "p.bed.gz"):
        bed = read_bed(tmp_path / name)
        assert (bed.chrom.tolist(), bed.start.tolist(), bed.end.tolist()) == (
            ["chr1", "chr2"],
            [5, 0],
            [10, 1],
        )
    narrow = "chr1\t5\t105\tp\t1\t.\t1\t1\t1\t60\nchr1\t5\t105\tp\t1\t.\t1\t1\t1\t-1\n"
    (tmp_path / "p.narrowPeak").write_text(narrow)
    assert read_bed(tmp_path / "p.narrowPeak").middle.tolist() == [65, 55]
    more = "".join(f"{line}\textra\t7\n" for line in narrow.splitlines())
    (tmp_path / "more.narrowPeak").write_text(more)
    assert read_bed(tmp_path / "more.narrowPeak").middle.tolist() == [65, 55]
    blocks = "chr1\t5\t105\tp\t1\t+\t5\t5\t0\t2\t10,20,\t0,80,\n"  # BED12, no summit
    (tmp_path / "blocks.bed").write_text(blocks)
    assert read_bed(tmp_path / "blocks.bed").middle.tolist() == [55]
    (tmp_path / "none.bed").write_text("# nothing\n")
    assert len(read_bed(tmp_path / "none.bed")) == 0


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("chr1\t5\n", UnreadableFileError, "no BED file"),
        ("chrom\tstart\tend\n", UnreadableFileError, "no BED file"),
        ("chr1\t5\t5\n", InputError, "chr1:5-5 is no stretch"),
        ("chr1\t-1\t5\n", InputError, "no stretch"),
    ],
)
def test_what_is_no_bed(tmp_path, text, error, words):
    (tmp_path / "p.bed").write_text(text)
    with pytest.raises(error, match=words):
        read_bed(tmp_path / "p.bed")
    with pytest.raises(MissingFileError):
        read_bed(tmp_path / "none.bed")
