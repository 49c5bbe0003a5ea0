"""Regions, counts and metacells as files: what one writes the others, and models, read."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from scfm.data.genome import Genome
from scfm.data.region_examples import open_regions
from scfm.errors import ConfigError, CountsError, InputError, LabelError, ScfmWarning
from scfm.tools.tf_counts import count_file
from scfm.tools.tf_metacells import aggregate_file
from scfm.tools.tf_regions import RegionsConfig, make_regions
from tests.data.toy_genome import draw_letters, write_fasta
from tests.data.toy_regions import toy_peaks


@pytest.fixture
def genome(tmp_path, rng):
    """chrII ends in N."""
    text = {"chrI": draw_letters(rng, 2000), "chrII": draw_letters(rng, 1000) + "N" * 500}
    return write_fasta(tmp_path / "g.fa", text)


@pytest.fixture
def beds(tmp_path):
    (tmp_path / "reb1.bed").write_text("chr1\t500\t720\nchr2\t300\t400\nchr7\t1\t100\n")
    (tmp_path / "abf1.bed").write_text("chr1\t1500\t1700\n")
    (tmp_path / "abf1_lenient.bed").write_text("chr1\t1400\t1800\n")
    (tmp_path / "black.bed").write_text("1\t0\t150\n")
    return tmp_path


def make(genome, beds, config=None, **more):
    peaks = {"REB1": beds / "reb1.bed", "ABF1:heat": beds / "abf1.bed"}
    out = beds / "regions.h5ad"
    made = make_regions(genome, peaks, out, config or RegionsConfig(length=100), **more)
    return made, ad.read_h5ad(out)


def test_windows_and_labels(genome, beds):
    made, adata = make(
        genome,
        beds,
        relaxed={"ABF1:heat": beds / "abf1_lenient.bed"},
        blacklist=beds / "black.bed",
    )
    var = adata.var
    on_one = (var["chrom"] == "chrI").to_numpy()
    assert var["start"][on_one].tolist() == list(range(150, 1901, 50))  # none in the blacklist
    assert var["start"][~on_one].tolist() == list(range(0, 901, 50))  # no middle in N
    reb1, abf1 = adata.varm["chip_bulk"][:, 0], adata.varm["chip_heat"][:, 0]
    bound = {(c, s) for c, s, y in zip(var["chrom"], var["start"], reb1, strict=True) if y == 1}
    assert bound == {("chrI", s) for s in (500, 550, 600, 650)} | {("chrII", 300)}
    assert var["start"][abf1 == 1].tolist() == [1500, 1550, 1600]
    assert var["start"][abf1 == -1].tolist() == [1400, 1450, 1650, 1700]
    assert made.n_bound == {"REB1": 5, "ABF1:heat": 3}
    assert made.n_unknown["ABF1:heat"] == 4
    regions = open_regions(beds / "regions.h5ad", length=300)  # the FASTA the file names
    assert regions.tasks == ("REB1:bulk", "ABF1:heat")
    assert regions.n_regions == len(var)
    batch = regions.batch(np.array([0]), np.array([-1]))
    text = Genome.open(genome).sequence("chrI", 50, 350)
    assert "".join("ACGT"[i] for i in batch.sequence[0].argmax(axis=0)) == text


def test_peaks_of_another_assembly(genome, beds):
    (beds / "abf1.bed").write_text("chr1\t1500\t1700\nchr1\t1990\t2001\n")
    with pytest.raises(InputError, match=r"abf1\.bed: 1 of 2 .* chr1:1990-2001, .* 2,000 bases"):
        make(genome, beds)


def test_no_window_has_a_label(genome, beds):
    """No background is kept either, so there is not one window; the reason is told all the same."""
    for name in ("reb1", "abf1"):
        (beds / f"{name}.bed").write_text("chr1\t500\t540\n")
    with pytest.raises(InputError, match=r"40 bases \(median\), the windows 100.*--overlap centre"):
        make(genome, beds, RegionsConfig(length=100, background=1))


def test_the_background_is_drawn(genome, beds):
    config = RegionsConfig(length=100, background=2, margin=100, with_sequence=True)
    made, adata = make(genome, beds, config)
    has_label = (adata.varm["chip_bulk"] != 0).any(1) | (adata.varm["chip_heat"] != 0).any(1)
    assert has_label.sum() == 8
    assert made.n_windows == 24
    assert adata.var["start"].min() >= 100
    again = make(genome, beds, config)[1]
    assert (again.var_names == adata.var_names).all()
    genome.unlink()
    assert open_regions(beds / "regions.h5ad").length == 100  # its own sequences


def test_regions_refused(genome, beds):
    with pytest.raises(InputError, match=r"REB1: no window lies more than 50%.*--overlap centre"):
        make(genome, beds, RegionsConfig(length=600, stride=100))
    centre = RegionsConfig(length=600, stride=100, overlap="centre")
    assert make(genome, beds, centre)[0].n_bound["REB1"] > 0
    with pytest.raises(InputError, match="no window of 5,000 bases is left"):
        make(genome, beds, RegionsConfig(length=5000))
    with pytest.raises(ConfigError, match="Relaxed peaks of YY1"):
        make(genome, beds, relaxed={"YY1": beds / "abf1.bed"})
    with pytest.raises(ConfigError, match="stride must be at least 1"):
        RegionsConfig(stride=0)


def test_counts_over_regions(genome, beds):
    make(genome, beds)
    fragments = "chr1\t500\t560\tA\t1\nchr1\t510\t1600\tB\t1\nchr2\t310\t330\tA\t1\n"
    (beds / "f.tsv").write_text(fragments)
    counted = count_file(beds / "f.tsv", beds / "regions.h5ad", beds / "cells.h5ad")
    adata = ad.read_h5ad(beds / "cells.h5ad")
    assert (counted.n_cells, counted.n_fragments) == (2, 3)
    assert adata.uns["counting"] == "insertions"
    assert adata.obs["n_fragments"].tolist() == [2, 1]
    regions = open_regions(beds / "cells.h5ad", group_key="obs_names", chip_of={"A": "heat"})
    assert regions.groups == ("A", "B")
    assert regions.cell_types == ("heat", None)
    at = int(np.flatnonzero((regions.chrom == "chrI") & (regions.start == 500))[0])
    signal = regions.batch(np.array([at, at]), np.array([0, 1])).signal[:, 0, 0]
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    expected = np.log1p(np.array([2, 1]) / 100 * 20e6 / total)
    np.testing.assert_allclose(signal, expected, rtol=1e-6)


def test_counts_over_a_bed(beds):
    (beds / "f.tsv").write_text("chr1\t500\t560\tA\t1\nchr1\t510\t1600\tB\t1\n")
    (beds / "cells.txt").write_text("B\nC\n")
    counted = count_file(
        beds / "f.tsv",
        beds / "reb1.bed",
        beds / "cells.h5ad",
        counting="fragments",
        barcodes=beds / "cells.txt",
        genome="sacCer3",
    )
    adata = ad.read_h5ad(beds / "cells.h5ad")
    assert adata.obs_names.tolist() == ["B", "C"]
    assert adata.X.toarray().tolist() == [[1, 0, 0], [0, 0, 0]]
    assert (adata.uns["genome"], counted.counting) == ("sacCer3", "fragments")
    (beds / "twice.bed").write_text("chr1\t1\t2\nchr1\t1\t2\n")
    with pytest.raises(InputError, match="1 regions occur twice"):
        count_file(beds / "f.tsv", beds / "twice.bed", beds / "x.h5ad")
    (beds / "far.bed").write_text("chr6\t1\t300000\n")
    with pytest.raises(InputError, match="sacCer3 has 270,161"):
        count_file(beds / "f.tsv", beds / "far.bed", beds / "x.h5ad", genome="sacCer3")


def test_neighbours_are_pooled(tmp_path, rng):
    peaks = toy_peaks(rng, n_cells=40)
    peaks.write_h5ad(tmp_path / "cells.h5ad")
    done = aggregate_file(
        tmp_path / "cells.h5ad", tmp_path / "out.h5ad", target_depth=100, use_rep="X_lsi"
    )
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    weights = sp.csr_matrix(out.uns["metacells"]["weights"])
    members = (weights > 0).astype(np.float32)
    assert (out.X.toarray() == (members @ peaks.X).toarray()).all()
    np.testing.assert_allclose(np.asarray(weights.sum(axis=1)).ravel(), 1)
    assert out.obs["cell_type"].tolist() == peaks.obs["cell_type"].tolist()
    assert out.obs["pooled_counts"].median() >= 100
    assert done.k == out.uns["metacells"]["k"]
    assert (out.varm["chip_B"] == peaks.varm["chip_B"]).all()
    regions = open_regions(
        tmp_path / "out.h5ad",
        group_key="obs_names",
        chip_key="cell_type",
        cell_key="X_lsi",
        require_sequence=False,
    )
    assert regions.batch(np.array([0]), np.array([5])).cell[0] == pytest.approx(
        peaks.obsm["X_lsi"][5]
    )
    some = aggregate_file(
        tmp_path / "cells.h5ad",
        tmp_path / "some.h5ad",
        target_depth=100,
        use_rep="X_lsi",
        n_metacells=7,
    )
    assert some.n_metacells == 7
    drawn = ad.read_h5ad(tmp_path / "some.h5ad")
    assert (drawn.X != out[drawn.obs_names].X).nnz == 0


def test_an_embedding_is_made_where_there_is_none(tmp_path, rng):
    peaks = toy_peaks(rng, n_cells=40)
    del peaks.obsm["X_lsi"]
    with pytest.warns(ScfmWarning, match="more than half of the smallest group's 20"):
        done = aggregate_file(peaks, tmp_path / "out.h5ad", target_depth=700, against="cell_type")
    assert done.by == "X_lsi"
    assert 0 <= done.purity <= 1
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_lsi"].shape[0] == 40


def test_groups_are_pooled(tmp_path, rng):
    peaks = toy_peaks(rng)
    peaks.obs["organ"] = peaks.obs["cell_type"].map({"A": "blood", "B": "skin"})
    peaks.obs["run"] = np.arange(12)
    peaks.obs["batch"] = 3
    done = aggregate_file(peaks, tmp_path / "out.h5ad", by="cell_type", target_depth=10)
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    assert (done.n_metacells, done.k) == (2, None)
    assert out.obs_names.tolist() == ["A", "B"]
    assert out.obs["organ"].tolist() == ["blood", "skin"]
    assert out.obs["batch"].tolist() == [3, 3]
    assert "run" not in out.obs
    is_a = (peaks.obs["cell_type"] == "A").to_numpy()
    assert (out.X.toarray()[0] == peaks.X.toarray()[is_a].sum(axis=0)).all()


def test_aggregate_refused(tmp_path, rng):
    peaks, out = toy_peaks(rng), tmp_path / "out.h5ad"
    with pytest.raises(ConfigError, match="pooled whole"):
        aggregate_file(peaks, out, by="cell_type", use_rep="X_lsi")
    with pytest.raises(LabelError, match="no obs column 'donor'"):
        aggregate_file(peaks, out, by="donor")
    with pytest.raises(LabelError, match=r"no obsm 'X_pca'\. There is: X_lsi"):
        aggregate_file(peaks, out, use_rep="X_pca")
    with pytest.raises(InputError, match="One cell only"):
        aggregate_file(peaks[:1].copy(), out)
    peaks.X.data[:] = 1
    with pytest.raises(CountsError, match="only 0 and 1"):
        aggregate_file(peaks, out)
    done = aggregate_file(peaks, out, target_depth=20, binarised=True)
    assert done.n_metacells == 12
