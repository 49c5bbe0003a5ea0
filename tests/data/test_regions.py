"""The contract of peaks x cells: spellings are taken, breaches refused."""

from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pytest
from anndata.io import write_elem

from scfm.data.region_examples import open_regions
from scfm.data.region_file import open_region_file
from scfm.data.regions import read_regions
from scfm.errors import (
    ConfigError,
    CountsError,
    InputError,
    LabelError,
    ScfmWarning,
    UnreadableFileError,
)
from tests.data.toy_genome import draw_letters, write_fasta
from tests.data.toy_regions import toy_peaks


@pytest.fixture
def peaks(rng) -> ad.AnnData:
    return toy_peaks(rng)


@pytest.fixture
def chromosomes(rng) -> dict[str, str]:
    return {"chr1": draw_letters(rng, 640), "chr2": draw_letters(rng, 700)}


def sequences_of(peaks, chromosomes) -> list[str]:
    rows = zip(peaks.var["chrom"], peaks.var["start"], peaks.var["end"], strict=True)
    return [chromosomes[chrom][start:end] for chrom, start, end in rows]


def read(peaks, **how):
    return read_regions(open_region_file(peaks), **how)


def test_all_spellings_are_one(peaks):
    as_is = read(peaks)
    old = peaks.copy()
    old.var = old.var.rename(columns={"chrom": "chr"})
    old.var["start"] = old.var["start"].astype(str).astype("category")
    bare = peaks.copy()
    bare.var = bare.var[[]]
    dashes = bare.copy()
    dashes.var_names = [name.replace(":", "-") for name in bare.var_names]
    for other in (read(old), read(bare), read(dashes)):
        assert other.chrom.tolist() == as_is.chrom.tolist()
        assert (other.start == as_is.start).all()
        assert (other.end == as_is.end).all()


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")  # while writing the file
@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
def test_a_file_is_what_the_object_is(peaks, tmp_path):
    peaks.uns["genome"] = {"name": "toy1", "chrom_sizes": {"chr1": 640, "chr2": 700}}
    peaks.write_h5ad(tmp_path / "peaks.h5ad")
    peaks.write_zarr(tmp_path / "peaks.zarr")
    with h5py.File(tmp_path / "both.h5mu", "w") as file:
        write_elem(file, "mod/atac", peaks)
    expected = read(peaks)
    for name in ("peaks.h5ad", "peaks.zarr", "both.h5mu"):
        found = read(tmp_path / name)
        assert (found.start == expected.start).all()
        assert found.genome.sizes == {"chr1": 640, "chr2": 700}
        assert found.counting == "insertions"
        assert found.chip["B"].tfs == ("CTCF", "SPI1", "YY1")
        assert (found.chip["B"].table == peaks.varm["chip_B"]).all()
        regions = open_regions(tmp_path / name, group_key="cell_type", require_sequence=False)
        assert regions.group_signal.depth.sum() == peaks.X.sum()


def test_labels_outside_the_labelled_chromosomes_are_unknown(peaks):
    peaks.var["in_labelled_chroms"] = peaks.var["chrom"] == "chr2"
    table = read(peaks).chip["A"].table
    on_two = (peaks.var["chrom"] == "chr2").to_numpy()
    assert (table[~on_two] == -1).all()
    assert (table[on_two] == peaks.varm["chip_A"][on_two]).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda p: setattr(p, "var", p.var.assign(end=p.var["start"])),
            InputError,
            "30 of 30.*no stretch",
        ),
        (lambda p: setattr(p, "var", p.var.assign(start=0.5)), InputError, "no position"),
        (lambda p: setattr(p, "var", p.var.assign(start="x")), InputError, "no position"),
        (lambda p: p.var.drop(columns="end", inplace=True), InputError, "not all of chrom"),
        (lambda p: p.uns.__setitem__("counting", "reads"), InputError, "counting is 'reads'"),
        (lambda p: p.uns.pop("chip_tfs_A"), LabelError, r"uns\['chip_tfs_A'\]"),
        (lambda p: p.varm.__setitem__("chip_A", p.varm["chip_A"] + 5), LabelError, "it holds"),
        (
            lambda p: p.uns.__setitem__("genome", {"name": "t", "chrom_sizes": {"1": 100}}),
            InputError,
            r"regions lie beyond.*chr1:90-110, where t has 100 bases",
        ),
    ],
)
def test_refused(peaks, change, error, words):
    change(peaks)
    with pytest.raises(error, match=words):
        read(peaks)


def test_regions_twice(peaks):
    peaks.var.loc[peaks.var_names[3], ["start", "end"]] = [10, 30]
    with pytest.raises(InputError, match="1 regions occur twice, for example chr1:10-30"):
        read(peaks)


def test_genes_are_no_regions(peaks):
    peaks.var = peaks.var[[]]
    peaks.var_names = [f"GENE{i}" for i in range(peaks.n_vars)]
    with pytest.raises(InputError, match=r"no intervals.*'GENE0'.*wrong command"):
        read(peaks)


def test_a_given_genome_has_to_agree(peaks):
    with pytest.raises(InputError, match="says its genome is toy1, but hg38"):
        read(peaks, genome="hg38")
    del peaks.uns["genome"]
    assert read(peaks, genome="hg38").genome.name == "hg38"
    peaks.var["start"] += 300_000_000
    peaks.var["end"] += 300_000_000
    with pytest.raises(InputError, match="hg38 has 248,956,422 bases"):
        read(peaks, genome="hg38")


def test_the_fasta_is_that_of_the_regions(peaks, chromosomes, tmp_path):
    fasta = write_fasta(tmp_path / "g.fa", {k[3:]: text for k, text in chromosomes.items()})
    peaks.var["sequence"] = sequences_of(peaks, chromosomes)
    regions = open_regions(peaks, fasta=fasta)
    assert regions.chrom[0] == "1"  # the genome's own name
    assert regions.length == 20
    without = open_regions(peaks)
    everything, no_group = np.arange(30), np.full(30, -1)
    ours, theirs = (r.batch(everything, no_group) for r in (regions, without))
    assert (ours.sequence == theirs.sequence).all()
    assert (ours.labels == theirs.labels).all()
    assert regions.tasks == ("CTCF:A", "MAX:A", "CTCF:B", "SPI1:B", "YY1:B")


def test_another_assembly_is_found_out_by_its_sequences(peaks, chromosomes, tmp_path, rng):
    peaks.var["sequence"] = sequences_of(peaks, chromosomes)
    other = {name: draw_letters(rng, len(text)) for name, text in chromosomes.items()}
    with pytest.raises(InputError, match=r"only 0% of 30 sequences.*another assembly"):
        open_regions(peaks, fasta=write_fasta(tmp_path / "other.fa", other))
    moved = {name: "A" + text for name, text in chromosomes.items()}
    with pytest.raises(InputError, match=r"moved by \+1 base.*not 0-based"):
        open_regions(peaks, fasta=write_fasta(tmp_path / "moved.fa", moved))


def test_another_assembly_is_found_out_by_its_composition(tmp_path, rng):
    peaks = toy_peaks(rng, n_peaks=80)
    text = "".join(
        "".join(rng.choice(list("ACGT"), 40, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))
        for gc in rng.uniform(0.1, 0.9, 80)
    )
    chromosomes = {"chr1": text[:1600] + "ACGT" * 10, "chr2": text[1600:]}
    right = write_fasta(tmp_path / "right.fa", chromosomes)
    peaks.var["gc"] = [
        np.mean([letter in "GC" for letter in s]) for s in sequences_of(peaks, chromosomes)
    ]
    assert open_regions(peaks, fasta=right).n_regions == 80
    other = {name: text[::-1] for name, text in chromosomes.items()}
    with pytest.raises(InputError, match=r"share of G and C.*does not follow"):
        open_regions(peaks, fasta=write_fasta(tmp_path / "other.fa", other))


def test_another_assembly_is_found_out_by_name_and_length(peaks, tmp_path, monkeypatch):
    from scfm.data.assemblies import SIZES

    monkeypatch.setitem(SIZES, "hg19", {"chr1": 640, "chr2": 700})
    monkeypatch.setitem(SIZES, "hg38", {"chr1": 650, "chr2": 710})
    hg19 = write_fasta(tmp_path / "g.fa", {"chr1": "A" * 640, "chr2": "C" * 700})
    peaks.uns["genome"] = "hg38"
    with pytest.raises(InputError, match=r"g.fa is not hg38: its chr1 has 640 bases.*it is hg19"):
        open_regions(peaks, fasta=hg19)
    del peaks.uns["genome"]
    with pytest.warns(ScfmWarning, match="taken to be hg19"):
        assert open_regions(peaks, fasta=hg19).genome == "hg19"
    peaks.uns["genome"] = {"name": "hg19", "chrom_sizes": {"1": 641}}
    with pytest.raises(InputError, match=r"chr1 has 640 bases.*has 641"):
        open_regions(peaks, fasta=hg19)
    peaks.uns["genome"] = {"name": "hg19", "fasta_md5": "0" * 32}
    with pytest.raises(InputError, match="its md5 is"):
        open_regions(peaks, fasta=hg19)


def test_regions_off_the_end_and_in_gaps(peaks, chromosomes, tmp_path):
    short = {"chr1": chromosomes["chr1"], "chr2": chromosomes["chr2"][:500]}
    with pytest.raises(InputError, match=r"of 30 regions lie beyond.*chr2:490-510.*500 bases"):
        open_regions(peaks, fasta=write_fasta(tmp_path / "short.fa", short))
    with pytest.raises(InputError, match="1 of its 2 chromosomes are not in"):
        open_regions(peaks, fasta=write_fasta(tmp_path / "one.fa", {"chr1": chromosomes["chr1"]}))
    gap = {**chromosomes, "chr2": chromosomes["chr2"][:100] + "N" * 600}
    with pytest.warns(ScfmWarning, match="regions of AnnData lie in N"):
        open_regions(peaks, fasta=write_fasta(tmp_path / "gap.fa", gap))


def test_windows_around_summits_reach_over_the_ends(peaks, chromosomes, tmp_path):
    fasta = write_fasta(tmp_path / "g.fa", chromosomes)
    peaks.var["summit"] = 5  # offsets, as narrowPeak has them
    regions = open_regions(peaks, fasta=fasta, length=40)
    batch = regions.batch(np.array([0, 1]), np.array([-1, -1]))
    assert not batch.sequence[
        0, :, :5
    ].any()  # the first summit is base 15, its window starts at -5
    expected = chromosomes["chr1"][35:75]
    assert "".join("ACGT"[i] for i in batch.sequence[1].argmax(axis=0)) == expected


def test_regions_without_sequence(peaks, chromosomes):
    with pytest.raises(InputError, match=r"carries no sequences.*FASTA of toy1"):
        open_regions(peaks)
    sequences = sequences_of(peaks, chromosomes)
    peaks.var["seq20"] = ["", *sequences[1:]]
    with pytest.warns(ScfmWarning, match="1 of 30 regions carry no sequence"):
        regions = open_regions(peaks)
    assert regions.source_row.tolist() == list(range(1, 30))
    assert (regions.label_table[:, :2] == peaks.varm["chip_A"][1:]).all()
    assert open_regions(peaks, require_sequence=False).n_regions == 30
    with pytest.raises(InputError, match="no column 'dna'"):
        open_regions(peaks, sequence_key="dna")


def test_blacklisted_regions_have_no_labels(peaks):
    peaks.var["blacklist"] = np.arange(30) == 7
    regions = open_regions(peaks, require_sequence=False)
    assert (regions.labels(np.array([7]), np.array([-1])) == -1).all()
    assert (regions.label_table[8, :2] == peaks.varm["chip_A"][8]).all()


def test_groups(peaks):
    regions = open_regions(peaks, group_key="cell_type", cell_key="X_lsi", require_sequence=False)
    assert regions.groups == ("A", "B")
    assert regions.tracks == ("accessibility",)
    assert regions.tasks == ("CTCF", "MAX", "SPI1", "YY1")
    counts = peaks.X.toarray()
    region, group = np.array([3, 3, 29]), np.array([0, 1, 1])
    batch = regions.batch(region, group)
    for row, (at, of) in enumerate(zip(region, group, strict=True)):
        is_in = (peaks.obs["cell_type"] == "AB"[of]).to_numpy()
        rate = np.log1p(counts[is_in, at].sum() / 20 * 20e6 / counts[is_in].sum())
        assert batch.signal[row, 0] == pytest.approx(np.full(20, rate), rel=1e-5)
        mean = peaks.obsm["X_lsi"][is_in].mean(axis=0)
        assert batch.cell[row] == pytest.approx(mean, abs=1e-6)
    assert batch.has_cell.all()
    a, b = peaks.varm["chip_A"], peaks.varm["chip_B"]
    assert batch.labels.tolist() == [
        [a[3, 0], a[3, 1], -1, -1],
        [b[3, 0], -1, b[3, 1], b[3, 2]],
        [b[29, 0], -1, b[29, 1], b[29, 2]],
    ]
    assert (batch.labels == regions.labels(region, group)).all()


def test_every_row_a_group(peaks):
    regions = open_regions(
        peaks, group_key="obs_names", chip_key="cell_type", require_sequence=False
    )
    assert regions.groups == tuple(peaks.obs_names)
    assert regions.cell_types == ("A", "B") * 6
    assert (regions.group_signal.depth == np.asarray(peaks.X.sum(axis=1)).ravel()).all()


def test_names_of_cell_types(peaks):
    peaks.obs["kind"] = peaks.obs["cell_type"].map({"A": "a-cells", "B": "other"})
    with pytest.warns(ScfmWarning, match="a-cells = A"):
        guessed = open_regions(peaks, group_key="kind", require_sequence=False)
    assert guessed.cell_types == ("A", None)
    assert (guessed.labels(np.array([0]), np.array([1])) == -1).all()
    given = open_regions(
        peaks, group_key="kind", chip_of={"a-cells": "B", "other": "A"}, require_sequence=False
    )
    assert given.cell_types == ("B", "A")
    with pytest.raises(LabelError, match="has no ChIP of C; it has that of A, B"):
        open_regions(peaks, group_key="kind", chip_of={"other": "C"}, require_sequence=False)
    peaks.obs["one"] = "all"
    with pytest.raises(LabelError, match="differ in obs 'cell_type': all"):
        open_regions(peaks, group_key="one", chip_key="cell_type", require_sequence=False)


def test_an_embedding_of_the_other_modality(peaks, tmp_path, rng):
    some = ad.AnnData(np.ones((6, 1), np.float32), obs=peaks.obs.iloc[[0, 2, 4, 6, 8, 10]])
    some.obsm["X_scfm"] = rng.normal(size=(6, 3)).astype(np.float32)
    with h5py.File(tmp_path / "both.h5mu", "w") as file:
        write_elem(file, "mod/atac", peaks)
        write_elem(file, "mod/rna", some)
    regions = open_regions(
        tmp_path / "both.h5mu", group_key="cell_type", cell_key="X_scfm", require_sequence=False
    )
    batch = regions.batch(np.array([0, 0]), np.array([0, 1]))
    assert batch.has_cell.tolist() == [True, False]
    assert batch.cell[0] == pytest.approx(some.obsm["X_scfm"].mean(axis=0), rel=1e-5)
    assert not batch.cell[1].any()


def test_both_modalities_in_memory(peaks, rng):
    some = ad.AnnData(np.ones((12, 1), np.float32), obs=peaks.obs)
    some.obsm["X_scfm"] = rng.normal(size=(12, 3)).astype(np.float32)
    both = SimpleNamespace(mod={"rna": some, "atac": peaks})  # what a MuData offers
    regions = open_regions(
        both, group_key="obs_names", cell_key="X_scfm", chip_key="cell_type", require_sequence=False
    )
    batch = regions.batch(np.array([0]), np.array([3]))
    assert (batch.cell[0] == some.obsm["X_scfm"][3]).all()
    with pytest.raises(LabelError, match=r"no obsm 'X_pca'\. There is: X_lsi, rna:X_scfm"):
        open_regions(both, group_key="obs_names", cell_key="X_pca", require_sequence=False)


def test_counts_are_wanted(peaks):
    peaks.X.data[:] = 1
    with pytest.raises(CountsError, match=r"only 0 and 1.*--binarised"):
        open_regions(peaks, group_key="cell_type", require_sequence=False)
    how = {"group_key": "cell_type", "require_sequence": False}
    assert open_regions(peaks, binarised=True, **how).groups == ("A", "B")
    peaks.X.data[:] = 0.5
    with pytest.raises(CountsError):
        open_regions(peaks, **how)
    peaks.X.data[:] = 0
    with pytest.raises(InputError):
        open_regions(peaks, **how)


def test_what_is_counted_is_said(peaks):
    del peaks.uns["counting"]
    how = {"group_key": "cell_type", "require_sequence": False}
    with pytest.warns(ScfmWarning, match=r"ones and .* twos, fragments\. Say it"):
        open_regions(peaks, **how)
    peaks.X.data *= 2
    with pytest.warns(ScfmWarning, match=r"\['counting'\] = 'insertions'"):
        open_regions(peaks, **how)
    assert open_regions(peaks, counting="fragments", **how).groups == ("A", "B")


def test_empty_peaks_and_empty_groups(peaks):
    counts = peaks.X.toarray()
    counts[:, 4] = 0
    peaks.X = counts
    regions = open_regions(peaks, group_key="cell_type", require_sequence=False)
    assert not regions.batch(np.array([4]), np.array([0])).signal.any()
    counts[1::2] = 0
    peaks.X = counts
    with pytest.raises(CountsError, match="1 of 2 groups have no count at all: B"):
        open_regions(peaks, group_key="cell_type", require_sequence=False)


def test_options_that_need_groups(peaks, tmp_path):
    with pytest.raises(ConfigError, match="group_key"):
        open_regions(peaks, cell_key="X_lsi", require_sequence=False)
    with pytest.raises(LabelError, match="no obs column 'donor'"):
        open_regions(peaks, group_key="donor", require_sequence=False)
    none = peaks[:0].copy()
    with pytest.raises(LabelError, match="regions but no cells"):
        open_regions(none, group_key="cell_type", require_sequence=False)
    with h5py.File(tmp_path / "rna.h5mu", "w") as file:
        write_elem(file, "mod/rna", peaks)
    with pytest.raises(InputError, match="no modality atac or ATAC; it has rna"):
        open_regions(tmp_path / "rna.h5mu")
    (tmp_path / "text.h5ad").write_text("x")
    with pytest.raises(UnreadableFileError, match="is no file of regions"):
        open_regions(tmp_path / "text.h5ad")


def test_one_length_is_needed(peaks, chromosomes, tmp_path):
    fasta = write_fasta(tmp_path / "g.fa", chromosomes)
    peaks.var.loc[peaks.var_names[0], "end"] = 31
    with pytest.raises(ConfigError, match=r"regions of 20 to 21 bases.*data.length"):
        open_regions(peaks, fasta=fasta)
    assert open_regions(peaks, fasta=fasta, length=64).length == 64
