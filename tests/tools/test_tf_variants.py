"""A VCF's odd rows: what is scored, what is left out and counted."""

import pandas as pd
import pytest

from scfm.errors import InputError
from scfm.tasks.tf_variants import VariantConfig
from scfm.tools.tf_variants import score_vcf
from tests.toys_peaks import toy_binding

LETTERS = "GATTACAGGCATCCGATAGC" * 20
CONFIG = VariantConfig(n_null=4)


def write(tmp_path, *rows):
    (tmp_path / "genome.fa").write_text(f">chr1\n{LETTERS}\n")
    text = "".join("\t".join(map(str, row)) + "\r\n" for row in rows)
    (tmp_path / "odd.vcf").write_text("#CHROM\tPOS\tID\tREF\tALT\r\n" + text, newline="")
    return tmp_path / "odd.vcf", toy_binding(), tmp_path / "genome.fa", tmp_path / "out.tsv"


def test_long_alleles_are_left_out_and_counted(tmp_path):
    """The window has 60 bases and is moved by up to 20: 10 are left of its end."""
    rows = [("1", 200, "fits", LETTERS[199:209], LETTERS[199])]
    rows += [("1", 200, "deletion", LETTERS[199:210], LETTERS[199])]
    rows += [("1", 200, "insertion", LETTERS[199], LETTERS[199] + "ACGTA" * 9)]
    rows += [("1", 1, "first", "G", "A"), ("1", len(LETTERS), "last", "c", "a,*,<DEL>")]
    given = write(tmp_path, *rows)
    found = score_vcf(*given, config=CONFIG, device="cpu")
    assert found.left_out == {
        "deleted by another variant (*)": 1,
        "symbolic": 1,
        "longer than the 10 bases that the window takes": 2,
    }
    assert pd.read_csv(given[-1], sep="\t")["id"].unique().tolist() == ["fits", "first", "last"]


def test_no_allele_that_fits(tmp_path):
    given = write(tmp_path, ("1", 200, "long", LETTERS[199:259], LETTERS[199]))
    with pytest.raises(InputError, match="takes 10 at most"):
        score_vcf(*given, config=CONFIG, device="cpu")
    assert not given[-1].exists()
