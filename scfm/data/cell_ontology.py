"""The Cell Ontology that travels with the package: what a cell type's name means, and what is what.

in   scfm/data/resources/cell_ontology.tsv.xz and cell_type_shorthand.tsv (where they are from:
     SOURCES.md there), read once, when asked for
out  CellOntology: names -> terms, and the terms' order by "is a"

A term is written as its id, "CL:0000084". Source: Diehl et al. 2016, doi:10.1186/s13326-016-0088-7.
"""

import heapq
import lzma
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Literal

from scfm.data.cell_spelling import key_of, keys_of, trigrams, words_of

ROOT = "CL:0000000"  # "cell"
SUGGESTIONS = 3
LEAST_LIKE = 0.3  # of trigrams shared: below it a name is no suggestion
TERM_ID = re.compile(r"(?:.*/)?CL[:_](\d{7})", re.ASCII | re.IGNORECASE)
ONE_TAXON = re.compile(r"\((?:Mmus|Primate|sensu [^)]*)\)$")

How = Literal["exact", "synonym", "common", "mapped", "ambiguous", "not found"]


@dataclass(frozen=True)
class FoundTerm:
    """What a text means.

    Attributes
    ----------
    term
        Id; "" where it is not known, or may be several.
    how
        "exact": the id or the name of the term, whatever the letter case, hyphens and plural;
        "synonym": one the ontology lists; "common": of a small table of scfm's own ("FCGR3A+
        Mono"); "mapped": by the user's own table; "ambiguous"; "not found".
    near
        Of an ambiguous text the terms it may mean; of one not found those that look like it.
    """

    text: str
    term: str
    how: How
    near: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellOntology:
    """Terms, and which is a kind of which.

    Attributes
    ----------
    version
        Date of the release.
    names
        Of each term in use.
    parents
        The terms each is a direct kind of; none for the root alone.
    synonyms
        Other names that mean just this term.
    replaced
        Retired terms, and the term in their place; "" where there is none.
    shorthand
        Common names that are no synonyms in the ontology, and the terms they may mean.
    """

    version: str
    names: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]
    synonyms: Mapping[str, tuple[str, ...]]
    replaced: Mapping[str, str]
    shorthand: Mapping[str, tuple[str, ...]]

    @classmethod
    def load(cls) -> "CellOntology":
        """The one that is shipped; read once."""
        return _shipped()

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, term: object) -> bool:
        return term in self.names

    def __repr__(self) -> str:
        return f"CellOntology({self.version}, {len(self):,} terms)"

    def name(self, term: str) -> str:
        """Raises KeyError for what is no term in use."""
        return self.names[term]

    def ancestors(self, term: str) -> frozenset[str]:
        """All that a term is a kind of; not the term itself. Raises KeyError."""
        return self._above[term]

    def lineage(self, term: str) -> frozenset[str]:
        """A term and all that it is a kind of."""
        return self._above[term] | {term}

    def is_a(self, term: str, other: str) -> bool:
        """Whether ``term`` is ``other`` or a kind of it."""
        return term == other or other in self._above[term]

    def depth(self, term: str) -> int:
        """Steps from the root by the longest way: a kind of something is always deeper than it."""
        return self._depths[term]

    def common(self, terms: Iterable[str]) -> str:
        """The deepest term that all ``terms`` are, of equals the least id. Raises ValueError."""
        lineages = [self.lineage(term) for term in terms]
        if not lineages:
            raise ValueError("no terms to find a common one of")
        shared = frozenset.intersection(*lineages)
        return min(shared, key=lambda term: (-self._depths[term], term))

    def resolve(self, text: str) -> str:
        """A term's id as people write it (CL_0000084, an address), or "" for what is none.

        A retired term becomes the one in its place.
        """
        match = TERM_ID.fullmatch(text.strip())
        term = f"CL:{match[1]}" if match else ""
        return term if term in self.names else self.replaced.get(term, "")

    def find(self, text: str) -> FoundTerm:
        """What a text means: an id, a name, a synonym, a common short form. Never a guess.

        A name goes before what others call by it, and the spelling as it is before a looser one
        (singular, without brackets, with "cell" behind it). Terms of one taxon, "(Mmus)", are known
        by their own names only: their synonyms are other cells' names elsewhere.
        """
        if term := self.resolve(text):
            return FoundTerm(text, term, "exact")
        literal = " ".join(words_of(text))
        if literal in self._by_name:
            return self._told(text, self._by_name[literal], "exact")
        for key in keys_of(text):
            if key in self._by_shorthand:
                return self._told(text, self._by_shorthand[key], "common")
            if key == key_of(text) and literal in self._by_synonym:
                return self._told(text, self._by_synonym[literal], "synonym")
            if key in self._by_key:
                terms = self._by_key[key]
                by_name = len(terms) == 1 and key == key_of(self.names[terms[0]])
                return self._told(text, terms, "exact" if by_name else "synonym")
        return FoundTerm(text, "", "not found", tuple(self.nearest(text)))

    def nearest(self, text: str, n: int = SUGGESTIONS) -> list[str]:
        """The terms whose names or synonyms share most of their letters with a text.

        By Dice's coefficient of trigrams within words; of equals the least id.
        """
        wanted = trigrams(text)
        likeness: dict[str, float] = {}
        for term, theirs in self._trigrams:
            alike = 2 * len(wanted & theirs) / (len(wanted) + len(theirs) or 1)
            if alike >= LEAST_LIKE:
                likeness[term] = max(alike, likeness.get(term, 0.0))
        return heapq.nsmallest(n, likeness, key=lambda term: (-likeness[term], term))

    def _told(self, text: str, terms: Sequence[str], how: How) -> FoundTerm:
        if len(terms) == 1:
            return FoundTerm(text, terms[0], how)
        return FoundTerm(text, "", "ambiguous", tuple(terms))

    @cached_property
    def _above(self) -> dict[str, frozenset[str]]:
        above: dict[str, frozenset[str]] = {}

        def climb(term: str) -> frozenset[str]:
            if term not in above:
                direct = self.parents[term]
                above[term] = frozenset(direct).union(*(climb(parent) for parent in direct))
            return above[term]

        for term in self.names:
            climb(term)
        return above

    @cached_property
    def _depths(self) -> dict[str, int]:
        depths: dict[str, int] = {}
        # a term has more ancestors than any of its ancestors, so these are done before it
        for term in sorted(self.names, key=lambda term: len(self._above[term])):
            depths[term] = max((depths[parent] + 1 for parent in self.parents[term]), default=0)
        return depths

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _index((" ".join(words_of(name)), term) for term, name in self.names.items())

    @cached_property
    def _by_synonym(self) -> dict[str, list[str]]:
        return _index((" ".join(words_of(name)), term) for term, name in self._loose_synonyms)

    @cached_property
    def _by_key(self) -> dict[str, list[str]]:
        names = [*self.names.items(), *self._loose_synonyms]
        return _index((key_of(name), term) for term, name in names)

    @cached_property
    def _by_shorthand(self) -> dict[str, list[str]]:
        pairs = [(name, term) for name, terms in self.shorthand.items() for term in terms]
        return _index((key, term) for name, term in pairs for key in {key_of(name), _bare(name)})

    @cached_property
    def _trigrams(self) -> list[tuple[str, frozenset[str]]]:
        known = [*self.names.items(), *self._loose_synonyms]
        return [(term, trigrams(name)) for term, name in known]

    @cached_property
    def _loose_synonyms(self) -> list[tuple[str, str]]:
        return [
            (term, synonym)
            for term, synonyms in self.synonyms.items()
            if not ONE_TAXON.search(self.names[term])
            for synonym in synonyms
        ]


def _bare(name: str) -> str:
    return key_of(name).removesuffix("cell")


def _index(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Every term of each key, by id."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for key, term in pairs:
        found[key].add(term)
    return {key: sorted(terms) for key, terms in found.items()}


@cache
def _shipped() -> CellOntology:
    resources = files("scfm.data") / "resources"
    packed = (resources / "cell_ontology.tsv.xz").read_bytes()
    title, _, *lines = lzma.decompress(packed).decode().splitlines()
    names, parents, synonyms, replaced, retired = {}, {}, {}, {}, []
    for line in lines:
        term, name, above, others, new = line.split("\t")
        if above or term == ROOT:
            names[term], parents[term] = name, tuple(above.split("|")) if above else ()
            synonyms[term] = tuple(others.split("|")) if others else ()
        else:
            replaced[term] = new
            retired += [(name, new)] if name and new else []
    for name, new in retired:  # older data sets bear them ("native cell")
        synonyms[new] += (name,)
    by_name = {name: term for term, name in names.items()}
    _, *rows = (resources / "cell_type_shorthand.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [row.split("\t") for row in rows]
    shorthand = {short: tuple(by_name[name] for name in full.split("|")) for short, full in pairs}
    version = title.removeprefix("# Cell Ontology ").partition(",")[0]
    return CellOntology(version, names, parents, synonyms, replaced, shorthand)
