"""Public gene lists -> the small tables in scfm/data/resources. The same lists give the same bytes.

in   hgnc_complete_set.txt.gz, genes_homo_sapiens.csv.gz, genes_mus_musculus.csv.gz,
     Ensembl105_Human2Mouse_Genes.csv.gz, scfoundation_gene_index_19264.tsv.gz,
     scmulan_vocab.json
     (where each is from: scfm/data/resources/SOURCES.md)
out  human_genes.tsv.gz, human_names.tsv.gz, mouse_genes.tsv.gz, orthologs.tsv.gz,
     scfoundation_genes.tsv.gz, scmulan_tokens.tsv.gz

    python scripts/build_gene_tables.py FOLDER_WITH_THE_LISTS
"""

import argparse
import gzip
import io
import json
from collections import defaultdict
from pathlib import Path

import pandas as pd

RESOURCES = Path(__file__).resolve().parents[1] / "scfm" / "data" / "resources"

# how many tokens of scMulan's list, in its order, are words of which kind
SCMULAN_BLOCKS = (
    *(("special", 1), ("gene", 2000), ("organ", 7), ("cell_type", 114), ("age", 33)),
    *(("sample_status", 6), ("region", 33), ("seq_tech", 10), ("sex", 2), ("special", 16)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lists", type=Path, help="folder with the six lists")
    parser.add_argument("--out", type=Path, default=RESOURCES)
    arguments = parser.parse_args()
    hgnc = read_hgnc(arguments.lists / "hgnc_complete_set.txt.gz")
    ensembl = read_ensembl(arguments.lists / "genes_homo_sapiens.csv.gz")
    mouse = read_ensembl(arguments.lists / "genes_mus_musculus.csv.gz")
    pairs = read_list(
        arguments.lists / "Ensembl105_Human2Mouse_Genes.csv.gz", names=["human", "mouse"]
    )

    genes = human_genes(hgnc, ensembl)
    names = human_names(hgnc, genes, ensembl)
    tables = {
        "human_genes": genes,
        "human_names": names,
        "mouse_genes": mouse[["ensembl_id", "symbol", "biotype"]].sort_values("ensembl_id"),
        "orthologs": orthologs(pairs, genes, names, mouse),
        "scfoundation_genes": scfoundation_genes(
            arguments.lists / "scfoundation_gene_index_19264.tsv.gz"
        ),
        "scmulan_tokens": scmulan_tokens(arguments.lists / "scmulan_vocab.json"),
    }
    for name, table in tables.items():
        size = write_table(table, arguments.out / f"{name}.tsv.gz")
        print(f"{name:12} {len(table):7,} rows {size:9,} bytes")


def read_list(path: Path, **options) -> pd.DataFrame:
    # "NA" and "nan" are names like any other: nothing may be read as missing
    return pd.read_csv(path, dtype=str, keep_default_na=False, **options)


def read_hgnc(path: Path) -> pd.DataFrame:
    """Approved genes: symbol, ensembl_id, locus_group, and the old and other names, bar-joined."""
    table = read_list(path, sep="\t").rename(columns={"ensembl_gene_id": "ensembl_id"})
    table = table[table["status"] == "Approved"]
    return table[["symbol", "ensembl_id", "locus_group", "prev_symbol", "alias_symbol"]]


def read_ensembl(path: Path) -> pd.DataFrame:
    """CELLxGENE's list; a gene without a name bears its id there, and none here."""
    columns = ["ensembl_id", "symbol", "version", "length", "biotype"]
    table = read_list(path, names=columns)
    table["symbol"] = table["symbol"].where(table["symbol"] != table["ensembl_id"], "")
    return table


def scfoundation_genes(path: Path) -> pd.DataFrame:
    """The symbols alone, in the released order: a gene's number is its row."""
    table = read_list(path, sep="\t").astype({"index": int})
    assert list(table["index"]) == list(range(len(table))), "the rows are not in their own order"
    return table[["gene_name"]].rename(columns={"gene_name": "symbol"})


def scmulan_tokens(path: Path) -> pd.DataFrame:
    """The tokens in the released order, each with what it is: the release only lists them."""
    listed = json.loads(path.read_text(encoding="utf-8"))
    tokens, genes, types = listed["tokens"], listed["genes"], set(listed["cell_types"])
    kinds = [kind for kind, n in SCMULAN_BLOCKS for _ in range(n)]
    table = pd.DataFrame({"token": tokens, "kind": kinds})
    assert list(table["token"][table["kind"] == "gene"]) == genes, "the genes are not one block"
    assert set(table["token"][table["kind"] == "cell_type"]) == types, "nor are the cell types"
    return table


def human_genes(hgnc: pd.DataFrame, ensembl: pd.DataFrame) -> pd.DataFrame:
    """One row a gene: HGNC's by symbol, then those only Ensembl knows (locus_group empty) by id.

    An id HGNC gives to two genes stays with the one Ensembl names. Where HGNC's id is retired or
    absent and Ensembl has exactly one other id of that name, that one is taken and the retired
    one kept as ``former_id``: files of both ages are then matched.
    """
    symbol_of = dict(zip(ensembl["ensembl_id"], ensembl["symbol"], strict=True))
    ids_of = lists(zip(ensembl["symbol"], ensembl["ensembl_id"], strict=True))
    shared = set(hgnc["ensembl_id"][hgnc["ensembl_id"].duplicated()]) - {""}
    taken = set(hgnc["ensembl_id"])
    rows = []
    for symbol, listed, group in hgnc[["symbol", "ensembl_id", "locus_group"]].itertuples(
        index=False
    ):
        current, former = listed, ""
        if listed in shared and symbol_of[listed] != symbol:
            current = ""
        elif listed not in symbol_of:
            others = [other for other in ids_of[symbol] if other not in taken]
            if len(others) == 1:
                current, former = others[0], listed
        rows.append((symbol, current, former, group))
    columns = ["symbol", "ensembl_id", "former_id", "locus_group"]
    known = pd.DataFrame(rows, columns=pd.Index(columns)).sort_values("symbol")
    known["biotype"] = known["ensembl_id"].map(
        dict(zip(ensembl["ensembl_id"], ensembl["biotype"], strict=True))
    )
    used = set(known["ensembl_id"]) | set(known["former_id"])
    rest = ensembl[~ensembl["ensembl_id"].isin(used)].sort_values("ensembl_id")
    return pd.concat([known, rest[["symbol", "ensembl_id", "biotype"]]]).fillna("")


def human_names(hgnc: pd.DataFrame, genes: pd.DataFrame, ensembl: pd.DataFrame) -> pd.DataFrame:
    """Names that are no approved symbol: name, kind, the approved symbols they may mean.

    The first kind that holds is the one kept: ``current`` (Ensembl's name today, newer than the
    HGNC list), ``previous``, ``alias``. More than one symbol, bar-joined, is an ambiguous name. A
    name that a gene only Ensembl knows bears today (U6, 7SK) is left out: it means that gene.
    """
    approved = set(hgnc["symbol"])
    ours = genes[genes["locus_group"] != ""]
    symbol_of = dict(zip(ours["ensembl_id"], ours["symbol"], strict=True))
    symbol_of.pop("", None)
    known = ensembl[ensembl["ensembl_id"].isin(symbol_of)]
    kinds = {
        "current": lists(
            zip(known["symbol"], known["ensembl_id"].map(symbol_of), strict=True),
        ),
        "previous": named(hgnc, "prev_symbol"),
        "alias": named(hgnc, "alias_symbol"),
    }
    only_ensembl = set(genes["symbol"][genes["locus_group"] == ""])
    seen = approved | {""}
    rows = []
    for kind, meanings in kinds.items():
        for name in sorted(set(meanings) - seen):
            symbols = "|".join(sorted(set(meanings[name])))
            if kind == "current" or name not in only_ensembl:
                rows.append((name, kind, symbols))
        seen |= set(meanings)
    return pd.DataFrame(rows, columns=pd.Index(["name", "kind", "symbols"])).sort_values("name")


def named(hgnc: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """Each name of a bar-joined column, and the symbols of the genes that list it."""
    split = zip(hgnc["symbol"], hgnc[column].str.split("|"), strict=True)
    return lists((name.strip(), symbol) for symbol, names in split for name in names)


def orthologs(
    pairs: pd.DataFrame, genes: pd.DataFrame, names: pd.DataFrame, mouse: pd.DataFrame
) -> pd.DataFrame:
    """One-to-one pairs: approved human symbol, mouse symbol, mouse Ensembl id ("" if unsure).

    A pair counts when neither name has another named partner. Partners without a name (unnamed
    copies on assembly patches) do not count. The mouse id is the one that bears the symbol, or
    the only protein-coding one of several. Where the mouse symbol is no longer in use, it is the
    one coding gene that now bears the human symbol in mouse spelling (ATP5F1B, once Atp5b, now
    Atp5f1b) and has no partner in the table: the naming committees keep the two alike.
    """
    approved = {symbol: symbol for symbol in genes["symbol"][genes["locus_group"] != ""]}
    renamed = names[~names["symbols"].str.contains("|", regex=False)]
    current = names[names["kind"] == "current"]
    today = dict(zip(current["symbols"], current["name"], strict=True))
    approved = dict(zip(renamed["name"], renamed["symbols"], strict=True)) | approved

    pairs = pairs[(pairs["human"] != "") & (pairs["mouse"] != "")].drop_duplicates()
    partnered = set(pairs["mouse"])
    pairs = pairs.assign(human=pairs["human"].map(approved))
    unique = ~pairs["human"].duplicated(keep=False) & ~pairs["mouse"].duplicated(keep=False)
    pairs = pairs[unique & pairs["human"].notna()]
    all_ids = lists(zip(mouse["symbol"], mouse["ensembl_id"], strict=True))
    coding = mouse[mouse["biotype"] == "protein_coding"]
    coding_ids = lists(zip(coding["symbol"], coding["ensembl_id"], strict=True))

    def one_id(symbol: str, human: str) -> str:
        # as the table spells the human symbol today, and as HGNC's list does
        alike = {name.capitalize() for name in (human, today.get(human, human))} - partnered
        renamed = [] if all_ids[symbol] else [i for name in alike for i in coding_ids[name]]
        for ids in (all_ids[symbol], coding_ids[symbol], renamed):
            if len(ids) == 1:
                return ids[0]
        return ""

    mouse_ids = [one_id(*pair) for pair in zip(pairs["mouse"], pairs["human"], strict=True)]
    pairs = pairs.assign(mouse_id=mouse_ids)
    return pairs[["human", "mouse", "mouse_id"]].sort_values("human")


def lists(pairs) -> defaultdict[str, list[str]]:
    """Every value of each key."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found


def write_table(table: pd.DataFrame, path: Path) -> int:
    """Gzip without time or file name, so that equal tables are equal files; returns the size."""
    text = table.to_csv(sep="\t", index=False, lineterminator="\n")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0, filename="") as out:
        out.write(text.encode())
    path.write_bytes(packed.getvalue())
    return path.stat().st_size


if __name__ == "__main__":
    main()
