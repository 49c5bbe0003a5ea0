"""Configs: the shipped ones are complete and right, unknown keys are named, nothing is lost."""

import dataclasses

import pytest
import yaml

from scfm.config import find_config, load_config, shipped_configs, to_mapping, to_yaml
from scfm.errors import ConfigError
from scfm.tasks.pretrain_run import PretrainRun, load_run
from scfm.tasks.tfbinding_run import load_binding_run

NAMES = [
    *("scfm-100m", "scfm-10m", "scfm-3m", "scfm-400m", "scfm-tiny"),
    *("scfoundation-100m", "scfoundation-10m", "scfoundation-3m", "scfoundation-tiny"),
    *("scmulan-368m", "scmulan-50m", "scmulan-tiny"),
]
BINDING = ["tfbinding-scfan", "tfbinding-seqacc"]


def test_shipped_configs_are_there():
    assert list(shipped_configs()) == NAMES + BINDING


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_spells_out_every_key(name):
    """One YAML is one whole run: no default hides in the code."""
    written = yaml.safe_load(find_config(name).read_text())
    run = load_run(name)
    assert to_mapping(run) == {**written, "data": []}


@pytest.mark.parametrize("name", BINDING)
def test_shipped_binding_config_spells_out_every_key(name):
    written = yaml.safe_load(find_config(name).read_text())
    assert to_mapping(load_binding_run(name)) == written


def test_yaml_round_trip(tmp_path):
    run = dataclasses.replace(PretrainRun(), seed=7, data=("a.h5ad",))
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    assert load_config(PretrainRun, str(tmp_path / "run.yaml")) == run


@pytest.mark.parametrize(
    ("override", "value"),
    [("optim.lr=3e-4", 3e-4), ("train.steps=7", 7), ("input.layer=counts", "counts")],
)
def test_overrides_are_typed(override, value):
    run = load_config(PretrainRun, "scfm-tiny", [override])
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(run, section), key) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {learning_rate: 1}", r"unknown key 'optim\.learning_rate'"),
        ("optm: {lr: 1}", r"Did you mean 'optim'"),
        ("train: {steps: many}", r"train\.steps"),
        ("- a", "must hold 'key: value' lines"),
        ("a: [", "not readable YAML"),
        ("loader: {held_out_share: 1.5}", r"loader\.held_out_share must be in \[0, 1\)"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainRun, str(tmp_path / "run.yaml"))


def test_override_of_a_value_as_if_a_section():
    with pytest.raises(ConfigError, match="'seed' is a value, not a section"):
        load_config(PretrainRun, "scfm-tiny", ["seed.x=1"])


def test_missing_file():
    with pytest.raises(ConfigError, match=r"There is no config file nowhere\.yaml"):
        load_config(PretrainRun, "nowhere.yaml")


@pytest.mark.parametrize(
    "override",
    [
        *("train.devices=true", "train.steps=false", "optim.lr=true", "seed=true"),
        *("loader.batch_tokens=true", "loader.weights={T: true}", "checkpoints.keep_last=true"),
    ],
)
def test_a_truth_value_is_no_number(override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key} takes no truth value, got .*(True|False)"):
        load_config(PretrainRun, "scfm-tiny", [override])


def test_what_looks_like_another_kind_still_passes():
    overrides = ["train.devices=auto", "train.compile=true", "optim.lr=1", "data=[a.h5ad]"]
    more = ["optim.weight_decay=1e-2", "loader.balance=cell_type", "loader.weights={T: 2}"]
    run = load_config(PretrainRun, "scfm-tiny", [*overrides, *more, "loader.batch_tokens=null"])
    assert (run.train.devices, run.train.compile) == ("auto", True)
    assert (run.optim.lr, run.optim.weight_decay) == (1.0, 0.01)
    assert run.loader.weights == {"T": 2.0}
    assert run.data == ("a.h5ad",)
