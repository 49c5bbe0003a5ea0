"""What all families of models share: their folder, and the interface that tasks and tools use.

in   a config and a vocabulary, or a folder (or hub id) holding
         config.json, model.safetensors, vocab.tsv, provenance.json
out  a CellModel: CellBatch -> CellStates

Loading reads JSON, TSV and safetensors only: nothing from the folder can run.
"""

import json
import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from scfm.batch import CellBatch, CellStates
from scfm.data.fingerprint import sha256
from scfm.data.write import atomic_folder, set_usual_mode
from scfm.errors import ConfigError, ModelError
from scfm.model.classifier import CellClassifier, ClassifierSpec
from scfm.model.config import CellConfig
from scfm.model.folder import (
    CARD,
    CONFIG,
    PROVENANCE,
    VOCAB,
    WEIGHTS,
    find_model,
    read_calibration,
    read_provenance,
)
from scfm.model.recompute import Recompute
from scfm.tokens.vocab import GeneVocab

# All that a folder with an odd config.json or weights file makes transformers raise.
LOADING_ERRORS = (
    SafetensorError,
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    AttributeError,
)


class CellModel(PreTrainedModel):
    """A model of cells, of any family.

    Attributes
    ----------
    vocab
        The genes this model knows; saved and loaded with it.
    provenance
        Where the weights come from: data, settings, versions, hashes.
    calibration
        What calibration.json in its folder says (scfm.tasks.calibration); None without one.
    classifier
        Says a cell's type, after fine-tuning; None before.
    poolings
        What `pool` can make one vector of a cell by; the first is the default.
    default_target_depth
        The depth asked of the model in inference where a user names none, as
        `scfm.tokens.target_depth` reads it; None: the cell's own.
    """

    config: CellConfig
    poolings: ClassVar[tuple[str, ...]]
    default_target_depth: ClassVar[str | None] = None

    def __init__(self, config: CellConfig, vocab: GeneVocab | None = None):
        super().__init__(config)
        self.vocab, self.provenance = vocab, {}
        self.calibration: dict[str, Any] | None = None
        self.classifier: CellClassifier | None = None
        if config.classifier is not None:
            self.classifier = self._new_classifier(ClassifierSpec.read(config.classifier))

    @classmethod
    def from_scratch(cls, vocab: GeneVocab, sizes: Any, *, max_genes: int = 2048) -> Any:
        """A fresh model of these sizes for this vocabulary. Draws from torch's global generator."""
        config: Any = cls.config_class
        made = config.of(sizes, n_tokens=len(vocab), vocab_hash=vocab.hash, max_genes=max_genes)
        return cls(made, vocab)

    def forward(self, cells: CellBatch) -> CellStates:
        """Encode what may be seen."""
        raise NotImplementedError

    def predict_targets(
        self, cells: CellBatch, states: CellStates
    ) -> dict[str, Float[Tensor, " target"]]:
        """log1p(cp10k) of the tokens with ``is_target``, in their order, by each of the heads."""
        raise NotImplementedError

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, which are sharded, compiled and recomputed one by one."""
        raise NotImplementedError

    def recompute(self, how: Recompute) -> None:
        """Which activations of the blocks are made again in the backward pass."""
        raise NotImplementedError

    def before_step(self, seed: int, step: int) -> None:
        """What must happen before optimiser step ``step``; a pure function of its arguments."""

    @property
    def token_config(self) -> Any:
        """How this family's cells become tokens, for inference."""
        raise NotImplementedError

    def batch_flops(
        self, visible: Int[Any, " cell"] | list[int], targets: Int[Any, " cell"] | list[int]
    ) -> float:
        """Operations of the matrix products of one forward and backward pass over these cells."""
        raise NotImplementedError

    def width(self, how: str | None = None) -> int:
        """Length of the vector that `pool` makes of a cell."""
        self.checked_pooling(how)
        return self.config.sizes.d_model

    def pool(self, states: CellStates, how: str | None = None) -> Float[Tensor, "cell d"]:
        """One vector a cell."""
        raise NotImplementedError

    def embed(self, cells: CellBatch, how: str | None = None) -> Float[Tensor, "cell d"]:
        """One vector a cell, of cells as this family shows them in inference."""
        return self.pool(self(cells), how)

    def add_classifier(self, spec: ClassifierSpec) -> CellClassifier:
        """Give the model a classifier that has learned nothing, in the place of any it had."""
        made = self._new_classifier(spec).to(self.device)
        self.config.classifier = spec.to_dict()
        self.classifier = made
        return made

    def _new_classifier(self, spec: ClassifierSpec) -> CellClassifier:
        return CellClassifier(spec, self.width(spec.pooling), self.config.n_tokens)

    def classify(self, cells: CellBatch, states: CellStates) -> Float[Tensor, "cell type"]:
        """A score for every type the classifier knows; a cell's hang on no other cell."""
        assert self.classifier is not None, "a model without a classifier says no types"
        assert self.vocab is not None, "models are loaded or built with a vocabulary"
        first, n_genes = self.vocab.gene_start, self.vocab.n_genes
        is_gene = (cells.gene_ids >= first) & (cells.gene_ids < first + n_genes)
        values = torch.where(is_gene, cells.values, 0.0)
        vectors = self.pool(states, self.classifier.spec.pooling)
        return self.classifier(vectors, cells.gene_ids, values, cells.offsets)

    def checked_pooling(self, how: str | None) -> str:
        """The pooling asked for, or the default; ConfigError for one this family has not."""
        how = self.poolings[0] if how is None else how
        if how not in self.poolings:
            raise ConfigError(f"pooling is '{how}'; known are {', '.join(self.poolings)}.")
        return how

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write config.json, model.safetensors, vocab.tsv and provenance.json into a folder."""
        if self.vocab is None:
            name = type(self).__name__
            raise ModelError(f"This model has no vocabulary; build it with {name}.from_scratch.")
        folder = Path(save_directory)
        if not torch.accelerator.is_available():
            # transformers saves through accelerate, which imports DeepSpeed where both are there;
            # left to look for a GPU, that says so on stdout, where --json has its one line
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().save_pretrained(folder, **kwargs)
        set_usual_mode(folder / WEIGHTS)
        self.vocab.save(folder / VOCAB)
        hashes = {
            "weights_sha256": sha256(folder / WEIGHTS),
            "config_sha256": sha256(folder / CONFIG),
        }
        self.provenance = {**self.provenance, **hashes}
        (folder / PROVENANCE).write_text(json.dumps(self.provenance, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a model folder, or a hub id; works offline for a folder.

        Raises ModelError where a file is missing, truncated, altered since it was written, of
        another family, or where weights and architecture do not fit exactly.
        """
        folder = find_model(source)
        vocab, provenance = GeneVocab.load(folder / VOCAB), read_provenance(folder)
        cls._check_family(folder)
        with _plain_errors(folder), _quiet_transformers():
            answer: Any = super().from_pretrained(
                str(folder), use_safetensors=True, output_loading_info=True, **kwargs
            )
        loaded, found = answer
        wrong = {k: sorted(map(str, v)) for k, v in found.items() if v}
        if wrong:
            raise ModelError(
                f"The weights in {folder} do not fit config.json: "
                + "; ".join(f"{k.replace('_', ' ')}: {', '.join(v[:3])}" for k, v in wrong.items())
                + ". Take the whole folder from where it was made."
            )
        if (len(vocab), vocab.hash) != (loaded.config.n_tokens, loaded.config.vocab_hash):
            raise ModelError(
                f"{folder / VOCAB} is not the vocabulary this model was trained with (hash "
                f"{vocab.hash[:12]}, wanted {loaded.config.vocab_hash[:12]}). Restore the original."
            )
        loaded.vocab, loaded.provenance = vocab, provenance
        loaded.calibration = read_calibration(folder, provenance)
        return loaded.eval()

    @classmethod
    def _check_family(cls, folder: Path) -> None:
        found, config = model_type(folder), cls.config_class
        assert config is not None, "every family has a config class"
        if found != config.model_type:
            raise ModelError(
                f"{folder} is a model of the family '{found}'; wanted '{config.model_type}'. "
                "scfm.load takes every family."
            )


def model_type(folder: Path) -> str:
    """The family that a model folder's config.json names. Raises ModelError."""
    with _plain_errors(folder):
        return str(json.loads((folder / CONFIG).read_text())["model_type"])


def save_model(model: CellModel, folder: Path, *, card: str | None = None) -> None:
    """``save_pretrained`` into a folder that appears whole or not at all.

    ``card`` is the text of its README.md. Raises ModelError for weights that are not finite,
    OutputError.
    """
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ModelError(
            f"The model has NaN or infinite weights ({', '.join(broken[:3])}): training diverged. "
            "Nothing was exported. Start again with a lower --set optim.lr=..."
        )
    with atomic_folder(folder, marker=PROVENANCE) as temporary, _quiet_transformers():
        model.save_pretrained(temporary)
        if card is not None:
            (temporary / CARD).write_text(card, encoding="utf-8")


def offsets_of(
    is_chosen: Bool[Tensor, " token"], offsets: Int[Tensor, " bound"]
) -> Int[Tensor, " bound"]:
    """Where each cell's tokens lie once only the chosen ones are left."""
    chosen = is_chosen.to(torch.int32)
    before = torch.cat([chosen.new_zeros(1), chosen.cumsum(0, dtype=torch.int32)])
    return before[offsets.long()]


@contextmanager
def _plain_errors(folder: Path):
    try:
        yield
    except LOADING_ERRORS as error:
        raise ModelError(f"The model in {folder} cannot be loaded: {error}") from error


@contextmanager
def _quiet_transformers():
    """Its loading report repeats what the checks above say better."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        transformers_logging.enable_progress_bar()
