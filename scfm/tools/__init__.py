"""scfm.tl: what is done to an AnnData with a model, in scanpy's grammar.

Imported on first use: what only looks at files needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm.tools.annotation import annotate
    from scfm.tools.celltype_finetuning import finetune_celltype
    from scfm.tools.denoising import denoise
    from scfm.tools.drug_response import drug_features
    from scfm.tools.embedding import embed
    from scfm.tools.export_model import export_model
    from scfm.tools.gene_embeddings import gene_embedding
    from scfm.tools.generated_cells import generate
    from scfm.tools.in_silico import perturb_in_silico
    from scfm.tools.label_scores import score
    from scfm.tools.module_activity import gene_modules
    from scfm.tools.ontology_labels import map_labels
    from scfm.tools.perturbation import finetune_perturbation, perturb
    from scfm.tools.reference import build_reference, load_reference
    from scfm.tools.supporting_cells import support
    from scfm.tools.tf_activities import tf_activity
    from scfm.tools.tfbinding_training import finetune_tfbinding
    from scfm.tools.type_calibration import calibrate

__all__ = [
    "annotate",
    "build_reference",
    "calibrate",
    "denoise",
    "drug_features",
    "embed",
    "export_model",
    "finetune_celltype",
    "finetune_perturbation",
    "finetune_tfbinding",
    "gene_embedding",
    "gene_modules",
    "generate",
    "load_reference",
    "map_labels",
    "perturb",
    "perturb_in_silico",
    "score",
    "support",
    "tf_activity",
]

_LAZY = {
    "annotate": "scfm.tools.annotation",
    "build_reference": "scfm.tools.reference",
    "calibrate": "scfm.tools.type_calibration",
    "denoise": "scfm.tools.denoising",
    "drug_features": "scfm.tools.drug_response",
    "embed": "scfm.tools.embedding",
    "export_model": "scfm.tools.export_model",
    "finetune_celltype": "scfm.tools.celltype_finetuning",
    "finetune_perturbation": "scfm.tools.perturbation",
    "finetune_tfbinding": "scfm.tools.tfbinding_training",
    "gene_embedding": "scfm.tools.gene_embeddings",
    "gene_modules": "scfm.tools.module_activity",
    "generate": "scfm.tools.generated_cells",
    "load_reference": "scfm.tools.reference",
    "map_labels": "scfm.tools.ontology_labels",
    "perturb": "scfm.tools.perturbation",
    "perturb_in_silico": "scfm.tools.in_silico",
    "score": "scfm.tools.label_scores",
    "support": "scfm.tools.supporting_cells",
    "tf_activity": "scfm.tools.tf_activities",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scfm.tools' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
