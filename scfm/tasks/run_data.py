"""A run's data: opened, split, described in its folder, and the same when the run goes on.

in   a PretrainRun
out  RunData; RUN/data.json and RUN/vocab.tsv
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from scfm.data.fingerprint import sha256
from scfm.data.gene_reading import VocabularyGenes
from scfm.data.leakage import Leakage, find_leaks, holds_whole_counts, keyed
from scfm.data.read import CountsSource, open_counts
from scfm.data.soma_address import is_address
from scfm.data.split import Split, split_cells, split_groups
from scfm.data.store import Store, is_store
from scfm.data.write import atomic_path
from scfm.errors import InputError, MissingFileError, ScfmWarning
from scfm.tasks.pretrain_run import PretrainRun, absolute
from scfm.tokens.inputs import InputConfig, open_input
from scfm.tokens.pool import CellPool
from scfm.tokens.vocab import GeneVocab

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """Opened training data: the pool, who trains and who is held out, and copies across the two.

    ``leakage`` is None where cells were held out at random, or hold expected counts.
    """

    pool: CellPool
    split: Split
    leakage: Leakage | None


def open_data(
    run: PretrainRun, vocab: GeneVocab, manifests: Mapping[str, int] | None = None
) -> RunData:
    """Open files and stores, match their genes, refuse what cannot be used, split the cells.

    ``manifests`` are numbers of the stores' earlier manifests to read, by path.
    """
    manifests = manifests or {}
    members = [
        open_input(path, vocab, run.input, run.tokens, manifest=manifests.get(path))[0]
        for path in run.data
    ]
    pool, loader = CellPool(members, seed=run.seed), run.loader
    amounts = (loader.held_out_share, loader.max_held_out, run.seed)
    if loader.held_out_by is None:
        split = split_cells(pool.n_cells, *amounts)
    else:
        codes, names = pool.column(loader.held_out_by)
        split = split_groups(codes, names, *amounts, by=loader.held_out_by)
    if not split.is_training.any():
        raise InputError("No cells are left to train on; lower loader.held_out_share.")
    return RunData(pool, split, _leakage(pool, split, vocab))


def _leakage(pool: CellPool, split: Split, vocab: GeneVocab) -> Leakage | None:
    """Copies of held-out cells among the training cells, said aloud where there are any.

    Only looked for where groups are held out: it reads files a second time.
    """
    if split.by is None or not split.is_held_out.any():
        return None
    if split.n_without_group:
        rank_zero_warn(
            f"{split.n_without_group:,} cells have no value in '{split.by}'. They train, though "
            "some may be of a group that is held out.",
            category=ScfmWarning,
        )
    if not all(map(holds_whole_counts, pool.sources)):
        return None
    vocabulary = VocabularyGenes(vocab.symbols, vocab.ensembl_ids)
    sources = [
        keyed(source, "mouse" if member.reports[0].species == "mouse" else "human", vocabulary)
        for source, member in zip(pool.sources, pool.members, strict=True)
    ]
    leakage = find_leaks(sources, split.is_training, split.is_held_out)
    if leakage.exact or leakage.near:
        rank_zero_warn(
            f"{leakage}, though no '{split.by}' is on both sides: the validation loss will be too "
            "low. See held_out in data.json; scfm prepare drops exact copies.",
            category=ScfmWarning,
        )
    return leakage


def record_data(run: PretrainRun, out: Path, data: RunData, vocab: GeneVocab) -> None:
    paths, split = absolute(run).data, data.split
    opened = list(zip(paths, data.pool.members, strict=True))
    found = {
        "files": [
            [path, member.source.fingerprint()]
            for path, member in opened
            if isinstance(member.source, CountsSource)
        ],
        "stores": [
            {
                "path": path,
                "manifest": member.source.manifest.sequence,
                "manifest_sha256": member.source.manifest.hash,
            }
            for path, member in opened
            if isinstance(member.source, Store)
        ],
        "n_cells": data.pool.n_cells,
        "n_training": int(split.is_training.sum()),
        "n_held_out": int(split.is_held_out.sum()),
        "held_out": {
            "by": split.by,
            "n_judged": len(split.judged),
            "groups": split.groups_held_out,
            "n_groups_training": len(split.groups_training),
            "n_cells_without_group": split.n_without_group,
            "copies_in_training": asdict(data.leakage) if data.leakage else None,
        },
        "genes": {r.name: r.to_dict() for member in data.pool.members for r in member.reports},
    }
    with atomic_path(out / "vocab.tsv") as temporary:
        vocab.save(temporary)
    with atomic_path(out / "data.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")


def require_same_data(run: PretrainRun, out: Path) -> dict[str, int]:
    """Refuse data that is not what the run was started with.

    Returns, for each store that was changed since, the number of the manifest to read: a store that
    was only added to still has it.
    """
    recorded = json.loads((out / "data.json").read_text())
    for path, wanted in recorded["files"]:
        if _fingerprint(path, run.input) != wanted:
            raise InputError(
                f"{path} has changed since this run was started, so its cells are no longer those "
                "the checkpoint has seen. Restore the file, or start a new run with another --out."
            )
    return {store["path"]: _manifest_of(store) for store in recorded.get("stores", [])}


def _fingerprint(path: str, config: InputConfig) -> str:
    """What identifies the data now: a file's sha256, or what a database says of the cells named."""
    if is_address(path):
        with open_counts(path, layer=config.layer, backed=True) as source:
            return source.fingerprint()
    if not Path(path).exists():
        raise _gone(path)
    return sha256(Path(path))


def _manifest_of(store: Mapping[str, Any]) -> int:
    path, number = store["path"], store["manifest"]
    if not is_store(path):
        raise _gone(path)
    try:
        found = Store(path, manifest=number).manifest.hash
    except MissingFileError as error:
        raise InputError(
            f"{path} has changed since this run was started, and the manifest it then had "
            f"(number {number}) is gone. Restore the store, or start a new run with another --out."
        ) from error
    if found != store["manifest_sha256"]:
        raise InputError(
            f"{path} is another store than this run was started with: its manifest {number} hashes "
            f"to {found[:12]}..., then it was {store['manifest_sha256'][:12]}... Restore the "
            "store, or start a new run with another --out."
        )
    if (newest := Store(path).manifest.sequence) != number:
        logger.info("%s has manifest %s by now; going on with %s", path, newest, number)
    return number


def _gone(path: str) -> InputError:
    return InputError(
        f"{path}, which this run was started with, is gone. Put it back, or start a new run with "
        "another --out."
    )
