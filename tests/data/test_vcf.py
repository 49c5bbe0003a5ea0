import gzip

import pytest

from scfm.data.genome import Genome
from scfm.data.vcf import Variant, left_aligned, read_vcf
from scfm.errors import InputError, MissingFileError, UnreadableFileError

#            0         1
#            0123456789012345678
SEQUENCE = "GATTACACACACGGGTACGT"
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture
def genome(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(f">chr4\n{SEQUENCE}\n>chr5\nNNNNacgtNNNN\n")
    return Genome.open(path)


def write(tmp_path, *rows, name="v.vcf"):
    path = tmp_path / name
    text = HEADER + "".join("\t".join(map(str, row)) + "\t.\t.\t.\n" for row in rows)
    if name.endswith("gz"):
        half = len(text) // 2  # two members, as bgzip writes them
        path.write_bytes(gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode()))
    else:
        path.write_text(text)
    return path


def applied(variant):
    """The chromosome with the alternative allele."""
    end = variant.start + len(variant.ref)
    assert SEQUENCE[variant.start : end] == variant.ref
    return SEQUENCE[: variant.start] + variant.alt + SEQUENCE[end:]


@pytest.mark.parametrize("name", ["v.vcf", "v.vcf.gz"])
def test_one_variant_an_alternative_allele_under_the_genomes_name(genome, tmp_path, name):
    path = write(tmp_path, ("4", 2, "rs1", "A", "C,g"), ("chr4", 3, ".", "T", "A"), name=name)
    found = read_vcf(path, genome).variants
    assert [(v.chrom, v.start, v.ref, v.alt) for v in found] == [
        ("chr4", 1, "A", "C"),
        ("chr4", 1, "A", "G"),
        ("chr4", 2, "T", "A"),
    ]
    assert [v.name for v in found] == ["rs1", "rs1", "chr4:3:T>A"]
    assert [v.row for v in found] == [3, 3, 4]


def test_indels_of_one_change_have_one_form(genome):
    """Every way to write the loss of one CA from CACACAC becomes the same, leftmost one."""
    forms = {
        left_aligned(Variant("chr4", start, SEQUENCE[start : start + 3], SEQUENCE[start]), genome)
        for start in range(4, 9)
        if SEQUENCE[start : start + 1] == SEQUENCE[start + 2]
    }
    assert len(forms) == 1
    (form,) = forms
    assert applied(form) == SEQUENCE[:5] + SEQUENCE[7:]
    assert (form.start, form.ref, form.alt) == (3, "TAC", "T")


def test_left_alignment_changes_no_sequence(genome, rng):
    for _ in range(200):
        start = int(rng.integers(0, 14))
        ref = SEQUENCE[start : start + int(rng.integers(1, 5))]
        alt = "".join(rng.choice(list("ACGT"), size=rng.integers(1, 5)))
        if ref == alt:
            continue
        variant = Variant("chr4", start, ref, alt)
        found = left_aligned(variant, genome)
        assert applied(found) == applied(variant)
        assert found.start <= max(variant.start + len(ref), 0)
        assert min(len(found.ref), len(found.alt)) >= 1
        assert left_aligned(found, genome) == found


def test_a_deletion_at_the_first_base(genome):
    found = left_aligned(Variant("chr4", 0, "GA", "A"), genome)
    assert (found.start, found.ref, found.alt) == (0, "GA", "A")


def test_what_cannot_be_scored_is_counted(genome, tmp_path):
    rows = [
        ("chr4", 2, ".", "A", "C"),
        ("chr4", 2, ".", "A", "<DEL>"),
        ("chr4", 2, ".", "A", "A[chr5:7["),
        ("chr4", 2, ".", "A", "*"),
        ("chr4", 2, ".", "A", "."),
        ("chr4", 2, ".", "A", "R"),
    ]
    found = read_vcf(write(tmp_path, *rows), genome)
    assert len(found.variants) == 1
    assert sum(found.left_out.values()) == 5
    assert found.left_out["symbolic"] == 2


def test_lower_case_in_the_genome_is_no_disagreement(genome, tmp_path):
    (found,) = read_vcf(write(tmp_path, ("chr5", 6, ".", "C", "T")), genome).variants
    assert (found.start, found.ref) == (5, "C")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("chr4", 2, ".", "A", "C"), ("chr4", 3, ".", "G", "C")], "row 4 .*chr4:3 G.*which has T"),
        ([("chr4", 20, ".", "TA", "T")], "past the end of chr4, which has 20 bases"),
        ([("chr4", 2, ".", "A", "<DEL>")], "no variant that can be scored"),
        ([("chr9", 2, ".", "A", "C")], "chr9"),
    ],
)
def test_refused(genome, tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        read_vcf(write(tmp_path, *rows), genome)


def test_no_vcf(genome, tmp_path):
    with pytest.raises(MissingFileError):
        read_vcf(tmp_path / "none.vcf", genome)
    path = tmp_path / "bed.vcf"
    path.write_text("chr4\t1\t2\n")
    with pytest.raises(UnreadableFileError, match="row 1"):
        read_vcf(path, genome)
    packed = tmp_path / "cut.vcf.gz"
    packed.write_bytes(gzip.compress(HEADER.encode() * 50)[:-12])
    with pytest.raises(UnreadableFileError, match="truncated"):
        read_vcf(packed, genome)


def test_a_chromosome_the_genome_lacks_is_told_with_its_row(genome, tmp_path):
    path = write(tmp_path, ("chr4", 2, ".", "A", "C"), ("chrUn_x", 5, ".", "A", "C"))
    with pytest.raises(InputError, match=r"row 4 \(chrUn_x:5 A\): .*no chromosome 'chrUn_x'"):
        read_vcf(path, genome)
