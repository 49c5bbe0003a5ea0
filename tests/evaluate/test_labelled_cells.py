"""Label columns and genes as users have them: left out, refused, matched."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scfm.errors import GeneCoverageError, LabelError, ScfmWarning
from scfm.evaluate.celltype import read_label_mapping
from scfm.evaluate.labelled_cells import on_shared_genes, read_labelled, require_classes
from scfm.tokens.vocab import GeneVocab

HUMAN = GeneVocab.human()


def cells_of(labels, rng, names=None, ids=None) -> ad.AnnData:
    names = list(HUMAN.symbols[:80]) if names is None else names
    counts = rng.poisson(2, size=(len(labels), len(names))).astype(np.int32)
    counts[:, 0] = 1  # no cell is empty
    var = pd.DataFrame(index=pd.Index(names))
    if ids is not None:
        var["gene_ids"] = ids
    obs = pd.DataFrame({"type": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def test_cells_without_a_label_are_left_out_and_counted(rng):
    adata = cells_of(["B", None, "T", np.nan, "B", "", "T"], rng)
    found = read_labelled(adata, "type")
    assert found.labels.tolist() == ["B", "T", "B", "T"]
    assert found.rows.tolist() == [0, 2, 4, 6]
    assert sum(found.left_out.values()) == 3
    assert (found.counts != adata.X[[0, 2, 4, 6]]).nnz == 0


def test_a_mapping_puts_labels_in_common_terms(rng):
    found = read_labelled(
        cells_of(["b1", "b2", "x"], rng), "type", mapping={"b1": "B", "b2": "B", "x": ""}
    )
    assert found.labels.tolist() == ["B", "B"]
    assert found.left_out == {"x": 1}
    with pytest.raises(LabelError, match="does not name: 'b2'"):
        read_labelled(cells_of(["b1", "b2"], rng), "type", mapping={"b1": "B"})


def test_codes_are_warned_of_and_measurements_refused(rng):
    with pytest.warns(ScfmWarning, match=r"holds codes \(0, 1 ...\).*map"):
        assert read_labelled(cells_of([0, 1, 0], rng), "type").labels.tolist() == ["0", "1", "0"]
    with pytest.raises(LabelError, match=r"different numbers such as 0.25: a measurement"):
        read_labelled(cells_of([0.25, 1.5, 2.0], rng), "type")


def test_no_such_column_names_those_there(rng):
    with pytest.raises(LabelError, match=r"no obs column 'celltype'. There is: type"):
        read_labelled(cells_of(["A"], rng), "celltype")


def test_a_label_of_one_cell_is_left_out_and_one_label_refused(rng):
    cells = require_classes(read_labelled(cells_of([*"AABBC"], rng), "type"), "type")
    assert sorted(set(cells.labels)) == ["A", "B"]
    assert cells.left_out == {"C (fewer than 2 cells)": 1}
    with pytest.raises(LabelError, match=r"only 'A' is left.*wanted two labels"):
        require_classes(read_labelled(cells_of([*"AAAB"], rng), "type"), "type")


def test_symbols_meet_ids_and_unknown_names_themselves(rng):
    symbols, ids = list(HUMAN.symbols[:60]), list(HUMAN.ensembl_ids[:60])
    by_symbol = read_labelled(cells_of([*"AB"], rng, [*symbols, "clone-1", "clone-2"]), "type")
    by_id = read_labelled(cells_of([*"AB"], rng, ["clone-2", *reversed(ids), "clone-3"]), "type")
    ours, theirs = on_shared_genes(by_symbol, by_id)
    assert len(ours) == 61
    assert theirs[ours < 60].tolist() == list(range(60, 0, -1))
    assert theirs[-1] == 0


def test_a_column_of_biotypes_matches_nothing(rng):
    kind = ["Gene Expression"] * 80
    one = read_labelled(cells_of([*"AB"], rng, ids=kind), "type")
    other = read_labelled(cells_of([*"AB"], rng, list(HUMAN.symbols[20:100]), ids=kind), "type")
    ours, theirs = on_shared_genes(one, other)
    assert [one.genes[i] for i in ours] == [other.genes[i] for i in theirs]
    assert len(ours) == 60


def test_two_species_and_disjoint_genes_are_refused(rng):
    human = read_labelled(cells_of([*"AB"], rng), "type")
    mouse = read_labelled(
        cells_of([*"AB"], rng, [s.capitalize() for s in HUMAN.symbols[:80]]), "type"
    )
    with pytest.raises(GeneCoverageError, match=r"is human and .* is mouse; wanted one species"):
        on_shared_genes(human, mouse)
    other = read_labelled(cells_of([*"AB"], rng, list(HUMAN.symbols[90:170])), "type")
    with pytest.raises(GeneCoverageError, match="share 0 genes; wanted at least 50"):
        on_shared_genes(human, other)


def test_the_bundled_sets_share_what_their_symbols_share(demo_cells):
    mapping = read_label_mapping(demo_cells / "pbmc_label_mapping.csv")
    reference, query = (
        read_labelled(demo_cells / f"{name}.h5ad", key, mapping=mapping[name])
        for name, key in (("zheng_facs_pbmc", "celltype"), ("pbmc3k", "cell_type"))
    )
    ours, theirs = on_shared_genes(reference, query)
    assert len(ours) == len(set(theirs)) == 16_777  # 16,782 symbols, some of other genes today
    assert query.left_out == {"NA": 62, "DC": 32, "Platelet": 14}
