"""Stores behind URLs: file:, memory:, and a web server of byte ranges on this machine.

The server counts what it is asked for, so that reading a block is shown to cost a block; and it
can be told to misbehave, so that a reader is shown to say so and to hand out nothing wrong.
"""

import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import fsspec
import numpy as np
import pytest

from scfm.data.export import export
from scfm.data.store import Store, is_store
from scfm.errors import MissingFileError, StoreError
from tests.data.stores import toy_genes, toy_rows, write_toy_store
from tests.data.test_blocks import dense

N_CELLS, N_GENES, SHARD_CELLS = 2_000, 600, 1_000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A store of two shards of 16 blocks, and what is in it."""
    rng = np.random.default_rng(3)
    rows = toy_rows(rng, N_CELLS, N_GENES)
    folder = tmp_path_factory.mktemp("remote") / "store"
    write_toy_store(folder, rows, toy_genes(N_GENES), shard_cells=SHARD_CELLS)
    return folder, dense(rows, N_GENES)


@dataclass
class Asked:
    """What a web server was asked for, and how it is to misbehave."""

    folder: Path
    requests: list[tuple[str, str, int]] = field(default_factory=list)  # method, file, body bytes
    fault: str = ""
    at: str = ""  # only files of this ending misbehave
    times: int = 10**9  # that often
    url: str = ""

    def gets(self, ending: str) -> list[int]:
        """Bytes of every answer with a body for files of this ending."""
        return [n for method, file, n in self.requests if method == "GET" and file.endswith(ending)]

    def misbehaves(self, file: str) -> str:
        if not self.fault or not file.endswith(self.at) or self.times < 1:
            return ""
        self.times -= 1
        return self.fault


class Handler(BaseHTTPRequestHandler):
    """Files of a folder by range, with the faults of the day."""

    protocol_version = "HTTP/1.1"
    asked: Asked  # set by the fixture, on a class of its own

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.asked.folder.parent / self.path.lstrip("/")
        fault = self.asked.misbehaves(self.path) if with_body else ""
        if fault == "404" or not path.is_file():
            return self._send(404, b"not here", with_body)
        if fault == "503":
            return self._send(503, b"come back later", with_body)
        body, status, headers = path.read_bytes(), 200, {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", ""))
        if wanted and fault != "no ranges":
            first = int(wanted[1])
            last = min(int(wanted[2] or len(body) - 1), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        if fault == "short":
            body = body[: len(body) // 2]
        if fault == "shifted":
            body = body[1:] + b"\0"
        return self._send(status, body, with_body, headers, fault)

    def _send(
        self,
        status: int,
        body: bytes,
        with_body: bool,
        headers: dict[str, str] | None = None,
        fault: str = "",
    ) -> None:
        self.asked.requests.append((self.command, self.path, len(body) if with_body else 0))
        self.send_response(status)
        claimed = len(body) + 1000 if fault == "claims more" else len(body)
        for name, value in {**(headers or {}), "Content-Length": str(claimed)}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if fault == "drops" else body)
        if fault in ("drops", "claims more"):
            self.close_connection = True

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def asked(written) -> Iterator[Asked]:
    """A running server of the store's folder."""
    found = Asked(written[0])
    handler = type("OurHandler", (Handler,), {"asked": found})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/{written[0].name}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def in_memory(written) -> Iterator[str]:
    """The store in fsspec's memory filesystem."""
    filesystem = fsspec.filesystem("memory")
    folder = written[0]
    for path in folder.rglob("*"):
        if path.is_file():
            filesystem.pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "file":
        return f"file://{request.getfixturevalue('written')[0]}"
    return request.getfixturevalue("in_memory" if kind == "memory" else "asked_url")


@pytest.fixture
def asked_url(asked) -> str:
    return asked.url


@pytest.mark.parametrize("kind", ["file", "memory", "http"])
def test_any_cells_in_any_order(kind, request, written, rng):
    url, wanted = url_of(kind, request), written[1]
    assert is_store(url)
    assert not is_store(url + "/shards")
    store = Store(url)
    assert store.n_cells == N_CELLS
    assert store.manifest == Store(written[0]).manifest
    for n in (1, 50, 700):
        cells = rng.integers(0, N_CELLS, n)
        np.testing.assert_array_equal(dense(store.rows(cells), N_GENES), wanted[cells])
    parts = [dense(part, N_GENES) for part in store.chunks(333)]
    np.testing.assert_array_equal(np.concatenate(parts), wanted)


@pytest.mark.parametrize("kind", ["file", "memory", "http"])
def test_tables_genes_and_checks(kind, request, written):
    store, local = Store(url_of(kind, request)), Store(written[0])
    assert store.genes.keys == local.genes.keys
    for name in ("cell_type", "donor_id"):
        np.testing.assert_array_equal(store.column(name)[0], local.column(name)[0])
    np.testing.assert_array_equal(store.numbers("cell_hash"), local.numbers("cell_hash"))
    assert store.obs.equals(local.obs)
    assert store.dataset_var(0)[0].equals(local.dataset_var(0)[0])
    # the chain of manifests, two shards and their obs, genes and their report
    assert [problem for _, problem in store.verify()] == [None] * 7


@pytest.mark.parametrize("kind", ["memory", "http"])
def test_a_remote_store_pickles(kind, request, written):
    again = pickle.loads(pickle.dumps(Store(url_of(kind, request))))
    np.testing.assert_array_equal(dense(again.rows(np.array([7])), N_GENES)[0], written[1][7])


def test_export_over_the_web(asked, written, tmp_path):
    export(Store(asked.url), tmp_path / "back.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "back.h5ad").X.toarray(), written[1])


# --- what a read costs ----------------------------------------------------------------------


def test_opening_reads_no_shard(asked):
    Store(asked.url)
    assert not asked.gets(".cells")
    assert not asked.gets(".parquet")
    assert len(asked.requests) <= 4  # manifest and genes, each looked up at most once


def test_a_cell_costs_its_block_and_the_index(asked, written):
    store = Store(asked.url)
    reader = Store(written[0])._reader(0)
    block, index = int(reader.index["n_bytes"][3]), len(reader.index) * 32 + 400
    size = store.manifest.shards[0].n_bytes
    asked.requests.clear()
    store.rows(np.array([3 * 64 + 5]))
    assert sum(asked.gets(".cells")) <= block + index
    assert sum(asked.gets(".cells")) < size / 8
    assert len(asked.gets(".cells")) <= 3  # end of file, index, block
    asked.requests.clear()
    store.rows(np.array([3 * 64 + 9, 3 * 64 + 5]))  # the block is kept
    assert not asked.requests
    store.rows(np.array([4 * 64]))  # the index as well
    assert asked.gets(".cells") == [int(reader.index["n_bytes"][4])]
    assert len(asked.requests) == 1


def test_every_block_is_fetched_once_an_epoch(asked, written):
    store = Store(asked.url)
    list(store.chunks(256))
    cells = asked.gets(".cells")
    assert sum(cells) <= sum(shard.n_bytes for shard in store.manifest.shards)
    n_blocks = len(store.blocks.n_cells)
    assert len(cells) == n_blocks + 2 * len(store.manifest.shards)


# --- what can go wrong ----------------------------------------------------------------------


FAULTS = ("drops", "claims more", "short", "shifted", "503")
CASES = [(when, fault) for when in ("a block", "the index", "the manifest") for fault in FAULTS]


@pytest.mark.parametrize(
    ("when", "fault"), [*CASES, ("a block", "no ranges"), ("the index", "no ranges")]
)
def test_a_misbehaving_server_is_told_and_nothing_wrong_handed_out(asked, written, fault, when):
    cells = np.array([5, 700, 1_500])
    if when == "the manifest":
        asked.fault, asked.at = fault, "manifest.json"
        with pytest.raises((StoreError, MissingFileError), match=r"manifest\.json"):
            Store(asked.url)
        asked.fault = ""
        store = Store(asked.url)
    else:
        store = Store(asked.url)
        if when == "a block":
            store.rows(np.array([0, 1_999]))  # both shards' indices are in
        asked.fault, asked.at = fault, ".cells"
        with pytest.raises(StoreError, match=r"127\.0\.0\.1.*\.cells"):
            store.rows(cells)
        asked.fault = ""
    # the same reader goes on once the server behaves, and gives what was written
    np.testing.assert_array_equal(dense(store.rows(cells), N_GENES), written[1][cells])


def open_and_read(url: str) -> None:
    store = Store(url)
    store.rows(np.array([1]))
    store.column("donor_id")


@pytest.mark.parametrize("at", [".cells", ".parquet", ".tsv", "manifest.json"])
def test_a_missing_file_is_named(asked, at):
    asked.fault, asked.at = "404", at
    message = rf"127\.0\.0\.1.*{re.escape(at)}: no such file. Is .* a store, copied"
    with pytest.raises(MissingFileError, match=message):
        open_and_read(asked.url)


def test_nobody_there():
    with pytest.raises((StoreError, MissingFileError), match=r"127\.0\.0\.1:9/store"):
        Store("http://127.0.0.1:9/store")
    assert not is_store("http://127.0.0.1:9/store")


def test_an_unknown_kind_of_url_is_told():
    with pytest.raises(StoreError, match="nosuch"):
        Store("nosuch://bucket/store")


def test_a_server_without_ranges_is_told(asked):
    store = Store(asked.url)
    asked.fault = "no ranges"
    with pytest.raises(StoreError, match="does not know byte ranges"):
        store.rows(np.array([1]))


def test_an_address_is_no_store():
    assert not is_store("soma:s3://bucket/cells.soma")
    assert not is_store("census:homo_sapiens?obs=tissue == 'lung'")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_no_store_there(kind, in_memory, tmp_path):
    url = f"file://{tmp_path}" if kind == "file" else "memory://empty"
    assert not is_store(url)
    with pytest.raises(MissingFileError, match=r"Is .* a store"):
        Store(url)


def test_a_truncated_shard_in_a_bucket(in_memory, written):
    filesystem = fsspec.filesystem("memory")
    (shard, *_) = sorted(filesystem.find("/bucket/shards"))
    raw = filesystem.cat(shard)
    filesystem.pipe(shard, raw[:-100])
    with pytest.raises(StoreError, match="truncated"):
        Store(in_memory).rows(np.array([3]))
    filesystem.pipe(shard, raw[:500] + bytes([raw[500] ^ 1]) + raw[501:])
    store = Store(in_memory)
    with pytest.raises(StoreError, match="checksum"):
        store.rows(np.array([3]))
    np.testing.assert_array_equal(
        dense(store.rows(np.array([1_500])), N_GENES)[0], written[1][1_500]
    )
