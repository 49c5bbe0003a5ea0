"""Variants scored: against edited chromosomes, a motif that is broken, p of what is random."""

import numpy as np
import pytest
import torch
from torch import nn

from scfm.data.genome import Genome
from scfm.data.vcf import Variant
from scfm.errors import ConfigError, ModelError
from scfm.model.dna import BindingModel, binding_logits
from scfm.model.dna_config import BindingConfig
from scfm.tasks.tf_variants import NoSignal, VariantConfig, in_regions, score_variants

LENGTH = 40
MOTIF = "TGACTCA"


class MotifModel(BindingModel):
    """Bases above five that the best AP1 or SP1 site has right, on the strand it is shown."""

    def __init__(self):
        config = BindingConfig(
            length=LENGTH, n_tracks=0, first_filters=2, d_model=4, n_blocks=0, d_hidden=0
        )
        super().__init__(config, ("AP1", "SP1"))
        hot = [
            torch.tensor([[float(b == x) for x in w] for b in "ACGT"]) for w in (MOTIF, "GGGCGGG")
        ]
        self.words = nn.Parameter(torch.stack(hot))

    def forward(self, sequence, signal, cell=None, has_cell=None):
        return (nn.functional.conv1d(sequence, self.words).amax(2) - 5).relu()


@pytest.fixture
def genome(tmp_path, rng):
    letters = rng.choice(list("ACGT"), size=1500)
    letters[700:707] = list(MOTIF)
    path = tmp_path / "genome.fa"
    path.write_text(f">c\n{''.join(letters)}\n")
    return Genome.open(path)


def changed(genome, tmp_path, variant):
    """The genome that carries the variant."""
    text = genome.sequence("c", 0, genome.sizes["c"])
    end = variant.start + len(variant.ref)
    path = tmp_path / "changed.fa"
    path.write_text(f">c\n{text[: variant.start]}{variant.alt}{text[end:]}\n")
    path.with_name("changed.fa.fai").unlink(missing_ok=True)
    return Genome.open(path)


def plain_logits(model, genome, start):
    from scfm.batch import RegionBatch

    batch = RegionBatch(
        sequence=genome.one_hot(np.array(["c"]), np.array([start]), LENGTH),
        signal=np.zeros((1, 0, LENGTH), dtype=np.float32),
        labels=np.zeros((1, 2), dtype=np.int8),
        region_index=np.zeros(1, dtype=np.int64),
        group_index=np.full(1, -1),
    )
    with torch.inference_mode():
        return binding_logits(model, batch.map(torch.from_numpy))[0].numpy()


@pytest.mark.parametrize("model", [MotifModel(), "random"])
def test_scores_are_those_of_the_changed_genome(genome, tmp_path, model):
    if model == "random":
        torch.manual_seed(0)
        model = BindingModel(BindingConfig(length=LENGTH, n_tracks=0, d_model=8), ("A", "B")).eval()
    at = 703
    here = genome.sequence("c", at, at + 4)
    variants = [
        Variant("c", at, here[0], "A" if here[0] != "A" else "C"),
        Variant("c", at, here, here[0]),
        Variant("c", at, here[0], here[0] + "GT"),
    ]
    config = VariantConfig(shifts=(-5, 0, 5), n_null=0)
    (found,) = score_variants(model, variants, genome, NoSignal(), groups=[-1], config=config)
    assert np.isnan(found.p).all()
    for number, variant in enumerate(variants):
        other = changed(genome, tmp_path, variant)
        starts = [at - LENGTH // 2 + shift for shift in config.shifts]
        ref = np.mean([plain_logits(model, genome, s) for s in starts], axis=0)
        alt = np.mean([plain_logits(model, other, s) for s in starts], axis=0)
        np.testing.assert_allclose(found.reference[number, 0], ref, atol=1e-5)
        np.testing.assert_allclose(found.delta[number, 0], alt - ref, atol=1e-5)


def test_a_broken_motif_stands_out_and_random_changes_do_not(genome, rng):
    broken = Variant("c", 703, "C", "A")
    assert genome.sequence("c", 703, 704) == "C"
    far = [at for at in range(200, 1300, 9) if abs(at - 703) > 60]
    spread = []
    for at in far:
        ref = genome.sequence("c", at, at + 1)
        if ref in "CG":
            spread.append(Variant("c", at, ref, "A" if ref == "C" else "T"))
    config = VariantConfig(shifts=(0,), n_null=300, batch_size=64)
    variants = [broken, *spread]
    parts = list(
        score_variants(MotifModel(), variants, genome, NoSignal(), groups=[-1], config=config)
    )
    p = np.concatenate([part.p for part in parts])[:, 0, 0]
    delta = np.concatenate([part.delta for part in parts])[:, 0, 0]
    assert sum(len(part.variants) for part in parts) == len(variants)
    assert delta[0] < 0
    assert p[0] < 0.1
    assert 0.3 < p[1:].mean() < 1
    again = score_variants(MotifModel(), variants, genome, NoSignal(), groups=[-1], config=config)
    np.testing.assert_array_equal(p, np.concatenate([part.p for part in again])[:, 0, 0])


def test_p_counts_random_changes_as_large(genome):
    """A change that changes nothing is as large as every other: p = 1."""
    model = MotifModel()
    with torch.no_grad():
        model.words.zero_()
    config = VariantConfig(shifts=(0,), n_null=20)
    variant = Variant("c", 703, "C", "A")
    (found,) = score_variants(model, [variant], genome, NoSignal(), groups=[-1], config=config)
    assert (found.p == 1).all()


def test_logits_that_are_no_numbers(genome):
    model = MotifModel()
    with torch.no_grad():
        model.words.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        list(
            score_variants(
                model,
                [Variant("c", 703, "C", "A")],
                genome,
                NoSignal(),
                groups=[-1],
                config=VariantConfig(n_null=0, shifts=(0,)),
            )
        )
    with pytest.raises(ConfigError):
        VariantConfig(shifts=())


def test_regions_of_variants():
    chrom = np.array(["a", "a", "b", "a"])
    start, end = np.array([10, 50, 10, 40]), np.array([20, 60, 20, 70])
    places = [("a", 9), ("a", 10), ("a", 19), ("a", 20), ("a", 55), ("a", 65), ("b", 15), ("z", 3)]
    variants = [Variant(c, s, "A", "C") for c, s in places]
    # 65 lies in the longer of two, 55 in both: then it is the one that starts last
    assert in_regions(variants, chrom, start, end).tolist() == [-1, 0, 0, -1, 1, 3, 2, -1]


def test_regions_of_variants_are_those_that_a_look_at_each_finds(rng):
    start = rng.integers(0, 400, 60)
    end = start + rng.integers(1, 120, 60)
    variants = [Variant("a", at, "A", "C") for at in range(520)]
    found = in_regions(variants, np.full(60, "a"), start, end)
    for at, region in enumerate(found.tolist()):
        holding = np.flatnonzero((start <= at) & (at < end))
        assert (region >= 0) == (len(holding) > 0)
        if len(holding):
            assert region in holding
            assert start[region] == start[holding].max()
