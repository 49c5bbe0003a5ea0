import numpy as np
import pytest

from scfm.data.allele_windows import allele_windows, kind_of, random_changes
from scfm.data.genome import Genome
from scfm.data.nucleotides import codes_of_one_hot, decode
from scfm.data.vcf import Variant
from scfm.errors import InputError

LENGTH = 16


@pytest.fixture
def sequence(rng):
    return "".join(rng.choice(list("ACGT"), size=120))


@pytest.fixture
def genome(tmp_path, sequence):
    path = tmp_path / "genome.fa"
    path.write_text(f">c\n{sequence}\n")
    return Genome.open(path)


def spelled(windows):
    return [decode(codes) for codes in codes_of_one_hot(windows, "windows")]


@pytest.mark.parametrize("shift", [-3, 0, 3])
@pytest.mark.parametrize(("n_ref", "alt"), [(1, "A"), (4, "G"), (1, "GATT"), (2, "CC")])
def test_alleles_in_their_windows(genome, sequence, shift, n_ref, alt):
    """Against the edited chromosome: the alternative window starts at the same base."""
    at = 50
    variant = Variant("c", at, sequence[at : at + n_ref], alt)
    reference, alternative = (spelled(x) for x in allele_windows([variant], genome, LENGTH, shift))
    start = at - LENGTH // 2 + shift
    edited = sequence[:at] + alt + sequence[at + n_ref :]
    assert reference == [sequence[start : start + LENGTH]]
    assert alternative == [edited[start : start + LENGTH]]


def test_variants_of_different_lengths_do_not_meet(genome, sequence):
    variants = [Variant("c", 30, sequence[30:35], "A"), Variant("c", 60, sequence[60], "GGG")]
    together = allele_windows(variants, genome, LENGTH)
    alone = [allele_windows([v], genome, LENGTH) for v in variants]
    for side in (0, 1):
        np.testing.assert_array_equal(together[side], np.concatenate([a[side] for a in alone]))


def test_off_the_ends_is_nothing(genome, sequence):
    reference, alternative = allele_windows([Variant("c", 1, sequence[1], "A")], genome, LENGTH)
    assert reference[0, :, :7].sum() == 0
    assert alternative[0, :, :7].sum() == 0


def test_an_allele_that_does_not_fit(genome, sequence):
    with pytest.raises(InputError, match="9 bases does not fit"):
        allele_windows([Variant("c", 50, sequence[50], "A" * 9)], genome, LENGTH)


def test_kinds_are_of_either_strand():
    assert kind_of(Variant("c", 0, "G", "A")) == kind_of(Variant("c", 0, "C", "T")) == "C>T"
    assert kind_of(Variant("c", 0, "A", "C")) == kind_of(Variant("c", 0, "T", "G"))
    assert kind_of(Variant("c", 0, "ACCCC", "A")) == "deletion of 4 or more"
    assert kind_of(Variant("c", 0, "A", "ACC")) == "insertion of 2 or more"
    assert kind_of(Variant("c", 0, "AC", "GT")) == "replacement of 2 or more"


def test_random_changes_are_of_the_same_kind_nearby(genome, sequence, rng):
    variants = [Variant("c", 40, sequence[40], "ACGT".replace(sequence[40], "")[0])]
    variants += [Variant("c", 80, sequence[80:83], sequence[80])]
    for variant in variants:
        changes, near = random_changes([variant], genome, 15, 40, rng)
        assert len(changes) == 40
        assert set(near.tolist()) == {0}
        for change in changes:
            end = change.start + len(change.ref)
            assert sequence[change.start : end] == change.ref != change.alt
            assert kind_of(change) == kind_of(variant)
            assert abs(change.start - variant.start) <= 15
            assert change.start >= variant.end or end <= variant.start
