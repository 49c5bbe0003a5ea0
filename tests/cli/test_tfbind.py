"""scfm tfbind by command line, on a yeast chromosome, real where it is at hand."""

import json

import anndata as ad
import pytest

from scfm.cli.app import main
from tests.data.toy_genome import draw_letters, write_fasta


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


@pytest.fixture
def yeast(shared_data, tmp_path, rng):
    """A FASTA and peaks whose chromosome has another name, and is not the only one."""
    if shared_data is not None:
        folder = shared_data / "tf"
        return folder / "sacCer3_chrIV.fa.gz", folder / "yeast_peaks" / "Reb1_CX.bed"
    fasta = write_fasta(tmp_path / "chrIV.fa", {"chrIV": draw_letters(rng, 50_000)})
    (tmp_path / "Reb1.bed").write_text("chr4\t900\t901\nchr4\t20000\t20001\nchr9\t5\t6\n")
    return fasta, tmp_path / "Reb1.bed"


def test_regions_count_aggregate(capsys, tmp_path, yeast):
    fasta, reb1 = yeast
    regions = tmp_path / "regions.h5ad"
    asked = ("tfbind", "regions", "--fasta", fasta, "--peaks", f"Reb1={reb1}", "--out", regions)
    code, _, err = run(capsys, *asked)
    assert code == 2
    assert "--overlap centre" in err
    code, out, err = run(
        capsys, *asked, "--overlap", "centre", "--background", 2, "--margin", 500, "--json"
    )
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    n_bound = made["n_bound"]["Reb1"]
    assert made["n_windows"] == 3 * n_bound > 0
    first = ad.read_h5ad(regions).var.iloc[0]
    lines = [
        f"4\t{first['start'] + 10 * i}\t{first['end'] + 10 * i}\tcell{i % 8}\t1" for i in range(48)
    ]
    (tmp_path / "f.tsv").write_text("\n".join(lines) + "\n")
    cells, pooled = tmp_path / "cells.h5ad", tmp_path / "pooled.h5ad"
    code, out, err = run(
        capsys, "tfbind", "count", tmp_path / "f.tsv", "--peaks", regions, "--out", cells, "--json"
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["n_cells"] == 8
    adata = ad.read_h5ad(cells)
    adata.obs["kind"] = ["a", "b"] * 4
    adata.write_h5ad(cells)
    code, out, err = run(
        capsys,
        "tfbind",
        "aggregate",
        cells,
        "--by",
        "kind",
        "--out",
        pooled,
        "--json",
        "--depth",
        5,
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["n_metacells"] == 2
    assert "chip_bulk" in ad.read_h5ad(pooled).varm


@pytest.mark.parametrize("peaks", ["Reb1", "=x.bed", "Reb1="])
def test_names_of_peaks(capsys, tmp_path, peaks):
    code, _, err = run(
        capsys,
        "tfbind",
        "regions",
        "--fasta",
        "g.fa",
        "--peaks",
        peaks,
        "--out",
        tmp_path / "r.h5ad",
    )
    assert code == 2
    assert "wanted NAME=FILE" in err


def test_help(capsys):
    code, out, _ = run(capsys, "tfbind", "--help")
    assert code == 0
    assert all(command in out for command in ("regions", "count", "aggregate"))
