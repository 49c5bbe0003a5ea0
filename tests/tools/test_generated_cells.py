"""scfm.tl.generate: what is said becomes an AnnData; who may not be asked, and for what."""

import numpy as np
import pytest
import torch

from scfm.cli.app import main
from scfm.data.read import open_counts
from scfm.errors import ConfigError, CountsError, ModelError, ScfmWarning
from scfm.model.base import save_model
from scfm.model.generate import complete
from scfm.model.sampling import Decoding
from scfm.tasks.generation import GenerateConfig, generate_cells
from scfm.tokens.sentence_values import prompt_of
from scfm.tokens.words import Words
from scfm.tools.generated_cells import generate
from tests.toys import toy_model, toy_scmulan

TYPES = ("Immune", "T cell", "B cell")  # words of the fine type


@pytest.fixture(scope="module")
def model():
    """Random weights, with values spread over the bins; the genes it was trained on known."""
    made = toy_scmulan(20, seed=1)
    made.config.max_genes = 12
    with torch.no_grad():
        made.value_head.weight.mul_(4)
    made.provenance = {"share_in_vocabulary": 0.6}
    return made


PROMPT = {"organ": "Blood", "fine": "B cell"}


USUAL = {"n_cells": 12, "seed": 3, "end_weight": 0.05}


def made_cells(model, **options):
    return generate(model, options.pop("prompt", PROMPT), **{**USUAL, **options})


def test_cells_are_what_the_model_says(model):
    """Against `complete` on the same prompts: genes, bins, whether it ended."""
    adata = made_cells(model)
    words = Words(model.vocab)
    start = model.vocab.gene_start
    allowed = (words.end_id, *range(start, start + 20))
    decoding = Decoding(max_words=13, seed=3, end_weight=0.05, allowed=(allowed,))
    prompts = prompt_of(PROMPT, {}, model.vocab, n_cells=12).map(torch.from_numpy)
    said = complete(model, prompts, decoding)
    expected = np.zeros((12, 20))
    cell = np.repeat(np.arange(12), np.diff(said.offsets.numpy()))
    is_gene = (said.words != 0).numpy()
    expected[cell[is_gene], said.words.numpy()[is_gene] - start] = said.values.numpy()[is_gene]
    np.testing.assert_array_equal(adata.layers["scfm_bins"].toarray(), expected)
    np.testing.assert_array_equal(adata.obs["scfm_ended"], said.has_ended.numpy())
    np.testing.assert_array_equal(adata.obs["scfm_n_genes"], (expected > 0).sum(1))
    assert expected.max() <= 10
    assert adata.obs["scfm_n_genes"].max() > 1


def test_bins_are_not_taken_for_counts(model):
    """Whole numbers as they are, a generated cell's bins must not be recommended as its counts."""
    with pytest.raises(CountsError, match="log1p of normalised counts") as refused:
        open_counts(made_cells(model))
    assert "scfm_bins" not in str(refused.value)


def test_values_sum_to_the_share_the_genes_have(model):
    adata = made_cells(model)
    is_some = adata.obs["scfm_n_genes"].to_numpy() > 0
    total = np.asarray(adata.X.expm1().sum(1)).ravel()
    np.testing.assert_allclose(total[is_some], 6000, rtol=1e-5)
    assert ((adata.X.toarray() > 0) == (adata.layers["scfm_bins"].toarray() > 0)).all()
    settings = adata.uns["scfm"]["generate"]
    assert settings["share_in_vocabulary"] == 0.6
    assert settings["share_is_known"]


def test_counts_have_the_depth(model):
    adata = made_cells(model, values="counts", depth=300)
    is_some = adata.obs["scfm_n_genes"].to_numpy() > 0
    assert set(np.asarray(adata.X.sum(1)).ravel()[is_some]) == {300}
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert (adata.layers["scfm_bins"].toarray()[adata.X.toarray() > 0] > 0).all()


def test_the_prompt_is_in_obs_as_the_data_spell_it(model):
    adata = made_cells(model, prompt={"fine": "t CELL", "organ": "heart"})
    assert set(adata.obs["fine"]) == {"T cell"}
    assert set(adata.obs["organ"]) == {"Heart"}
    assert set(adata.obs["scfm_prompt"]) == {"fine=T cell; organ=Heart"}


def test_each_word_of_a_column(model):
    adata = made_cells(model, prompt={"organ": "Blood"}, each="fine", n_cells=5)
    assert adata.obs["fine"].tolist() == [name for name in TYPES for _ in range(5)]
    with pytest.raises(ConfigError, match="contradicts itself"):
        made_cells(model, each="fine")
    with pytest.raises(ConfigError, match=r"words of organ, coarse"):
        made_cells(model, each="sex")


def test_given_genes_are_there_and_never_said_again(model):
    symbols = model.vocab.symbols
    adata = made_cells(model, genes={symbols[4]: 9, symbols[7]: 0})
    bins = adata.layers["scfm_bins"].toarray()
    assert (bins[:, 4] == 9).all()
    assert (bins[:, 7] == 0).all()


def test_cells_do_not_hang_on_their_number_or_the_budget(model):
    """The first of many are the same as the few, one at a time, and in chunks."""
    few = made_cells(model, n_cells=4).X.toarray()
    many = made_cells(model, n_cells=12, max_tokens=1).X.toarray()
    np.testing.assert_array_equal(many[:4], few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scfm.tasks.generation.CHUNK_CELLS", 5)
        seen = []
        chunked = made_cells(model, on_progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(chunked.X.toarray(), many)
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert (made_cells(model, seed=4).X.toarray() != many).any()


def test_end_weight_makes_cells_longer(model):
    """At the ends: never unless all is said; cut cells are flagged."""
    never = made_cells(model, end_weight=1e-12)
    assert not never.obs["scfm_ended"].any(), "13 words of 20 genes: cut before the end"
    with pytest.warns(ScfmWarning, match="12 of 12 generated cells express no gene"):
        at_once = made_cells(model, end_weight=1e12)
    assert at_once.obs["scfm_ended"].all()
    assert at_once.X.nnz == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": {"fine": "B cells"}}, "nearest are 'B cell', 'T cell'"),
        ({"prompt": {"tissue": "Blood"}}, "no words of 'tissue'"),
        ({"prompt": {"organ": ["Blood", "Heart"]}}, "contradicts itself: organ"),
        ({"genes": {"A1BG": 11}}, "bin 11; wanted a whole number from 0"),
        ({"genes": {"A1BGG": 3}}, "nearest are A1BG"),
        ({"n_cells": 0}, "there must be one"),
        ({"values": "log"}, "known are normalised, counts"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"top_p": 2.0}, "top_p must be in"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_what_cannot_be_asked_for(model, options, message):
    with pytest.raises(ConfigError, match=message):
        made_cells(model, **options)


def test_models_that_do_not_speak():
    with pytest.raises(ModelError, match="this one is of family scfm"):
        generate(toy_model(), PROMPT)


def test_no_cells_without_a_prompt(model):
    with pytest.raises(ConfigError, match="0 prompts"):
        generate_cells(model, [], {}, 3, GenerateConfig())


def test_on_the_command_line(model, tmp_path, capsys):
    import anndata as ad

    save_model(model, tmp_path / "model")
    out = tmp_path / "gen.h5ad"
    arguments = ["generate", "--model", str(tmp_path / "model"), "--set", "organ=Blood"]
    arguments += ["--each", "fine", "-n", "4", "--out", str(out), "--as", "counts"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--gene", f"{model.vocab.symbols[2]}=5", "--json"])
    said = capsys.readouterr()
    assert done.value.code == 0, said.err
    adata = ad.read_h5ad(out)
    assert adata.shape == (12, 20)
    assert adata.uns["scfm"]["generate"]["prompt"]["organ"] == "Blood"
    assert '"cells": 12' in said.out
    for wrong, message in (
        (["--set", "organ"], "wanted NAME=VALUE"),
        (["--set", "organ=Heart"], "contradicts itself: organ"),
        (["--gene", "A1BG=high"], "wanted a bin"),
        (["--gene", "A1BG=1", "--gene", "A1BG=2"], "contradicts itself: A1BG"),
    ):
        with pytest.raises(SystemExit) as done:
            main([*arguments, *wrong])
        assert done.value.code == 2
        assert message in capsys.readouterr().err
