"""Keys of a file's columns: shared between files, all different within one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scfm.data.gene_reading import VocabularyGenes
from scfm.data.gene_tables import gene_table
from scfm.data.identity import identify

HUMAN = gene_table("human")
VOCABULARY = VocabularyGenes(list(HUMAN.symbol[:20_000]), list(HUMAN.ensembl_id[:20_000]))


def keys(names, species="human", **columns):
    return identify(pd.DataFrame(columns, index=names), species, VOCABULARY).keys


def test_symbols_and_ids_of_one_gene_meet():
    symbols = ["CD3D", "MS4A1", "GAPDH", "MT-CO1"]
    by_symbol = keys(symbols)
    table = HUMAN.set_index("symbol")["ensembl_id"]
    assert by_symbol == list(table.loc[symbols])
    assert keys([f"{gene_id}.7" for gene_id in by_symbol]) == by_symbol
    assert keys(range(4), feature_name=symbols) == by_symbol
    assert keys(symbols, gene_ids=by_symbol) == by_symbol


def test_older_names_only_where_unclaimed():
    # GNB2L1 was renamed RACK1
    assert keys(["GNB2L1", "CD3D", "MS4A1"])[0] == keys(["RACK1", "CD3D", "MS4A1"])[0]
    both = keys(["GNB2L1", "RACK1", "CD3D"])
    assert both[0] == "GNB2L1"
    assert both[1].startswith("ENSG")


def test_mouse_genes_are_their_own():
    found = identify(pd.DataFrame(index=["Cd3d", "mt-Co1", "Gapdh"]), "mouse", VOCABULARY)
    assert all(key.startswith("ENSMUSG") for key in found.keys)
    assert found.species == ["mouse"] * 3
    np.testing.assert_array_equal(found.is_mito, [False, True, False])


def test_repeated_and_unknown_names():
    found = identify(
        pd.DataFrame(index=["CD3D", "CD3D", "ERCC-00002", "odd\tname", "", "CD3D"]),
        "human",
        VOCABULARY,
    )
    gene_id = found.keys[0]
    assert found.keys == [
        *(gene_id, f"{gene_id}#2", "ERCC-00002", "odd name", "unnamed", f"{gene_id}#3"),
    ]
    assert found.symbols == ["CD3D", "CD3D", "ERCC-00002", "odd name", "unnamed", "CD3D"]
    assert found.ensembl_ids[2:5] == ["", "", ""]


def test_retired_ids_are_keys_without_a_symbol():
    found = identify(
        pd.DataFrame(index=["ENSG99999999999.1", "CD3D", "MS4A1"]), "human", VOCABULARY
    )
    assert (found.keys[0], found.symbols[0]) == ("ENSG99999999999", "")


def test_barnyard_columns_keep_their_species():
    ids = ["ENSG00000167286", "ENSG00000156738", "ENSMUSG00000064351"]
    found = identify(pd.DataFrame(index=ids), "human", VOCABULARY)
    assert found.species == ["human", "human", "mouse"]
    assert found.symbols[2] == "mt-Co1"
    np.testing.assert_array_equal(found.is_mito, [False, False, True])


NAMES = st.sampled_from(
    ["CD3D", "CD3D#2", "GNB2L1", "RACK1", "ENSG00000167286", "x", "X", "", "#2"]
)


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=30))
def test_keys_differ_whatever_the_names(names):
    found = keys(names)
    assert len(set(found)) == len(found) == len(names)
    assert all(key and key.isprintable() for key in found)


@settings(deadline=None)
@given(st.permutations(["CD3D", "GNB2L1", "MS4A1", "GAPDH", "RP11-34P13.7", "MT-ND1"]))
def test_the_order_of_columns_does_not_matter(names):
    by_name = dict(zip(names, keys(names), strict=True))
    assert by_name == dict(zip(sorted(names), keys(sorted(names)), strict=True))


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_every_gene_of_the_tables_has_one_key(species):
    table = gene_table(species)
    ids = [gene_id for gene_id in table.ensembl_id if gene_id]
    assert keys(ids, species) == list(ids)
