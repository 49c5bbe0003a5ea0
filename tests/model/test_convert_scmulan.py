"""scMulan's published file: what is refused, in which words, and what the folder says of itself."""

import json

import pytest
import torch

from scfm.cli.app import main
from scfm.errors import MissingFileError, ModelError, OutputError, UnreadableFileError
from scfm.model.config import ScmulanSizes
from scfm.model.convert.scmulan import convert, load_published, places, read_vocab
from scfm.model.families import load_model
from scfm.tokens.vocab import GeneVocab
from scfm.tools.info import describe, in_words
from tests.parity.plain_scmulan import Shape, random_weights, settings_of, write_published
from tests.toys import scmulan_vocab

SHAPE = Shape()


@pytest.fixture
def weights():
    return random_weights(SHAPE)


@pytest.fixture
def published(tmp_path, weights):
    return write_published(tmp_path / "ckpt_scMulan.pt", SHAPE, weights)


def changed(path, settings=(), weights=(), lacking=()):
    """The file with other settings and weights, and without some."""
    found = torch.load(path, weights_only=True)
    found["model_args"] |= dict(settings)
    found["model"] |= dict(weights)
    for name in lacking:
        del (found["model"] if name in found["model"] else found["model_args"])[name]
    torch.save(found, path)
    return path


@pytest.mark.parametrize("bias", [False, True])
def test_every_tensor_has_a_place(bias):
    named = places(ScmulanSizes(d_model=16, n_layers=2, n_heads=4, bias=bias)).values()
    assert len(named) == len(set(named))
    assert set(named) == set(random_weights(Shape(bias=bias)))


def test_folder_is_whole_and_says_whose_it_is(published, tmp_path, weights):
    folder = convert(published, tmp_path / "out")
    model = load_model(folder)
    assert model.vocab == GeneVocab.scmulan()
    assert model.types == ("cell_type", "cell_type")
    assert model.config.max_genes == 1550
    assert model.config.sizes == ScmulanSizes(d_model=16, n_layers=2, n_heads=4)
    for ours, theirs in places(model.config.sizes).items():
        assert torch.equal(model.state_dict()[ours], weights[theirs])
    assert model.provenance["config"] == settings_of(SHAPE)
    origin = model.provenance["converted_from"]
    card = (folder / "README.md").read_text()
    for said in ("MIT", "10.1101/2024.01.25.577152", origin["sha256"], "scfm annotate"):
        assert said in card
    words = in_words(describe(folder))
    assert f"scmulan model, {sum(w.numel() for w in weights.values()):,} parameters" in words
    assert "ckpt_scMulan.pt, sha256" in words
    assert "MIT" in words


def test_nothing_is_drawn(published):
    before = torch.get_rng_state()
    load_published(published)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vocab_size": 2221}, "vocab_size is 2,221, its weights say 2,222"),
        ({"n_embd": 32}, "n_embd is 32, its weights say 16"),
        ({"n_layer": 3}, "n_layer is 3, its weights say 2"),
        ({"n_layer": 10**9}, "n_layer is 1,000,000,000"),
        ({"n_layer": 0}, "n_layer is below 1"),
        ({"n_head": 3}, "must divide"),
        ({"n_head": "4"}, "n_head is '4'"),
        ({"expression_level": 9}, "expression_level is 9, its weights say 10"),
        ({"ele": 2}, "'ele' is 2; wanted 1"),
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": None}, "dropout"),
        ({"block_size": -1}, "block_size is below 1"),
        ({"more": {1, 2}}, "more than names and numbers"),
    ],
)
def test_settings_that_do_not_fit(published, tmp_path, settings, said):
    with pytest.raises(ModelError, match=said) as refused:
        convert(changed(published, settings), tmp_path / "out")
    assert str(published) in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"transformer.wpe.weight": torch.zeros(4, 16)}, "transformer.wpe.weight"),
        (
            {"transformer.h.0.attn.c_attn.weight": torch.zeros(16, 48)},
            r"c_attn.weight is \(16, 48\)",
        ),
        ({"lm_head.weight": torch.full((2222, 16), torch.nan)}, "NaN or infinite"),
        ({"lm_head.weight": torch.zeros(2222, 16).long()}, "of int64"),
        ({"transformer.wte.weight": torch.zeros(16)}, "a matrix"),
        # one bias of many: the others are then named as lacking
        (
            {"transformer.ln_f.bias": torch.zeros(16)},
            "lacks the weight 'transformer.h.0.ln_1.bias'",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(published, other, said):
    with pytest.raises(ModelError, match=said):
        load_published(changed(published, weights=other))


@pytest.mark.parametrize("name", ["epx_head.weight", "transformer.wee.weight", "n_head"])
def test_what_is_lacking_is_named(published, name):
    with pytest.raises(ModelError, match=name):
        load_published(changed(published, lacking=[name]))


def test_foreign_files(tmp_path):
    path = tmp_path / "other.pt"
    with pytest.raises(MissingFileError, match="There is no file"):
        load_published(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelError, match="wanted 'model' and 'model_args', found state_dict"):
        load_published(path)
    torch.save({"model": {"a": "b"}, "model_args": {}}, path)
    with pytest.raises(ModelError, match="'a' is a str"):
        load_published(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableFileError, match="Download"):
        load_published(path)


def test_an_existing_folder_is_left_alone(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError, match="exists already"):
        convert(published, tmp_path / "out")


def vocab_json(path, vocab, **other):
    found = {
        "tokens": list(vocab.tokens),
        "genes": list(vocab.symbols),
        "cell_types": ["Immune", "Muscle", "T cell", "B cell"],
    }
    path.write_text(json.dumps({**found, **other}))
    return path


def test_a_vocabulary_of_another_model_is_refused(published, tmp_path):
    path = vocab_json(tmp_path / "vocab.json", scmulan_vocab())
    with pytest.raises(ModelError, match=r"2,222 words, the vocabulary has 60.*--vocab"):
        convert(published, tmp_path / "out", path)


def test_weights_of_another_vocabulary(tmp_path):
    shape = Shape(n_words=60)
    published = write_published(tmp_path / "ckpt.pt", shape, random_weights(shape))
    with pytest.raises(ModelError, match=r"60 words, the vocabulary has 2,222.*--vocab"):
        load_published(published)
    path = vocab_json(tmp_path / "vocab.json", scmulan_vocab())
    model = load_model(convert(published, tmp_path / "out", path))
    assert model.vocab.tokens == scmulan_vocab().tokens
    assert [model.vocab.tokens[i] for i in model.type_ids(1)] == [
        *("Immune", "Muscle", "T cell", "B cell")
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"genes": ["A2M"]}, "tokens that begin with <E>"),
        ({"tokens": ["A2M"], "genes": []}, "tokens that begin with <E>"),
        ({"cell_types": ["Neuron"]}, "cell types among them"),
        ({"genes": "A2M"}, "lacks 'genes', a list"),
        ({"tokens": ["<E>", "A"], "genes": ["A"], "cell_types": []}, "task words <PCT>"),
    ],
)
def test_what_is_no_vocabulary(tmp_path, other, said):
    with pytest.raises(ModelError, match=said):
        read_vocab(vocab_json(tmp_path / "vocab.json", scmulan_vocab(), **other))


def test_files_that_are_no_vocabulary(tmp_path):
    with pytest.raises(MissingFileError, match="--vocab"):
        read_vocab(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON"):
        read_vocab(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ModelError, match="lacks 'tokens'"):
        read_vocab(tmp_path / "list.json")


def test_command(published, tmp_path, capsys):
    arguments = ["convert", "scmulan", str(published), "--out", str(tmp_path / "out")]
    for original, option in (("scmulan", "--key"), ("scfoundation", "--vocab")):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", original, *arguments[2:], option, "x"])
        assert stopped.value.code == 2
        assert f"takes no {option}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--json"])
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"model": str(tmp_path / "out")}
    assert "licence" in said.err
    assert load_model(tmp_path / "out").vocab == GeneVocab.scmulan()
