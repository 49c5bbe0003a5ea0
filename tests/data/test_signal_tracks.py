"""bigWigs along windows, against the values they were written from."""

import pickle

import numpy as np
import pybigtools
import pytest

from scfm.data.region_examples import open_regions
from scfm.data.signal_tracks import Track, Tracks
from scfm.errors import ConfigError, InputError, MissingFileError, UnreadableFileError
from tests.data.toy_genome import write_bigwig
from tests.data.toy_regions import toy_peaks

bigwig = pybigtools.open
CHROMS = ("1", "2", "3")


@pytest.fixture
def values(rng) -> dict[str, np.ndarray]:
    """Runs of whole numbers, with gaps; chr3 has none."""
    return {
        name: np.repeat(rng.integers(0, 5, 40), rng.integers(1, 30, 40)).astype(np.float64)
        for name in ("chr1", "chr2")
    }


def expected(values, chrom, start, length) -> np.ndarray:
    out = np.zeros((len(start), length))
    for row, (at, first) in enumerate(zip(chrom, start, strict=True)):
        there = values.get(f"chr{at + 1}", np.zeros(0))
        for base in range(length):
            if 0 <= first + base < len(there):
                out[row, base] = there[first + base]
    return out


@pytest.mark.parametrize("scale", ["total", "rpm20M", "none"])
def test_windows(tmp_path, rng, values, scale):
    path = write_bigwig(tmp_path / "a.bw", values)
    tracks = Tracks({"atac": f"{path}:{scale}"}, CHROMS)
    chrom, start = rng.integers(0, 3, 80), rng.integers(-50, 700, 80)
    found = tracks.windows(chrom, start, 50, np.full(80, -1))
    raw = expected(values, chrom, start, 50)
    total = sum(float(v.sum()) for v in values.values())
    wanted = {
        "total": np.log1p(raw * 20e6 / total),
        "rpm20M": np.log1p(raw),
        "none": raw,
    }[scale]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-5)


def test_a_file_for_each_group(tmp_path, values):
    other = {name: v[::-1].copy() for name, v in values.items()}
    write_bigwig(tmp_path / "A.bw", values)
    write_bigwig(tmp_path / "B.bw", other)
    named = {"map": Track(str(tmp_path / "A.bw"), "none"), "atac": f"{tmp_path}/{{group}}.bw:none"}
    tracks = Tracks(named, CHROMS, ("A", "B"))
    chrom, start, group = np.array([0, 0, 1]), np.array([3, 3, 5]), np.array([1, 0, 1])
    found = tracks.windows(chrom, start, 10, group)
    assert (found[:, 0] == expected(values, chrom, start, 10)).all()
    assert (found[0, 1] == expected(other, chrom[:1], start[:1], 10)).all()
    assert (found[1, 1] == found[1, 0]).all()
    assert (found[2, 1] == expected(other, chrom[2:], start[2:], 10)).all()
    with pytest.raises(ConfigError, match="file for each group"):
        Tracks(named, CHROMS)
    with pytest.raises(MissingFileError, match=r"C\.bw"):
        Tracks(named, CHROMS, ("A", "C"))


def _read(tracks: Tracks) -> np.ndarray:
    return tracks.windows(np.array([0, 1]), np.array([3, 5]), 10, np.array([-1, -1]))


def test_other_processes_open_for_themselves(tmp_path, values, monkeypatch):
    tracks = Tracks({"a": write_bigwig(tmp_path / "a.bw", values)}, CHROMS)
    here = _read(tracks)
    assert (_read(pickle.loads(pickle.dumps(tracks))) == here).all()
    opened = []
    monkeypatch.setattr(pybigtools, "open", lambda path: opened.append(path) or bigwig(path))
    assert (_read(tracks) == here).all()
    assert not opened  # a file stays open
    monkeypatch.setattr("scfm.data.signal_tracks.os.getpid", lambda: -1)  # as after a fork
    assert (_read(tracks) == here).all()
    assert len(opened) == 1


def test_refused(tmp_path, values):
    with pytest.raises(MissingFileError):
        Tracks({"a": tmp_path / "none.bw"}, CHROMS)
    (tmp_path / "text.bw").write_text("x" * 100)
    with pytest.raises(UnreadableFileError, match="cannot be read as a bigWig"):
        Tracks({"a": tmp_path / "text.bw"}, CHROMS)
    path = write_bigwig(tmp_path / "a.bw", values)
    with pytest.raises(InputError, match="none of the genome's chromosomes"):
        Tracks({"a": path}, ("chrZ",))
    less = write_bigwig(tmp_path / "less.bw", {"chr1": -np.ones(50)})
    with pytest.raises(InputError, match="sum to -50, so it cannot be scaled"):
        Tracks({"a": less}, CHROMS)


def test_tracks_of_regions(tmp_path, rng, values):
    peaks = toy_peaks(rng)
    path = write_bigwig(tmp_path / "a.bw", values)
    peaks.uns["tracks"] = {"bulk": path.name, "scale": "none"}
    peaks.write_h5ad(tmp_path / "peaks.h5ad")
    regions = open_regions(tmp_path / "peaks.h5ad", group_key="cell_type", require_sequence=False)
    assert regions.tracks == ("accessibility", "bulk")
    region = np.array([0, 20])
    batch = regions.batch(region, np.array([0, 1]))
    chrom = np.array([0, 1])
    assert (batch.signal[:, 1] == expected(values, chrom, regions.start[region], 20)).all()
    there = pickle.loads(pickle.dumps(regions)).batch(region, np.array([0, 1]))
    assert (there.signal == batch.signal).all()
    alone = open_regions(peaks, tracks={"b": path}, require_sequence=False)
    assert alone.groups == ()
    assert alone.tracks == ("b",)
    assert alone.batch(region, np.array([-1, -1])).labels.shape == (2, 5)
    peaks.uns["tracks"] = {"bulk": path.name, "scale": "log2"}
    with pytest.raises(ConfigError, match="scale is 'log2'"):
        open_regions(peaks, require_sequence=False)
