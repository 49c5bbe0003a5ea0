"""Published files: what is refused, in which words, and what a converted folder says of itself."""

import json
import os
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
    assert all(w.requires_grad and not w.is_meta for w in direct.parameters())
    origin = model.provenance["converted_from"]
    assert origin["file"] == "models.ckpt"
    assert origin["key"] == "cell"
    assert model.provenance["config"]["model"] == "mae_autobin"
    card = (folder / "README.md").read_text()
    for said in ("non-commercial", "10.1038/s41592-024-02305-7", origin["sha256"], '"cell"', "t4"):
        assert said in card
    assert model.config.max_genes == 15_000
    assert model.config.sizes.n_features == 5


def test_nothing_is_drawn(published, toy_genes):
    before = torch.get_rng_state()
    load_published(published, "cell")
    assert torch.equal(torch.get_rng_state(), before)


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
    with pytest.raises(UnreadableFileError, match="Download") as refused:
        read_checkpoint(published)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value).replace(str(published), "")) < 200


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
        (f"{NETWORK}.encoder.depth", 50, r"encoder\.depth is 50, its weights say 2\..*Download"),
        (f"{NETWORK}.encoder.depth", 1, r"encoder\.depth is 1, its weights say 2"),
        (f"{NETWORK}.decoder.depth", 50, r"decoder\.depth is 50, its weights say 2"),
        (f"{NETWORK}.encoder.depth", 2.0, r"encoder\.depth is 2\.0; wanted a whole number"),
        (f"{NETWORK}.encoder.depth", None, r"encoder\.depth is absent"),
        (f"{NETWORK}.encoder.depth", 2**80, r"encoder\.depth is too large"),
        (f"{NETWORK}.encoder.heads", 0, r"encoder\.heads is below 1"),
        (f"{NETWORK}.encoder.hidden_dim", 800, r"encoder\.hidden_dim is 800, its weights say 16"),
        (f"{NETWORK}.decoder.hidden_dim", 80, r"decoder\.hidden_dim is 80, its weights say 8"),
        (f"{NETWORK}.decoder.heads", 5, r"decoder\.heads x dim_head is 20, its weights say 8"),
        (f"{NETWORK}.decoder.dim_head", 5, r"decoder\.dim_head is 5, its weights say 4"),
        (f"{NETWORK}.bin_num", 11, r"bin_num is 11, its weights say 10"),
        (f"{NETWORK}.bin_alpha", float("nan"), "config bin_alpha is nan; wanted a finite number"),
        (f"{NETWORK}.bin_alpha", "one", "config bin_alpha is a str; wanted a finite number"),
        ("config.note", torch.ones(1), "more than names, texts and numbers .*Download"),
        ("config.dataset_config.rnaseq.mae_encoder_max_seq_len", "x", "max_seq_len is 'x'; wanted"),
    ],
)
def test_config_that_does_not_fit(published, toy_genes, tmp_path, monkeypatch, path, value, said):
    """An untrusted number is never built by: it could ask for all memory."""
    changed(published, lambda entry: set_in(entry, path, value))
    monkeypatch.setattr(scfoundation, "ScfoundationModel", lambda *_: pytest.fail("built"))
    monkeypatch.setattr(scfoundation, "places", bounded(scfoundation.places))
    with pytest.raises(ModelError, match=said):
        convert(published, "cell", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [published]


def bounded(places):
    def checked(sizes):
        assert sizes.n_layers == sizes.n_decoder_layers == 2
        return places(sizes)

    return checked


@pytest.mark.parametrize(
    ("name", "weight", "said"),
    [
        # six numbers in the file, by whose width a network of 10^12 would be built
        (
            "model.token_emb.emb.weight",
            torch.zeros(6).as_strided((10, 10**6), (0, 0)),
            r"emb\.weight' is \(10, 1000000\), of which the file stores fewer",
        ),
        ("model.token_emb.emb.weight", torch.zeros(16), r"is \(16,\); wanted a matrix"),
        ("model.token_emb.emb.weight", torch.zeros(10, 16, 1), r"wanted a matrix"),
        ("model.norm.bias", torch.zeros(8, dtype=torch.int64), r"of int64; wanted floating"),
        ("model.norm.bias", torch.zeros(8).to_sparse(), "is no plain array"),
        ("model.norm.bias", torch.zeros(8, device="meta"), "is no plain array"),
        ("model.norm.bias", torch.full((8,), 1e300, dtype=torch.float64), "NaN or infinite"),
        ("model.encoder.norm.bias", None, r"lacks the weight 'model\.encoder\.norm\.bias'"),
        (f"{PREFIX}.to_q.bias", None, r"lacks the weight '.*layers\.1\.0\.fn\.to_q\.bias'"),
    ],
)
def test_no_network_is_built_for_what_is_no_weight(
    published, toy_genes, tmp_path, monkeypatch, name, weight, said
):
    monkeypatch.setattr(scfoundation, "ScfoundationModel", lambda *_: pytest.fail("built"))
    changed(published, lambda entry: replaced(entry, name, weight))
    with pytest.raises(ModelError, match=said):
        convert(published, "cell", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [published]


def replaced(entry, name, weight):
    entry["state_dict"].pop(name, None)
    if weight is not None:
        entry["state_dict"][name] = weight


def test_a_width_the_other_weights_lack_takes_no_memory(
    published, toy_genes, tmp_path, monkeypatch
):
    """Config and one tensor agree on a width; a network of it is of shapes alone until all do."""
    model_of = scfoundation.ScfoundationModel

    def built(*args):
        model = model_of(*args)
        assert all(w.is_meta for w in model.state_dict().values())
        return model

    def edit(entry):
        set_in(entry, f"{NETWORK}.encoder.hidden_dim", 800)
        replaced(entry, "model.token_emb.emb.weight", torch.zeros(10, 800))

    changed(published, edit)
    monkeypatch.setattr(scfoundation, "ScfoundationModel", built)
    with pytest.raises(ModelError, match=r"is \(.*16\); its config, .* want \(.*800\)"):
        convert(published, "cell", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [published]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda entry: entry.pop("config"), "its 'cell' lacks 'config'; wanted a 'config' and"),
        (lambda entry: entry.pop("state_dict"), "its 'cell' lacks 'state_dict'"),
        (lambda entry: entry.update(state_dict=[1]), "its 'cell' has a list as 'state_dict'"),
        (
            lambda entry: entry.update(
                state_dict={**entry["state_dict"], "model.norm.bias": [1.0]}  # rde keeps its own
            ),
            r"its 'cell' holds a list as weight 'model\.norm\.bias'",
        ),
    ],
)
def test_what_an_entry_lacks_is_said(published, edit, said):
    with pytest.raises(ModelError, match=said):
        load_published(changed(published, edit), "cell")
    with pytest.raises(ConfigError, match=r"several models, rde, and no --key"):
        load_published(published, None)
    load_published(published, "rde", scfoundation_vocab(SHAPE.n_genes))


def test_a_flipped_byte_is_refused_or_changes_nothing(published, weights):
    """Bytes all over the file: headers, numbers, padding and the table at the end."""
    whole = published.read_bytes()
    refused = []
    for at in range(0, len(whole), len(whole) // 60):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        published.write_bytes(damaged)
        try:
            found = read_checkpoint(published)["cell"]["state_dict"]
        except UnreadableFileError as error:
            refused.append(str(error))
        else:
            assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert len(refused) > 20
    assert all("again" in said and "\n" not in said for said in refused)


def test_a_damaged_part_is_named(published, toy_genes, tmp_path, weights):
    whole = published.read_bytes()
    at = whole.index(weights["model.pos_emb.weight"].numpy().tobytes()) + 100
    published.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UnreadableFileError, match=r"part 'models/data/\d+' is not what its check"):
        convert(published, "cell", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [published]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_has_the_usual_mode(published, toy_genes, tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = convert(published, "cell", tmp_path / "out")
        save_model(load_model(folder), tmp_path / "again")
    finally:
        os.umask(before)
    for saved in (folder, tmp_path / "again"):
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in saved.iterdir()}
        assert set(modes.values()) == {oct(0o666 & ~umask)}
        assert "model.safetensors" in modes


@pytest.mark.parametrize(
    ("name", "weight", "said"),
    [
        ("model.adapter.weight", torch.zeros(2), r"published has not: model\.adapter\.weight"),
        ("model.pos_emb.weight", None, r"lacks the weight 'model\.pos_emb\.weight'"),
        ("model.pos_emb.weight", torch.zeros(60, 16), r"pos_emb\.weight is \(60, 16\).*50 genes"),
        (f"{PREFIX}.to_k.weight", torch.zeros(8, 9), r"to_k\.weight.*do not fit together"),
        (
            *("model.to_final.bias", torch.full((1,), torch.nan)),
            r"models\.ckpt, key 'cell': weight 'model\.to_final\.bias' has NaN .* download it",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(published, toy_genes, tmp_path, name, weight, said):
    changed(published, lambda entry: replaced(entry, name, weight))
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


@pytest.mark.parametrize("place", ["/proc/x/m", "/proc/m", "/dev/full/m", "/dev/full"])
def test_a_place_where_no_folder_can_be(published, toy_genes, capsys, place, monkeypatch):
    monkeypatch.setattr(scfoundation, "load_published", lambda *_: pytest.fail("work was done"))
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "scfoundation", str(published), "--key", "cell", "--out", place])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert place in said
    assert "mkdir" not in said
    assert "Choose another --out" in said or "Name a new folder: --out" in said


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
