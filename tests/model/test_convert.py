"""Published files: what is refused, in which words, and what a converted folder says of itself."""

import json
import pickle
import sys

import pytest
import torch

from scfm.cli.app import main
from scfm.errors import ConfigError, MissingFileError, ModelError, OutputError, UnreadableFileError
from scfm.model.base import save_model
from scfm.model.convert import scfoundation
from scfm.model.convert.published import read_checkpoint
from scfm.model.convert.scfoundation import convert, load_published
from scfm.model.convert.scfoundation_layout import UNUSED, places
from scfm.model.families import load_model
from scfm.tools.info import describe, in_words
from tests.parity.plain_scfoundation import Shape, random_weights, write_published
from tests.toys import masked_cells, scfoundation_vocab

SHAPE = Shape(n_genes=50)
PREFIX = "model.decoder.performer.net.layers.1.0.fn"


@pytest.fixture
def weights():
    return random_weights(SHAPE)


@pytest.fixture
def published(tmp_path, weights):
    return write_published(tmp_path / "models.ckpt", SHAPE, cell=weights, rde=weights)


@pytest.fixture
def toy_genes(monkeypatch):
    """Files of these tests have 50 genes."""
    vocab = scfoundation_vocab(SHAPE.n_genes)
    monkeypatch.setattr(scfoundation.GeneVocab, "scfoundation", lambda: vocab)
    return vocab


def test_every_tensor_has_a_place(weights):
    model = load_sizes()
    named = [name for theirs in places(model).values() for name in theirs]
    assert len(named) == len(set(named))
    assert set(named) | UNUSED == set(weights)


def load_sizes():
    from scfm.model.config import ScfoundationSizes

    return ScfoundationSizes(
        **{"d_model": 16, "n_layers": 2, "n_heads": 4, "n_bins": 10},
        **{"d_decoder": 8, "n_decoder_layers": 2, "n_decoder_heads": 2, "d_head": 4},
    )


def test_folder_is_whole_and_says_whose_it_is(published, toy_genes, tmp_path, rng):
    folder = convert(published, "cell", tmp_path / "out")
    model, direct = load_model(folder), load_published(published, "cell")
    cells = masked_cells(rng, [14, 30])
    with torch.no_grad():
        one, other = (m.predict(cells, m(cells)) for m in (model, direct))
    torch.testing.assert_close(one, other)
    for name, weight in direct.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    origin = model.provenance["converted_from"]
    assert origin["file"] == "models.ckpt"
    assert origin["key"] == "cell"
    assert model.provenance["config"]["model"] == "mae_autobin"
    card = (folder / "README.md").read_text()
    for said in ("non-commercial", "10.1038/s41592-024-02305-7", origin["sha256"], '"cell"', "t4"):
        assert said in card
    assert model.config.max_genes == 15_000
    assert model.config.sizes.n_features == 5


def test_info_shows_licence_and_source(published, toy_genes, tmp_path):
    said = in_words(describe(convert(published, "rde", tmp_path / "out")))
    assert "scfoundation model" in said
    assert "decoder width 8, 2 layers, 2 heads of 4" in said
    assert "models.ckpt, key rde, sha256" in said
    assert "non-commercial" in said
    assert "steps" not in said


def test_a_saved_again_model_keeps_its_licence(published, toy_genes, tmp_path):
    model = load_published(published, "cell")
    save_model(model, tmp_path / "again")
    assert (
        "non-commercial"
        in json.loads((tmp_path / "again" / "provenance.json").read_text())["licence"]
    )


def test_no_such_file(tmp_path):
    with pytest.raises(MissingFileError, match="There is no file"):
        read_checkpoint(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_file(published, kept):
    whole = published.read_bytes()
    published.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    with pytest.raises(UnreadableFileError, match="Download"):
        read_checkpoint(published)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint", b"PK\x03\x04 nor a zip", b"\x80\x02}q\x00."]
)
def test_foreign_file(tmp_path, content):
    path = tmp_path / "models.ckpt"
    path.write_bytes(content)
    with pytest.raises((UnreadableFileError, ModelError)):
        load_published(path, "cell")


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("code from the file was run",))


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_the_file_is_not_run(tmp_path, legacy):
    path = tmp_path / "models.ckpt"
    torch.save({"cell": Bomb()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnreadableFileError, match="Nothing of it was run"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"cell": Bomb()}))
    with pytest.raises(UnreadableFileError):
        read_checkpoint(path)


def test_legacy_format_is_read(published, toy_genes, tmp_path):
    """As torch before 1.6 wrote it, which cannot be mapped."""
    content = torch.load(published, weights_only=True)
    old = tmp_path / "old.ckpt"
    torch.save(content, old, _use_new_zipfile_serialization=False)
    one, other = load_published(published, "cell"), load_published(old, "cell")
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


@pytest.mark.parametrize("key", [None, "gene"])
def test_missing_key_names_those_there_are(published, key):
    with pytest.raises(ConfigError, match=r"cell, rde.*Add --key cell"):
        load_published(published, key)


def changed(published, edit):
    content = torch.load(published, weights_only=True)
    edit(content["cell"])
    torch.save(content, published)
    return published


def set_in(config, path, value):
    *parents, last = path.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


NETWORK = "config.model_config.mae_autobin"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("config.model", "gpt", "'gpt'; wanted 'mae_autobin'"),
        ("config.model_config", {}, "lacks model_config.mae_autobin"),
        (f"{NETWORK}.encoder.norm_first", True, r"encoder\.module_type and norm_first"),
        (f"{NETWORK}.decoder.module_type", "flash", r"decoder\.module_type and norm_first"),
        (f"{NETWORK}.encoder.heads", 3, "must divide"),
        (f"{NETWORK}.encoder.depth", 3, r"lacks.*transformer_encoder\.2\.self_attn"),
        (f"{NETWORK}.encoder.depth", 1, r"published has not: .*transformer_encoder\.1\."),
        (f"{NETWORK}.bin_num", 11, r"token_emb\.emb\.weight is \(10, 16\)"),
        (f"{NETWORK}.decoder.dim_head", 5, r"projection_matrix is \(5, 4\)"),
    ],
)
def test_config_that_does_not_fit(published, toy_genes, path, value, said):
    changed(published, lambda entry: set_in(entry, path, value))
    with pytest.raises(ModelError, match=said):
        load_published(published, "cell")


@pytest.mark.parametrize(
    ("name", "weight", "said"),
    [
        ("model.adapter.weight", torch.zeros(2), r"published has not: model\.adapter\.weight"),
        ("model.pos_emb.weight", None, r"lacks the weight 'model\.pos_emb\.weight'"),
        ("model.pos_emb.weight", torch.zeros(60, 16), r"pos_emb\.weight is \(60, 16\).*50 genes"),
        (f"{PREFIX}.to_k.weight", torch.zeros(8, 9), r"to_k\.weight.*do not fit together"),
        ("model.to_final.bias", torch.full((1,), torch.nan), "NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_named(published, toy_genes, tmp_path, name, weight, said):
    def edit(entry):
        entry["state_dict"].pop(name, None)
        if weight is not None:
            entry["state_dict"][name] = weight

    changed(published, edit)
    with pytest.raises(ModelError, match=said):
        convert(published, "cell", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_genes_are_wanted(published):
    """Without the tests' own gene list: the file's 50 genes are not the released 19,264."""
    with pytest.raises(ModelError, match=r"pos_emb\.weight is \(53, 16\).*19,264 genes"):
        load_published(published, "cell")


def test_existing_folder_is_left_alone(published, toy_genes, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        convert(published, "cell", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_command(published, toy_genes, tmp_path, capsys):
    arguments = ["convert", "scfoundation", str(published), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "no --key was given" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--key", "cell", "--json"])
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"model": str(tmp_path / "out")}
    assert "licence" in said.err
    assert load_model(tmp_path / "out").vocab == toy_genes
