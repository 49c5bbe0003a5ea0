"""Windows in files of their own: what is read is what was written, and what is wrong is refused."""

import h5py
import numpy as np
import pytest

from scfm.data.nucleotides import codes_of_one_hot, decode, encode, gc_share, one_hot
from scfm.data.region_examples import RegionExamples, open_regions
from scfm.errors import ConfigError, InputError, LabelError, MissingFileError, UnreadableFileError


def draw_windows(rng, n=12, length=20):
    letters = rng.choice(list("ACGT"), (n, length))
    return ["".join(row) for row in letters]


def write_npz(path, rng, **changed):
    sequences = draw_windows(rng)
    arrays = {
        "keys": [f"chr{1 + i % 3}:{100 * i}-{100 * i + 20}" for i in range(12)],
        "seq": sequences,
        "Y": rng.integers(-1, 2, (12, 2)).astype(np.int8),
        "tf": ["CTCF", "CTCF"],
        "cell": ["K562", "HepG2"],
        **changed,
    }
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
    return arrays


def test_one_hot_by_hand():
    codes = encode(["ACGTN", "acgtn", "RYKMx", ""], "here")
    assert codes.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4] * 5, [4] * 5]
    hot = one_hot(codes)
    assert (hot[0, :, :4] == np.eye(4)).all()
    assert (hot[1] == hot[0]).all()  # lower case is the same base
    assert not hot[0, :, 4].any()
    assert not hot[2:].any()


def test_codes_come_back(rng):
    codes = rng.integers(0, 5, (7, 13)).astype(np.uint8)
    assert (codes_of_one_hot(one_hot(codes), "here") == codes).all()
    assert (encode([decode(row) for row in codes], "here") == codes).all()
    row = decode(codes[0])
    known = len(row) - row.count("N")
    assert gc_share(codes)[0] == pytest.approx((row.count("G") + row.count("C")) / known)


def test_npz(tmp_path, rng):
    written = write_npz(tmp_path / "windows.npz", rng)
    regions = open_regions(tmp_path / "windows.npz")
    assert isinstance(regions, RegionExamples)
    assert regions.tasks == ("CTCF:K562", "CTCF:HepG2")
    assert (regions.n_regions, regions.length, regions.groups, regions.tracks) == (12, 20, (), ())
    assert regions.chrom[4] == "chr2"
    assert (regions.start[4], regions.end[4]) == (400, 420)
    asked, no_group = np.array([5, 0, 5]), np.full(3, -1)
    batch = regions.batch(asked, no_group)
    assert batch.sequence.shape == (3, 4, 20)
    assert batch.signal.shape == (3, 0, 20)
    assert decode(batch.sequence[0].argmax(axis=0).astype(np.uint8)) == written["seq"][5]
    assert (batch.labels == written["Y"][asked]).all()
    assert (batch.labels == regions.labels(asked, no_group)).all()
    assert batch.region_index.tolist() == [5, 0, 5]


def test_the_middle_is_cut(tmp_path, rng):
    written = write_npz(tmp_path / "windows.npz", rng)
    regions = open_regions(tmp_path / "windows.npz", length=10)
    assert (
        decode(
            regions.batch(np.array([3]), np.array([-1])).sequence[0].argmax(axis=0).astype(np.uint8)
        )
        == (written["seq"][3][5:15])
    )
    with pytest.raises(ConfigError, match=r"21 bases.*20.*FASTA"):
        open_regions(tmp_path / "windows.npz", length=21)


def test_one_hot_parts(tmp_path, rng):
    codes = {
        part: rng.integers(0, 4, (n, 8)).astype(np.uint8) for part, n in (("test", 2), ("train", 3))
    }
    with h5py.File(tmp_path / "irf.h5", "w") as file:
        for part, windows in codes.items():
            file[f"X_{part}"] = one_hot(windows)
            file[f"Y_{part}"] = np.ones((len(windows), 1), np.int8)
    regions = open_regions(tmp_path / "irf.h5")
    assert regions.tasks == ("irf",)
    assert regions.chrom.tolist() == ["train"] * 3 + ["test"] * 2
    assert (regions.codes == np.concatenate([codes["train"], codes["test"]])).all()
    assert regions.source_row.tolist() == [0, 1, 2, 0, 1]
    assert (regions.end[:3] == [8, 16, 24]).all()


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"Y": np.full((12, 2), 2)}, LabelError, "it holds 2"),
        ({"keys": ["chr1"] * 12}, InputError, r"12 of 12 names.*'chr1'"),
        ({"seq": ["ACGT"] * 11 + ["ACG"]}, InputError, "3 to 4 bases"),
        ({"cell": ["K562", "K562"]}, LabelError, "CTCF:K562"),
        ({"tasks": ["A", "B", "C"]}, LabelError, "2 columns of labels but 3 names"),
    ],
)
def test_refused(tmp_path, rng, changed, error, words):
    write_npz(tmp_path / "windows.npz", rng, **changed)
    with pytest.raises(error, match=words):
        open_regions(tmp_path / "windows.npz")


def test_what_is_no_file_of_regions(tmp_path):
    with pytest.raises(MissingFileError):
        open_regions(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("chr1 1 2")
    with pytest.raises(UnreadableFileError, match="is no file of regions"):
        open_regions(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=[1])
    with pytest.raises(UnreadableFileError, match="has no array keys, seq, Y; it holds a"):
        open_regions(tmp_path / "other.npz")


def test_real_windows(shared_data):
    if shared_data is None:
        pytest.skip("the larger real data is not beside this checkout")
    windows = open_regions(shared_data / "tf" / "windows_hg19_100bp_labels.npz")
    assert (windows.n_regions, windows.length, len(windows.tasks)) == (67_849, 100, 109)
    irf1 = open_regions(shared_data / "tf" / "irf1_chip_400bp.h5")
    assert (irf1.n_regions, irf1.length) == (2724 + 389 + 779, 400)
