"""An ontology small enough to count on the fingers, with a cell that is of two kinds."""

from scfm.data.cell_ontology import CellOntology

PARENTS = {
    "cell": (),
    "leukocyte": ("cell",),
    "epithelial": ("cell",),
    "lymphocyte": ("leukocyte",),
    "monocyte": ("leukocyte",),
    "B cell": ("lymphocyte",),
    "T cell": ("lymphocyte",),
    "killer": ("lymphocyte",),
    "CD4 T": ("T cell",),
    "CD8 T": ("T cell",),
    "killer T": ("T cell", "killer"),
}
ID = {name: f"CL:{number:07d}" for number, name in enumerate(PARENTS)}


def toy_ontology() -> CellOntology:
    """Ids count up in the order of ``PARENTS``; "cell" is CL:0000000."""
    return CellOntology(
        version="toy",
        names={term: name for name, term in ID.items()},
        parents={ID[name]: tuple(ID[above] for above in PARENTS[name]) for name in PARENTS},
        synonyms=dict.fromkeys(ID.values(), ()),
        replaced={},
        shorthand={},
    )
