"""Which genes a model knows, in which order, under which token ids. NumPy-free, torch-free.

in   gene symbols and Ensembl ids in order; the special tokens before or after them, words included
out  GeneVocab: ids, a hash, and one readable file (vocab.tsv) that travels with the model

A word is a special token that stands for a value of an obs column: "Blood" of organ. What words
mean is looked up in scfm.tokens.words.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from scfm.data.gene_tables import (
    gene_table,
    human_ensembl_ids,
    scfoundation_symbols,
    scmulan_tokens,
)
from scfm.errors import MissingFileError, ModelError

FORMAT = "scfm-vocab 1"
SPECIAL = "special"
WORD = "word:"  # in the file, before the columns a word belongs to


@dataclass(frozen=True)
class GeneVocab:
    """A model's tokens: genes in one contiguous block of ids, special tokens around it.

    Attributes
    ----------
    symbols
        Gene symbols, in the order of their ids.
    ensembl_ids
        Ensembl gene id of each, without version; "" where unknown.
    specials_before, specials_after
        Special tokens with ids below and above the genes'.
    kinds
        What each of ``specials_after`` is: "special", or for a word the obs columns it belongs to,
        joined by commas ("cell_type", "coarse,cell_type"). () where there are no words.
    ontology_ids
        The ontology id of each of ``specials_after`` ("CL:0000236"), "" where it has none. () where
        none has one.
    """

    symbols: tuple[str, ...]
    ensembl_ids: tuple[str, ...]
    specials_before: tuple[str, ...] = ("[PAD]", "[CELL]", "[T]", "[S]")
    specials_after: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    ontology_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in vars(self):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._settle_words()
        if len(self.symbols) != len(self.ensembl_ids):
            raise ModelError(
                f"A vocabulary needs one Ensembl id a gene ('' where unknown): got "
                f"{len(self.symbols):,} symbols and {len(self.ensembl_ids):,} ids."
            )
        if len(self._ids) < len(self.tokens):
            seen: set[str] = set()
            twice = next(token for token in self.tokens if token in seen or seen.add(token))
            raise ModelError(f"A vocabulary's tokens must differ: {twice!r} is there twice.")
        for token in self.tokens:
            if not token or token.startswith("#") or not token.isprintable():
                raise ModelError(
                    f"{token!r} cannot be a token: it must be printable, not empty, "
                    "and not begin with '#'."
                )

    def _settle_words(self) -> None:
        """Check the words; one vocabulary has one spelling, so equal ones compare as equal."""
        for name, of_all in (("kinds", SPECIAL), ("ontology_ids", "")):
            found = getattr(self, name)
            if found and len(found) != len(self.specials_after):
                raise ModelError(
                    f"A vocabulary's {name} go with its special tokens after the genes: got "
                    f"{len(found):,} and {len(self.specials_after):,}."
                )
            if all(one == of_all for one in found):
                object.__setattr__(self, name, ())
        for kind in set(self.kinds) - {SPECIAL}:
            columns = kind.split(",")
            if "" in columns or len(set(columns)) < len(columns) or not kind.isprintable():
                raise ModelError(
                    f"{kind!r} cannot be a kind of word: wanted the names of obs columns, joined "
                    "by commas, each once."
                )
        after = zip(self.specials_after, self._kinds, self._ontology_ids, strict=True)
        for token, kind, ontology_id in after:
            if ontology_id and (kind == SPECIAL or not ontology_id.isprintable()):
                raise ModelError(f"{token!r} is no word, so it has no ontology id {ontology_id!r}.")

    @property
    def _kinds(self) -> tuple[str, ...]:
        return self.kinds or (SPECIAL,) * len(self.specials_after)

    @property
    def _ontology_ids(self) -> tuple[str, ...]:
        return self.ontology_ids or ("",) * len(self.specials_after)

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids."""
        return self.specials_before + self.symbols + self.specials_after

    @property
    def gene_start(self) -> int:
        """Token id of the first gene."""
        return len(self.specials_before)

    @property
    def n_genes(self) -> int:
        return len(self.symbols)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        return self.id_of("[PAD]")

    @property
    def cell_id(self) -> int:
        return self.id_of("[CELL]")

    @property
    def target_depth_id(self) -> int:
        """[T]: its value is the log10 depth wanted."""
        return self.id_of("[T]")

    @property
    def source_depth_id(self) -> int:
        """[S]: its value is the log10 depth of what is shown."""
        return self.id_of("[S]")

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of all tokens and Ensembl ids in order: of the file without '#' lines."""
        return _sha256("".join(self._lines()))

    def id_of(self, token: str) -> int:
        """Token id of a gene symbol or special token; ModelError where there is none."""
        try:
            return self._ids[token]
        except KeyError:
            raise ModelError(
                f"The vocabulary has no token {token!r} among its {self.n_genes:,} genes "
                f"({', '.join(self.symbols[:3])}, ...). Use the symbol as the model's vocab.tsv "
                "spells it."
            ) from None

    def save(self, path: str | Path) -> None:
        """Write a TSV of token, Ensembl or ontology id and kind, in the order of the ids."""
        header = f"# {FORMAT}\n# sha256 {self.hash}\n# token\tensembl_id\tkind\n"
        Path(path).write_text(header + "".join(self._lines()), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | Path) -> "GeneVocab":
        """Read what `save` wrote; ModelError where the file is foreign or was altered."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MissingFileError(
                f"No vocabulary at {path}. A model folder holds config.json, model.safetensors "
                "and vocab.tsv: copy it whole."
            ) from None
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise ModelError(f"{path} is no vocabulary file ({error}).") from error
        header, _, body = text.partition("# token\tensembl_id\tkind\n")
        match header.splitlines():
            case [version, stamp] if version == f"# {FORMAT}" and stamp.startswith("# sha256 "):
                expected = stamp.removeprefix("# sha256 ")
            case _:
                raise ModelError(
                    f"{path} begins with {text[:30]!r}; a vocabulary of this version of scfm "
                    f"begins with '# {FORMAT}' and its hash. Copy vocab.tsv from the model again."
                )
        if _sha256(body) != expected:
            raise ModelError(
                f"{path} was altered: its tokens hash to {_sha256(body)[:12]}..., its header says "
                f"{expected[:12]}... A model is only right with the vocabulary it was trained on: "
                "copy vocab.tsv from the model again."
            )
        return cls._from_body(body, path)

    @classmethod
    @cache
    def human(cls) -> "GeneVocab":
        """Human protein-coding and mitochondrial genes, in code-point order of their symbols.

        HGNC's approved genes that have an Ensembl id and are of locus group "protein-coding gene"
        or named MT-*. Immunoglobulin and T cell receptor segments are not: HGNC's group for them
        is "other". Source and date of the list: scfm/data/resources/SOURCES.md.
        """
        table = gene_table("human")
        is_coding = table["locus_group"] == "protein-coding gene"
        is_mitochondrial = table["symbol"].str.startswith("MT-") & (table["locus_group"] != "")
        chosen = table[(is_coding | is_mitochondrial) & (table["ensembl_id"] != "")]
        # Python's own sort: by code point, whatever the locale or the library
        pairs = sorted(zip(chosen["symbol"], chosen["ensembl_id"], strict=True))
        symbols, ensembl_ids = zip(*pairs, strict=True)
        return cls(symbols=symbols, ensembl_ids=ensembl_ids)

    @classmethod
    @cache
    def scfoundation(cls) -> "GeneVocab":
        """The 19,264 genes of the published scFoundation models at ids 0 to 19,263, then [T], [S].

        Ids are rows of the published position table: [T] 19,264, [S] 19,265, [PAD] 19,266. Symbols
        are spelled as released (of 2021 or so; 20 mitochondrial genes are there twice, once as
        "MT-...__chrM", which no data has). Ensembl ids are from our own tables, "" where unknown.
        Source: scfm/data/resources/SOURCES.md; doi:10.1038/s41592-024-02305-7.
        """
        symbols = scfoundation_symbols()
        return cls(
            symbols=symbols,
            ensembl_ids=human_ensembl_ids(symbols),
            specials_before=(),
            specials_after=("[T]", "[S]", "[PAD]"),
        )

    @classmethod
    @cache
    def scmulan(cls) -> "GeneVocab":
        """The 2,222 tokens of the published scMulan models under their ids.

        <E> 0, 2,000 genes in alphabetical order, words of organ, cell_type, age, sample_status,
        region, seq_tech and sex, then the task words <PCT>, <SPToken1> to <SPToken15>. The release
        does not tell coarse from fine types: any word of cell_type may be either. Ensembl ids are
        from our own tables, "" where unknown. Source: scfm/data/resources/SOURCES.md;
        doi:10.1101/2024.01.25.577152.
        """
        tokens = scmulan_tokens()
        genes = [token for token, kind in tokens if kind == "gene"]
        first = tokens.index((genes[0], "gene"))
        after = tokens[first + len(genes) :]
        return cls(
            symbols=tuple(genes),
            ensembl_ids=human_ensembl_ids(genes),
            specials_before=tuple(token for token, _ in tokens[:first]),
            specials_after=tuple(token for token, _ in after),
            kinds=tuple(kind for _, kind in after),
        )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: position for position, token in enumerate(self.tokens)}

    def _lines(self) -> Iterator[str]:
        yield from (f"{token}\t\tspecial\n" for token in self.specials_before)
        for symbol, ensembl_id in zip(self.symbols, self.ensembl_ids, strict=True):
            yield f"{symbol}\t{ensembl_id}\tgene\n"
        after = zip(self.specials_after, self._ontology_ids, self._kinds, strict=True)
        for token, ontology_id, kind in after:
            yield f"{token}\t{ontology_id}\t{kind if kind == SPECIAL else WORD + kind}\n"

    @classmethod
    def _from_body(cls, body: str, path: Path) -> "GeneVocab":
        before: list[str] = []
        genes: list[tuple[str, str]] = []
        after: list[tuple[str, str, str]] = []
        for line in body.splitlines():
            match line.split("\t"):
                case [token, ensembl_id, "gene"] if not after:
                    genes.append((token, ensembl_id))
                case [token, "", "special"]:
                    after.append((token, "", SPECIAL)) if genes else before.append(token)
                case [token, ontology_id, kind] if genes and kind.startswith(WORD):
                    after.append((token, ontology_id, kind.removeprefix(WORD)))
                case _:
                    raise ModelError(
                        f"{path} has the line {line!r}; wanted token, Ensembl id and kind, the "
                        "genes in one block. Copy vocab.tsv from the model again."
                    )
        return cls(
            symbols=tuple(symbol for symbol, _ in genes),
            ensembl_ids=tuple(ensembl_id for _, ensembl_id in genes),
            specials_before=tuple(before),
            specials_after=tuple(token for token, _, _ in after),
            kinds=tuple(kind for _, _, kind in after),
            ontology_ids=tuple(ontology_id for _, ontology_id, _ in after),
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
