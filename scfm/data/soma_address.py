"""Addresses of cells in a SOMA database. Imports nothing that reads one.

in   "soma:PATH_OR_URI?obs=FILTER" or "census:homo_sapiens?version=2025-11-08&obs=FILTER"
out  Address, whose ``str`` is the text again

Options, each once, percent-encoded where they hold "&" or "%":

obs           a SOMA value filter over obs: tissue == 'lung' and is_primary_data == True
columns       the columns of obs to read, with commas; all of them otherwise
measurement   RNA by default
version       Census only: a release, "stable" (default) or "latest"
uri           Census only: a copy of the Census at this path or URI, instead of ``version``
dataset       Census only: one of its datasets
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from scfm.errors import InputError

OPTIONS = {
    "soma": ("measurement", "obs", "columns"),
    "census": ("version", "uri", "dataset", "measurement", "obs", "columns"),
}
EXAMPLES = {
    "soma": "soma:cells.soma?obs=n_genes > 500",
    "census": "census:homo_sapiens?version=2025-11-08&obs=tissue_general == 'lung'",
}
_SCHEME = re.compile(r"(census|soma):")
# A path object makes one slash of two; "://" is the only place in an address that needs both.
_ONE_SLASH = re.compile(r"^([a-z][a-z0-9+.-]*):/(?!/)", re.IGNORECASE)
_SAFE = " !\"#$'()*+,/:;<=>?@[]^`{|}~"  # all that is neither "&" nor "%": an address stays readable


def is_address(source: Any) -> bool:
    """Whether a path or a text names cells in a SOMA database."""
    return isinstance(source, str | Path) and bool(_SCHEME.match(str(source)))


@dataclass(frozen=True, kw_only=True)
class Address:
    """A parsed address. ``str`` gives it back.

    Attributes
    ----------
    scheme
        "soma" or "census".
    place
        The path or URI of an experiment, or an organism of the Census.
    options
        What follows the question mark.
    """

    scheme: str
    place: str
    options: dict[str, str]

    def __str__(self) -> str:
        pairs = (f"{key}={quote(value, safe=_SAFE)}" for key, value in self.options.items())
        return f"{self.scheme}:{self.place}" + ("?" + "&".join(pairs) if self.options else "")

    def replaced(self, **options: str) -> "Address":
        """The same with these options in place of its own."""
        merged = {**self.options, **options}
        return Address(scheme=self.scheme, place=self.place, options=merged)


def parse_address(text: str) -> Address:
    """Read an address; raises InputError with the options there are."""
    scheme, _, rest = text.partition(":")
    place, _, query = rest.partition("?")
    if not place:
        raise InputError(f"{text}: names no place. For example: {EXAMPLES[scheme]!r}.")
    options: dict[str, str] = {}
    for pair in query.split("&") if query else []:
        key, equals, value = pair.partition("=")
        if key not in OPTIONS[scheme] or not equals or key in options:
            known = ", ".join(OPTIONS[scheme])
            raise InputError(
                f"{text}: {pair!r} is not understood; the options of {scheme}: are {known}, each "
                f'once, with "&" between them (write %26 for one in a value). For example: '
                f"{EXAMPLES[scheme]!r}."
            )
        options[key] = unquote(value)
    if "uri" in options:
        options["uri"] = _two_slashes(options["uri"])
    return Address(scheme=scheme, place=_two_slashes(place), options=options)


def absolute_address(source: str | Path) -> str:
    """The same address whatever the working folder: a local database's path is made absolute."""
    address = parse_address(str(source))
    if address.scheme == "census":
        uri = address.options.get("uri")
        return str(address.replaced(uri=_absolute(uri)) if uri else address)
    return str(Address(scheme="soma", place=_absolute(address.place), options=address.options))


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())


def _two_slashes(place: str) -> str:
    return _ONE_SLASH.sub(r"\1://", place)
