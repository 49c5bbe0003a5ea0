"""Shipped presets have the parameters their headers state, and about as many as they are called."""

import re

import pytest

from scfm.config import find_config
from scfm.model.dna import BindingModel
from scfm.tasks.pretrain_run import load_run
from scfm.tasks.tfbinding_run import load_binding_run
from scfm.tools.plan import PlanRequest, make_plan
from scfm.tools.plan_states import count_parameters, weightless

NAMES = [
    *("scfm-tiny", "scfm-3m", "scfm-10m", "scfm-100m", "scfm-400m"),
    *("scfoundation-tiny", "scfoundation-3m", "scfoundation-10m", "scfoundation-100m"),
    *("scmulan-tiny", "scmulan-50m", "scmulan-368m"),
]


def stated(name):
    found = re.search(r"^# parameters: ([\d,]+)$", find_config(name).read_text(), re.MULTILINE)
    assert found is not None, f"{name} states no '# parameters: ' in its header"
    return int(found.group(1).replace(",", ""))


@pytest.mark.parametrize("name", NAMES)
def test_header_states_the_parameters(name):
    assert count_parameters(weightless(load_run(name))).total == stated(name)


@pytest.mark.parametrize("name", ["tfbinding-seqacc", "tfbinding-scfan"])
def test_header_states_the_parameters_of_a_binding_model(name):
    """With the 33 TFs of the published GM12878 model."""
    model = BindingModel(load_binding_run(name).model, tuple(map(str, range(33))))
    assert sum(p.numel() for p in model.parameters()) == stated(name)


# scfoundation-10m is called as its paper calls it, without the embedding of gene positions
@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith(("tiny", "foundation-10m"))])
def test_name_is_about_right(name):
    millions = int(name.partition("-")[2].removesuffix("m"))
    assert 0.75 <= stated(name) / (1e6 * millions) <= 1.25


@pytest.mark.parametrize(
    ("name", "gpus"), [("scfm-3m", 1), ("scfm-10m", 1), ("scfm-100m", 8), ("scfm-400m", 8)]
)
def test_preset_fits_its_machine(name, gpus):
    """With the longest cells its tokens allow, on devices of 80 GB."""
    run = load_run(name)
    ask = PlanRequest(cells=1e6, gpus=gpus, genes_per_cell=float(run.tokens.max_genes))
    assert make_plan(run, ask).fits
