"""What lies in launch/ parses, and decides where a run happens, never what it computes."""

import json
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
import yaml

from scfm.cli.app import app
from scfm.config import load_config
from scfm.tasks.pretrain_run import MACHINE_KEYS, PretrainRun
from scfm.train.strategy import read_machine_settings

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
GUIDES = [LAUNCH / "README.md", LAUNCH.parent / "docs" / "clusters.md"]
SCRIPTS = [LAUNCH / name for name in ("torchrun.sh", "torchrun_nodes.sh", "slurm.sbatch")]
MANIFEST = LAUNCH / "jobset.yaml"
SETTINGS = sorted((LAUNCH / "deepspeed").glob("*.json"))
# DeepSpeed's own names for what belongs to a run's config
OF_THE_RUN = {
    *("optimizer", "scheduler", "gradient_clipping", "train_batch_size", "seed", "dataloader_drop"),
    *("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "prescale_gradients"),
    *("fp16", "bf16", "amp", "torch_autocast", "data_types", "communication_data_type", "stage"),
    *("gradient_predivide_factor", "compression_training", "curriculum_learning", "lr"),
}


def keys_of(value: object) -> set[str]:
    """Of an object in JSON and of all within it."""
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(keys_of, value.values()))


def test_nothing_else_lies_there():
    """So no file goes without the checks below."""
    here = {path for path in LAUNCH.rglob("*") if path.is_file()}
    assert here == {*SCRIPTS, MANIFEST, *SETTINGS, LAUNCH / "README.md"}
    assert [path.stem for path in SETTINGS] == [
        *("zero1", "zero2", "zero2_offload", "zero3", "zero3_nvme", "zero3_offload")
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_explain_themselves(path):
    subprocess.run(["bash", "-n", path], check=True)
    asked = subprocess.run(["bash", path], capture_output=True, text=True)
    assert asked.returncode == 2
    assert f"launch/{path.name} " in asked.stderr
    assert asked.stdout == ""


@pytest.mark.parametrize("path", [*SCRIPTS, MANIFEST], ids=lambda p: p.name)
def test_scripts_set_machine_keys_only(path):
    """In comments, which are examples of use, too."""
    text = path.read_text()
    found = re.findall(r"--set[ =]\"?([\w.]+)=", text)
    assert set(found) <= set(MACHINE_KEYS)
    assert len(found) == text.count("--set")


def test_machine_keys_are_keys_of_a_run():
    sections = {f.name: getattr(PretrainRun(), f.name) for f in fields(PretrainRun)}
    for key in MACHINE_KEYS:
        section, _, name = key.partition(".")
        assert hasattr(sections[section], name), key


@pytest.mark.parametrize("path", SETTINGS, ids=lambda p: p.name)
def test_deepspeed_settings_are_machine_settings(path):
    assert read_machine_settings(path) == json.loads(path.read_text())
    assert not keys_of(json.loads(path.read_text())) & OF_THE_RUN


def test_manifest_starts_one_torchrun_a_machine():
    (jobset,) = yaml.safe_load_all(MANIFEST.read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    machines, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(a[2:].split("=", 1) for a in container["args"] if "=" in a and "set" not in a)
    assert machines["parallelism"] == machines["completions"] == int(options["nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options["nproc-per-node"])
    name = jobset["metadata"]["name"]
    first = f"{name}-{job['name']}-0-0.{name}"  # JobSet's name of the first pod
    assert options["rdzv-endpoint"] == f"{first}:{container['ports'][0]['containerPort']}"
    assert "--resume" in container["args"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    to_stop = {e["name"]: e["value"] for e in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert pod["terminationGracePeriodSeconds"] > int(to_stop)


def commands() -> list[list[str]]:
    """What the guides tell a reader to type, without what starts it."""
    found = []
    for path in GUIDES:
        text = path.read_text()
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
        inline = re.findall(r"`([^`\n]+)`", text)
        lines = [line for block in blocks for line in block.splitlines()] + inline
        found += [shlex.split(line) for line in lines if line.count(" ") > 1]
    return [words for words in found if words[0] in ("scfm", "torchrun") and "..." not in words]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_in_the_guides_are_understood(words):
    _, _, arguments = " ".join(words).partition("pretrain ")
    command = typer.main.get_command(app).commands["pretrain"]  # pyright: ignore
    values = command.make_context("pretrain", shlex.split(arguments)).params
    run = load_config(PretrainRun, values["config"] or "scfm-tiny", values["set_"] or [])
    assert run.train.deepspeed is None or (LAUNCH.parent / run.train.deepspeed).is_file()


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.name)
def test_files_named_in_the_guides_are_there(path):
    named = re.findall(r"launch/([\w./]+\w)", path.read_text())
    assert named
    for name in named:
        assert (LAUNCH / name).exists(), name


def test_machine_keys_in_the_guide_are_all():
    guide = GUIDES[1].read_text()
    for key in MACHINE_KEYS:
        section, _, name = key.partition(".")
        assert f"`{name}`" in guide or f"`{key}`" in guide or f"`{section}.*`" in guide, key
