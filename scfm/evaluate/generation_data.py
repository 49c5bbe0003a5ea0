"""Real and generated cells, matched: same genes, same types, as many of each.

in   raw counts of real cells with labels, generated cells with the labels they were asked for
out  MatchedCells: of every type held-out real cells, other real cells, cells to fit on, generated

A cell is described by its shares over the genes that both sides have, so neither the depth of
a generated cell nor the part of its counts that its generator cannot say plays a part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from scfm.data.blocked import in_blocks
from scfm.data.gene_report import GeneReport, percent
from scfm.data.matrices import from_scipy
from scfm.data.rawness import judge
from scfm.data.split import group_codes
from scfm.errors import (
    CountsError,
    DuplicateGeneError,
    GeneCoverageError,
    InputError,
    MissingFileError,
)
from scfm.evaluate.generation_baselines import n_columns, n_rows
from scfm.evaluate.thinned import on_vocabulary
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.vocab import GeneVocab

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_CELLS = 10  # of a type and kind; fewer would not be judged
SHOWN = 8  # names in a message

ByType = Mapping[str, sp.csr_matrix]


@dataclass(frozen=True)
class MatchedCells:
    """Cells by type, on the genes both sides have; no row is empty.

    Attributes
    ----------
    held_out, other, generated
        The same number of cells a type: real ones that are the truth, real ones that are the
        ceiling, generated ones. Raw counts, or counts per 10,000 where the generator gives those.
    fit
        Real cells that baselines may learn from; ``other`` is among them unless a file was given.
    genes
        Symbols of the columns.
    n_empty
        Generated cells without any expression, which are not judged.
    left_out
        Why a type is not judged.
    """

    name: str
    generated_name: str
    held_out: ByType
    other: ByType
    fit: ByType
    generated: ByType
    genes: tuple[str, ...]
    n_empty: int
    left_out: Mapping[str, str]
    report: GeneReport
    settings: Mapping[str, Any]

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self.held_out)


@dataclass(frozen=True)
class LabelledCells:
    """Some cells on a vocabulary's genes, and what type each is of."""

    name: str
    cells: sp.csr_matrix
    labels: np.ndarray
    genes: Int[np.ndarray, " gene"]  # columns of the vocabulary that were measured
    report: GeneReport | None = None

    def of(self, label: str) -> Int[np.ndarray, " row"]:
        return np.flatnonzero(self.labels == label)


def match_cells(
    real: "str | Path | AnnData",
    generated: "str | Path | AnnData",
    *,
    label_key: str,
    generated_key: str,
    fit: "str | Path | AnnData | None",
    n_cells: int,
    n_fit: int,
    seed: int,
    config: InputConfig,
) -> MatchedCells:
    """Read all sides and draw their cells.

    Raises what opening data raises, but that coverage is the share of the generated genes that are
    measured; LabelError for a column that is not there, InputError where no
    type has ten cells on both sides, DuplicateGeneError for generated genes of one name.
    """
    adata, name = _opened(generated)
    vocab = _genes_of(adata, name)
    made_cells, n_empty = _without_empty(read_generated(adata, name, generated_key))
    wanted = set(made_cells.labels)
    rng = np.random.default_rng([seed, 0])
    measured = read_real(real, vocab, label_key, wanted, 4 * n_cells, rng, config)
    fitted = (
        measured if fit is None else read_real(fit, vocab, label_key, wanted, n_fit, rng, config)
    )
    genes = np.intersect1d(measured.genes, fitted.genes)
    parts, left_out = _draw(made_cells, measured, fitted, genes, n_cells, rng, fit is None)
    if not parts:
        raise InputError(_nothing_to_judge(made_cells, measured, label_key, left_out))
    assert measured.report is not None
    return MatchedCells(
        name=measured.name,
        generated_name=name,
        held_out={label: part["held_out"] for label, part in parts.items()},
        other={label: part["other"] for label, part in parts.items()},
        fit={label: part["fit"] for label, part in parts.items()},
        generated={label: part["generated"] for label, part in parts.items()},
        genes=tuple(vocab.symbols[gene] for gene in genes),
        n_empty=n_empty,
        left_out=left_out,
        report=measured.report,
        settings=_made_how(adata),
    )


def _opened(data: "str | Path | AnnData") -> "tuple[AnnData, str]":
    import anndata as ad

    if isinstance(data, ad.AnnData):
        return data, "AnnData"
    if not Path(data).is_file():
        raise MissingFileError(
            f"{data}: no such file. Make it: scfm generate --model MODEL --out {data}."
        )
    return ad.read_h5ad(data), str(data)


def read_generated(adata: "AnnData", name: str, label_key: str) -> LabelledCells:
    """Generated cells as counts, or as counts per 10,000.

    X may hold counts or log1p of normalised values, whichever is found; CountsError for others,
    LabelError without the column.
    """
    obs: Any = adata.obs
    codes, names = group_codes(obs, label_key, name)
    cells = sp.csr_matrix(adata.X, dtype=np.float64, copy=True)
    cells.eliminate_zeros()
    found = judge(from_scipy(cells).sample())
    if found.kind == "log":
        cells.data = np.expm1(cells.data)
    elif found.kind != "counts":
        raise CountsError(
            f"{name}: X {found.found}. Generated cells are judged from counts or from log1p of "
            "normalised values: scanpy.pp.log1p(adata), or put the counts in X."
        )
    labels = np.array([*names, ""], dtype=object)[codes]
    return LabelledCells(name, cells, labels, np.arange(n_columns(cells)))


def _made_how(adata: "AnnData") -> dict[str, Any]:
    """What scfm generate recorded of it, if it did."""
    kept = adata.uns.get("scfm")
    return dict(kept.get("generate", {})) if isinstance(kept, Mapping) else {}


def _genes_of(adata: "AnnData", name: str) -> GeneVocab:
    """The generator's genes, as what the real cells' columns are matched to."""
    symbols = tuple(map(str, adata.var_names))
    if len(set(symbols)) < len(symbols):
        seen: set[str] = set()
        twice = next(symbol for symbol in symbols if symbol in seen or seen.add(symbol))
        raise DuplicateGeneError(
            f"{name}: {twice!r} names more than one column. Keep one of each: "
            "adata[:, ~adata.var_names.duplicated()]."
        )
    known = "ensembl_id" in adata.var
    ids = tuple(map(str, adata.var["ensembl_id"])) if known else ("",) * len(symbols)
    return GeneVocab(symbols=symbols, ensembl_ids=ids)


def _without_empty(made: LabelledCells) -> tuple[LabelledCells, int]:
    is_some = np.asarray(made.cells.sum(1)).ravel() > 0
    kept = LabelledCells(made.name, made.cells[is_some], made.labels[is_some], made.genes)
    return kept, int((~is_some).sum())


def read_real(
    data: "str | Path | AnnData",
    vocab: GeneVocab,
    label_key: str,
    wanted: set[str],
    n_cells: int,
    rng: np.random.Generator,
    config: InputConfig,
) -> LabelledCells:
    """Raw counts of at most ``n_cells`` cells of every wanted type that occurs, drawn at random."""
    # a generator's chosen genes hold few of any cell's counts: what matters is that they are there
    member, report = open_input(data, vocab, replace(config, minimum_coverage=0.0))
    source = member.source
    _require_measured(report, config.minimum_coverage)
    codes, names = in_blocks(source).column(label_key)
    drawn = [
        rng.permutation(np.flatnonzero(codes == names.index(label)))[:n_cells]
        for label in sorted(wanted & set(names))
    ]
    rows = np.sort(np.concatenate([np.zeros(0, np.int64), *drawn]).astype(np.int64))
    tables = member.tokenizer.tables
    counts = on_vocabulary(source.rows(rows), tables, vocab.n_genes)
    labels = np.array([*names, ""], dtype=object)[codes[rows]]
    measured = np.unique(tables.measured).astype(np.int64)
    return LabelledCells(source.name, counts, labels, measured, report)


def _require_measured(report: GeneReport, minimum: float) -> None:
    share = 1 - report.missing / report.n_genes
    if share < minimum:
        raise GeneCoverageError(
            f"{report.name} measures {percent(share)} of the {report.n_genes:,} generated genes; "
            f"wanted at least {percent(minimum)}. Take a matrix with all genes, or go on with "
            f"those there are: --minimum-coverage {share:.2g}.\n{report}"
        )


def _draw(
    made: LabelledCells,
    measured: LabelledCells,
    fitted: LabelledCells,
    genes: Int[np.ndarray, " gene"],
    n_cells: int,
    rng: np.random.Generator,
    same_file: bool,
) -> tuple[dict[str, dict[str, sp.csr_matrix]], dict[str, str]]:
    """Equal numbers of every kind of cell a type, and why a type has none."""
    parts, left_out = {}, {}
    for label in sorted(set(made.labels) - {""}):
        ours = _some_left(made, label, genes)
        real = _some_left(measured, label, genes)
        order = rng.permutation(n_rows(real))
        half = len(order) // 2
        others = real[order[half:]]
        fit = others if same_file else _some_left(fitted, label, genes)
        n = min(n_cells, half, n_rows(ours))
        if min(n, n_rows(fit)) < LEAST_CELLS:
            left_out[label] = (
                f"{n_rows(ours):,} generated, {n_rows(real):,} real cells, {n_rows(fit):,} to "
                "fit on"
            )
            continue
        parts[label] = {
            "held_out": real[order[:n]],
            "other": others[:n],
            "fit": fit,
            "generated": ours[np.sort(rng.permutation(n_rows(ours))[:n])],
        }
    return parts, left_out


def _some_left(cells: LabelledCells, label: str, genes: Int[np.ndarray, " gene"]) -> sp.csr_matrix:
    """Cells of a type on these genes, those without any left out."""
    some = sp.csr_matrix(cells.cells[cells.of(label)][:, genes])
    return some[np.asarray(some.sum(1)).ravel() > 0]


def _nothing_to_judge(
    made: LabelledCells, measured: LabelledCells, label_key: str, left_out: Mapping[str, str]
) -> str:
    asked = sorted(set(made.labels) - {""})
    there = sorted(set(measured.labels) - {""})
    if not there:
        return (
            f"{made.name} was generated as {_named(asked)}, and no cell of {measured.name} has one "
            f"of these in obs[{label_key!r}]. Give the column that has (--label), and the "
            "generated cells' own where it differs (--generated-label)."
        )
    short = "; ".join(f"{label}: {why}" for label, why in list(left_out.items())[:SHOWN])
    return (
        f"No type has {LEAST_CELLS} generated and {2 * LEAST_CELLS} real cells ({short}). "
        "Generate more cells (-n), or give more real ones."
    )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
