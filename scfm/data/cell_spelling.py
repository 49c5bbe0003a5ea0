"""One key for all the ways a cell type's name is spelled.

in   a name as people write it: "CD4+ T-cells", "Haematopoietic stem cell (HSC)", "NK"
out  the keys it may be found by, the most literal first; trigrams, for what it looks like
"""

import re
import unicodedata

GREEK = {
    unicodedata.lookup(f"GREEK SMALL LETTER {name}"): name
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "kappa", "lamda", "mu")
}
BRITISH = (("haem", "hem"), ("leuco", "leuko"), ("oesoph", "esoph"), ("foet", "fet"))
DASHES = re.compile("[\u2010-\u2015\u2212]")  # hyphens, dashes, the minus sign
# what stands before these is a marker: CD4+, CD25-, CD25-/CD45RA+; but not in T-cell
IS_POSITIVE = re.compile(r"(?<=[a-z0-9])\+")
IS_NEGATIVE = re.compile(r"(?<=[a-z0-9])-(?=$|[\s,/;)&]|cd\d)")
IS_PRIME = re.compile("(?<=[a-z0-9])['\u2032](?![a-z])")  # Bm2' is another cell than Bm2
IN_BRACKETS = re.compile(r"\s*[(\[][^()\[\]]*[)\]]")
EVERYWHERE = frozenset({"cell", "cells", "positive", "negative"})
WORD = re.compile(r"[a-z0-9]+")
# cells, MONOCYTES, DCs and NKs; not "mass", nor "CD4s"
PLURALS = re.compile(r"(?<=[A-Z])s\b|(?i:(?<=[a-z]{3})(?<!s)s\b)")


def words_of(text: str) -> list[str]:
    """The words of a name in lower case, "+" and "-" of markers spelled out, American spelling."""
    text = DASHES.sub("-", unicodedata.normalize("NFKC", text)).casefold()
    for letter, name in GREEK.items():
        text = text.replace(letter, name)
    for british, american in BRITISH:
        text = text.replace(british, american)
    text = text.replace("lamda", "lambda")
    text = IS_NEGATIVE.sub(" negative ", IS_POSITIVE.sub(" positive ", text))
    text = IS_PRIME.sub(" prime ", text)
    return WORD.findall(text)


def key_of(text: str) -> str:
    """Two spellings of one name have one key: letter case, hyphens, commas and spaces are gone."""
    return "".join(words_of(text))


def keys_of(text: str) -> list[str]:
    """Every key a name may be found by: as it is, singular, without brackets, "cell" put or left.

    The more literal first, so that the first that is known is what was meant. A single letter gets
    no "cell": "D" is a cluster's name rather than the D cell of the pancreas.
    """
    found: list[str] = []
    for bare in (text, IN_BRACKETS.sub("", text)):
        for form in (bare, singular(bare)):
            key = key_of(form)
            shorter = key.removesuffix("cell")
            found.append(key)
            found += [f"{shorter}cell", shorter] if len(shorter) > 1 else []
    return [key for key in dict.fromkeys(found) if key]


def singular(text: str) -> str:
    """Words of four letters and more, and short forms in capitals, without their plural's s."""
    return PLURALS.sub("", text)


def trigrams(text: str) -> frozenset[str]:
    """Every three letters in a row of a name, word by word, ends marked.

    Words that half of all names have say nothing of which name is like which.
    """
    words = [word for word in words_of(text) if word not in EVERYWHERE]
    return frozenset(
        padded[at : at + 3]
        for padded in (f" {word} " for word in words)
        for at in range(len(padded) - 2)
    )
