"""The default model, and the folder it lives in.

in   a config and a vocabulary, or a folder (or hub id) holding
         config.json, model.safetensors, vocab.tsv, provenance.json
out  ScfmModel: CellBatch -> CellStates

Loading reads JSON, TSV and safetensors only: nothing from the folder can run.
"""

import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from scfm.batch import CellBatch, CellStates
from scfm.data.fingerprint import sha256
from scfm.data.write import atomic_folder
from scfm.errors import ConfigError, ModelError
from scfm.model.attention import Packing
from scfm.model.config import ModelSizes, ScfmConfig
from scfm.model.decoder import CellHead, QueryDecoder
from scfm.model.embed import TokenEmbedding
from scfm.model.encoder import Encoder
from scfm.model.folder import CONFIG, PROVENANCE, VOCAB, WEIGHTS, find_model, read_provenance
from scfm.model.init import initialise
from scfm.model.recompute import Recompute
from scfm.tokens.collate import N_SPECIALS
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
Pooling = Literal["cell", "mean", "max", "S", "T"]


class ScfmModel(PreTrainedModel):
    """Encoder over expressed genes, query decoder over targets, a head on the cell state.

    Attributes
    ----------
    vocab
        The genes this model knows; saved and loaded with it.
    provenance
        Where the weights come from: data, settings, versions, hashes.
    """

    config_class = ScfmConfig
    base_model_prefix = "scfm"
    config: ScfmConfig

    def __init__(self, config: ScfmConfig, vocab: GeneVocab | None = None):
        super().__init__(config)
        self.vocab, self.provenance = vocab, {}
        sizes = config.sizes
        self.embedding = TokenEmbedding(config.n_tokens, sizes.n_bins, sizes.d_model)
        self.encoder = Encoder(sizes)
        self.decoder = QueryDecoder(sizes)
        self.cell_head = CellHead(sizes)
        self.post_init()

    @classmethod
    def from_scratch(
        cls, vocab: GeneVocab, sizes: ModelSizes, *, max_genes: int = 2048
    ) -> "ScfmModel":
        """A fresh model of these sizes for this vocabulary. Draws from torch's global generator."""
        config = ScfmConfig.of(
            sizes, n_tokens=len(vocab), vocab_hash=vocab.hash, max_genes=max_genes
        )
        return cls(config, vocab)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.sizes)

    def forward(self, cells: CellBatch) -> CellStates:
        """Encode what may be seen: targets are left out before the first matrix product."""
        is_visible = ~cells.is_target
        visible = Packing(visible_offsets(cells))
        x = self.embedding(cells.gene_ids[is_visible], cells.values[is_visible])
        tokens = self.encoder(x, visible)
        cell = tokens[visible.offsets[:-1].long()]
        return CellStates(tokens=tokens, offsets=visible.offsets, cell=cell)

    def predict_targets(
        self, cells: CellBatch, states: CellStates
    ) -> dict[str, Float[Tensor, " target"]]:
        """The targets' log1p(cp10k): "query", by the decoder, and "cell", from [CELL] alone."""
        visible, targets = Packing(states.offsets), Packing(cells.offsets - states.offsets)
        genes = self.embedding.gene(cells.gene_ids[cells.is_target])
        first = states.offsets[:-1].long()
        depth = states.tokens[first + 1] + states.tokens[first + 2]
        query = self.decoder(genes, depth, states.tokens, targets, visible)
        # The cell head gets the depth as a number only: an encoded [T] would tell of the cell.
        wanted = cells.offsets[:-1].long() + 1
        bare_depth = self.embedding(cells.gene_ids[wanted], cells.values[wanted])
        cell = self.cell_head(states.cell, bare_depth, genes, targets.cell_of)
        return {"query": query, "cell": cell}

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, which are sharded, compiled and recomputed one by one."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    def recompute(self, how: Recompute) -> None:
        """Which activations of the blocks are made again in the backward pass."""
        self.encoder.recompute = self.decoder.recompute = how

    def pool(self, states: CellStates, how: Pooling = "cell") -> Float[Tensor, "cell d"]:
        """One vector a cell: the [CELL] state, the mean or max over genes, or the S or T state.

        A cell without a gene of the vocabulary has the [CELL] state for mean and max.
        """
        if how not in get_args(Pooling):
            raise ConfigError(f"pooling is '{how}'; known are {', '.join(get_args(Pooling))}.")
        if how == "cell":
            return states.cell
        first = states.offsets[:-1].long()
        if how in ("T", "S"):
            return states.tokens[first + ("T", "S").index(how) + 1]
        pooled = [
            _pool_genes(tokens, how)
            for tokens in states.tokens.split(Packing(states.offsets).lengths)
        ]
        return torch.stack(pooled)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write config.json, model.safetensors, vocab.tsv and provenance.json into a folder."""
        if self.vocab is None:
            raise ModelError("This model has no vocabulary; build it with ScfmModel.from_scratch.")
        folder = Path(save_directory)
        super().save_pretrained(folder, **kwargs)
        self.vocab.save(folder / VOCAB)
        hashes = {
            "weights_sha256": sha256(folder / WEIGHTS),
            "config_sha256": sha256(folder / CONFIG),
        }
        self.provenance = {**self.provenance, **hashes}
        (folder / PROVENANCE).write_text(json.dumps(self.provenance, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> "ScfmModel":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a model folder, or a hub id; works offline for a folder.

        Raises ModelError where a file is missing, truncated, altered since it was written, or
        where weights and architecture do not fit exactly.
        """
        folder = find_model(source)
        vocab, provenance = GeneVocab.load(folder / VOCAB), read_provenance(folder)
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
        return loaded.eval()


def save_model(model: ScfmModel, folder: Path) -> None:
    """``save_pretrained`` into a folder that appears whole or not at all."""
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ModelError(
            f"The model has NaN or infinite weights ({', '.join(broken[:3])}): training diverged. "
            "Nothing was exported. Start again with a lower --set optim.lr=..."
        )
    with atomic_folder(folder, marker=PROVENANCE) as temporary, _quiet_transformers():
        model.save_pretrained(temporary)


def visible_offsets(cells: CellBatch) -> Tensor:
    """Where each cell's tokens lie once the targets are taken out."""
    is_target = cells.is_target.to(torch.int32)
    before = torch.cat([is_target.new_zeros(1), is_target.cumsum(0, dtype=torch.int32)])
    return cells.offsets - before[cells.offsets.long()]


def _pool_genes(tokens: Tensor, how: str) -> Tensor:
    genes = tokens[N_SPECIALS:]
    if len(genes) == 0:
        return tokens[0]
    return genes.mean(0) if how == "mean" else genes.amax(0)


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
