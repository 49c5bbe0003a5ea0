import gzip

import numpy as np
import pytest

from scfm.data.nucleotides import encode
from scfm.errors import MissingFileError, UnreadableFileError
from scfm.evaluate.motif_hits import best_hits, hit_threshold, log_odds, read_motifs

REVERSE = str.maketrans("ACGT", "TGCA")


def meme(motifs):
    lines = ["MEME version 4", "", "ALPHABET= ACGT", "", "strands: + -", ""]
    for name, word in motifs.items():
        lines += [f"MOTIF {name}", f"letter-probability matrix: alength= 4 w= {len(word)}"]
        lines += [" ".join("0.97" if base == x else "0.01" for base in "ACGT") for x in word]
        lines.append("")
    return "\n".join(lines) + "\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "motifs.meme"
    motifs = {
        "MA0001.1 SPI1": "AAAGAGGAAGTG",
        "REST.H12CORE.0.P.B": "TTCAGCACCATGGACAG",
        "MA0099.2 FOS::JUN": "TGACTCAGCA",
        "MA0003.1 Fosl1": "GGTGACTCATG",
    }
    path.write_text(meme(motifs))
    return path


def test_names_are_matched_by_hgnc(path):
    """PU.1 is an alias of SPI1; a dimer stands for either TF that has no motif of its own."""
    found = read_motifs(path, ["PU.1", "REST", "JUN", "FOSL1", "CTCF"])
    assert found.names == {
        "PU.1": "MA0001.1 SPI1",
        "REST": "REST.H12CORE.0.P.B",
        "JUN": "MA0099.2 FOS::JUN",
        "FOSL1": "MA0003.1 Fosl1",
    }
    assert found.sentence(["REST", "CTCF"]) == "1 of 2 TFs have a motif; none: CTCF."


def naive(matrix, word):
    """Every place on both strands, letter by letter."""
    scores = [matrix.min(0).sum()]
    for strand in (word, word[::-1].translate(REVERSE)):
        for start in range(len(word) - matrix.shape[1] + 1):
            place = strand[start : start + matrix.shape[1]]
            if "N" not in place:
                scores.append(sum(matrix["ACGT".index(x), i] for i, x in enumerate(place)))
    return max(scores)


def test_best_hits_are_those_of_a_walk_over_every_place(path, rng):
    motifs = read_motifs(path, ["SPI1", "REST", "JUN"])
    words = ["".join(rng.choice(list("ACGTN"), p=[0.24] * 4 + [0.04], size=60)) for _ in range(20)]
    words[0] = "N" * 60
    words[1] = words[1][:20] + "TTCAGCACCATGGACAG"[::-1].translate(REVERSE) + words[1][37:]
    found = best_hits(motifs, encode(words, "words"))
    for tf, matrix in motifs.log_odds.items():
        wanted = [naive(matrix, word) for word in words]
        np.testing.assert_allclose(found[tf], wanted, rtol=1e-5)
    assert found["REST"][1] == pytest.approx(motifs.log_odds["REST"].max(0).sum(), rel=1e-5)


def test_the_threshold_of_a_hit_is_that_of_all_words(rng):
    """All 4^6 words of a motif of six columns."""
    matrix = log_odds(rng.dirichlet([0.5] * 4, size=6).T)
    scores = np.zeros(1)
    for column in matrix.T:
        scores = (scores[:, None] + column).ravel()
    for p in (0.1, 0.01, 1e-3):
        threshold = hit_threshold(matrix, p)
        assert (scores >= threshold + 0.06).mean() <= p
        assert (scores >= threshold - 0.04).mean() > p
    assert (scores >= hit_threshold(matrix, 1e-9)).sum() >= 1


def test_packed_missing_and_wrong_files(path, tmp_path):
    packed = tmp_path / "motifs.meme.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert set(read_motifs(packed, ["REST"]).names) == {"REST"}
    with pytest.raises(MissingFileError):
        read_motifs(tmp_path / "none.meme", ["REST"])
    empty = tmp_path / "empty.meme"
    empty.write_text("MEME version 4\n")
    with pytest.raises(UnreadableFileError, match="no motif"):
        read_motifs(empty, ["REST"])
