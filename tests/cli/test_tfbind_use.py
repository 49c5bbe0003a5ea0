"""From FASTA and peaks to variants, and from cells to activities, on the command line."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scfm.data.genome import Genome
from scfm.model.dna_folder import save_binding
from scfm.tools.tf_store import BindingStore
from tests.cli.test_refusals import assert_refused, run
from tests.toys_peaks import toy_binding, toy_peaks

SMALL = [
    *("model.length=60", "model.first_filters=8", "model.d_model=8", "model.n_blocks=1"),
    *("model.d_hidden=8", "model.track_filters=4", "train.steps=4", "train.validate_every=2"),
    *("train.accelerator=cpu", "loader.batch_size=32", "fine_tuning.steps=0"),
]
SETS = [text for override in SMALL for text in ("--set", override)]
SITE = "TGACTCA"


@pytest.fixture
def genome(rng, tmp_path):
    """One chromosome of 12 kb with a site every 150 bases, and BED files of the sites."""
    letters = rng.choice(list("ACGT"), size=12_000)
    at = np.arange(100, 11_800, 150)
    for start in at:
        letters[start : start + 7] = list(SITE)
    (tmp_path / "genome.fa").write_text(f">chrIV\n{''.join(letters)}\n")
    bed = "".join(f"chr4\t{start}\t{start + 7}\n" for start in at)
    (tmp_path / "sites.bed").write_text(bed)
    return tmp_path / "genome.fa"


def write_vcf(path, rows):
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"
    path.write_text(head + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def test_fasta_windows_labels_training_variants(genome, tmp_path, capsys):
    """The path of docs/tf_binding.md, small: a stretch of the only chromosome is held out."""
    windows, made = tmp_path / "windows.h5ad", tmp_path / "run"
    code, _, err = run(
        *(capsys, "tfbind", "regions", "--fasta", genome, "--out", windows),
        *("--peaks", f"AP1={tmp_path / 'sites.bed'}", "--length", 60, "--stride", 30),
        *("--overlap", "centre"),
    )
    assert code == 0, err
    code, _, err = run(
        *(capsys, "finetune", "tfbinding", windows, "--fasta", genome, "--out", made),
        *("--validation-chroms", "chrIV:6000-8500", "--test-chroms", "chrIV:8500-12000", *SETS),
    )
    assert code == 0, err
    code, out, err = run(
        *(capsys, "evaluate", "tfbinding", windows, "--fasta", genome, "--model", made),
        *("--out", tmp_path / "judged", "--bootstrap", 10, "--json"),
    )
    assert code == 0, err
    assert (
        json.loads(out.splitlines()[-1])["verdict"] in (tmp_path / "judged/report.html").read_text()
    )
    site = 100 + 150 * 60
    rows = [("4", site + 3, "broken", "A", "T,AG"), ("IV", site + 70, ".", None, None)]
    there = Genome.open(genome).sequence("chrIV", site + 69, site + 70)
    rows[1] = ("IV", site + 70, ".", there, "A" if there != "A" else "C")
    vcf = write_vcf(tmp_path / "v.vcf", rows)
    table = tmp_path / "variants.tsv"
    code, _, err = run(
        *(capsys, "tfbind", "variants", vcf, "--model", made, "--fasta", genome),
        *("--out", table, "--null", 10, "--shift", -5, "--shift", 5),
    )
    assert code == 0, err
    found = pd.read_csv(table, sep="\t")
    assert found["id"].tolist() == ["broken", "broken", f"IV:{site + 70}:{there}>{rows[1][4]}"]
    assert set(found["chrom"]) == {"chrIV"}
    np.testing.assert_allclose(found["delta"], found["alt_logit"] - found["ref_logit"], atol=1e-4)
    np.testing.assert_allclose(found["max_abs_delta"], found["delta"].abs(), rtol=1e-4)
    assert found["p"].between(1 / 11, 1).all()


def test_cells_to_predictions_activities_and_variants(rng, tmp_path, capsys):
    adata, fasta = toy_peaks(rng, folder=tmp_path)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    save_binding(toy_binding(n_tracks=1), tmp_path / "model")
    data = ["--model", tmp_path / "model", "--group-key", "cell_type"]
    cells = tmp_path / "cells.h5ad"
    assert run(capsys, "tfbind", "predict", cells, *data, "--out", tmp_path / "p")[0] == 0
    assert BindingStore.open(tmp_path / "p").groups == ("B", "T")
    code, _, err = run(
        capsys, "tfbind", "activity", cells, *data, "--out", tmp_path / "a.h5ad", "--backgrounds", 5
    )
    assert code == 0, err
    assert ad.read_h5ad(tmp_path / "a.h5ad").obsm["X_tf_activity"].shape == (24, 2)
    code, out, err = run(
        *(capsys, "evaluate", "tfbinding", cells, *data, "--label", "cell_type"),
        *("--validation-chroms", "chr3", "--test-chroms", "chr4", "--held-out-groups", "T"),
        *("--out", tmp_path / "judged", "--bootstrap", 10),
    )
    assert code == 0, err
    metrics = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    assert [q["cell"] for q in metrics["quadrants"]] == ["held-out", "seen"] * 2
    assert {c["key"] for c in metrics["cells"]} == {"activity_deviation", "activity_top2", "lsi"}
    assert "LSI" in out
    peak = adata.var.iloc[5]
    at = int(peak["start"])
    ref = Genome.open(fasta).sequence(peak["chrom"], at, at + 1)
    alt = "A" if ref != "A" else "C"
    vcf = write_vcf(tmp_path / "v.vcf", [(peak["chrom"], at + 1, "in", ref, alt)])
    code, _, err = run(
        *(capsys, "tfbind", "variants", vcf, *data, "--fasta", fasta, "--regions", cells),
        *("--out", tmp_path / "v.parquet", "--null", 0, "--tf", "SP1", "--group", "T"),
    )
    assert code == 0, err
    found = pd.read_parquet(tmp_path / "v.parquet")
    assert found[["group", "tf"]].to_numpy().tolist() == [["T", "SP1"]]
    assert found["p"].isna().all()


def test_refused(genome, tmp_path, capsys):
    save_binding(toy_binding(tasks=("AP1", "SP1")), tmp_path / "model")
    model = ["--model", tmp_path / "model", "--fasta", genome, "--out", tmp_path / "v.tsv"]
    there = Genome.open(genome).sequence("chrIV", 999, 1000)
    other = "A" if there != "A" else "C"
    wrong = write_vcf(
        tmp_path / "wrong.vcf", [("4", 1000, ".", other, "G" if other != "G" else "T")]
    )
    assert_refused(
        run(capsys, "tfbind", "variants", wrong, *model), "row 3", "REF disagrees", f"has {there}"
    )
    right = write_vcf(tmp_path / "right.vcf", [("4", 1000, ".", there, other)])
    assert_refused(
        run(capsys, "tfbind", "variants", right, *model, "--tf", "AP2"), "'AP2'", "Did you mean AP1"
    )
    named = [*model[:-1], tmp_path / "v.csv"]
    assert_refused(run(capsys, "tfbind", "variants", right, *named), ".tsv or .parquet")
    assert not (tmp_path / "v.tsv").exists()
    assert_refused(
        run(capsys, "tfbind", "activity", tmp_path / "none.h5ad", *model[:2], "--out", "x.h5ad"),
        "none.h5ad",
    )
