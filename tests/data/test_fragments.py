"""Counts of a fragments file, against counting fragment by fragment."""

import gzip

import numpy as np
import pytest

from scfm.data import fragments as fragments_module
from scfm.data.fragments import count_fragments
from scfm.data.intervals import Intervals
from scfm.errors import InputError, MissingFileError, UnreadableFileError


def draw_fragments(rng, n=400):
    start = rng.integers(0, 900, n)
    return list(
        zip(
            rng.choice(["chr1", "chr2", "chrUn"], n).tolist(),
            start.tolist(),
            (start + rng.integers(1, 120, n)).tolist(),
            rng.choice(["AAA-1", "CCC-1", "GGG-1"], n, p=[0.6, 0.3, 0.1]).tolist(),
            strict=True,
        )
    )


def write_fragments(path, fragments, *, header="# id=x\n# primary=y\n", column=True):
    lines = ["\t".join(map(str, (*f, 1) if column else f)) for f in fragments]
    text = (header + "\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def peaks(rng) -> Intervals:
    """Unsorted, some within others, on chromosomes spelled otherwise."""
    start = rng.integers(0, 900, 40)
    return Intervals(rng.choice(["1", "2"], 40), start, start + rng.integers(1, 200, 40))


def by_hand(fragments, peaks, counting) -> dict[str, np.ndarray]:
    counts: dict[str, np.ndarray] = {}
    for chrom, start, end, barcode in fragments:
        row = counts.setdefault(barcode, np.zeros(len(peaks), int))
        on = peaks.chrom == chrom.removeprefix("chr")
        if counting == "fragments":
            row += on & (peaks.start < end) & (peaks.end > start)
        else:
            for cut in (start, end - 1):
                row += on & (peaks.start <= cut) & (cut < peaks.end)
    return counts


@pytest.mark.parametrize("counting", ["insertions", "fragments"])
@pytest.mark.parametrize("name", ["f.tsv", "f.tsv.gz"])
def test_counts(tmp_path, rng, peaks, counting, name, monkeypatch):
    monkeypatch.setattr(fragments_module, "BLOCK_BYTES", 1500)  # many blocks
    monkeypatch.setattr(fragments_module, "MERGE_AT", 50)
    fragments = draw_fragments(rng)
    path = write_fragments(tmp_path / name, fragments, column=name.endswith("gz"))
    found = count_fragments(path, peaks, counting=counting)
    expected = by_hand(fragments, peaks, counting)
    assert found.barcodes == ("AAA-1", "CCC-1", "GGG-1")
    assert found.counts.dtype == np.int32
    for row, barcode in enumerate(found.barcodes):
        assert (found.counts[row].toarray().ravel() == expected[barcode]).all()
        assert found.n_fragments[row] == sum(f[3] == barcode for f in fragments)


def test_barcodes(tmp_path, rng, peaks):
    fragments = draw_fragments(rng)
    path = write_fragments(tmp_path / "f.tsv.gz", fragments)
    every = count_fragments(path, peaks)
    two = count_fragments(path, peaks, barcodes=["GGG-1", "TTT-1", "AAA-1"])
    assert two.barcodes == ("GGG-1", "TTT-1", "AAA-1")
    assert two.n_fragments[1] == 0
    assert (two.counts[[2, 0]] != every.counts[[0, 2]]).nnz == 0
    most = count_fragments(path, peaks, min_fragments=int(every.n_fragments[1]))
    assert most.barcodes == ("AAA-1", "CCC-1")
    assert (most.counts != every.counts[:2]).nnz == 0


def test_refused(tmp_path, rng, peaks):
    fragments = draw_fragments(rng)
    path = write_fragments(tmp_path / "f.tsv.gz", fragments)
    with pytest.raises(MissingFileError):
        count_fragments(tmp_path / "none.tsv", peaks)
    with pytest.raises(InputError, match=r"none of its 3 barcodes has 9,999"):
        count_fragments(path, peaks, min_fragments=9_999)
    with pytest.raises(InputError, match=r"no fragment of any of the 1 barcodes.*suffix"):
        count_fragments(path, peaks, barcodes=["AAA"])
    elsewhere = Intervals(np.array(["chr9"]), np.array([0]), np.array([9]))
    with pytest.raises(InputError, match=r"none of the peaks' chromosomes. It has chr"):
        count_fragments(path, elsewhere)
    (tmp_path / "text.tsv").write_text("chr1\tx\ty\tz\n")
    with pytest.raises(UnreadableFileError, match="no fragments file"):
        count_fragments(tmp_path / "text.tsv", peaks)
    (tmp_path / "three.tsv").write_text("chr1\t1\t2\n")
    with pytest.raises(UnreadableFileError, match="no fragments file"):
        count_fragments(tmp_path / "three.tsv", peaks)
    (tmp_path / "none.tsv").write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no fragment"):
        count_fragments(tmp_path / "none.tsv", peaks)
    (tmp_path / "cut.tsv.gz").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableFileError, match="damaged"):
        count_fragments(tmp_path / "cut.tsv.gz", peaks)


def test_real_fragments(shared_data):
    if shared_data is None:
        pytest.skip("the larger real data is not beside this checkout")
    whole = Intervals(np.array(["5", "11"]), np.zeros(2, int), np.full(2, 200_000_000))
    path = shared_data / "tf" / "archr_150cells_fragments.tsv.gz"
    found = count_fragments(path, whole)
    assert len(found.barcodes) == 150
    assert found.n_fragments.sum() == 29_399
    assert found.counts.sum() == 2 * 29_399  # two cuts each, all on these chromosomes
    assert count_fragments(path, whole, counting="fragments").counts.sum() == 29_399
