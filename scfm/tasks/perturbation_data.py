"""Perturbed cells -> expression, targets, and who trains and who is judged.

in   an opened input, the obs columns of perturbation and batch, the control's name
out  PerturbedCells, PerturbationSplit, pseudo-pairs (control cell, perturbed cell)

No cell is measured before and after. So perturbed cells are paired with control cells drawn from
their own batches, anew every time they are seen.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from scfm.data.genes import align
from scfm.errors import ConfigError, GeneCoverageError, LabelError, ScfmWarning
from scfm.tasks.expression import log_expression
from scfm.tokens.pool import PoolMember
from scfm.tokens.vocab import GeneVocab

MOST_GENES = 5000  # predicted at most, the most variable ones, as in GEARS
MIN_CELLS = 10  # a perturbation of fewer has no mean to speak of
CONTROL, LEFT_OUT = -1, -2
SPLIT, FOLDS, PAIRS, HALVES = 0x9E12, 0xF01D, 0x9A125, 0x4A1F  # which draw of a seed


@dataclass(frozen=True)
class PerturbedCells:
    """Cells of a perturbation screen.

    Attributes
    ----------
    expression
        log1p(cp10k), cells by ``genes``, as the model's own tokens have it.
    genes
        Positions among the vocabulary's genes, ascending.
    perturbation
        Of each cell, its place in ``names``; -1 for control, -2 for a cell left out.
    names, targets
        Perturbations, sorted, and the vocabulary's genes each acts on.
    batch
        Code of each cell's batch; all 0 without a batch column.
    left_out
        Cells left out, by perturbation.
    """

    expression: sp.csr_matrix = field(repr=False)
    genes: Int[np.ndarray, " gene"] = field(repr=False)
    perturbation: Int[np.ndarray, " cell"] = field(repr=False)
    names: tuple[str, ...]
    targets: tuple[tuple[int, ...], ...]
    batch: Int[np.ndarray, " cell"] = field(repr=False)
    left_out: Mapping[str, int]

    @property
    def controls(self) -> Int[np.ndarray, " control"]:
        return np.flatnonzero(self.perturbation == CONTROL)

    @property
    def all_targets(self) -> list[int]:
        """Every gene that some perturbation acts on, ascending."""
        return sorted({gene for combination in self.targets for gene in combination})

    def cells_of(self, name: str) -> Int[np.ndarray, " cell"]:
        return np.flatnonzero(self.perturbation == self.names.index(name))

    def targets_of(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.targets[self.names.index(name)] for name in names]

    def dense(self, cells: Int[np.ndarray, " cell"]) -> Float[np.ndarray, "cell gene"]:
        return self.expression[cells].toarray()

    def group_means(
        self, groups: Int[np.ndarray, "group member"]
    ) -> Float[np.ndarray, "group gene"]:
        """Mean expression of groups of equally many cells, float32."""
        n_groups, n_members = groups.shape
        rows = self.expression[groups.ravel()]
        bounds = np.arange(0, groups.size + 1, n_members)
        sums = sp.csr_matrix(
            (np.full(groups.size, 1 / n_members, np.float32), np.arange(groups.size), bounds),
            shape=(n_groups, groups.size),
        )
        return (sums @ rows).toarray()

    def mean(
        self,
        cells: Int[np.ndarray, " cell"],
        weights: Float[np.ndarray, " cell"] | None = None,
    ) -> Float[np.ndarray, " gene"]:
        """Mean expression of some cells, in float64; weights sum to one."""
        if weights is None:
            weights = np.full(len(cells), 1 / len(cells))
        return np.asarray(self.expression[cells].T.astype(np.float64) @ weights).ravel()

    def control_weights(
        self, controls: Int[np.ndarray, " control"], name: str
    ) -> Float[np.ndarray, " control"]:
        """Weights that give the controls the batches of a perturbation's cells; they sum to one.

        Batches without a control cell among these do not count; plain means where none has one.
        """
        wanted = np.bincount(self.batch[self.cells_of(name)], minlength=self.batch.max() + 1)
        have = np.bincount(self.batch[controls], minlength=self.batch.max() + 1)
        share = np.where(have > 0, wanted / np.maximum(have, 1), 0.0)[self.batch[controls]]
        return share / share.sum() if share.sum() else np.full(len(controls), 1 / len(controls))


class PerturbationSplit(NamedTuple):
    """Perturbations by use, and the control cells of each side.

    Truth is told by held-out control cells, predictions start from training ones: the noise of one
    mean control cell in both would pass for a change foretold.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]  # when to stop
    held_out: tuple[str, ...]  # never seen
    training_controls: Int[np.ndarray, " control"]
    held_out_controls: Int[np.ndarray, " control"]


def read_perturbed_cells(
    member: PoolMember,
    *,
    perturbation_key: str,
    control: str,
    batch_key: str | None = None,
    leave_out_unknown: bool = False,
    most_genes: int = MOST_GENES,
) -> PerturbedCells:
    """All cells of an opened input.

    A perturbation of several genes is "A+B"; the control's name may be one of its parts, as in
    "A+ctrl". Cells without a perturbation, and perturbations of fewer than 10 cells, are left out
    and counted. Genes that no cell expresses are not predicted.

    Raises LabelError: no such column, no cell of that control, a target the vocabulary does not
    know (left out with a warning where ``leave_out_unknown``).
    """
    obs, vocab = member.source.obs, member.tokenizer.vocab
    labels = _column(obs, perturbation_key, member.source.name)
    if not (labels == control).any():
        shown = ", ".join(sorted(set(labels.dropna()))[:8])
        raise LabelError(
            f"No cell of {member.source.name} has {perturbation_key} = {control!r}; there are: "
            f"{shown} ... Name the unperturbed cells with --control."
        )
    # "B+A" and "A+ctrl" are "A+B" and "A": under two names one perturbation could train and judge
    parts = {"+".join(p): p for p in (_parts(x, control) for x in set(labels.dropna())) if p}
    labels = labels.map(lambda x: "+".join(_parts(x, control)) or control, na_action="ignore")
    parts = dict(sorted(parts.items()))
    known = find_targets(sorted({gene for genes in parts.values() for gene in genes}), vocab)
    left_out = _left_out(labels, parts, known, leave_out_unknown)
    names = tuple(name for name in parts if name not in left_out)
    if not names:
        raise LabelError(
            f"No perturbation in {perturbation_key} is left: {_counted(left_out)}. Wanted "
            f"perturbations of known genes with at least {MIN_CELLS} cells each."
        )
    codes = {name: code for code, name in enumerate(names)} | {control: CONTROL}
    perturbation = np.array([codes.get(label, LEFT_OUT) for label in labels], dtype=np.int64)
    expression, genes = _expression(member, most_genes, perturbation == CONTROL)
    return PerturbedCells(
        expression=expression,
        genes=genes,
        perturbation=perturbation,
        names=names,
        targets=tuple(tuple(sorted(known[gene] for gene in parts[name])) for name in names),
        batch=_batches(obs, batch_key, member.source.name),
        left_out=left_out,
    )


def find_targets(names: Sequence[str], vocab: GeneVocab) -> dict[str, int]:
    """Position among the vocabulary's genes of each name that is known, older symbols too."""
    if not names:
        return {}
    try:
        found = align(
            pd.DataFrame(index=pd.Index(names)),
            vocab.symbols,
            vocab.ensembl_ids,
            species="human",
            name="the perturbed genes",
        )
    except GeneCoverageError:  # none of them; who asked names them
        return {}
    places = zip(names, found.column_to_gene.tolist(), strict=True)
    return {name: gene for name, gene in places if gene >= 0}


def split_perturbations(
    cells: PerturbedCells,
    held_out: Sequence[str],
    *,
    validation_share: float = 0.25,
    seed: int = 0,
) -> PerturbationSplit:
    """Hold some perturbations out; of the others a share, at least one, says when to stop.

    Control cells are dealt out in halves, batch by batch. Raises ConfigError for a name that is
    no perturbation, or where fewer than two are left to train on.
    """
    strange = sorted(set(held_out) - set(cells.names))
    if strange:
        raise ConfigError(
            f"--holdout names {', '.join(strange)}, which is no perturbation here; there are: "
            f"{', '.join(cells.names)}."
        )
    rest = [name for name in cells.names if name not in set(held_out)]
    if len(rest) < 3:
        raise ConfigError(
            f"{len(rest)} of {len(cells.names)} perturbations are left to train on; wanted at "
            "least 3, one of which says when to stop. Hold out fewer."
        )
    rng = np.random.default_rng([seed, SPLIT])
    n_validation = min(max(1, round(validation_share * len(rest))), len(rest) - 2)
    validation = sorted(rng.choice(rest, n_validation, replace=False).tolist())
    training_controls, held_out_controls = halves_of_controls(cells, seed)
    return PerturbationSplit(
        training=tuple(name for name in rest if name not in validation),
        validation=tuple(validation),
        held_out=tuple(sorted(held_out)),
        training_controls=training_controls,
        held_out_controls=held_out_controls,
    )


def choose_held_out(names: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """A share of the perturbations, at least one, drawn by the seed."""
    if not 0 < share < 1:
        raise ConfigError(f"--holdout-share is a share in (0, 1), got {share:g}.")
    n = max(1, round(share * len(names)))
    rng = np.random.default_rng([seed, FOLDS])
    return tuple(sorted(rng.choice(list(names), n, replace=False).tolist()))


def folds(names: Sequence[str], n_folds: int, seed: int) -> list[tuple[str, ...]]:
    """The perturbations dealt into folds: each is in one. Raises ConfigError."""
    if not 2 <= n_folds <= len(names):
        raise ConfigError(f"--folds is from 2 to the {len(names)} perturbations, got {n_folds}.")
    shuffled = np.random.default_rng([seed, FOLDS]).permutation(np.array(names, dtype=object))
    return [tuple(sorted(shuffled[k::n_folds].tolist())) for k in range(n_folds)]


def pseudo_pairs(
    cells: PerturbedCells,
    split: PerturbationSplit,
    *,
    n_pairs: int,
    n_cells: int,
    steps: int,
    seed: int,
) -> Iterator[tuple[Int[np.ndarray, "pair cell"], Int[np.ndarray, "pair cell"]]]:
    """Control and perturbed cells, a batch a step; a batch depends on (seed, step) alone.

    A pair is ``n_cells`` cells of one perturbation and as many control cells of the same batches,
    drawn with replacement. Every training perturbation is drawn equally often, as each counts once
    when it is judged.
    """
    of = [cells.cells_of(name) for name in split.training]
    partners = _partners(cells, split.training_controls)
    for step in range(steps):
        rng = np.random.default_rng([seed, PAIRS, step])
        chosen = rng.integers(len(of), size=n_pairs)
        perturbed = np.stack([rng.choice(of[k], n_cells) for k in chosen])
        control = np.empty_like(perturbed)
        for batch in np.unique(cells.batch[perturbed]):
            is_here = cells.batch[perturbed] == batch
            control[is_here] = rng.choice(partners[batch], int(is_here.sum()))
        yield control, perturbed


def _partners(
    cells: PerturbedCells, controls: Int[np.ndarray, " control"]
) -> list[Int[np.ndarray, " own"]]:
    """The control cells of each batch; all of them for a batch that has none."""
    return [
        own if len(own) else controls
        for own in (controls[cells.batch[controls] == b] for b in range(cells.batch.max() + 1))
    ]


def halves_of_controls(
    cells: PerturbedCells, seed: int
) -> tuple[Int[np.ndarray, " training"], Int[np.ndarray, " held_out"]]:
    """Control cells to train with and to judge by, batch by batch; the same for every fold."""
    controls = np.random.default_rng([seed, HALVES]).permutation(cells.controls)
    controls = controls[np.argsort(cells.batch[controls], kind="stable")]
    if len(controls) < 4:
        raise LabelError(f"There are {len(controls)} control cells; wanted at least 4.")
    return np.sort(controls[::2]), np.sort(controls[1::2])


def _expression(
    member: PoolMember, most_genes: int, is_control: np.ndarray
) -> tuple[sp.csr_matrix, Int[np.ndarray, " gene"]]:
    """log1p(cp10k) of the vocabulary's genes that are expressed, and which these are."""
    whole = sp.csc_matrix(log_expression(member))
    expressed = np.flatnonzero(np.diff(whole.indptr))
    if len(expressed) > most_genes:
        expressed = _most_variable(whole[:, expressed], expressed, most_genes, is_control)
    return sp.csr_matrix(whole[:, expressed]), expressed


def _most_variable(
    expression: sp.csc_matrix, genes: np.ndarray, n: int, is_control: np.ndarray
) -> Int[np.ndarray, " gene"]:
    """By variance over control cells: no perturbed cell has a say in what is predicted."""
    controls = expression[np.flatnonzero(is_control)]
    mean = np.asarray(controls.mean(0)).ravel()
    variance = np.asarray(controls.multiply(controls).mean(0)).ravel() - mean**2
    return np.sort(genes[np.argsort(-variance, kind="stable")[:n]])


def _column(obs: pd.DataFrame, key: str, name: str) -> pd.Series:
    if key not in obs:
        raise LabelError(
            f"obs of {name} has no column {key!r}; there are: {', '.join(map(str, obs.columns))}."
        )
    return pd.Series([x if pd.isna(x) else str(x) for x in obs[key]], obs.index, dtype=object)


def _parts(name: str, control: str) -> list[str]:
    """The genes of a combination, once each."""
    return sorted({part.strip() for part in name.split("+")} - {control, "ctrl", ""})


def _left_out(
    labels: pd.Series,
    parts: Mapping[str, Sequence[str]],
    known: Mapping[str, int],
    leave_out_unknown: bool,
) -> dict[str, int]:
    """Perturbations that cannot be used, and how many cells each has."""
    n_cells = labels.value_counts()
    unknown = [name for name, genes in parts.items() if set(genes) - set(known)]
    if unknown:
        strange = sorted({g for name in unknown for g in parts[name]} - set(known))
        found = (
            f"The model's vocabulary does not know {len(strange)} perturbed genes: "
            f"{', '.join(strange[:10])}."
        )
        if not leave_out_unknown:
            raise LabelError(
                f"{found} Spell them as HGNC does, or leave their cells out: --leave-out-unknown."
            )
        cells = int(n_cells[unknown].sum())
        warnings.warn(f"{found} {cells:,} cells are left out.", ScfmWarning, stacklevel=4)
    few = [name for name in parts if n_cells[name] < MIN_CELLS and name not in unknown]
    left_out = {name: int(n_cells[name]) for name in [*unknown, *few]}
    if labels.isna().any():
        left_out["(no label)"] = int(labels.isna().sum())
    return left_out


def _counted(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n:,} cells)" for name, n in left_out.items())


def _batches(obs: pd.DataFrame, key: str | None, name: str) -> Int[np.ndarray, " cell"]:
    if key is None:
        return np.zeros(len(obs), dtype=np.int64)
    codes, _ = pd.factorize(_column(obs, key, name), sort=True)
    return codes.astype(np.int64) - codes.min()  # cells without a batch are one of their own
