"""Bad input of the commands that put a model to use; docs/tf_binding.md's test has the good."""

import pytest

from scfm.data.genome import Genome
from scfm.model.dna_folder import save_binding
from tests.cli.test_refusals import assert_refused, run
from tests.toys_peaks import toy_binding


@pytest.fixture
def genome(rng, tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(f">chrIV\n{''.join(rng.choice(list('ACGT'), size=2_000))}\n")
    return path


def write_vcf(path, rows):
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"
    path.write_text(head + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


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
