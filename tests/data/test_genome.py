"""A genome is read as pyfaidx reads it; names of chromosomes are one or are refused."""

import gzip
import os
import pickle
import warnings

import numpy as np
import pyfaidx
import pytest

from scfm.data import genome as genome_module
from scfm.data.assemblies import SIZES, identify, usual_name
from scfm.data.chrom_names import require_names, resolve_names
from scfm.data.genome import Genome
from scfm.errors import InputError, MissingFileError, OutputError, ScfmWarning, UnreadableFileError
from tests.data.toy_genome import draw_letters, write_fasta


@pytest.fixture
def chromosomes(rng) -> dict[str, str]:
    """Lengths around the line length of 60, and all letters FASTA files have."""
    letters = list("ACGTacgtNnRY")
    return {
        name: "".join(rng.choice(letters, size))
        for name, size in (("chrI", 59), ("chrII", 60), ("chrIV", 601), ("chrX", 1))
    }


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_windows_are_those_of_pyfaidx(tmp_path, rng, chromosomes, line_end, packed):
    plain = write_fasta(tmp_path / "g.fa", chromosomes, line_end=line_end)
    path = plain
    if packed:
        path = tmp_path / "packed.fa.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    genome = Genome.open(path)
    assert genome.sizes == {name: len(text) for name, text in chromosomes.items()}
    theirs = pyfaidx.Fasta(plain, as_raw=True, sequence_always_upper=True)
    length = 75
    chrom = rng.choice(list(chromosomes), 200)
    start = rng.integers(-80, 640, 200)
    hot = genome.one_hot(chrom, start, length)
    assert hot.dtype == np.float32
    for window, name, first in zip(hot, chrom, start, strict=True):
        inside = slice(max(first, 0), max(min(first + length, len(chromosomes[name])), 0))
        expected = np.zeros((4, length), np.float32)
        for base, letter in enumerate(str(theirs[name][inside])):
            if letter in "ACGT":
                expected["ACGT".index(letter), inside.start - first + base] = 1
        assert (window == expected).all()
    theirs.close()


def test_off_the_ends_and_lower_case(tmp_path):
    genome = Genome.open(write_fasta(tmp_path / "g.fa", {"chr1": "acgtN"}))
    assert genome.sequence("chr1", -2, 8) == "NNACGTNNNN"
    assert not genome.one_hot(np.array(["chr1"]), np.array([5]), 3).any()
    assert not genome.one_hot(np.array(["1"]), np.array([-9]), 3).any()


def test_it_goes_to_other_processes(tmp_path, chromosomes):
    genome = Genome.open(write_fasta(tmp_path / "g.fa", chromosomes))
    there = pickle.loads(pickle.dumps(genome))
    assert there.sequence("4", 0, 601) == genome.sequence("chrIV", 0, 601)


def test_an_index_is_made_and_mended(tmp_path, chromosomes):
    path = write_fasta(tmp_path / "g.fa", chromosomes)
    index = tmp_path / "g.fa.fai"
    first = Genome.open(path).sequence("chrIV", 100, 200)
    good = index.read_text()
    assert good.startswith("chrI\t59\t")
    for stale in ("nonsense\n", "chrI\t59\t6\t60\n", good.replace("601", "9601")):
        index.write_text(stale)
        assert Genome.open(path).sequence("chrIV", 100, 200) == first
        assert index.read_text() == good
    write_fasta(path, {"chrI": "ACGT"})
    os.utime(index, (1, 1))  # older than the file it is of
    assert Genome.open(path).sizes == {"chrI": 4}


def test_where_no_index_can_be_kept(tmp_path, chromosomes, monkeypatch):
    path = write_fasta(tmp_path / "g.fa", chromosomes)

    def refuse(_):
        raise OutputError("read-only")

    monkeypatch.setattr(genome_module, "atomic_path", refuse)
    with pytest.warns(ScfmWarning, match=r"g.fa.fai cannot be written.*samtools faidx g.fa"):
        assert Genome.open(path).names == tuple(chromosomes)
    assert not (tmp_path / "g.fa.fai").exists()


def test_what_is_no_fasta(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError):
        Genome.open(tmp_path / "none.fa")
    path = tmp_path / "g.fa"
    path.write_text("chr1 1 2")
    with pytest.raises(UnreadableFileError, match="no FASTA"):
        Genome.open(path)
    path.write_text(">a\nACGT\nACGTACGT\nACGT\n")
    with pytest.raises(UnreadableFileError, match=r"cannot be indexed.*seqkit"):
        Genome.open(path)
    path.write_text(">a\nACGT\n>a\nACGT\n")
    with pytest.raises(UnreadableFileError, match="Duplicate"):
        Genome.open(path)
    path = tmp_path / "g.fa.gz"
    path.write_bytes(gzip.compress(b">a\n" + b"ACGT" * 5000)[:-9])
    with pytest.raises(UnreadableFileError, match="damaged gzip"):
        Genome.open(path)
    monkeypatch.setattr(genome_module, "UNPACK_LIMIT", 1000)
    path.write_bytes(gzip.compress(b">a\n" + b"ACGT" * 5000))
    with pytest.raises(InputError, match="gunzip -k"):
        Genome.open(path)


def test_real_chromosome(shared_data, tmp_path, rng):
    if shared_data is None:
        fasta = write_fasta(tmp_path / "g.fa", {"chrIV": draw_letters(rng, 5000)})
    else:
        fasta = shared_data / "tf" / "sacCer3_chrIV.fa.gz"
    genome = Genome.open(fasta)
    assert genome.resolve("chr4") == genome.resolve("IV") == "chrIV"
    if shared_data is not None:
        assert genome.name == "sacCer3"
        assert genome.sequence("chr4", 0, 20) == "ACACCACACCCACACCACAC"


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("chr4", ["chrIV"], "chrIV"),
        ("4", ["chrIV", "chrX"], "chrIV"),
        ("chr10", ["I", "IX", "X"], "X"),
        ("chr10", ["I", "II", "III", "IV", "V", "X"], None),  # a worm's X is no ten
        ("X", ["chr1", "chrX"], "chrX"),
        ("10", ["chr1", "chrX"], None),
        ("IV", ["1", "4"], "4"),
        ("MT", ["chr1", "chrM"], "chrM"),
        ("NC_000023.11", ["chr1", "chrX"], "chrX"),
        ("NC_000068.7", ["1", "2"], "2"),
        ("NC_001136.10", ["chrIV"], "chrIV"),
        ("chr1", ["NC_000001.10"], "NC_000001.10"),
        ("chr1", ["Chr1", "1"], None),  # two could be meant
        ("chr1", ["1", "chr1"], "chr1"),
        ("chrUn_gl000220", ["chr1"], None),
    ],
)
def test_names(name, known, meant):
    assert resolve_names([name], known) == {name: meant}


def test_numerals_are_known_by_the_names_beside_them():
    assert resolve_names(["chrX", "chrIX"], ["9", "10"]) == {"chrX": "10", "chrIX": "9"}
    assert resolve_names(["chrX", "chrIV"], ["4", "10"]) == {"chrX": None, "chrIV": "4"}


def test_unknown_names_are_said():
    with pytest.raises(InputError, match=r"peaks: 1 of its 2 chromosomes .* genome: chrZ"):
        require_names(["chr1", "chrZ"], ["1"], source="peaks", genome="genome")


def test_assemblies(shared_data):
    assert usual_name("GRCh38.p14") == "hg38"
    assert usual_name("hs37d5") == "hg19"
    assert usual_name("TAIR10") == "TAIR10"
    assert identify({"1": 248_956_422, "GL000220.1": 7}) == "hg38"
    assert identify({"chr1": 1}) is None
    lengths = [size for sizes in SIZES.values() for size in sizes.values()]
    assert len(set(lengths)) == len(lengths)  # so that one chromosome tells the assembly
    if shared_data is not None:
        lines = (shared_data / "tf" / "hg19.autoX.chrom.sizes").read_text().split("\n")
        theirs = {name: int(size) for name, size in map(str.split, filter(None, lines))}
        assert theirs.items() <= SIZES["hg19"].items()


def test_a_fasta_of_another_assembly(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "hg19", {"chr1": 40})
    monkeypatch.setitem(SIZES, "hg38", {"chr1": 50})
    path = write_fasta(tmp_path / "g.fa", {"1": "A" * 40})
    assert Genome.open(path).name == "hg19"
    assert Genome.open(path, name="GRCh37").name == "hg19"
    with pytest.raises(InputError, match=r"is not hg38: its 1 has 40 bases.* 50; it is hg19"):
        Genome.open(path, name="GRCh38")
    with warnings.catch_warnings():
        assert Genome.open(path, name="T2T").name == "T2T"  # sizes unknown: taken at its word
