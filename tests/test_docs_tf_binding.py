"""docs/tf_binding.md: its commands and its Python run, in order, on toy genomes and cells."""

import json
import re
import shlex
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scfm.cli.app import main
from scfm.data.genome import Genome
from scfm.tools.tf_store import BindingStore
from tests.toys_peaks import toy_peaks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tf_binding.md"
SMALL = [
    *("model.first_filters=8", "model.d_model=8", "model.n_blocks=1", "model.d_hidden=8"),
    *("model.track_filters=4", "train.steps=4", "train.validate_every=2", "fine_tuning.steps=0"),
    *("train.accelerator=cpu", "loader.batch_size=32"),
]
SETS = [text for override in SMALL for text in ("--set", override)]
SITES = {"Abf1": "CGTATATAATGACG", "Reb1": "TTACCCGGA"}
SCALE = 100  # the page's positions, divided by this, are the small chromosome's
HEAD = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"


@pytest.fixture
def folder(tmp_path, rng, monkeypatch) -> Path:
    """The files the page speaks of: a chrIV of 15 kb, cells of two types, motifs."""
    letters = rng.choice(list("ACGT"), size=15_319)
    at = np.arange(300, 15_000, 400)
    for start, (tf, site) in zip(at, list(SITES.items()) * len(at), strict=False):
        letters[start : start + len(site)] = list(site)
        with (tmp_path / f"{tf}.bed").open("a") as file:
            file.write(f"chr4\t{start}\t{start + len(site)}\n")
    (tmp_path / "chrIV.fa").write_text(f">chrIV\n{''.join(letters)}\n")
    site, base = int(at[35]), str(letters[at[35] + 3])
    rows = [("4", site + 4, "broken", base, f"{'A' if base != 'A' else 'C'},{base}GT")]
    (tmp_path / "variants.vcf").write_text(HEAD + "\n".join("\t".join(map(str, r)) for r in rows))
    adata, _ = toy_peaks(rng, folder=tmp_path)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    peak = adata.var.iloc[5]
    base = str(peak["sequence"])[7]
    row = (peak["chrom"], int(peak["start"]) + 8, ".", base, "A" if base != "A" else "C")
    (tmp_path / "cells.vcf").write_text(HEAD + "\t".join(map(str, row)) + "\n")
    motif = "\n".join(" ".join("0.97" if b == x else "0.01" for b in "ACGT") for x in "GGGCGG")
    text = f"MEME version 4\n\nMOTIF MA1 SP1\nletter-probability matrix: w= 6\n{motif}\n"
    (tmp_path / "motifs.meme").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plt.close("all")


def scfm(line: str) -> None:
    """One command of the page; training at a toy size, positions of the small chromosome."""
    line = re.sub(r"(chrIV:)(\d+)-(\d+)", _smaller, line)
    command, *arguments = shlex.split(line)
    assert command == "scfm"
    arguments += SETS if arguments[0] == "finetune" else []
    arguments += ["--bootstrap", "10"] if arguments[0] == "evaluate" else []
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code, line


def _smaller(found: re.Match) -> str:
    return f"{found[1]}{int(found[2]) // SCALE}-{int(found[3]) // SCALE}"


@pytest.mark.filterwarnings("ignore::scfm.errors.ScfmWarning")
def test_the_page_runs(folder, monkeypatch):
    # two kilobases between stretches would leave little of the small chromosome
    monkeypatch.setattr("scfm.data.region_split.APART", 200)
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert [kind for kind, _ in blocks] == ["sh", "sh", "python"]
    names: dict = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            continue
        for line in block.strip().splitlines():
            scfm(line)
    check_variants(folder)
    check_cells(folder, names)


def check_variants(folder):
    found = pd.read_csv(folder / "effects.tsv", sep="\t")
    assert found["tf"].tolist() == ["Abf1:bulk", "Reb1:bulk"] * 2
    assert set(found["id"]) == {"broken"}
    np.testing.assert_allclose(found["delta"], found["alt_logit"] - found["ref_logit"], atol=1e-4)
    largest = found.groupby("alt")["delta"].transform(lambda d: d.abs().max())
    np.testing.assert_allclose(found["max_abs_delta"], largest, rtol=1e-4)
    assert found["p"].between(1 / 201, 1).all()
    by_group = pd.read_parquet(folder / "by_group.parquet")
    assert by_group[["group", "tf"]].to_numpy().tolist() == [
        *(["B", "AP1"], ["B", "SP1"], ["T", "AP1"], ["T", "SP1"])
    ]
    assert Genome.open(folder / "genome.fa").names[0] == "chr1"


def check_cells(folder, names):
    metrics = json.loads((folder / "judged_cells" / "metrics.json").read_text())
    assert (
        metrics["verdict"].replace("'", "&#39;")
        in (folder / "judged_cells" / "report.html").read_text()
    )
    methods = {m["key"] for m in metrics["quadrants"][0]["methods"]}
    assert {"scfm", "accessibility", "motif", "other_cells", "prevalence"} <= methods
    store = BindingStore.open(folder / "binding.zarr")
    assert (store.groups, store.tfs) == (("B", "T"), ("AP1", "SP1"))
    assert store.settings["calibration"]
    written = ad.read_h5ad(folder / "active.h5ad")
    assert written.uns["tf_activity"]["calibrated"]
    assert written.obsm["X_tf_activity"].shape == names["adata"].obsm["X_tf_activity"].shape
    assert names["one"].shape == (2, 240)
    assert "tf_prob_B" in names["adata"].varm
