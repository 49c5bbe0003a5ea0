"""A perturbation head trained, judged and used: the whole of ``scfm finetune perturbation``.

in   cells of a perturbation screen, a model with a decoder over all genes
out  a run folder: head/, metrics.json, scores.csv, scores.png; predictions as an AnnData
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from scfm.data.fingerprint import sha256
from scfm.errors import ConfigError, LabelError
from scfm.evaluate.perturbation import judge_split
from scfm.evaluate.perturbation_scores import PerturbationEvaluation, evaluate_scores
from scfm.model.base import CellModel
from scfm.model.perturbation import PerturbationHead
from scfm.model.perturbation_folder import as_head
from scfm.tasks.decoding import check_decodes
from scfm.tasks.expression import log_expression, measured_genes
from scfm.tasks.gene_context import mean_context
from scfm.tasks.perturbation import (
    FittedHead,
    PerturbationConfig,
    fit_head,
    predicted_change,
    provenance_of,
    spread,
)
from scfm.tasks.perturbation_data import (
    PerturbationSplit,
    PerturbedCells,
    choose_held_out,
    find_targets,
    folds,
    halves_of_controls,
    read_perturbed_cells,
    split_perturbations,
)
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import PoolMember
from scfm.tools.embedding import model_id, vocab_of
from scfm.tools.loading import as_model, input_config
from scfm.tools.perturbation_report import write_run
from scfm.version import __version__

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Which perturbations are held out, how often, and beside what the head is judged.

    Attributes
    ----------
    holdout, holdout_share
        Perturbations by name, or a share of them drawn by the seed.
    n_folds
        Instead: every perturbation held out once. The head that is kept is then trained on all.
    repeats
        How often all of it is done, with other folds, control halves and initial weights.
    random_weights
        Whether the same head is judged on embeddings of the same network, untrained, too.
    context_cells
        Control cells that gene embeddings are the mean over.
    """

    holdout: tuple[str, ...] = ()
    holdout_share: float = 0.25
    n_folds: int = 0
    repeats: int = 1
    seed: int = 0
    random_weights: bool = True
    context_cells: int = 300

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.context_cells < 1:
            raise ValueError("repeats and context_cells must be at least 1")
        if self.holdout and self.n_folds:
            raise ValueError("--holdout and --folds exclude each other")

    def held_out_sets(self, names: Sequence[str], seed: int) -> list[tuple[str, ...]]:
        """One set of held-out perturbations a fit."""
        if self.n_folds:
            return folds(names, self.n_folds, seed)
        return [self.holdout or choose_held_out(names, self.holdout_share, seed)]


def finetune_perturbation(
    data: "AnnData | str | Path",
    model: CellModel | str | Path,
    out: str | Path,
    *,
    perturbation_key: str = "perturbation",
    control: str = "control",
    batch_key: str | None = None,
    leave_out_unknown: bool = False,
    protocol: Protocol | None = None,
    config: PerturbationConfig | None = None,
    reading: InputConfig | None = None,
    say: Callable[[object], None] = lambda line: None,
) -> PerturbationEvaluation:
    """Train a perturbation head on a frozen model's gene embeddings and judge it.

    Parameters
    ----------
    data
        Raw counts of perturbed and control cells.
    out
        Run folder; an earlier run's is replaced, nothing else.
    perturbation_key, control
        obs column, and its name for unperturbed cells. "A+B" is a combination of genes.
    batch_key
        obs column within which cells are compared with control cells.

    Raises LabelError, ConfigError, ModelError, GeneCoverageError: nothing is written then.
    """
    model = as_model(model)
    check_decodes(model, "states")
    protocol, config = protocol or Protocol(), config or PerturbationConfig()
    member, report = open_input(data, vocab_of(model), reading or InputConfig(), model.token_config)
    say(report)
    cells = read_perturbed_cells(
        member,
        perturbation_key=perturbation_key,
        control=control,
        batch_key=batch_key,
        leave_out_unknown=leave_out_unknown,
    )
    run = _Run(model, member, cells, protocol, config, say)
    rows = [row for repeat in range(protocol.repeats) for row in run.repeat(repeat)]
    fitted, split = run.kept()
    facts = {
        "data": data_facts(data, member, cells, perturbation_key, control, batch_key),
        "model": {"weights_sha256": model_id(model), "family": model.config.model_type},
        "protocol": asdict(protocol),
        "settings": asdict(config),
        "genes": report.to_dict(),
        "scfm_version": __version__,
    }
    evaluation = evaluate_scores(rows, facts, seed=protocol.seed)
    fitted.head.provenance = {
        **{k: facts[k] for k in ("data", "model", "scfm_version")},
        **provenance_of(cells, split, fitted, config, protocol.seed),
    }
    write_run(out, evaluation, fitted.head)
    return evaluation


class _Run:
    """Everything a repeat needs, and the head that is kept."""

    def __init__(
        self,
        model: CellModel,
        member: PoolMember,
        cells: PerturbedCells,
        protocol: Protocol,
        config: PerturbationConfig,
        say: Callable[[object], None],
    ):
        self.model, self.member, self.cells = model, member, cells
        self.protocol, self.config, self.say = protocol, config, say
        self.first: tuple[FittedHead, PerturbationSplit] | None = None

    def repeat(self, repeat: int) -> list[dict[str, Any]]:
        """Scores of every held-out perturbation, under one seed."""
        seed = self.protocol.seed + repeat
        embeddings = {"head": self.embeddings(self.model, seed)}
        if self.protocol.random_weights:
            embeddings["head_random"] = self.embeddings(untrained(self.model, seed), seed)
        rows: list[dict[str, Any]] = []
        for held_out in self.protocol.held_out_sets(self.cells.names, seed):
            split = self.split(held_out, seed)
            fitted = {key: self.fit(split, e, seed) for key, e in embeddings.items()}
            if self.first is None:
                self.first = fitted["head"], split
            heads = {key: f.head for key, f in fitted.items()}
            rows += judge_split(self.cells, split, heads, embeddings["head"], repeat=repeat)
            self.say(
                f"held out {', '.join(held_out)}: best of {fitted['head'].curve[-1][0]:,} steps "
                f"at {fitted['head'].best_step:,}"
            )
        return rows

    def kept(self) -> tuple[FittedHead, PerturbationSplit]:
        """The head of the one split; of folds, one more that none is held out from."""
        assert self.first is not None, "judged before kept"
        if not self.protocol.n_folds:
            return self.first
        seed = self.protocol.seed
        split = self.split((), seed)
        return self.fit(split, self.embeddings(self.model, seed), seed), split

    def split(self, held_out: Sequence[str], seed: int) -> PerturbationSplit:
        share = self.config.validation_share
        return split_perturbations(self.cells, held_out, validation_share=share, seed=seed)

    def fit(
        self, split: PerturbationSplit, embeddings: Float[np.ndarray, "vocabulary d"], seed: int
    ) -> FittedHead:
        vocab = vocab_of(self.model)
        return fit_head(self.cells, split, embeddings, vocab, self.config, seed=seed)

    def embeddings(self, model: CellModel, seed: int) -> Float[np.ndarray, "vocabulary d"]:
        """Of all genes, from training control cells alone."""
        controls, _ = halves_of_controls(self.cells, seed)
        return mean_context(model, self.member, spread(controls, self.protocol.context_cells))


def untrained(model: CellModel, seed: int) -> CellModel:
    """The same network with weights as they begin."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model).from_scratch(
            vocab_of(model), model.config.sizes, max_genes=model.config.max_genes
        )
    return fresh.to(model.device).eval()


def data_facts(
    data: "AnnData | str | Path",
    member: PoolMember,
    cells: PerturbedCells,
    perturbation_key: str,
    control: str,
    batch_key: str | None,
) -> dict[str, Any]:
    """What the cells are, without a path of this machine."""
    is_file = isinstance(data, str | Path) and Path(data).is_file()
    return {
        "name": Path(member.source.name).name,
        "sha256": sha256(Path(str(data))) if is_file else "",
        "n_cells": member.source.n_cells,
        "n_genes_predicted": len(cells.genes),
        "n_controls": len(cells.controls),
        "perturbations": {name: len(cells.cells_of(name)) for name in cells.names},
        "left_out_cells": dict(cells.left_out),
        "perturbation_key": perturbation_key,
        "control": control,
        "batch_key": batch_key or "",
    }


def perturb(
    adata: "AnnData",
    head: PerturbationHead | str | Path,
    *,
    perturbations: Sequence[str],
    layer: str | None = None,
    species: str = "auto",
    minimum_coverage: float = 0.5,
) -> "AnnData":
    """Predict what perturbations do to these (control) cells, on average.

    Parameters
    ----------
    adata
        Unperturbed cells, raw counts.
    head
        From ``load_perturbation``, or the folder that ``scfm finetune perturbation`` wrote.
    perturbations
        Genes, "A+B" for both at once; any the head's vocabulary knows, seen in training or not.

    Returns
    -------
    A new AnnData, one row a perturbation and one column a gene: X the predicted mean
    log1p(cp10k), ``layers["change"]`` the difference to the cells as they are. Genes that
    ``adata`` does not measure are taken from the head's mean control cell; ``var["measured"]``
    says which.

    Raises LabelError for a gene the vocabulary does not know.
    """
    head = as_head(head)
    combinations = _combinations(head, perturbations)
    control, measured = _mean_control(adata, head, layer, species, minimum_coverage)
    change = predicted_change(head, control, combinations)
    return _as_adata(head, list(perturbations), control, change, measured)


def _combinations(head: PerturbationHead, perturbations: Sequence[str]) -> list[tuple[int, ...]]:
    parts = [sorted({g.strip() for g in name.split("+")}) for name in perturbations]
    if not parts or not all(all(genes) for genes in parts):
        raise ConfigError(f"perturbations are genes or 'A+B', got {list(perturbations)}.")
    known = find_targets(sorted({gene for genes in parts for gene in genes}), head.vocab)
    unknown = sorted({gene for genes in parts for gene in genes} - set(known))
    if unknown:
        raise LabelError(
            f"The head's vocabulary does not know {', '.join(unknown)} among its "
            f"{head.vocab.n_genes:,} genes. Spell them as HGNC does."
        )
    return [tuple(sorted(known[gene] for gene in genes)) for genes in parts]


def _mean_control(
    adata: "AnnData",
    head: PerturbationHead,
    layer: str | None,
    species: str,
    minimum_coverage: float,
) -> tuple[Float[np.ndarray, " gene"], Bool[np.ndarray, " gene"]]:
    """Mean log1p(cp10k) of the head's genes, and which of them are measured."""
    from scfm.tokens.masking import MaskConfig

    config = input_config(layer, species, minimum_coverage)
    member, _ = open_input(adata, head.vocab, config, MaskConfig())
    genes = head.genes.cpu().numpy()
    is_measured = np.isin(genes, measured_genes(member))
    found = np.asarray(log_expression(member)[:, genes].mean(0)).ravel()
    return np.where(is_measured, found, head.control_mean.cpu().numpy()), is_measured


def _as_adata(
    head: PerturbationHead,
    names: list[str],
    control: Float[np.ndarray, " gene"],
    change: Float[np.ndarray, "perturbation gene"],
    measured: Bool[np.ndarray, " gene"],
) -> "AnnData":
    from anndata import AnnData

    symbols = [head.vocab.symbols[gene] for gene in head.genes.tolist()]
    trained = head.provenance.get("perturbations", {}).get("training", [])
    return AnnData(
        (control + change).astype(np.float32),
        obs=pd.DataFrame({"in_training": [n in trained for n in names]}, index=pd.Index(names)),
        var=pd.DataFrame({"measured": measured}, index=pd.Index(symbols)),
        layers={"change": change.astype(np.float32)},
    )
