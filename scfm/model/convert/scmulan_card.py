"""The README.md of a converted scMulan model: whose weights these are, and how to use them.

in   provenance of the conversion
out  Markdown
"""

from collections.abc import Mapping
from typing import Any

LICENCE = (
    "The weights are those published by the authors of scMulan; their code is under the MIT "
    "licence, and the repository named below says on what terms the weights may be used. "
    "Converting them changes nothing of that."
)
SOURCES = (
    "Bian et al. 2024, scMulan: a multitask generative pre-trained language model for single-cell "
    "analysis, RECOMB 2024, doi:10.1101/2024.01.25.577152",
    "https://github.com/SuperBianC/scMulan",
)
TEXT = """\
---
license: other
license_name: as-published
library_name: scfm
---

# scMulan

## Licence

{licence}

## Where it is from

- file `{file}`, sha256 `{sha256}`
{sources}

Converted by {made_by}: the same numbers under other names; provenance.json holds the file's own
settings. Nothing in this folder is code.

## What goes in

Raw counts of human genes, matched by name; of its vocabulary a missing gene counts as not
expressed. A cell is a sentence: its expressed genes, each with a bin of log1p counts per 10,000
(1 to {n_bins}, the cell's largest value in the last), then a word that asks for something. Words
of organ, cell type, age, sex and others can be asked for, or told.

## How to use it

```
scfm annotate cells.h5ad --model MODEL --out annotated.h5ad
scfm embed    cells.h5ad --model MODEL --out embedded.h5ad
scfm generate --model MODEL --set organ=Heart --set cell_type="Fibroblast" -n 500 --out gen.h5ad
```
"""


def model_card(provenance: Mapping[str, Any]) -> str:
    """The card of a model that `scfm.model.convert.scmulan` made."""
    return TEXT.format(
        licence=provenance["licence"],
        sources="\n".join(f"- {source}" for source in provenance["sources"]),
        made_by=provenance["made_by"],
        n_bins=provenance["config"]["expression_level"],
        **provenance["converted_from"],
    )
