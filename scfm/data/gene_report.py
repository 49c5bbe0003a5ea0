"""What became of a file's genes, to print, to keep in ``uns`` and to judge by.

in   the counts of an alignment (scfm.data.genes)
out  GeneReport: a small table for people, a plain dict for JSON and h5ad
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

EXAMPLES = 5  # names shown of each kind
_WIDTH = 100  # columns of the printed table


@dataclass(frozen=True, kw_only=True)
class GeneReport:
    """How the columns of some data map to a vocabulary's genes.

    Every column is one of matched, ambiguous, outside the vocabulary or unrecognised.

    Attributes
    ----------
    name
        The data, for messages.
    species, species_guessed
        "human" or "mouse"; whether from the names rather than by order.
    orthologs
        Whether mouse genes were mapped to their one-to-one human orthologs.
    id_kind
        What was read and where: "Ensembl ids in var['gene_ids']", "symbols in var.index".
    n_columns, n_genes
        Columns of the data; genes of the vocabulary.
    matched
        Columns that are a gene of the vocabulary.
    renamed
        Of these, columns that bear another symbol than the vocabulary: a newer or previous name,
        an alias, a name made unique.
    duplicated
        Of these, columns beyond the first of their gene; their counts are summed.
    ambiguous
        Columns not used because their name may mean several genes, or is an alias of a gene that
        the data also names directly.
    outside_vocabulary
        Columns that are a known gene, but none of the vocabulary's.
    unrecognised
        Columns whose name is in no table.
    missing
        Genes of the vocabulary that no column measures.
    counts_covered
        Share of the counts that fall on matched columns, 0 to 1; None until counts were seen.
    likely_cause
        What the unrecognised names look like, and what to do; "" where nothing stands out.
    examples
        A few names for each of renamed, duplicated, ambiguous, outside_vocabulary, unrecognised
        and missing.
    """

    name: str
    species: str
    species_guessed: bool
    orthologs: bool
    id_kind: str
    n_columns: int
    n_genes: int
    matched: int
    renamed: int
    duplicated: int
    ambiguous: int
    outside_vocabulary: int
    unrecognised: int
    missing: int
    counts_covered: float | None = None
    likely_cause: str = ""
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        guessed = " (guessed)" if self.species_guessed else ""
        mapped = ", by one-to-one orthologs" if self.orthologs else ""
        lines = [
            f"Genes of {self.name}",
            f"  read as {self.species}{guessed}{mapped}: {self.id_kind}",
            self._line("columns", self.n_columns),
            self._line("matched", self.matched, self.n_columns),
            self._line("  renamed", self.renamed, self.n_columns, "renamed"),
            self._line("  duplicated", self.duplicated, self.n_columns, "duplicated"),
            self._line("ambiguous", self.ambiguous, self.n_columns, "ambiguous"),
            self._line(
                "outside vocabulary", self.outside_vocabulary, self.n_columns, "outside_vocabulary"
            ),
            self._line("unrecognised", self.unrecognised, self.n_columns, "unrecognised"),
            self._line("vocabulary", self.n_genes),
            self._line("  missing", self.missing, self.n_genes, "missing"),
        ]
        if self.counts_covered is not None:
            lines.append(f"  {'counts covered':<20}{'':>8}  {percent(self.counts_covered):>7}")
        return "\n".join(_cut(line) for line in lines)

    def _line(self, label: str, count: int, total: int = 0, examples: str = "") -> str:
        share = percent(count / total) if total else ""
        shown = ", ".join(self.examples.get(examples, ()))
        return f"  {label:<20}{count:>8,}  {share:>7}   {shown}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Strings, numbers and lists, for JSON and ``adata.uns``; what is unset is left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if self.counts_covered is None:
            del values["counts_covered"]  # h5ad files of older anndata cannot hold None
        values["examples"] = {kind: list(names) for kind, names in self.examples.items() if names}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GeneReport":
        """Undo `to_dict`, also after h5ad has made NumPy of numbers and lists."""
        plain = {
            key: value.item() if hasattr(value, "item") else value
            for key, value in values.items()
            if key != "examples"
        }
        examples = {
            str(kind): tuple(map(str, names)) for kind, names in values.get("examples", {}).items()
        }
        return cls(**plain, examples=examples)


def percent(share: float) -> str:
    """A share as text; "0.0 %" and "100.0 %" only where nothing or everything is meant."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 4].rstrip(" ,") + " ..."
