"""The README.md of a converted scFoundation model: whose weights these are, and how to use them.

in   provenance of the conversion
out  Markdown
"""

from collections.abc import Mapping
from typing import Any

LICENCE = (
    "The weights are those published by the authors of scFoundation, for non-commercial use only; "
    "converting them changes nothing of that. Their terms, in the repository named below, apply "
    "to this folder and to what is made from it."
)
SOURCES = (
    "Hao et al. 2024, Large-scale foundation model on single-cell transcriptomics, Nature Methods, "
    "doi:10.1038/s41592-024-02305-7",
    "https://github.com/biomap-research/scFoundation",
)
KEYS = {
    "cell": "for cell embeddings",
    "rde": "for read-depth enhancement, and embeddings at a target depth",
    "gene": "for context embeddings of genes",
}
TEXT = """\
---
license: other
license_name: scfoundation-non-commercial
library_name: scfm
---

# scFoundation, checkpoint "{key}"

## Licence

{licence}

## Where it is from

- file `{file}`, key `{key}` ({use}), sha256 `{sha256}`
{sources}

Converted by {made_by}: the same numbers under other names; provenance.json holds the file's own
config. Nothing in this folder is code.

## What goes in

Raw counts over 19,264 human genes, matched by name; a missing gene counts as not expressed. They
are normalised to log1p of counts per 10,000. Two more tokens tell of depth, both as log10 of a
total count over these genes: S is the total of the cell as it is given, T that of the cell wanted.
T = S asks for the cell as it is, T > S for the cell as it would be if sequenced deeper. T is given
as `t4` (10,000 counts, the default), `f2` (twice the cell's own total) or `a1` (ten times).

## How to use it

```
scfm embed cells.h5ad --model MODEL --out embedded.h5ad --pooling all --target-depth t4
scfm denoise cells.h5ad --model MODEL --out denoised.h5ad --target-depth t4
```

`all` is S, T, maximum and mean over genes side by side; `max` one vector of the model's width.
"""


def model_card(provenance: Mapping[str, Any]) -> str:
    """The card of a model that `scfm.model.convert.scfoundation` made."""
    origin = provenance["converted_from"]
    return TEXT.format(
        licence=provenance["licence"],
        use=KEYS.get(origin["key"], "of its own kind"),
        sources="\n".join(f"- {source}" for source in provenance["sources"]),
        made_by=provenance["made_by"],
        **origin,
    )
