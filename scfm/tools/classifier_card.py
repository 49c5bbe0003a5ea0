"""The README.md of a fine-tuned model: what it says, how well, of whom it learned.

in   a CelltypeFinetuning
out  Markdown, which a hub shows
"""

from typing import Any

from scfm.evaluate.wording import score, span
from scfm.model.base import CellModel
from scfm.tasks.celltype import CelltypeConfig
from scfm.tools.celltype_result import CelltypeFinetuning

FEATURES = {
    "both": (
        "the cell's vector ({pooling}) plus a weight for each gene's value, which passes by the "
        "encoder: a plain linear model of the profile has its say beside the model's"
    ),
    "embedding": "the cell's vector ({pooling}) alone",
    "genes": "the genes' values alone; no encoder has a part in it",
}
TEXT = """\
---
library_name: scfm
tags: [single-cell, cell-type-annotation]
---

# A classifier of {n_labels} cell types

{verdict}

## How to use it

```
scfm annotate cells.h5ad --model MODEL --out annotated.h5ad
scfm embed cells.h5ad --model MODEL --out embedded.h5ad
```

Raw counts go in. Out come obs["scfm_cell_type"], "unknown" where the calibrated confidence is below
{threshold:.3f}, obs["scfm_confidence"] and obs["scfm_runner_up"].

## Scores on held-out cells

{scores}

{calibration}

## Types

{types}

## How it was made

- from a model of family {family}, weights sha256 `{base}`
- by {method}; a linear layer on {features}
- {split}
{notes}
- rare types: {balance}
- {stopped}

Everything else stands in provenance.json: settings, the split with the names of its groups, hashes.
Nothing in this folder is code.
"""


def method_in_words(config: CelltypeConfig) -> str:
    """The method for a reader."""
    words = {
        "probe": "linear probe",
        "partial": f"last {config.last_blocks} block{'s' if config.last_blocks > 1 else ''}",
        "lora": f"LoRA of rank {config.lora.rank}",
        "full": "full fine-tuning",
    }[config.method]
    return words if config.integrate == "none" else f"{words}, batches brought together"


def classifier_card(model: CellModel, found: CelltypeFinetuning) -> str:
    """The card of a model about to be saved."""
    assert model.classifier is not None
    spec, made = model.classifier.spec, model.provenance["finetuned"]
    settings = made["settings"]
    base = made["base"]["weights_sha256"]
    return TEXT.format(
        n_labels=len(spec.labels),
        verdict=found.verdict,
        threshold=found.calibration.threshold,
        scores=_scores(found),
        calibration=f"Calibration, on the validation cells: {found.calibration}.",
        types="\n".join(_type(label, spec.terms) for label in spec.labels),
        family=model.config.model_type,
        base=base[:12] or "never saved",
        method=settings["method"],
        features=FEATURES[spec.features].format(pooling=spec.pooling),
        split=_split(made["split"]),
        notes="\n".join(f"- {note}" for note in made["split"]["notes"])
        or "- of the split nothing else is to be said",
        balance=settings["balance"],
        stopped=f"the weights are those of step {found.fitted.best_step:,}"
        + (", the probe's" if found.fitted.best_step == 0 else ", of least validation loss"),
    )


def _type(label: str, terms: Any) -> str:
    return f"- {label}" + (f" ({terms[label]})" if label in terms else "")


def _split(split: dict[str, Any]) -> str:
    sizes = f"{split['n_training']:,} cells trained, {split['n_validation']:,} stopped the training"
    sizes += f" and set the calibration, {split['n_judged']:,} were judged"
    if split["by"] is None:
        return f"{sizes}; held out at random, which is optimistic about new donors"
    return f"{sizes}; no '{split['by']}' is on two sides"


def _scores(found: CelltypeFinetuning) -> str:
    if found.evaluation is None:
        return "None were held out to be judged."
    lines = ["| method | macro-F1 (95 % interval) | balanced accuracy |", "|---|---|---|"]
    lines += [
        f"| {m.name} | {score(m.macro_f1.value)} ({span(m.macro_f1)}) | "
        f"{score(m.balanced_accuracy.value)} |"
        for m in found.evaluation.methods
    ]
    return "\n".join(lines)
